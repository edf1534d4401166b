// The frame of the page: banner, list, stage, panel with tabs; no behavior but that of tabs.

import { button, el, fill } from "./dom";
import { PRESETS } from "./scalebar";
import type { Index } from "./types";

export function modelFacts(index: Index): string[] {
  return Object.entries(index.model).map(([name, value]) => `${name} ${value}`);
}

export function banner(index: Index): HTMLElement {
  const facts = modelFacts(index);
  return el(
    "header",
    { class: "banner" },
    el("span", { class: "brand" }, "wsimil"),
    el("span", { class: "notice", role: "note" }, index.notice),
    el("span", { class: "facts", title: facts.join("\n") }, facts.join(" · ")),
    el("span", { class: "facts end" }, `wsimil ${index.version} · ${index.date}`),
  );
}

export interface ToolbarActions {
  fit(): void;
  magnify(magnification: number): void;
  overlay(): void;
  sideBySide(): void;
  screenshot(): void;
  help(): void;
}

export class Toolbar {
  readonly element = el("div", { class: "toolbar", role: "toolbar", "aria-label": "View" });
  private readonly overlay: HTMLButtonElement;
  private readonly beside: HTMLButtonElement;

  constructor(on: ToolbarActions) {
    this.overlay = button("Overlay", () => on.overlay(), { title: "Overlay on or off (O); hold Space to hide it" });
    this.beside = button("Side by side", () => on.sideBySide(), { title: "The slide without overlay beside it (S)" });
    fill(
      this.element,
      el(
        "div",
        { class: "segments", role: "group", "aria-label": "Magnification" },
        button("Fit", () => on.fit(), { title: "The whole slide (F)" }),
        ...PRESETS.map((zoom) => button(`${zoom}×`, () => on.magnify(zoom), { "aria-label": `${zoom} times` })),
      ),
      this.overlay,
      this.beside,
      el("span", { class: "grow" }),
      button("Screenshot", () => on.screenshot(), { title: "Save the view as a PNG with legend and scale bar (P)" }),
      button("Keys", () => on.help(), { title: "What the keys do (?)" }),
    );
  }

  update(overlay: boolean, beside: boolean): void {
    this.overlay.setAttribute("aria-pressed", String(overlay));
    this.beside.setAttribute("aria-pressed", String(beside));
  }
}

export class Tabs {
  readonly element = el("div", { class: "tabs" });
  private readonly list = el("div", { class: "tablist", role: "tablist", "aria-label": "Panel" });
  private readonly tabs = new Map<string, { tab: HTMLButtonElement; panel: HTMLElement }>();
  current = "";

  constructor(
    panels: readonly (readonly [string, string, HTMLElement])[],
    private readonly chosen: (name: string) => void,
  ) {
    for (const [name, title, content] of panels) {
      const tab = button(title, () => this.show(name), {
        role: "tab",
        id: `tab-${name}`,
        "aria-controls": `panel-${name}`,
      });
      const panel = el(
        "div",
        { role: "tabpanel", id: `panel-${name}`, "aria-labelledby": `tab-${name}`, class: "tabpanel" },
        content,
      );
      this.tabs.set(name, { tab, panel });
      this.list.append(tab);
    }
    this.list.addEventListener("keydown", (event) => this.key(event));
    fill(this.element, this.list, ...[...this.tabs.values()].map((one) => one.panel));
    this.show(panels[0]?.[0] ?? "");
  }

  show(name: string): void {
    this.current = name;
    for (const [key, { tab, panel }] of this.tabs) {
      tab.setAttribute("aria-selected", String(key === name));
      tab.tabIndex = key === name ? 0 : -1;
      panel.hidden = key !== name;
    }
    this.chosen(name);
  }

  /** Shows a panel and puts the focus on its tab. */
  focus(name: string): void {
    this.show(name);
    this.tabs.get(name)?.tab.focus();
  }

  private key(event: KeyboardEvent): void {
    const names = [...this.tabs.keys()];
    const at = names.indexOf(this.current);
    const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: names.length - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    this.focus(names[(to + names.length) % names.length] ?? "");
  }
}

/** Words over the stage: what could not be loaded and why, or what is not there; and short messages. */
export class Messages {
  readonly problem = el("div", { class: "problem", role: "alert" });
  readonly hint = el("p", { class: "hint" });
  readonly toast = el("div", { class: "toast", role: "status" });
  private timer = 0;

  constructor() {
    this.clear();
    this.toast.hidden = true;
  }

  clear(): void {
    this.problem.hidden = true;
    this.hint.hidden = true;
  }

  refuse(title: string, reason: string, again: () => void): void {
    this.problem.hidden = false;
    fill(this.problem, el("h2", {}, title), el("p", {}, reason), button("Try again", again));
  }

  tell(text: string): void {
    this.hint.hidden = false;
    this.hint.textContent = text;
  }

  say(text: string): void {
    this.toast.textContent = text;
    this.toast.hidden = false;
    window.clearTimeout(this.timer);
    this.timer = window.setTimeout(() => {
      this.toast.hidden = true;
    }, 5000);
  }
}
