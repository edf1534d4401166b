// The keyboard: what each key does, and the help that lists it.

import { button, el, fill } from "./dom";

export interface Key {
  /** As `KeyboardEvent.key` has them; letters in lower case. */
  readonly keys: readonly string[];
  readonly shown: string;
  readonly does: string;
  readonly group: string;
  readonly shift?: boolean;
  run(key: string): void;
}

export class Keyboard {
  private held = false;

  constructor(
    private readonly map: readonly Key[],
    private readonly hold: (held: boolean) => void,
  ) {
    document.addEventListener("keydown", (event) => this.down(event));
    document.addEventListener("keyup", (event) => this.up(event));
    window.addEventListener("blur", () => this.release());
  }

  private down(event: KeyboardEvent): void {
    if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing || document.querySelector("dialog[open]"))
      return;
    const target = event.target instanceof Element ? event.target : document.body;
    const typing = target.matches("input:not([type=range]):not([type=checkbox]), textarea, select");
    if (typing) {
      if (event.key === "Escape" && target instanceof HTMLElement) target.blur();
      return;
    }
    if (event.key === " ") {
      if (presses(target)) return;
      event.preventDefault();
      if (!this.held) this.hold((this.held = true));
      return;
    }
    const own = target.matches("input[type=range]") || target.closest("[role=tablist]") !== null;
    if (own && (event.key.startsWith("Arrow") || event.key === "Home" || event.key === "End")) return;
    const name = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    const arrow = name.startsWith("Arrow");
    const found = this.map.find((key) => key.keys.includes(name) && (!arrow || Boolean(key.shift) === event.shiftKey));
    if (!found) return;
    event.preventDefault();
    found.run(name);
  }

  private up(event: KeyboardEvent): void {
    if (event.key !== " " || !this.held) return;
    event.preventDefault();
    this.release();
  }

  private release(): void {
    if (this.held) this.hold((this.held = false));
  }
}

/** Whether Space belongs to what has the focus: a control that was reached with the keyboard. */
function presses(target: Element): boolean {
  return target.matches(
    "button:focus-visible, summary:focus-visible, input[type=checkbox]:focus-visible, a[href]:focus-visible",
  );
}

/** The list of keys, over the page. */
export class Help {
  readonly element = el("dialog", { class: "help", "aria-labelledby": "help-title" });

  constructor(map: readonly Key[]) {
    const rows = [...map, { shown: "Space", does: "hide the overlay while held", group: "Overlay" }];
    const groups = [...new Set(rows.map((key) => key.group))];
    fill(
      this.element,
      el(
        "div",
        { class: "help-head" },
        el("h2", { id: "help-title" }, "Keys"),
        button("Close", () => this.element.close()),
      ),
      el(
        "div",
        { class: "help-groups" },
        ...groups.map((group) =>
          el(
            "section",
            {},
            el("h3", {}, group),
            el(
              "dl",
              {},
              ...rows
                .filter((key) => key.group === group)
                .map((key) => el("div", {}, el("dt", {}, el("kbd", {}, key.shown)), el("dd", {}, key.does))),
            ),
          ),
        ),
      ),
    );
    this.element.addEventListener("click", (event) => {
      if (event.target === this.element) this.element.close();
    });
    this.element.addEventListener("keydown", (event) => {
      if (event.key === "?") this.element.close();
    });
  }

  open(): void {
    if (!this.element.open) this.element.showModal();
  }
}
