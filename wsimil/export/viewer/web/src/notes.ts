// What a reader says of a slide: agreement, text, pins and areas; saved by the server, or downloaded from a page without one.

import { ChangedElsewhere } from "./data";
import { button, el, fill, words } from "./dom";
import type { Tool } from "./lasso";
import type { Notes, Pin, Values, Verdict } from "./types";

const VERDICTS: readonly (readonly [Verdict, string])[] = [
  ["agree", "Agree"],
  ["disagree", "Disagree"],
  ["unsure", "Unsure"],
];
const NAMES: Readonly<Record<Pin["kind"], string>> = {
  point: "Pin",
  rectangle: "Rectangle",
  lasso: "Outline",
  "what-if": "What if",
};
const SAVE_AFTER_MS = 500;
const MOST_TEXT = 10_000;

interface Actions {
  /** Resolves when the notes are kept; null where there is no server, so that they live in the page. Rejects with why not. */
  readonly save: ((index: number, notes: Notes) => Promise<void>) | null;
  /** Shows what was saved elsewhere, together with what is here. */
  readonly join: (index: number) => void;
  /** Notes of a slide that is no longer shown could not be saved. */
  readonly lost: (index: number, reason: string) => void;
  readonly download: ((kind: "geojson" | "csv") => void) | null;
  readonly changed: (notes: Notes) => void;
  readonly tool: (tool: Tool) => void;
  readonly go: (pin: Pin) => void;
  readonly answer: (values: Values) => string;
}

export class NotesPanel {
  readonly element = el("div", { class: "notes" });
  readonly text = el("textarea", {
    rows: 4,
    maxlength: MOST_TEXT,
    placeholder: "What you see on this slide",
    "aria-label": "Note on this slide",
  });
  private readonly verdicts = el("div", {
    class: "segments",
    role: "group",
    "aria-label": "Do you agree with the answer?",
  });
  private readonly pins = el("ol", { class: "pins" });
  private readonly tools = el("div", { class: "row", role: "group", "aria-label": "Mark a place" });
  private readonly status = el("p", { class: "muted status", role: "status" });
  private index: number | null = null;
  private notes: Notes = { verdict: null, text: "", pins: [] };
  private timer: number | null = null;
  /** What is being sent; one after another, so that the last word is the last one to arrive. */
  private sending: Promise<void> = Promise.resolve();
  private tool: Tool = "pan";

  constructor(private readonly on: Actions) {
    this.text.addEventListener("input", () => this.change({ text: this.text.value }));
    const keep = on.download
      ? el(
          "div",
          { class: "row" },
          button("Download GeoJSON", () => on.download?.("geojson")),
          button("Download CSV", () => on.download?.("csv")),
        )
      : null;
    fill(
      this.element,
      el("h3", {}, "Do you agree with the answer?"),
      this.verdicts,
      el("h3", {}, "Note"),
      this.text,
      el("h3", {}, "Places"),
      this.tools,
      this.pins,
      this.status,
      keep,
    );
  }

  /** Notes of a slide, null while there are none to edit; those that are `unsaved` are sent. */
  load(index: number | null, notes: Notes, unsaved = false): void {
    this.index = index;
    this.notes = notes;
    this.text.value = notes.text;
    this.text.disabled = index === null;
    this.status.textContent = this.on.save ? "" : "Notes stay in this page until it is closed: download them.";
    this.render();
    if (unsaved) void this.send();
  }

  /** Says why the notes of this slide could not be had; they cannot be edited then, lest older ones be lost. */
  refuse(reason: string): void {
    this.load(null, { verdict: null, text: "", pins: [] });
    this.status.textContent = `Notes could not be read: ${reason}`;
  }

  get editable(): boolean {
    return this.index !== null;
  }

  addPin(pin: Pin): void {
    this.change({ pins: [...this.notes.pins, pin] });
    this.render();
    this.pins.querySelector<HTMLInputElement>("li:last-child input")?.focus();
  }

  showTool(tool: Tool): void {
    this.tool = tool;
    this.render();
  }

  /** Sends what is not saved yet, now. */
  flush(): void {
    if (this.timer !== null) void this.send();
  }

  private change(part: Partial<Notes>): void {
    if (this.index === null) return;
    this.notes = { ...this.notes, ...part };
    this.on.changed(this.notes);
    if (this.on.save === null) return;
    this.status.textContent = "Saving …";
    if (this.timer !== null) window.clearTimeout(this.timer);
    this.timer = window.setTimeout(() => void this.send(), SAVE_AFTER_MS);
  }

  private send(): Promise<void> {
    if (this.timer !== null) window.clearTimeout(this.timer);
    this.timer = null;
    const { index, notes } = this;
    const { save } = this.on;
    if (index === null || save === null) return Promise.resolve();
    this.sending = this.sending.then(async () => {
      try {
        await save(index, notes);
        if (this.notes === notes) this.status.textContent = "Saved.";
      } catch (error) {
        const reason = words(error);
        if (this.index !== index) return this.on.lost(index, reason);
        fill(
          this.status,
          el("span", { class: "bad" }, `Not saved: ${reason} `),
          error instanceof ChangedElsewhere
            ? button("Show these, with mine", () => this.on.join(index))
            : button("Try again", () => void this.send()),
        );
      }
    });
    return this.sending;
  }

  private render(): void {
    const off = this.index === null;
    fill(
      this.verdicts,
      ...VERDICTS.map(([verdict, title]) => {
        const on = this.notes.verdict === verdict;
        const set = () => {
          this.change({ verdict: on ? null : verdict });
          this.render();
          this.verdicts.querySelector<HTMLElement>(`[data-verdict=${verdict}]`)?.focus();
        };
        return button(title, set, { "aria-pressed": String(on), disabled: off, "data-verdict": verdict });
      }),
    );
    const tool = (kind: Tool, title: string): HTMLElement =>
      button(title, () => this.on.tool(this.tool === kind ? "pan" : kind), {
        "aria-pressed": String(this.tool === kind),
        disabled: off,
      });
    fill(this.tools, tool("point", "Pin"), tool("rectangle", "Rectangle"), tool("lasso", "Outline"));
    fill(this.pins, ...this.notes.pins.map((pin, i) => this.pin(pin, i)));
  }

  private pin(pin: Pin, at: number): HTMLElement {
    const title = `${NAMES[pin.kind]} ${at + 1}`;
    const input = el("input", {
      type: "text",
      maxlength: MOST_TEXT,
      placeholder: "Text",
      "aria-label": `Text of ${title}`,
    });
    input.value = pin.text;
    input.addEventListener("input", () =>
      this.change({ pins: this.notes.pins.map((one, k) => (k === at ? { ...one, text: input.value } : one)) }),
    );
    const remove = () => {
      this.change({ pins: this.notes.pins.filter((_, k) => k !== at) });
      this.render();
    };
    const left = pin.without?.length ?? 0;
    return el(
      "li",
      {},
      el(
        "div",
        { class: "row" },
        button(title, () => this.on.go(this.notes.pins[at] ?? pin), { class: "link", title: "Go there" }),
        button("×", remove, { class: "quiet", "aria-label": `Delete ${title}`, title: "Delete" }),
      ),
      pin.kind === "what-if"
        ? el(
            "p",
            { class: "muted small" },
            `without ${left.toLocaleString("en-US")} tiles: ${this.on.answer(pin.values ?? [])}`,
          )
        : null,
      input,
    );
  }
}
