// Which tiles lie where: buckets of tiles, so that a frame looks only at those in sight.

import type { SlideCase } from "./data";

/** Finds tiles by place. */
export class TileIndex {
  private readonly side: number;
  private readonly x0: number;
  private readonly y0: number;
  private readonly wide: number;
  private readonly high: number;
  private readonly starts: Int32Array;
  private readonly order: Int32Array;

  constructor(private readonly slide: SlideCase) {
    const { xy0, count, tileSize0: size } = slide;
    const [x0, x1] = extent(xy0, 0, count);
    const [y0, y1] = extent(xy0, 1, count);
    this.side = Math.max(8 * size, (x1 - x0) / 512, (y1 - y0) / 512);
    this.x0 = x0;
    this.y0 = y0;
    this.wide = Math.floor((x1 - x0) / this.side) + 1;
    this.high = Math.floor((y1 - y0) / this.side) + 1;
    this.starts = new Int32Array(this.wide * this.high + 1);
    this.order = new Int32Array(count);
    const bucket = new Int32Array(count);
    for (let i = 0; i < count; i++) {
      const b =
        Math.floor(((xy0[2 * i + 1] ?? 0) - y0) / this.side) * this.wide +
        Math.floor(((xy0[2 * i] ?? 0) - x0) / this.side);
      bucket[i] = b;
      this.starts[b + 1] = (this.starts[b + 1] ?? 0) + 1;
    }
    for (let b = 0; b < this.wide * this.high; b++)
      this.starts[b + 1] = (this.starts[b + 1] ?? 0) + (this.starts[b] ?? 0);
    const next = this.starts.slice();
    for (let i = 0; i < count; i++) {
      const b = bucket[i] ?? 0;
      this.order[next[b] ?? 0] = i;
      next[b] = (next[b] ?? 0) + 1;
    }
  }

  /** Tiles that reach into the rectangle, level-0 px, in ascending order. */
  within(left: number, top: number, right: number, bottom: number): number[] {
    const { xy0, tileSize0: size } = this.slide;
    const found: number[] = [];
    const first = (from: number, origin: number) => Math.max(0, Math.floor((from - size - origin) / this.side));
    const last = (to: number, origin: number, length: number) =>
      Math.min(length - 1, Math.floor((to - origin) / this.side));
    for (let row = first(top, this.y0); row <= last(bottom, this.y0, this.high); row++) {
      for (let column = first(left, this.x0); column <= last(right, this.x0, this.wide); column++) {
        const b = row * this.wide + column;
        for (let k = this.starts[b] ?? 0; k < (this.starts[b + 1] ?? 0); k++) {
          const tile = this.order[k] ?? 0;
          const x = xy0[2 * tile] ?? 0;
          const y = xy0[2 * tile + 1] ?? 0;
          if (x < right && x + size > left && y < bottom && y + size > top) found.push(tile);
        }
      }
    }
    return found.sort((a, b) => a - b);
  }
}

/** The lowest and the highest corner along one axis, level-0 px. */
export function extent(xy0: Int32Array, axis: 0 | 1, count: number): [number, number] {
  let low = Number.POSITIVE_INFINITY;
  let high = Number.NEGATIVE_INFINITY;
  for (let i = axis; i < 2 * count; i += 2) {
    const value = xy0[i] ?? 0;
    if (value < low) low = value;
    if (value > high) high = value;
  }
  return count === 0 ? [0, 0] : [low, high];
}
