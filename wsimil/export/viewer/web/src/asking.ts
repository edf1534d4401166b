// One what-if after another: the tiles that are left out now, and the answer without them from here or from the server.

import { decided, valuesText } from "./answer";
import type { SlideCase, Source } from "./data";
import { words } from "./dom";
import type { Point, Values } from "./types";
import { logitsWithout, valuesOf } from "./whatif";
import type { WhatIfState } from "./whatifpanel";

export const NO_TILES: ReadonlySet<number> = new Set();
const ASK_AFTER_MS = 150;

export interface WhatIf {
  readonly without: ReadonlySet<number>;
  readonly lassos: readonly (readonly Point[])[];
  readonly said: WhatIfState["said"];
  /** Null while there is no answer. */
  readonly values: Values | null;
}

const NOTHING: WhatIf = { without: NO_TILES, lassos: [], said: { kind: "none" }, values: null };

export class Asking {
  now: WhatIf = NOTHING;
  private slide: SlideCase | null = null;
  private asked = 0;

  constructor(
    private readonly source: Source,
    private readonly changed: () => void,
  ) {}

  /** Turns to another slide, with all its tiles; says nothing. */
  begin(slide: SlideCase | null): void {
    this.asked += 1;
    this.slide = slide;
    this.now = NOTHING;
  }

  clear(): void {
    if (this.now.without.size > 0) this.leaveOut(NO_TILES, []);
  }

  leaveOut(without: ReadonlySet<number>, lassos: readonly (readonly Point[])[]): void {
    const { slide } = this;
    const mine = ++this.asked;
    this.now = without.size === 0 ? NOTHING : { without, lassos, said: { kind: "none" }, values: null };
    if (slide !== null && without.size > 0) {
      if (slide.whatIf.form === "closed") this.compute(slide, without);
      else if (slide.whatIf.form === "server" && this.source.live) {
        this.now = { ...this.now, said: { kind: "asking" } };
        window.setTimeout(() => void this.ask(slide, without, mine), ASK_AFTER_MS);
      }
    }
    this.changed();
  }

  private compute(slide: SlideCase, without: ReadonlySet<number>): void {
    if (slide.whatIf.form !== "closed") return;
    try {
      const values = valuesOf(logitsWithout(slide.whatIf, without), slide.whatIf.link);
      const said = decided(this.source.index, values);
      this.answered(
        slide,
        values,
        said,
        "Exact, computed in this page: the attention of the other tiles grows to sum to 1.",
      );
    } catch (error) {
      this.now = { ...this.now, said: { kind: "refused", reason: words(error) } };
    }
  }

  private async ask(slide: SlideCase, without: ReadonlySet<number>, mine: number): Promise<void> {
    if (mine !== this.asked) return;
    try {
      const reply = await this.source.answerWithout(
        slide.index,
        [...without].sort((a, b) => a - b),
      );
      if (mine !== this.asked) return;
      this.answered(slide, reply.values, reply.predicted, "The model was run again without these tiles.");
    } catch (error) {
      if (mine !== this.asked) return;
      this.now = { ...this.now, said: { kind: "refused", reason: words(error) } };
    }
    this.changed();
  }

  private answered(slide: SlideCase, values: Values, said: string | null, exact: string): void {
    const before = slide.predicted;
    const change =
      said === null
        ? null
        : said === before
          ? `The answer stays ${said}.`
          : `The answer changes from ${before} to ${said}.`;
    this.now = {
      ...this.now,
      values,
      said: { kind: "answer", text: valuesText(this.source.index, values), decided: change, exact },
    };
  }
}
