// Tiles to cells: where tiles overlap, a cell holds their mean weighted by area; a cell may also have no tile or no score.

import type { SlideCase } from "./data";
import { extent } from "./tileindex";

/** What a cell shows besides a value: no tile, tiles without a score, tiles that the what-if leaves out. */
export const EMPTY = 0;
export const UNSCORED = 1;
export const LEFT_OUT = 2;
export const SCORED = 3;

/** Values on `columns` x `rows` cells, row by row, and what each cell is. */
export interface Cells {
  readonly columns: number;
  readonly rows: number;
  readonly values: Float32Array;
  readonly what: Uint8Array;
  /** For `n` samples from `start` in steps of `step` (level-0 px): the cell that each falls into, -1 beyond the grid. */
  column(start: number, step: number, n: number, out: Int32Array): void;
  row(start: number, step: number, n: number, out: Int32Array): void;
}

export interface Shown {
  readonly scores: Float32Array;
  readonly without: ReadonlySet<number>;
}

/** A cell of which less than this share of what one tile could cover is covered has no value. */
const MIN_COVERAGE = 0.125;
const MOST_CELLS = 8_000_000;
const MOST_EXACT_CELLS = 1_500_000;

/** Cells of one size over all tiles: exact where tiles lie on a lattice, to within rounding of their corners. */
export class UniformGrid {
  readonly exact: boolean;
  private readonly cell: number;
  private readonly x0: number;
  private readonly y0: number;
  private readonly columns: number;
  private readonly rows: number;
  private readonly side: number;
  /** Corners in cells, whole where the tiles lie on a lattice. */
  private readonly at: Float64Array;

  constructor(slide: SlideCase) {
    const { xy0, count, tileSize0: size, stride0: stride } = slide;
    const x = latticeOrigin(xy0, 0, count, stride);
    const y = latticeOrigin(xy0, 1, count, stride);
    const lattice = x.off <= 1 && y.off <= 1;
    let parts = lattice ? wholeParts(size / stride) : 4;
    let cell = lattice ? stride / parts : size / parts;
    const width = x.end - x.begin + size;
    const height = y.end - y.begin + size;
    while ((width / cell + 2) * (height / cell + 2) > MOST_CELLS) {
      cell *= 2;
      parts /= 2;
    }
    this.cell = cell;
    this.x0 = lattice ? x.begin : extent(xy0, 0, count)[0];
    this.y0 = lattice ? y.begin : extent(xy0, 1, count)[0];
    this.side = nearlyWhole(size / cell);
    this.columns = Math.ceil(width / cell) + 1;
    this.rows = Math.ceil(height / cell) + 1;
    const snapped = lattice && parts >= 1;
    this.at = new Float64Array(2 * count);
    for (let i = 0; i < 2 * count; i++) {
      const from = (xy0[i] ?? 0) - (i % 2 === 0 ? this.x0 : this.y0);
      this.at[i] = snapped ? Math.round(from / stride) * parts : from / cell;
    }
    this.exact = snapped && x.off === 0 && y.off === 0 && Math.abs(size / cell - Math.round(size / cell)) < 1e-9;
  }

  accumulate({ scores, without }: Shown): Cells {
    const { columns, rows, side, at } = this;
    const total = new Float64Array(columns * rows);
    const covered = new Float32Array(columns * rows);
    const what = new Uint8Array(columns * rows);
    const least = MIN_COVERAGE * Math.min(1, side) ** 2;
    for (let i = 0; i < scores.length; i++) {
      const value = scores[i] ?? Number.NaN;
      const is = without.has(i) ? LEFT_OUT : Number.isNaN(value) ? UNSCORED : SCORED;
      const left = at[2 * i] ?? 0;
      const top = at[2 * i + 1] ?? 0;
      for (let row = Math.floor(top); row < top + side; row++) {
        const high = Math.min(row + 1, top + side) - Math.max(row, top);
        for (let column = Math.floor(left); column < left + side; column++) {
          const area = high * (Math.min(column + 1, left + side) - Math.max(column, left));
          const k = row * columns + column;
          if (area <= least) continue;
          if (is === SCORED) {
            total[k] = (total[k] ?? 0) + area * value;
            covered[k] = (covered[k] ?? 0) + area;
          }
          if (is > (what[k] ?? 0)) what[k] = is;
        }
      }
    }
    const values = new Float32Array(columns * rows).fill(Number.NaN);
    for (let k = 0; k < values.length; k++) {
      if (what[k] === SCORED) values[k] = (total[k] ?? 0) / (covered[k] ?? 1);
    }
    const { cell, x0, y0 } = this;
    const along = (origin: number, length: number) => (start: number, step: number, n: number, out: Int32Array) => {
      const first = (start - origin) / cell;
      const by = step / cell;
      for (let i = 0; i < n; i++) {
        const k = Math.floor(first + i * by);
        out[i] = k >= 0 && k < length ? k : -1;
      }
    };
    return { columns, rows, values, what, column: along(x0, columns), row: along(y0, rows) };
  }
}

/** The cells between all edges of some tiles, for any corners. Null where that would be too many cells. */
export function exactCells(slide: SlideCase, tiles: readonly number[], { scores, without }: Shown): Cells | null {
  const { xy0, tileSize0: size } = slide;
  const across = edges(xy0, 0, tiles, size);
  const down = edges(xy0, 1, tiles, size);
  const [x, y] = [across.lines, down.lines];
  const columns = Math.max(0, x.length - 1);
  const rows = Math.max(0, y.length - 1);
  if (columns * rows > MOST_EXACT_CELLS) return null;
  // Differences along both axes, so that the cost does not depend on how many cells a tile spans.
  const wide = columns + 1;
  const total = new Float64Array(wide * (rows + 1));
  const counts = [UNSCORED, LEFT_OUT, SCORED].map(() => new Int32Array(wide * (rows + 1)));
  for (const tile of tiles) {
    const value = scores[tile] ?? Number.NaN;
    const is = without.has(tile) ? LEFT_OUT : Number.isNaN(value) ? UNSCORED : SCORED;
    const [begin0, begin1] = [xy0[2 * tile] ?? 0, xy0[2 * tile + 1] ?? 0];
    const [left, right] = [find(x, begin0), find(x, across.end(begin0))];
    const [top, bottom] = [find(y, begin1), find(y, down.end(begin1))];
    const corners = [top * wide + left, top * wide + right, bottom * wide + left, bottom * wide + right];
    const held = counts[is - 1] as Int32Array;
    corners.forEach((k, corner) => {
      const sign = corner === 0 || corner === 3 ? 1 : -1;
      held[k] = (held[k] ?? 0) + sign;
      if (is === SCORED) total[k] = (total[k] ?? 0) + sign * value;
    });
  }
  for (const sums of [total, ...counts]) integrate(sums, wide, rows + 1);
  const values = new Float32Array(columns * rows).fill(Number.NaN);
  const what = new Uint8Array(columns * rows);
  for (let row = 0; row < rows; row++) {
    for (let column = 0; column < columns; column++) {
      const from = row * wide + column;
      const k = row * columns + column;
      const scored = counts[SCORED - 1]?.[from] ?? 0;
      if (scored > 0) {
        what[k] = SCORED;
        values[k] = (total[from] ?? 0) / scored;
      } else if ((counts[LEFT_OUT - 1]?.[from] ?? 0) > 0) what[k] = LEFT_OUT;
      else if ((counts[UNSCORED - 1]?.[from] ?? 0) > 0) what[k] = UNSCORED;
    }
  }
  const along = (lines: Float64Array) => (start: number, step: number, n: number, out: Int32Array) => {
    let k = -1;
    for (let i = 0; i < n; i++) {
      const place = start + i * step;
      while (k + 1 < lines.length && (lines[k + 1] ?? 0) <= place) k++;
      out[i] = k < lines.length - 1 ? k : -1;
    }
  };
  return { columns, rows, values, what, column: along(x), row: along(y) };
}

/** Where the lattice begins along one axis, and how far corners lie off it at most, level-0 px. */
function latticeOrigin(xy0: Int32Array, axis: 0 | 1, count: number, stride: number) {
  const [begin, end] = extent(xy0, axis, count);
  let least = 0;
  let most = 0;
  for (let i = axis; i < 2 * count; i += 2) {
    const from = (xy0[i] ?? 0) - begin;
    const off = from - Math.round(from / stride) * stride;
    least = Math.min(least, off);
    most = Math.max(most, off);
  }
  // Corners are rounded, the first one too: the middle of what they are off is the best origin.
  return { begin: begin + (least + most) / 2, end, off: most - least };
}

/** Into how many parts a stride is cut so that a tile is a whole number of them, 8 where none does. */
function wholeParts(ratio: number): number {
  for (const parts of [1, 2, 3, 4, 5, 6])
    if (Number.isInteger(nearlyWhole(ratio * parts)) && ratio * parts >= 0.5) return parts;
  return 8;
}

function nearlyWhole(value: number): number {
  return Math.abs(value - Math.round(value)) < 0.005 ? Math.round(value) : value;
}

/**
 * All edges along one axis, ascending. Corners are rounded to whole px, so a tile that ends less than a px from where others
 * begin ends there: tiles side by side leave no gap and no sliver.
 */
function edges(xy0: Int32Array, axis: 0 | 1, tiles: readonly number[], size: number): Edges {
  const begins = distinct(Float64Array.from(tiles, (tile) => xy0[2 * tile + axis] ?? 0));
  const end = (begin: number): number => {
    const exact = begin + size;
    const next = find(begins, exact);
    const near = [begins[next - 1], begins[next]].filter((other) => other !== undefined && Math.abs(other - exact) < 1);
    return near.length === 0 ? exact : Math.max(...(near as number[]));
  };
  return { lines: distinct(Float64Array.from([...begins, ...begins.map(end)])), end };
}

interface Edges {
  readonly lines: Float64Array;
  end(begin: number): number;
}

function distinct(values: Float64Array): Float64Array {
  return values.sort().filter((value, i, all) => i === 0 || value !== all[i - 1]);
}

/** The first of sorted values that is not below `value`, or the last one. */
function find(sorted: Float64Array, value: number): number {
  let low = 0;
  let high = sorted.length - 1;
  while (low < high) {
    const middle = (low + high) >> 1;
    if ((sorted[middle] ?? 0) < value) low = middle + 1;
    else high = middle;
  }
  return low;
}

function integrate(sums: Float64Array | Int32Array, wide: number, high: number): void {
  for (let row = 0; row < high; row++) {
    for (let k = row * wide + 1; k < (row + 1) * wide; k++) sums[k] = (sums[k] ?? 0) + (sums[k - 1] ?? 0);
  }
  for (let k = wide; k < high * wide; k++) sums[k] = (sums[k] ?? 0) + (sums[k - wide] ?? 0);
}
