// Scores to colors: viridis for sequential scores, blue - transparent - orange for signed ones; alpha rises from the threshold.

import { clamp } from "./dom";
import type { Kind } from "./types";
import { VIRIDIS } from "./viridis";

export const BLUE = [0x21, 0x66, 0xac] as const;
export const ORANGE = [0xe6, 0x61, 0x01] as const;

/** Each tile in the color of its score, or lines around what is above the threshold. */
export type Style = "tiles" | "contours";

/** How scores look: `threshold` is a share in [0, 1) of the range (signed: of its positive half), `opacity` the largest alpha. */
export interface Look {
  readonly kind: Kind;
  readonly range: readonly [number, number];
  readonly threshold: number;
  readonly opacity: number;
  readonly style: Style;
}

export type Rgba = readonly [number, number, number, number];

/** Where a value lies in the range: [0, 1], or [-1, 1] of a signed one; values beyond look like the ends. */
export function position(value: number, kind: Kind, range: readonly [number, number]): number {
  return kind === "signed" ? clamp(value / range[1], -1, 1) : clamp((value - range[0]) / (range[1] - range[0]), 0, 1);
}

/** The threshold in the unit of the score. */
export function thresholdValue(look: Look): number {
  const [low, high] = look.range;
  return look.kind === "signed" ? look.threshold * high : low + look.threshold * (high - low);
}

/** Color at a position, alpha in 0..255: 0 up to the threshold, `opacity` at the end of the range. */
export function colorAt(at: number, look: Look): Rgba {
  const size = Math.abs(at);
  const alpha = Math.round(255 * look.opacity * clamp((size - look.threshold) / (1 - look.threshold), 0, 1));
  if (look.kind === "signed") return [...(at < 0 ? BLUE : ORANGE), alpha];
  const i = 3 * Math.min(255, Math.floor(256 * size));
  return [VIRIDIS[i] ?? 0, VIRIDIS[i + 1] ?? 0, VIRIDIS[i + 2] ?? 0, alpha];
}

/** The bytes of a color as canvas pixels hold them, in one little-endian number; a pixel that is clear is 0. */
export function pack([r, g, b, a]: Rgba): number {
  return a === 0 ? 0 : ((a << 24) | (b << 16) | (g << 8) | r) >>> 0;
}

const STEPS = 1024;

/** A function from values to packed colors, by a table of 1024 steps (a step is less than one of 256 alphas). */
export function palette(look: Look): (value: number) => number {
  const signed = look.kind === "signed";
  const table = new Uint32Array(STEPS + 1);
  for (let i = 0; i <= STEPS; i++) {
    const share = i / STEPS;
    table[i] = pack(colorAt(signed ? 2 * share - 1 : share, look));
  }
  const [low, high] = look.range;
  const scale = STEPS / (high - low);
  return (value) => table[Math.round(clamp((value - low) * scale, 0, STEPS))] ?? 0;
}
