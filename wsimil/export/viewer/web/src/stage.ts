// The middle of the page: one view of the slide or two side by side, and what lies over them.

import type { Look } from "./colors";
import type { SlideCase, Source } from "./data";
import { el, fill } from "./dom";
import { Heat, type Placement } from "./heat";
import { type Drawn, Sheet, type Tool } from "./lasso";
import { Messages } from "./layout";
import { Legend } from "./legend";
import { MarkLayer, type Marks } from "./marks";
import { Pane } from "./pane";
import { ScaleBar } from "./scalebar";
import { Linked } from "./sidebyside";
import type { Box } from "./places";
import type { Point } from "./types";

export class Stage {
  readonly element: HTMLElement;
  readonly messages = new Messages();
  readonly legend = new Legend();
  private readonly heat = new Heat();
  private readonly mainMarks = new MarkLayer();
  private readonly besideMarks = new MarkLayer();
  private readonly main: Pane;
  private beside: Pane | null = null;
  private linked: Linked | null = null;
  private readonly sheet: Sheet;
  private readonly scaleBar = new ScaleBar();
  private readonly readout = el("div", { class: "readout", "aria-hidden": "true" });
  private readonly panes = el("div", { class: "panes" });
  private slide: SlideCase | null = null;
  private failed = false;
  sideBySide = false;

  constructor(
    private readonly source: Source,
    on: {
      drawing(kind: "rectangle" | "lasso", xy0: readonly Point[]): void;
      drawn(shape: Drawn): void;
      cancelled(): void;
      /** What is said of the tile under the pointer, "" for nothing. */
      read(tile: number | null): string;
    },
  ) {
    this.main = this.makePane("Slide with overlay", true);
    this.sheet = new Sheet(this.main, on);
    this.panes.append(this.main.element);
    const { problem, hint, toast } = this.messages;
    this.element = el(
      "div",
      { class: "ground" },
      this.panes,
      this.scaleBar.element,
      this.readout,
      this.legend.element,
      hint,
      problem,
      toast,
    );
    this.main.element.addEventListener("pointermove", (event) => {
      const box = this.main.element.getBoundingClientRect();
      const at = this.main.toSlide(event.clientX - box.left, event.clientY - box.top);
      fill(this.readout, on.read(at && this.heat.tileAt(at[0], at[1])));
    });
    this.main.element.addEventListener("pointerleave", () => fill(this.readout));
  }

  async open(slide: SlideCase): Promise<void> {
    this.failed = false;
    await Promise.all([this.main.open(slide, this.source), this.beside?.open(slide, this.source)]);
    this.slide = slide;
    this.scaleBar.element.hidden = false;
  }

  close(): void {
    this.slide = null;
    this.scaleBar.element.hidden = true;
    this.main.close();
    this.beside?.close();
  }

  // What is shown; the caller redraws once all is set.

  showScores(scores: Float32Array | null, without: ReadonlySet<number>): void {
    this.heat.setScores(scores, without);
  }

  showLook(look: Look, veil: boolean): void {
    this.heat.setLook(look, veil);
  }

  showHeat(visible: boolean): void {
    this.heat.setVisible(visible);
  }

  showMarks(marks: Marks): void {
    this.mainMarks.set(marks);
    this.besideMarks.set({ ...marks, drawing: null });
  }

  redraw(): void {
    this.main.redraw();
    this.beside?.redraw();
  }

  setSideBySide(on: boolean): void {
    this.sideBySide = on;
    if (this.beside === null) {
      this.beside = this.makePane("Slide without overlay", false);
      this.panes.prepend(this.beside.element);
      this.linked = new Linked(this.main, this.beside, () => this.sideBySide);
      if (this.slide) void this.beside.open(this.slide, this.source).then(() => this.linked?.follow());
    }
    this.beside.element.hidden = !on;
    this.panes.classList.toggle("two", on);
    this.main.resized();
    this.beside.resized();
    this.moved();
    this.linked?.follow();
  }

  // Where it is; a move from outside the panes is one of the main pane, which the other follows.

  fit(): void {
    this.moved();
    this.main.home();
  }

  magnify(magnification: number): void {
    this.moved();
    this.main.magnify(magnification);
  }

  zoomBy(factor: number): void {
    this.moved();
    this.main.zoomBy(factor);
  }

  panBy(x: number, y: number): void {
    this.moved();
    this.main.panBy(x, y);
  }

  /** Brings a box to the middle, so that it fills `share` of the view. */
  flyTo([left, top, right, bottom]: Box, share: number): void {
    this.moved();
    this.main.flyTo(left, top, right - left, bottom - top, share);
  }

  choose(tool: Tool): void {
    this.sheet.choose(tool);
  }

  get placement(): Placement | null {
    return this.main.placement();
  }

  get besidePlacement(): Placement | null {
    return this.sideBySide ? (this.beside?.placement() ?? null) : null;
  }

  /** Whether all pictures of what is in sight are there. */
  get complete(): boolean {
    return this.main.complete && (!this.sideBySide || (this.beside?.complete ?? false));
  }

  /** Slide, heat and marks as they are on the screen, the lowest first. */
  get layers(): readonly HTMLCanvasElement[] {
    const drawer = (this.main.viewer.drawer as unknown as { canvas: HTMLCanvasElement }).canvas;
    return [drawer, this.heat.canvas, this.mainMarks.canvas];
  }

  /** Where OpenSeadragon shows a point of the slide (level-0 px), CSS px of the view. */
  imageToViewer(x: number, y: number): Point | null {
    return this.main.imageToViewer(x, y);
  }

  /** Where the heat on the screen has the same point. */
  heatToViewer(x: number, y: number): Point | null {
    const place = this.heat.drawn;
    return place && [(x - place.x0) * place.scale, (y - place.y0) * place.scale];
  }

  private moved(): void {
    this.linked?.lead(this.main);
  }

  private makePane(label: string, first: boolean): Pane {
    const layers = first ? { heat: this.heat, marks: this.mainMarks } : { marks: this.besideMarks };
    const pane: Pane = new Pane(
      label,
      layers,
      {
        frame: (place) => {
          if (first && this.slide) this.scaleBar.update(place.scale, this.slide.mpp);
        },
        lead: () => this.linked?.lead(pane),
        broken: () => this.pictureFailed(),
      },
      first,
    );
    return pane;
  }

  private pictureFailed(): void {
    if (this.failed) return;
    this.failed = true;
    this.messages.say("Some of the slide's pictures could not be read; those parts stay blank.");
  }
}
