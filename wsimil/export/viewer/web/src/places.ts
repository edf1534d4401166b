// Places on a slide in level-0 px: tiles within an outline, and the box around a pin.

import type { SlideCase } from "./data";
import type { Placement } from "./heat";
import { inside } from "./lasso";
import type { Pin, Point } from "./types";

export type Box = readonly [left: number, top: number, right: number, bottom: number];

export function cornerOf(slide: SlideCase, tile: number): Point {
  return [slide.xy0[2 * tile] ?? 0, slide.xy0[2 * tile + 1] ?? 0];
}

/** Tiles whose centers lie in a polygon. */
export function tilesWithin(slide: SlideCase, polygon: readonly Point[]): number[] {
  const half = slide.tileSize0 / 2;
  const found: number[] = [];
  for (let tile = 0; tile < slide.count; tile++) {
    const [x, y] = cornerOf(slide, tile);
    if (inside(x + half, y + half, polygon)) found.push(tile);
  }
  return found;
}

/** What is in sight, as a polygon with whole hundredths. */
export function sightOf(place: Placement): Point[] {
  const round = (value: number): number => Math.round(value * 100) / 100;
  const [left, top] = [round(place.x0), round(place.y0)];
  const [right, bottom] = [round(place.x0 + place.width / place.scale), round(place.y0 + place.height / place.scale)];
  return [
    [left, top],
    [right, top],
    [right, bottom],
    [left, bottom],
  ];
}

/** The box around a pin: around a point two tiles wide, around a what-if without an outline that of its tiles; null for nothing. */
export function boxOf(slide: SlideCase, pin: Pin): Box | null {
  const side = slide.tileSize0;
  const [first] = pin.xy0;
  if (pin.kind === "point" && first) return [first[0] - side, first[1] - side, first[0] + side, first[1] + side];
  const corners = pin.xy0.length
    ? pin.xy0
    : (pin.without ?? []).flatMap((tile): Point[] => {
        const [x, y] = cornerOf(slide, tile);
        return [
          [x, y],
          [x + side, y + side],
        ];
      });
  let box: Box | null = null;
  for (const [x, y] of corners) {
    box =
      box === null
        ? [x, y, x, y]
        : [Math.min(box[0], x), Math.min(box[1], y), Math.max(box[2], x), Math.max(box[3], y)];
  }
  return box;
}
