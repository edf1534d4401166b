// The choices of the overlay: score, class, opacity, threshold, and what is not scored.

import type { Style } from "./colors";
import { button, el, fill, select, short } from "./dom";
import { scoreTitle } from "./legend";
import type { Index, ScoreFacts } from "./types";

export interface View {
  readonly score: string | null;
  readonly opacity: number;
  /** Share of the range, [0, 0.95]. */
  readonly threshold: number;
  readonly visible: boolean;
  readonly veil: boolean;
  readonly tissue: boolean;
  readonly style: Style;
}

export const FIRST_VIEW: View = {
  score: null,
  opacity: 0.5,
  threshold: 0,
  visible: true,
  veil: false,
  tissue: false,
  style: "tiles",
};
const STYLES: readonly (readonly [Style, string])[] = [
  ["tiles", "Tiles"],
  ["contours", "Contours"],
];

/** A score's family, such as contribution, and the output that it is of ("" where it is of none). */
export function family(name: string): readonly [string, string] {
  const at = name.indexOf(":");
  return at < 0 ? [name, ""] : [name.slice(0, at), name.slice(at + 1)];
}

/** The score of the same family for another output, else of any family that has that output; null where there is none. */
export function scoreFor(index: Index, current: string | null, output: string): string | null {
  const names = index.scores.map((score) => score.name);
  const same = `${current === null ? "contribution" : family(current)[0]}:${output}`;
  return names.includes(same) ? same : (names.find((name) => family(name)[1] === output) ?? null);
}

export class Controls {
  readonly element = el("div", { class: "controls" });
  readonly threshold = range("Threshold", 0, 95);
  readonly opacity = range("Opacity", 0, 100);
  private readonly top = el("div", {});
  private readonly checks = el("div", { class: "checks" });

  constructor(
    private readonly index: Index,
    private readonly change: (part: Partial<View>) => void,
  ) {
    this.threshold.input.addEventListener("input", () =>
      change({ threshold: Number(this.threshold.input.value) / 100 }),
    );
    this.opacity.input.addEventListener("input", () => change({ opacity: Number(this.opacity.input.value) / 100 }));
    fill(this.element, this.top, this.opacity.element, this.threshold.element, this.checks);
  }

  update(view: View, score: ScoreFacts | null, hasTissue: boolean): void {
    this.opacity.input.value = String(Math.round(100 * view.opacity));
    this.opacity.input.disabled = view.style === "contours";
    this.opacity.said.textContent = `${Math.round(100 * view.opacity)} %`;
    this.threshold.input.value = String(Math.round(100 * view.threshold));
    const said = score?.range ? thresholdText(score, view.threshold) : "–";
    this.threshold.said.textContent = said;
    this.threshold.input.setAttribute("aria-valuetext", said);
    // Rebuilding what has the focus would drop it.
    const focused = document.activeElement instanceof HTMLElement ? document.activeElement.dataset["key"] : undefined;
    fill(this.top, ...this.choices(view));
    fill(
      this.checks,
      this.check("Show overlay", "visible", view, "hold Space to hide"),
      this.check("Hatch what is not scored", "veil", view, "U"),
      hasTissue ? this.check("Outline of tissue", "tissue", view, "") : null,
    );
    if (focused) this.element.querySelector<HTMLElement>(`[data-key=${JSON.stringify(focused)}]`)?.focus();
  }

  private choices(view: View): (HTMLElement | null)[] {
    const { scores, task } = this.index;
    if (view.score === null) return [el("p", { class: "muted" }, "There are no scores to show.")];
    const [kind, of] = family(view.score);
    const families = [...new Set(scores.map((score) => family(score.name)[0]))];
    const first = (name: string): string =>
      scores.find((score) => score.name === `${name}:${of}`)?.name ??
      scores.find((score) => family(score.name)[0] === name)?.name ??
      view.score ??
      "";
    const outputs = scores.filter((score) => family(score.name)[0] === kind && family(score.name)[1] !== "");
    const chooser =
      families.length > 1
        ? select(
            "Score",
            families.map((name) => [
              name,
              name === "attention" ? "attention (not evidence)" : name.replaceAll("_", " "),
            ]),
            kind,
            (name) => this.change({ score: first(name) }),
          )
        : null;
    if (chooser) chooser.querySelector("select")?.setAttribute("data-key", "score");
    const segments = outputs.map((score) => {
      const output = family(score.name)[1];
      const key = task.outputs.indexOf(output) + 1;
      return button(output, () => this.change({ score: score.name }), {
        "aria-pressed": String(score.name === view.score),
        "data-key": `class ${output}`,
        title: `${scoreTitle(score)}${key > 0 && key < 10 ? ` (key ${key})` : ""}`,
      });
    });
    return [
      chooser,
      segments.length > 1 || (segments.length === 1 && families.length === 1)
        ? el(
            "div",
            { class: "field" },
            el("span", {}, kind === "attention" ? "Head" : "Class"),
            el("div", { class: "segments wrap", role: "group", "aria-label": "Class" }, ...segments),
          )
        : null,
      el(
        "div",
        { class: "field" },
        el("span", {}, "Drawn as"),
        el(
          "div",
          { class: "segments wrap", role: "group", "aria-label": "Drawn as" },
          ...STYLES.map(([style, title]) =>
            button(title, () => this.change({ style }), {
              "aria-pressed": String(view.style === style),
              "data-key": `style ${style}`,
              title: style === "tiles" ? "each tile in its color (C)" : "lines around what is above the threshold (C)",
            }),
          ),
        ),
      ),
    ];
  }

  private check(title: string, name: "visible" | "veil" | "tissue", view: View, hint: string): HTMLElement {
    const input = el("input", { type: "checkbox", "data-key": name });
    input.checked = view[name];
    input.addEventListener("change", () => this.change({ [name]: input.checked }));
    return el(
      "label",
      { class: "check" },
      input,
      el("span", {}, title),
      hint ? el("span", { class: "muted small" }, hint) : null,
    );
  }
}

function thresholdText(score: ScoreFacts, share: number): string {
  const [low, high] = score.range ?? [0, 1];
  const value = score.kind === "signed" ? share * high : low + share * (high - low);
  return `${score.kind === "signed" ? "±" : ""}${short(value)}${score.unit ? ` ${score.unit}` : ""}`;
}

function range(title: string, min: number, max: number) {
  const input = el("input", { type: "range", min, max, step: 1, "aria-label": title });
  const said = el("output", { class: "range-value" });
  const element = el("label", { class: "range" }, el("span", { class: "range-title" }, title), said, input);
  return { element, input, said };
}
