// Drawn over the slide: pins, rectangles and lassos, the tile that was flown to, the outline of tissue.

import type { Placement } from "./heat";
import type { MultiPolygon, Pin, Point } from "./types";

export interface Marks {
  readonly pins: readonly Pin[];
  /** Level-0 px: left, top, side. */
  readonly tile: readonly [number, number, number] | null;
  readonly drawing: { readonly kind: "rectangle" | "lasso"; readonly xy0: readonly Point[] } | null;
  readonly lassos: readonly (readonly Point[])[];
  readonly tissue: MultiPolygon | null;
}

export const NO_MARKS: Marks = { pins: [], tile: null, drawing: null, lassos: [], tissue: null };

const INK = "#14202b";
const PAPER = "#ffffff";
const ACCENT = "#ffd54a";

export class MarkLayer {
  readonly canvas = document.createElement("canvas");
  private marks: Marks = NO_MARKS;

  constructor() {
    this.canvas.className = "marks";
    this.canvas.setAttribute("aria-hidden", "true");
  }

  set(marks: Marks): void {
    this.marks = marks;
  }

  draw(place: Placement): void {
    const ratio = window.devicePixelRatio || 1;
    const width = Math.max(1, Math.round(place.width * ratio));
    const height = Math.max(1, Math.round(place.height * ratio));
    if (this.canvas.width !== width || this.canvas.height !== height) {
      this.canvas.width = width;
      this.canvas.height = height;
    }
    const context = this.canvas.getContext("2d");
    if (context === null) return;
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, place.width, place.height);
    paintMarks(context, place, this.marks);
  }
}

export function paintMarks(context: CanvasRenderingContext2D, place: Placement, marks: Marks): void {
  const at = ([x, y]: readonly number[]): [number, number] => [
    ((x ?? 0) - place.x0) * place.scale,
    ((y ?? 0) - place.y0) * place.scale,
  ];
  context.lineJoin = "round";
  if (marks.tissue) {
    context.beginPath();
    for (const polygon of marks.tissue.coordinates) for (const ring of polygon) trace(context, ring.map(at), true);
    stroke(context, "rgba(20, 32, 43, 0.75)", 1.2, "rgba(255, 255, 255, 0.6)");
  }
  if (marks.tile) {
    const [left, top, side] = marks.tile;
    const [x, y] = at([left, top]);
    context.beginPath();
    context.rect(x - 1, y - 1, side * place.scale + 2, side * place.scale + 2);
    stroke(context, ACCENT, 2.5, INK);
  }
  for (const lasso of marks.lassos) shape(context, lasso.map(at), true);
  if (marks.drawing) {
    const points = marks.drawing.xy0;
    if (marks.drawing.kind === "lasso") shape(context, points.map(at), false);
    else box(context, points.map(at));
  }
  marks.pins.forEach((pin, i) => {
    const points = pin.xy0.map(at);
    if (pin.kind === "point") drop(context, points[0], i + 1);
    else {
      if (pin.kind === "rectangle") box(context, points);
      else shape(context, points, true);
      tag(context, points, i + 1);
    }
  });
}

function shape(context: CanvasRenderingContext2D, points: readonly Point[], closed: boolean): void {
  if (points.length === 0) return;
  context.beginPath();
  trace(context, points, closed);
  context.fillStyle = "rgba(255, 255, 255, 0.12)";
  context.fill();
  stroke(context, INK, 1.6, PAPER);
}

function box(context: CanvasRenderingContext2D, points: readonly Point[]): void {
  const [a, b] = points;
  if (!a || !b) return;
  context.beginPath();
  context.rect(Math.min(a[0], b[0]), Math.min(a[1], b[1]), Math.abs(b[0] - a[0]), Math.abs(b[1] - a[1]));
  stroke(context, INK, 1.6, PAPER);
}

function drop(context: CanvasRenderingContext2D, point: Point | undefined, number: number): void {
  if (!point) return;
  const [x, y] = point;
  context.beginPath();
  context.moveTo(x, y);
  context.lineTo(x - 7, y - 12);
  context.arc(x, y - 18, 9.2, Math.PI * 0.78, Math.PI * 0.22);
  context.closePath();
  context.fillStyle = INK;
  context.fill();
  context.lineWidth = 1.5;
  context.strokeStyle = PAPER;
  context.stroke();
  label(context, x, y - 18, number);
}

function tag(context: CanvasRenderingContext2D, points: readonly Point[], number: number): void {
  if (points.length === 0) return;
  const x = Math.min(...points.map((point) => point[0]));
  const y = Math.min(...points.map((point) => point[1]));
  context.beginPath();
  context.arc(x, y, 9, 0, 2 * Math.PI);
  context.fillStyle = INK;
  context.fill();
  context.lineWidth = 1.5;
  context.strokeStyle = PAPER;
  context.stroke();
  label(context, x, y, number);
}

function label(context: CanvasRenderingContext2D, x: number, y: number, number: number): void {
  context.fillStyle = PAPER;
  context.font = "600 11px system-ui, sans-serif";
  context.textAlign = "center";
  context.textBaseline = "middle";
  context.fillText(String(number), x, y + 0.5);
}

function trace(
  context: CanvasRenderingContext2D,
  points: readonly (readonly [number, number])[],
  closed: boolean,
): void {
  points.forEach(([x, y], i) => (i === 0 ? context.moveTo(x, y) : context.lineTo(x, y)));
  if (closed) context.closePath();
}

function stroke(context: CanvasRenderingContext2D, color: string, width: number, halo: string): void {
  context.strokeStyle = halo;
  context.lineWidth = width + 2;
  context.stroke();
  context.strokeStyle = color;
  context.lineWidth = width;
  context.stroke();
}
