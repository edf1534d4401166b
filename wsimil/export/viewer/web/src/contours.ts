// Lines around what lies above the threshold, and above shares of the way from it to the end of the range.
//
// They follow the edges of cells: a map has one value in a cell, and nothing is interpolated between two.

import { BLUE, colorAt, type Look, ORANGE, pack, position } from "./colors";
import type { Cells } from "./grid";
import { SCORED } from "./grid";

/** Where lines lie on the way from the threshold to the end of the range; without a threshold there is none at 0. */
const SHARES = [0, 0.25, 0.5, 0.75] as const;
/** Of a line, which lies within what it goes around. */
const WIDTH_PX = 2;

/** The positions in (0, 1) that lines go around, rising; of signed scores on both sides. */
export function lineShares(look: Look): readonly number[] {
  return SHARES.map((share) => look.threshold + (1 - look.threshold) * share).filter((at) => at > 0);
}

/** The same in the unit of the score. */
export function lineValues(look: Look): readonly number[] {
  const [low, high] = look.range;
  return lineShares(look).map((at) => (look.kind === "signed" ? at * high : low + at * (high - low)));
}

/** The color of the line at a position: the end's own of a signed score, so that for and against are told apart. */
export function lineColor(at: number, look: Look): number {
  if (look.kind === "signed") return pack([...(at < 0 ? BLUE : ORANGE), 255]);
  const [r, g, b] = colorAt(at, look);
  return pack([r, g, b, 255]);
}

/** How many lines go around each cell, less than 0 where it speaks against; 0 where it has no value. */
export function levelsOf(cells: Cells, look: Look): Int8Array {
  const lines = lineShares(look);
  const levels = new Int8Array(cells.what.length);
  for (let k = 0; k < levels.length; k++) {
    if (cells.what[k] !== SCORED) continue;
    const at = position(cells.values[k] ?? Number.NaN, look.kind, look.range);
    const size = Math.abs(at);
    let within = 0;
    while (within < lines.length && size >= (lines[within] ?? 1)) within++;
    levels[k] = at < 0 ? -within : within;
  }
  return levels;
}

/**
 * Draws the lines over pixels, whose cells `columns` and `rows` name (less than 0: none). A pixel is of a line where one within
 * the line's width lies in fewer lines, or speaks otherwise; the edge of the screen is no edge of anything.
 */
export function paintLines(
  pixels: Uint32Array,
  columns: Int32Array,
  rows: Int32Array,
  cells: Cells,
  levels: Int8Array,
  look: Look,
  ratio: number,
): void {
  const width = columns.length;
  const height = rows.length;
  const reach = Math.max(1, Math.round(WIDTH_PX * ratio));
  const colors = [0, ...lineShares(look).map((at) => lineColor(at, look))];
  const against = [0, ...lineShares(look).map((at) => lineColor(-at, look))];
  const base = (row: number): number => (row < 0 ? -1 : row * cells.columns);
  // Without an array or a call for a pixel: this is done a million times a frame.
  for (let y = 0; y < height; y++) {
    const middle = base(rows[y] ?? -1);
    if (middle < 0) continue;
    const up = base(rows[Math.max(0, y - reach)] ?? -1);
    const down = base(rows[Math.min(height - 1, y + reach)] ?? -1);
    const oneRow = up === middle && down === middle;
    for (let x = 0; x < width; x++) {
      const column = columns[x] ?? -1;
      const own = column < 0 ? 0 : (levels[middle + column] ?? 0);
      if (own === 0) continue;
      const left = columns[x < reach ? 0 : x - reach] ?? -1;
      const right = columns[x + reach < width ? x + reach : width - 1] ?? -1;
      if (oneRow && left === column && right === column) continue;
      let edge = false;
      for (let i = 0; i < 9 && !edge; i++) {
        const row = i < 3 ? up : i < 6 ? middle : down;
        const across = i % 3 === 0 ? left : i % 3 === 1 ? column : right;
        const other = row < 0 || across < 0 ? 0 : (levels[row + across] ?? 0);
        edge = own > 0 ? other < own : other > own;
      }
      if (edge) pixels[y * width + x] = (own > 0 ? colors[own] : against[-own]) ?? 0;
    }
  }
}
