// Pointing at the slide: pins, rectangles and lassos, drawn on a sheet that lies over a pane while a tool is chosen.

import { el } from "./dom";
import type { Pane } from "./pane";
import type { Point } from "./types";

export type Tool = "pan" | "point" | "rectangle" | "lasso";

export interface Drawn {
  readonly kind: "point" | "rectangle" | "lasso";
  readonly xy0: readonly Point[];
  /** Shift adds to what is chosen already. */
  readonly adds: boolean;
}

/** Points nearer than this to the last one (CSS px) are left out of a lasso. */
const STEP_PX = 3;
const MOST_POINTS = 4000;

export class Sheet {
  readonly element = el("div", { class: "sheet", "aria-hidden": "true" });
  private tool: Tool = "pan";
  private points: Point[] = [];
  private last: Point = [0, 0];
  private pointer: number | null = null;

  constructor(
    private readonly pane: Pane,
    private readonly on: {
      drawing(kind: "rectangle" | "lasso", xy0: readonly Point[]): void;
      drawn(shape: Drawn): void;
      cancelled(): void;
    },
  ) {
    this.element.hidden = true;
    pane.element.append(this.element);
    this.element.addEventListener("pointerdown", (event) => this.down(event));
    this.element.addEventListener("pointermove", (event) => this.move(event));
    this.element.addEventListener("pointerup", (event) => this.up(event));
    this.element.addEventListener("pointercancel", () => this.cancel());
    this.element.addEventListener("wheel", (event) => {
      event.preventDefault();
      pane.zoomBy(event.deltaY < 0 ? 1.25 : 0.8);
    });
  }

  choose(tool: Tool): void {
    this.cancel();
    this.tool = tool;
    this.element.hidden = tool === "pan";
    this.element.dataset["tool"] = tool;
  }

  /** Drops what is being drawn. */
  cancel(): void {
    if (this.pointer === null) return;
    this.pointer = null;
    this.points = [];
    this.on.cancelled();
  }

  private down(event: PointerEvent): void {
    if (event.button !== 0 || this.tool === "pan") return;
    const at = this.place(event);
    if (at === null) return;
    event.preventDefault();
    this.element.setPointerCapture(event.pointerId);
    this.pointer = event.pointerId;
    this.points = this.tool === "rectangle" ? [at, at] : [at];
    this.last = [event.offsetX, event.offsetY];
  }

  private move(event: PointerEvent): void {
    if (this.pointer !== event.pointerId) return;
    const at = this.place(event);
    if (at === null) return;
    if (this.tool === "rectangle") this.points[1] = at;
    else if (this.tool === "lasso") {
      const far = Math.hypot(event.offsetX - this.last[0], event.offsetY - this.last[1]);
      if (far < STEP_PX || this.points.length >= MOST_POINTS) return;
      this.points.push(at);
      this.last = [event.offsetX, event.offsetY];
    } else return;
    this.on.drawing(this.tool, this.points);
  }

  private up(event: PointerEvent): void {
    if (this.pointer !== event.pointerId || this.tool === "pan") return;
    const xy0 = this.points;
    this.pointer = null;
    this.points = [];
    const [a, b] = xy0;
    const empty =
      this.tool === "lasso"
        ? xy0.length < 3
        : this.tool === "rectangle" && (!a || !b || a[0] === b[0] || a[1] === b[1]);
    if (empty) this.on.cancelled();
    else this.on.drawn({ kind: this.tool, xy0, adds: event.shiftKey });
  }

  private place(event: PointerEvent): Point | null {
    const at = this.pane.toSlide(event.offsetX, event.offsetY);
    return at && [Math.round(at[0] * 100) / 100, Math.round(at[1] * 100) / 100];
  }
}

/** Whether a point lies in a polygon, by the even-odd rule. */
export function inside(x: number, y: number, polygon: readonly Point[]): boolean {
  let within = false;
  for (let i = 0, j = polygon.length - 1; i < polygon.length; j = i++) {
    const [xi, yi] = polygon[i] ?? [0, 0];
    const [xj, yj] = polygon[j] ?? [0, 0];
    if (yi > y !== yj > y && x < ((xj - xi) * (y - yi)) / (yj - yi) + xi) within = !within;
  }
  return within;
}
