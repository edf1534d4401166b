// The list of slides: filters, an order, and as many rows in the page as fit on the screen, whatever the cohort's size.

import { clamp, count, el, fill, percent, select } from "./dom";
import type { CaseRow, Index } from "./types";

const ROW_PX = 62;
const SPARE_ROWS = 6;

/** What is said of a row in one line, for those who hear it. */
export function rowWords(row: CaseRow): string {
  const p = row.confidence;
  const parts = [
    row.slide_id,
    row.predicted === null ? "no answer" : `predicted ${row.predicted}${p === null ? "" : ` ${percent(p)}`}`,
    row.label === null ? "" : `label ${row.label}`,
    row.right === null ? "" : row.right ? "right" : "wrong",
    row.uncertainty === null ? "" : `uncertainty ${row.uncertainty.toFixed(2)}`,
    row.unusual ? "unusual" : "",
  ];
  return parts.filter(Boolean).join(", ");
}

export class CaseList {
  readonly element = el("nav", { class: "cases", "aria-label": "Slides" });
  private readonly scroller = el("div", {
    class: "case-scroll",
    role: "listbox",
    tabindex: 0,
    "aria-label": "Slides, up and down arrows choose",
  });
  private readonly spacer = el("div", { class: "case-spacer", role: "presentation" });
  private readonly said = el("p", { class: "case-count", role: "status" });
  private readonly search = el("input", {
    type: "search",
    placeholder: "Search slides",
    "aria-label": "Search slides",
  });
  private readonly chosen = { result: "all", label: "all", split: "all", order: "file" };
  private readonly hay: readonly string[];
  private rows: readonly CaseRow[];
  private current = -1;
  /** Rows that are there, by the number of their slide. */
  private readonly there = new Map<number, HTMLElement>();

  constructor(
    private readonly index: Index,
    private readonly open: (index: number) => void,
  ) {
    this.rows = index.cases;
    this.hay = index.cases.map((row) => [row.slide_id, row.patient_id ?? ""].join("\n").toLowerCase());
    this.scroller.append(this.spacer);
    this.search.addEventListener("input", () => this.refilter());
    this.scroller.addEventListener("scroll", () => this.render(), { passive: true });
    this.scroller.addEventListener("keydown", (event) => this.key(event));
    new ResizeObserver(() => this.render()).observe(this.scroller);
    fill(this.element, el("div", { class: "case-tools" }, this.search, this.filters(), this.said), this.scroller);
    this.refilter();
  }

  /** Marks the slide that is shown and brings its row into sight. */
  show(index: number): void {
    this.current = index;
    const at = this.rows.findIndex((row) => row.index === index);
    if (at >= 0) {
      const top = at * ROW_PX;
      const { scrollTop, clientHeight } = this.scroller;
      if (top < scrollTop) this.scroller.scrollTop = top;
      else if (top + ROW_PX > scrollTop + clientHeight) this.scroller.scrollTop = top + ROW_PX - clientHeight;
    }
    this.render();
  }

  /** Opens the next (1) or previous (-1) slide of those that are listed. */
  step(by: number): void {
    if (this.rows.length === 0) return;
    const at = this.rows.findIndex((row) => row.index === this.current);
    const next = this.rows[at < 0 ? 0 : clamp(at + by, 0, this.rows.length - 1)];
    if (next && next.index !== this.current) this.open(next.index);
  }

  focus(): void {
    this.scroller.focus();
  }

  private filters(): HTMLElement {
    const { cases, task } = this.index;
    const values = (of: (row: CaseRow) => string | null): [string, string][] =>
      [...new Set(cases.map(of))]
        .filter((value) => value !== null)
        .sort()
        .map((value) => [`=${value}`, value]);
    const labels = values((row) => row.label);
    const splits = values((row) => row.split);
    const results: [string, string][] = [["all", "All slides"]];
    if (cases.some((row) => row.right !== null)) results.push(["wrong", "Wrong"], ["right", "Right"]);
    if (cases.some((row) => row.unusual)) results.push(["unusual", "Unusual"]);
    if (cases.some((row) => row.predicted === null || !row.scored)) results.push(["open", "Without map"]);
    const orders: [string, string][] = [
      ["file", "As listed"],
      ["id", "By name"],
    ];
    if (cases.some((row) => row.uncertainty !== null)) orders.push(["uncertain", "Most uncertain"]);
    if (cases.some((row) => row.right === false)) orders.push(["wrong", "Wrong, surest first"]);
    task.answers.slice(0, 8).forEach((answer, k) => orders.push([`value ${k}`, `${answer.title}, highest`]));
    const make = (label: string, name: keyof CaseList["chosen"], options: [string, string][]) =>
      select(label, options, this.chosen[name], (value) => {
        this.chosen[name] = value;
        this.refilter();
      });
    return el(
      "div",
      { class: "case-filters" },
      results.length > 1 ? make("Show", "result", results) : null,
      labels.length > 1 && labels.length <= 50 ? make("Label", "label", [["all", "Any"], ...labels]) : null,
      splits.length > 1 ? make("Split", "split", [["all", "Any"], ...splits]) : null,
      make("Order", "order", orders),
    );
  }

  private refilter(): void {
    const { result, label, split, order } = this.chosen;
    const wanted = this.search.value.trim().toLowerCase();
    const rows = this.index.cases.filter(
      (row, i) =>
        (wanted === "" || this.hay[i]?.includes(wanted)) &&
        (label === "all" || `=${row.label}` === label) &&
        (split === "all" || `=${row.split}` === split) &&
        (result === "all" ||
          (result === "right" && row.right === true) ||
          (result === "wrong" && row.right === false) ||
          (result === "unusual" && row.unusual === true) ||
          (result === "open" && (row.predicted === null || !row.scored))),
    );
    this.rows = order === "file" ? rows : sorted(rows, order);
    const all = this.index.cases.length;
    this.said.textContent =
      rows.length === all ? `${count(all)} slides` : `${count(rows.length)} of ${count(all)} slides`;
    this.scroller.scrollTop = 0;
    this.show(this.current);
  }

  private render(): void {
    const { scrollTop, clientHeight } = this.scroller;
    this.spacer.style.height = `${this.rows.length * ROW_PX}px`;
    const first = Math.max(0, Math.floor(scrollTop / ROW_PX) - SPARE_ROWS);
    const last = Math.min(this.rows.length, Math.ceil((scrollTop + clientHeight) / ROW_PX) + SPARE_ROWS);
    this.place(this.rows.slice(first, last), first);
    const active = this.rows.some((row) => row.index === this.current);
    if (active) this.scroller.setAttribute("aria-activedescendant", `case-${this.current}`);
    else this.scroller.removeAttribute("aria-activedescendant");
  }

  /** Rows that stay are not touched: a click is lost where its row is replaced between press and release. */
  private place(rows: readonly CaseRow[], first: number): void {
    const wanted = new Set(rows.map((row) => row.index));
    for (const [index, element] of this.there) {
      if (wanted.has(index)) continue;
      element.remove();
      this.there.delete(index);
    }
    let next = this.spacer.firstChild;
    rows.forEach((row, i) => {
      const element = this.there.get(row.index) ?? this.row(row);
      this.there.set(row.index, element);
      element.style.top = `${(first + i) * ROW_PX}px`;
      element.setAttribute("aria-selected", String(row.index === this.current));
      element.setAttribute("aria-setsize", String(this.rows.length));
      element.setAttribute("aria-posinset", String(first + i + 1));
      if (element === next) next = next.nextSibling;
      else this.spacer.insertBefore(element, next);
    });
  }

  private row(row: CaseRow): HTMLElement {
    const p = row.confidence;
    const bar = el("span", { class: "bar" }, el("span", { class: "bar-fill" }));
    const filled = bar.firstElementChild;
    if (filled instanceof HTMLElement) filled.style.width = `${100 * (p ?? 0)}%`;
    const verdict = row.right === null ? null : el("span", { class: row.right ? "ok" : "bad" }, row.right ? "✓" : "✗");
    const element = el(
      "div",
      {
        class: "case",
        role: "option",
        id: `case-${row.index}`,
        "aria-label": rowWords(row),
        title: row.slide_id,
      },
      el(
        "div",
        { class: "case-line" },
        el("span", { class: "case-id" }, row.slide_id),
        row.unusual ? el("span", { class: "chip warn" }, "unusual") : null,
        row.predicted === null || !row.scored
          ? el("span", { class: "chip" }, row.predicted === null ? "no answer" : "no map")
          : null,
      ),
      el(
        "div",
        { class: "case-line" },
        el(
          "span",
          { class: "case-said" },
          verdict,
          el("span", { class: "case-predicted" }, row.predicted ?? row.status),
        ),
        p === null ? null : el("span", { class: "case-p" }, percent(p)),
        p === null ? null : bar,
      ),
      el(
        "div",
        { class: "case-line muted small" },
        el("span", { class: "case-truth" }, row.label === null ? "" : `label ${row.label}`),
        row.uncertainty === null
          ? null
          : el("span", { class: "case-unsure" }, `uncertainty ${row.uncertainty.toFixed(2)}`),
      ),
    );
    element.addEventListener("click", () => this.open(row.index));
    return element;
  }

  private key(event: KeyboardEvent): void {
    const page = Math.max(1, Math.floor(this.scroller.clientHeight / ROW_PX) - 1);
    const steps: Readonly<Record<string, number>> = {
      ArrowDown: 1,
      ArrowUp: -1,
      PageDown: page,
      PageUp: -page,
      Home: -this.rows.length,
      End: this.rows.length,
    };
    const by = steps[event.key];
    if (by === undefined || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    event.stopPropagation();
    this.step(by);
  }
}

/** In [0, 1]; of several labels by how certain each is. */
function sureness(row: CaseRow): number {
  return row.confidence ?? (row.uncertainty === null ? 0 : 1 - row.uncertainty);
}

function sorted(rows: readonly CaseRow[], order: string): readonly CaseRow[] {
  const key = ((): ((row: CaseRow) => number) => {
    if (order === "uncertain") return (row) => -(row.uncertainty ?? -1);
    if (order === "wrong") return (row) => (row.right === false ? -1 - sureness(row) : row.right ? 1 : 0);
    const answer = Number(order.replace("value ", ""));
    return (row) => -(row.values?.[answer] ?? Number.NEGATIVE_INFINITY);
  })();
  if (order === "id") {
    const collator = new Intl.Collator("en", { numeric: true });
    return [...rows].sort((a, b) => collator.compare(a.slide_id, b.slide_id));
  }
  return [...rows].sort((a, b) => key(a) - key(b) || a.index - b.index);
}
