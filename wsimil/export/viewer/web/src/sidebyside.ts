// Two panes that show the same place: whichever the reader moves, the other follows in the same step.

import type { Pane } from "./pane";

export class Linked {
  private leader: Pane;

  constructor(
    private readonly main: Pane,
    private readonly beside: Pane,
    private readonly active: () => boolean,
  ) {
    this.leader = main;
    for (const pane of [main, beside]) {
      pane.viewer.addHandler("viewport-change", () => {
        if (this.active() && pane === this.leader) this.follow();
      });
    }
  }

  /** The pane that the reader moves now. */
  lead(pane: Pane): void {
    this.leader = pane;
  }

  /** Puts the other pane where the leader is. */
  follow(): void {
    const other = this.leader === this.main ? this.beside : this.main;
    const from = this.leader.viewer.viewport;
    const to = other.viewer.viewport;
    if (!from || !to || !other.viewer.world.getItemCount()) return;
    to.zoomTo(from.getZoom(true), undefined, true);
    to.panTo(from.getCenter(true), true);
    // Drawn now and not at its own next turn, so that the two never show different places.
    other.viewer.forceRedraw();
  }
}
