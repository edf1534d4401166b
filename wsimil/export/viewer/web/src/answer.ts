// The slide and what the model says of it, beside what it says without the tiles that are left out.

import { el, fill, percent, short } from "./dom";
import type { Answer, CaseRow, Index, Values } from "./types";

export function answerText(answer: Answer, value: number | null | undefined): string {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  return answer.probability ? percent(value) : `${short(value, 4)}${answer.unit ? ` ${answer.unit}` : ""}`;
}

/** Short enough for a line: of a probability the name alone, for its bar and percentage say what it is. */
export function answerTitle(answer: Answer): string {
  return answer.probability ? answer.title.replace(/^probability of /i, "") : answer.title;
}

/** All numbers of an answer in one line. */
export function valuesText(index: Index, values: Values): string {
  return index.task.answers.map((answer, k) => `${answerTitle(answer)} ${answerText(answer, values[k])}`).join(", ");
}

/** What is decided, of equals without a threshold for the first; null where the answer is a number or not known. */
export function decided(index: Index, values: Values): string | null {
  const { kind, outputs } = index.task;
  if (values.some((value) => value === null || Number.isNaN(value))) return null;
  const p = values.map((value) => value ?? 0);
  if (kind !== "classification" || p.length !== outputs.length) return null;
  const [threshold] = index.thresholds;
  const best =
    p.length === 2 && threshold !== undefined ? ((p[1] ?? 0) >= threshold ? 1 : 0) : p.indexOf(Math.max(...p));
  return outputs[best] ?? null;
}

export class AnswerCard {
  readonly element: HTMLElement;

  constructor(private readonly index: Index) {
    this.element = el("section", { class: "answer", "aria-label": `Answer for this ${index.unit}` });
  }

  /** `values` are of this slide or its patient; `without` those without the tiles that are left out, null where none are. */
  update(row: CaseRow, values: Values | null, predicted: string | null, without: Values | null): void {
    const facts = [
      row.patient_id === null ? "" : `patient ${row.patient_id}`,
      row.split === null ? "" : `split ${row.split}`,
    ];
    const truth =
      row.right === null
        ? null
        : el(
            "span",
            { class: row.right ? "ok" : "bad" },
            row.right ? "✓ agrees with the label" : "✗ differs from the label",
          );
    fill(
      this.element,
      el("h2", { class: "slide-id", title: row.slide_id }, row.slide_id),
      el("p", { class: "muted small clip" }, facts.filter(Boolean).join(" · ")),
      el(
        "p",
        { class: "verdict" },
        el("strong", {}, predicted ?? "no answer"),
        row.label === null ? null : el("span", { class: "muted" }, `label ${row.label}`),
        truth,
        row.unusual ? el("span", { class: "chip warn" }, "unusual slide") : null,
      ),
      ...this.index.task.answers.map((answer, k) => this.line(answer, values?.[k], without?.[k], without !== null)),
      this.index.unit === "patient"
        ? el("p", { class: "muted small" }, "The answer is the patient's, over all its slides; the map is of this slide.")
        : null,
    );
  }

  private line(
    answer: Answer,
    value: number | null | undefined,
    other: number | null | undefined,
    compared: boolean,
  ): HTMLElement {
    const bars = answer.probability
      ? el("span", { class: "bars" }, bar(value, "bar-fill"), compared ? bar(other, "bar-fill without") : null)
      : null;
    return el(
      "div",
      { class: compared ? "answer-line compared" : "answer-line" },
      el("span", { class: "answer-title", title: answer.title }, answerTitle(answer)),
      bars,
      el(
        "span",
        { class: "answer-value" },
        answerText(answer, value),
        compared ? el("span", { class: "answer-without" }, ` → ${answerText(answer, other)}`) : null,
      ),
    );
  }
}

function bar(value: number | null | undefined, kind: string): HTMLElement {
  const inner = el("span", { class: kind });
  inner.style.width = `${100 * (value ?? 0)}%`;
  return el("span", { class: "bar" }, inner);
}
