// What if some tiles were not there: ways to leave tiles out, and the answer without them.

import { button, count, el, fill, percent } from "./dom";
import type { Tool } from "./lasso";
import type { Index } from "./types";

export interface WhatIfState {
  readonly without: ReadonlySet<number>;
  readonly tiles: number;
  /** Share of attention that the tiles hold, null where it is not known. */
  readonly attention: number | null;
  readonly said:
    | { readonly kind: "none" }
    | { readonly kind: "asking" }
    | { readonly kind: "answer"; readonly text: string; readonly decided: string | null; readonly exact: string }
    | { readonly kind: "refused"; readonly reason: string };
  /** Why there is no what-if on this slide, null where there is. */
  readonly closed: string | null;
  readonly ends: readonly [string, string];
}

export class WhatIfPanel {
  readonly element = el("div", { class: "whatif" });
  private readonly number = el("input", {
    type: "number",
    min: 1,
    max: 100000,
    value: 10,
    "aria-label": "How many tiles",
  });
  private readonly result = el("div", { class: "result", role: "status", "aria-live": "polite" });
  private readonly lasso: HTMLButtonElement;
  private readonly most: HTMLButtonElement;
  private readonly least: HTMLButtonElement;
  private readonly ways: HTMLElement;
  private readonly after: HTMLElement;
  private readonly why = el("p", { class: "muted" });
  private tool: Tool = "pan";

  constructor(unit: Index["unit"], on: {
    tool(tool: Tool): void;
    extremes(n: number, sign: 1 | -1): void;
    view(): void;
    clear(): void;
    keep(): void;
  }) {
    this.lasso = button("Lasso tiles", () => on.tool(this.tool === "lasso" ? "pan" : "lasso"), { class: "primary" });
    const n = () => Math.max(1, Math.floor(Number(this.number.value) || 1));
    this.most = button("", () => on.extremes(n(), 1));
    this.least = button("", () => on.extremes(n(), -1));
    this.ways = el(
      "div",
      {},
      el(
        "div",
        { class: "row" },
        this.lasso,
        button("Leave out all in view", () => on.view()),
      ),
      el(
        "p",
        { class: "muted small" },
        "Draw around tiles to leave them out; hold Shift to add to those left out already.",
      ),
      el("div", { class: "row" }, el("span", {}, "Leave out the"), this.number, this.most, this.least),
    );
    this.after = el(
      "div",
      { class: "row" },
      button("Keep with the notes", () => on.keep(), { class: "primary" }),
      button("Put all back", () => on.clear()),
    );
    fill(
      this.element,
      el(
        "p",
        {},
        unit === "patient"
          ? "What would the model say of this patient, over all its slides, without some tiles of this one?"
          : "What would the model say of this slide without some of its tiles?",
      ),
      this.why,
      this.ways,
      this.result,
      this.after,
    );
  }

  showTool(tool: Tool): void {
    this.tool = tool;
    this.lasso.setAttribute("aria-pressed", String(tool === "lasso"));
    this.lasso.textContent = tool === "lasso" ? "Stop the lasso" : "Lasso tiles";
  }

  update(state: WhatIfState): void {
    this.why.hidden = state.closed === null;
    this.why.textContent = state.closed ?? "";
    this.ways.hidden = state.closed !== null;
    const [down, up] = state.ends;
    this.most.textContent = `most ${up}`;
    this.least.textContent = `most ${down}`;
    const n = state.without.size;
    this.after.hidden = n === 0;
    this.after.querySelector("button")?.toggleAttribute("disabled", state.said.kind !== "answer");
    if (n === 0 || state.closed !== null) return fill(this.result);
    const share = state.attention === null ? "" : `, which hold ${percent(state.attention)} of the attention`;
    const head = el("p", {}, `Without ${count(n)} of ${count(state.tiles)} tiles${share}:`);
    const { said } = state;
    if (said.kind === "answer") {
      fill(
        this.result,
        head,
        el("p", { class: "result-answer" }, said.text),
        said.decided === null ? null : el("p", {}, said.decided),
        el("p", { class: "muted small" }, said.exact),
      );
    } else if (said.kind === "asking") fill(this.result, head, el("p", { class: "muted" }, "Asking the model …"));
    else if (said.kind === "refused") fill(this.result, head, el("p", { class: "bad" }, said.reason));
    else fill(this.result, head);
  }
}
