// The tiles with the highest and the lowest scores, as pictures that lead to their place on the slide.

import type { SlideCase, Source } from "./data";
import { button, el, fill, short } from "./dom";
import { endWords, scoreTitle } from "./legend";
import { drawPlace } from "./tiles";
import type { Kind, ScoreFacts, Task } from "./types";

const SHOWN = 9;
const PICTURE_PX = 168;

/** Up to `n` tiles with the highest scores (`sign` 1) or the lowest (-1), equal ones in the order of tiles; NaN is none.
 *
 * Of signed scores those alone that are above 0, or below: no others speak for, or against. */
export function extremeTiles(scores: Float32Array, n: number, sign: 1 | -1, kind: Kind): number[] {
  const best: number[] = [];
  const value = (tile: number): number => sign * (scores[tile] ?? Number.NaN);
  for (let tile = 0; tile < scores.length; tile++) {
    const mine = value(tile);
    if (Number.isNaN(mine) || (best.length === n && !(mine > value(best.at(-1) ?? 0)))) continue;
    let at = best.length;
    while (at > 0 && value(best[at - 1] ?? 0) < mine) at--;
    best.splice(at, 0, tile);
    if (best.length > n) best.pop();
  }
  return kind === "signed" ? best.filter((tile) => value(tile) > 0) : best;
}

export class Gallery {
  readonly element = el("div", { class: "gallery" });
  private current: number | null = null;

  constructor(
    private readonly source: Source,
    private readonly task: Task,
    private readonly pick: (tile: number) => void,
  ) {}

  update(slide: SlideCase | null, score: ScoreFacts | null): void {
    this.current = null;
    const scores = slide && score ? slide.scores.get(score.name) : undefined;
    if (!slide || !score || !scores) {
      fill(this.element, el("p", { class: "muted" }, "This slide has no scores on its tiles."));
      return;
    }
    const signed = score.kind === "signed";
    const [down, up] = endWords(score, this.task);
    const top = extremeTiles(scores, SHOWN, 1, score.kind);
    const bottom = extremeTiles(scores, SHOWN, -1, score.kind);
    const part = (title: string, tiles: readonly number[], none: string): HTMLElement =>
      el(
        "section",
        { "aria-label": title },
        el("h3", {}, title),
        tiles.length === 0
          ? el("p", { class: "muted" }, none)
          : el(
              "div",
              { class: "tiles" },
              ...tiles.map((tile, i) => this.tile(slide, scores, tile, `${title} ${i + 1}`)),
            ),
      );
    fill(
      this.element,
      el("p", { class: "muted" }, `By ${scoreTitle(score)}. Choose a tile to go there.`),
      part(signed ? `Most ${up}` : "Highest", top, `No tile speaks ${up}.`),
      part(signed ? `Most ${down}` : "Lowest", bottom, `No tile speaks ${down}.`),
    );
  }

  /** Marks the tile that was chosen. */
  show(tile: number | null): void {
    this.current = tile;
    for (const one of this.element.querySelectorAll("button")) {
      one.setAttribute("aria-pressed", String(one.dataset["tile"] === String(this.current)));
    }
  }

  private tile(slide: SlideCase, scores: Float32Array, tile: number, name: string): HTMLElement {
    const value = short(scores[tile] ?? Number.NaN);
    const element = button("", () => this.pick(tile), {
      class: "tile",
      "data-tile": tile,
      "aria-label": `${name}, tile ${tile}, score ${value}`,
      "aria-pressed": "false",
    });
    fill(element, this.picture(slide, tile), el("span", { class: "tile-value" }, value));
    return element;
  }

  private picture(slide: SlideCase, tile: number): HTMLElement {
    const url = this.source.crop(slide, tile);
    if (url === null) {
      const canvas = el("canvas", { class: "tile-picture", width: PICTURE_PX, height: PICTURE_PX });
      void drawPlace(canvas, slide, this.source, tile);
      return canvas;
    }
    const image = el("img", { class: "tile-picture", alt: "", loading: "lazy", decoding: "async", src: url });
    image.addEventListener("error", () => image.replaceWith(el("span", { class: "tile-picture" })), { once: true });
    return image;
  }
}
