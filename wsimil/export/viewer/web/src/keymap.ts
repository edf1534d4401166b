// Which key does what.

import type { Key } from "./keys";

/** What keys can do; shares are of the pane, of 1 and of the range. */
export interface Commands {
  step(by: number): void;
  list(): void;
  pan(x: number, y: number): void;
  zoom(factor: number): void;
  fit(): void;
  sideBySide(): void;
  screenshot(): void;
  overlay(): void;
  opacity(by: number): void;
  threshold(by: number): void;
  setThreshold(): void;
  style(): void;
  veil(): void;
  output(number: number): void;
  attention(): void;
  tiles(): void;
  whatIf(): void;
  note(): void;
  escape(): void;
  help(): void;
}

const PANS: Readonly<Record<string, readonly [number, number]>> = {
  ArrowLeft: [-0.2, 0],
  ArrowRight: [0.2, 0],
  ArrowUp: [0, -0.2],
  ArrowDown: [0, 0.2],
};
const STEP = 0.05;

export function keymap(on: Commands): readonly Key[] {
  const key = (
    group: string,
    keys: readonly string[],
    shown: string,
    does: string,
    run: (key: string) => void,
  ): Key => ({
    group,
    keys,
    shown,
    does,
    run,
  });
  const pan = (name: string) => on.pan(...(PANS[name] ?? [0, 0]));
  return [
    key("Slides", ["ArrowLeft", "ArrowRight"], "← →", "previous or next slide", (k) =>
      on.step(k === "ArrowLeft" ? -1 : 1),
    ),
    key("Slides", ["l"], "L", "go to the list", () => on.list()),
    { ...key("View", Object.keys(PANS), "Shift ← → ↑ ↓", "move the slide", pan), shift: true },
    key("View", ["+", "=", "-", "_"], "+ −", "closer or farther", (k) =>
      on.zoom(k === "+" || k === "=" ? 1.5 : 1 / 1.5),
    ),
    key("View", ["f", "Home"], "F", "the whole slide", () => on.fit()),
    key("View", ["s"], "S", "side by side with the plain slide", () => on.sideBySide()),
    key("View", ["p"], "P", "save a screenshot", () => on.screenshot()),
    key("Overlay", ["o"], "O", "overlay on or off", () => on.overlay()),
    key("Overlay", ["ArrowUp", "ArrowDown"], "↑ ↓", "more or less opaque", (k) =>
      on.opacity(k === "ArrowUp" ? STEP : -STEP),
    ),
    key("Overlay", ["t"], "T", "set the threshold, then ← →", () => on.setThreshold()),
    key("Overlay", ["[", "]"], "[ ]", "lower or higher threshold", (k) => on.threshold(k === "]" ? STEP : -STEP)),
    key("Overlay", ["c"], "C", "tiles or contours", () => on.style()),
    key("Overlay", ["u"], "U", "hatch what is not scored", () => on.veil()),
    key("Overlay", [..."123456789"], "1 – 9", "choose the class", (k) => on.output(Number(k))),
    key("Overlay", ["a"], "A", "attention (not evidence) and back", () => on.attention()),
    key("Tools", ["g"], "G", "highest and lowest tiles", () => on.tiles()),
    key("Tools", ["w"], "W", "what if: lasso tiles", () => on.whatIf()),
    key("Tools", ["n"], "N", "write a note", () => on.note()),
    key("Tools", ["Escape"], "Esc", "stop drawing; put tiles back", () => on.escape()),
    key("Tools", ["?"], "?", "this list", () => on.help()),
  ];
}
