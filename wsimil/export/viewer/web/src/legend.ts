// What the colors mean: score, unit, ends of the range and where they come from, how many tiles share it, what is not scored.

import type { Look } from "./colors";
import { colorAt, thresholdValue } from "./colors";
import { lineColor, lineShares, lineValues } from "./contours";
import { count, el, fill, short } from "./dom";
import type { ScoreFacts, Task } from "./types";

const STEPS = 256;
/** In narrower windows what the map rests on is folded away at first. */
const NARROW_PX = 1200;

export interface LegendFacts {
  readonly score: ScoreFacts;
  readonly look: Look;
  readonly task: Task;
  readonly effectiveTiles: number | undefined;
  readonly tiles: number;
  readonly unscored: number;
  /** Tiles that the what-if leaves out. */
  readonly leftOut: number;
}

/** The words under a score, attention never without its warning. */
export function scoreTitle(score: ScoreFacts): string {
  const attention = score.name.split(":")[0] === "attention";
  return attention && !score.label.includes("not evidence") ? `${score.label} (not evidence)` : score.label;
}

/** "low", "high" or, for signed scores, what tiles speak for and against. */
export function endWords(score: ScoreFacts, task: Task): readonly [string, string] {
  if (score.kind === "sequential") return ["low", "high"];
  const [down, up] = task.raises ?? ["against", "for"];
  return [down, up];
}

export function legendLines(facts: LegendFacts): string[] {
  const { score, look } = facts;
  const unit = score.unit ? ` ${score.unit}` : "";
  const sign = score.kind === "signed" ? "|score| " : "";
  const threshold = look.threshold > 0 ? `Shown from ${sign}${short(thresholdValue(look))}${unit}` : "No threshold";
  if (look.style === "contours") {
    const values = lineValues(look).map((value) => short(value));
    return [`Range ${score.normalization}`, `Lines around tiles from ${sign}${values.join(", ")}${unit}`, ...rest(facts)];
  }
  return [`Range ${score.normalization}`, threshold, ...rest(facts)];
}

function rest(facts: LegendFacts): string[] {
  const { score } = facts;
  const lines = [...(score.zero ? [score.zero] : []), `Rule: ${score.rule}`];
  if (facts.effectiveTiles !== undefined) {
    lines.push(`Effective tiles ${short(facts.effectiveTiles)} of ${count(facts.tiles)}`);
  }
  return lines;
}

/** The colors from one end of the range to the other, with their alpha; of contours the lines, where they lie. */
export function paintRamp(
  context: CanvasRenderingContext2D,
  x: number,
  y: number,
  w: number,
  h: number,
  look: Look,
): void {
  if (look.style === "contours") return paintRampLines(context, x, y, w, h, look);
  for (let i = 0; i < STEPS; i++) {
    const share = (i + 0.5) / STEPS;
    const [r, g, b, a] = colorAt(look.kind === "signed" ? 2 * share - 1 : share, look);
    context.fillStyle = `rgba(${r}, ${g}, ${b}, ${a / 255})`;
    const from = Math.round(x + (w * i) / STEPS);
    context.fillRect(from, y, Math.round(x + (w * (i + 1)) / STEPS) - from, h);
  }
}

function paintRampLines(
  context: CanvasRenderingContext2D,
  x: number,
  y: number,
  w: number,
  h: number,
  look: Look,
): void {
  const signed = look.kind === "signed";
  const places = lineShares(look);
  for (const at of signed ? [...places.map((place) => -place), ...places] : places) {
    const packed = lineColor(at, look);
    context.fillStyle = `rgb(${packed & 255}, ${(packed >> 8) & 255}, ${(packed >> 16) & 255})`;
    context.fillRect(Math.round(x + w * (signed ? (at + 1) / 2 : at)) - 1, y, 3, h);
  }
}

function key(kind: string, text: string): HTMLElement {
  return el("p", { class: "legend-key" }, el("span", { class: `swatch ${kind}`, "aria-hidden": "true" }), text);
}

export class Legend {
  readonly element = el("section", { class: "legend", "aria-label": "Legend of the overlay" });
  private readonly more = el("details", { class: "legend-more", open: window.innerWidth >= NARROW_PX });
  private readonly ramp = el("canvas", { class: "legend-ramp", width: 2 * STEPS, height: 24, "aria-hidden": "true" });

  update(facts: LegendFacts | null): void {
    this.element.hidden = facts === null;
    if (facts === null) return;
    const { score, look, task } = facts;
    const context = this.ramp.getContext("2d");
    context?.clearRect(0, 0, this.ramp.width, this.ramp.height);
    if (context) paintRamp(context, 0, 0, this.ramp.width, this.ramp.height, look);
    const [low, high] = look.range;
    const [down, up] = endWords(score, task);
    const middle = score.kind === "signed" ? "0" : short((low + high) / 2);
    fill(
      this.more,
      el("summary", {}, "About these colors"),
      ...legendLines(facts).map((line) => el("p", {}, line)),
      key("hatch", facts.unscored > 0 ? `not scored (${count(facts.unscored)} tiles)` : "not scored"),
      facts.leftOut > 0 ? key("hatch left-out", `left out (${count(facts.leftOut)} tiles)`) : null,
    );
    fill(
      this.element,
      el("h2", {}, scoreTitle(score)),
      this.ramp,
      el(
        "div",
        { class: "legend-ends" },
        el("span", {}, short(low)),
        el("span", {}, middle),
        el("span", {}, short(high)),
      ),
      el("div", { class: "legend-ends muted" }, el("span", {}, down), el("span", {}, score.unit), el("span", {}, up)),
      this.more,
    );
  }
}
