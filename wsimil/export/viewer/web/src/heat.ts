// Draws scores over the slide: each device pixel takes the color of the cell under its center, nothing is interpolated.

import type { Look } from "./colors";
import { pack, palette } from "./colors";
import { levelsOf, paintLines } from "./contours";
import type { SlideCase } from "./data";
import type { Cells } from "./grid";
import { EMPTY, exactCells, LEFT_OUT, SCORED, UniformGrid, UNSCORED } from "./grid";
import { TileIndex } from "./tileindex";

/** Level-0 px to CSS px of the viewer: `css = (level0 - origin) * scale`. */
export interface Placement {
  readonly x0: number;
  readonly y0: number;
  readonly scale: number;
  readonly width: number;
  readonly height: number;
}

/** From this size of a tile on the screen (CSS px) cells follow the corners of tiles exactly, not to within rounding. */
const EXACT_FROM_PX = 16;
/** Hatches repeat every so many device pixels, upwards to the right. */
const PERIOD = 8;
// Codes of hatched cells; all colors else have an alpha above 1 of 255 or are 0.
const HATCH_UNSCORED = 1;
const HATCH_LEFT_OUT = 2;
const BEYOND_SLIDE = -2;

const HATCHES: Readonly<Record<number, readonly [number, number]>> = {
  [HATCH_UNSCORED]: [pack([70, 76, 84, 150]), pack([150, 156, 164, 70])],
  [HATCH_LEFT_OUT]: [pack([30, 34, 40, 190]), pack([255, 255, 255, 185])],
};

interface Colored {
  readonly cells: Cells;
  readonly colors: Uint32Array;
  readonly hatched: Uint8Array;
  /** Of contours, how many lines go around each cell; null where cells are drawn in colors. */
  readonly levels: Int8Array | null;
}

export class Heat {
  readonly canvas = document.createElement("canvas");
  private readonly context: CanvasRenderingContext2D;
  private slide: SlideCase | null = null;
  private tiles: TileIndex | null = null;
  private grid: UniformGrid | null = null;
  private scores: Float32Array | null = null;
  private without: ReadonlySet<number> = new Set();
  private look: Look = { kind: "sequential", range: [0, 1], threshold: 0, opacity: 0.5, style: "tiles" };
  private veil = false;
  private visible = true;
  private overview: Colored | null = null;
  private overviewCells: Cells | null = null;
  private near: (Colored & { readonly region: readonly [number, number, number, number] }) | null = null;
  private picture: ImageData | null = null;
  private columns = new Int32Array(0);
  private rows = new Int32Array(0);
  /** The placement of what the canvas shows now. */
  drawn: Placement | null = null;

  constructor() {
    this.canvas.className = "heat";
    this.canvas.setAttribute("aria-hidden", "true");
    const context = this.canvas.getContext("2d");
    if (context === null) throw new Error("this browser gives no canvas to draw on");
    this.context = context;
  }

  setSlide(slide: SlideCase | null): void {
    this.slide = slide;
    this.grid = slide && slide.count > 0 ? new UniformGrid(slide) : null;
    this.tiles = slide && slide.count > 0 ? new TileIndex(slide) : null;
    this.scores = null;
    this.without = new Set();
    this.forget();
  }

  /** Scores of tiles, null shows none; tiles in `without` are shown as left out. */
  setScores(scores: Float32Array | null, without: ReadonlySet<number>): void {
    this.scores = scores;
    this.without = without;
    this.forget();
  }

  /** `veil` hatches all of the slide that has no score, not only tiles without one. */
  setLook(look: Look, veil: boolean): void {
    this.look = look;
    this.veil = veil;
    this.overview = null;
    this.near = null;
  }

  setVisible(visible: boolean): void {
    this.visible = visible;
  }

  /** The last tile in order that lies under a point, level-0 px. */
  tileAt(x: number, y: number): number | null {
    return this.tiles?.within(x, y, x + 1e-6, y + 1e-6).at(-1) ?? null;
  }

  draw(place: Placement): void {
    const ratio = window.devicePixelRatio || 1;
    const width = Math.max(1, Math.round(place.width * ratio));
    const height = Math.max(1, Math.round(place.height * ratio));
    if (this.canvas.width !== width || this.canvas.height !== height) {
      this.canvas.width = width;
      this.canvas.height = height;
      this.picture = null;
    }
    this.drawn = place;
    const shown = this.visible ? this.colored(place) : null;
    if (shown === null) {
      this.context.clearRect(0, 0, width, height);
      return;
    }
    this.picture ??= this.context.createImageData(width, height);
    this.paint(this.picture, shown, place, ratio);
    if (shown.levels !== null) {
      const pixels = new Uint32Array(this.picture.data.buffer);
      paintLines(pixels, this.columns, this.rows, shown.cells, shown.levels, this.look, ratio);
    }
    this.context.putImageData(this.picture, 0, 0);
  }

  private forget(): void {
    this.overview = null;
    this.overviewCells = null;
    this.near = null;
  }

  private colored(place: Placement): Colored | null {
    const { slide, scores, grid, tiles, without } = this;
    if (slide === null || scores === null || grid === null || tiles === null) return null;
    const shown = { scores, without };
    if (!grid.exact && slide.tileSize0 * place.scale >= EXACT_FROM_PX) {
      const right = place.x0 + place.width / place.scale;
      const bottom = place.y0 + place.height / place.scale;
      const held = this.near?.region;
      if (held && held[0] <= place.x0 && held[1] <= place.y0 && held[2] >= right && held[3] >= bottom) return this.near;
      // Half a screen more on each side, so that panning does not gather tiles in every frame.
      const dx = (right - place.x0) / 2;
      const dy = (bottom - place.y0) / 2;
      const region = [place.x0 - dx, place.y0 - dy, right + dx, bottom + dy] as const;
      const cells = exactCells(slide, tiles.within(...region), shown);
      if (cells !== null) {
        this.near = { ...this.color(cells), region };
        return this.near;
      }
    }
    this.overviewCells ??= grid.accumulate(shown);
    this.overview ??= this.color(this.overviewCells);
    return this.overview;
  }

  private color(cells: Cells): Colored {
    const levels = this.look.style === "contours" ? levelsOf(cells, this.look) : null;
    const color = levels === null ? palette(this.look) : () => 0;
    const codes: Record<number, number> = {
      [EMPTY]: this.veil ? HATCH_UNSCORED : 0,
      [UNSCORED]: HATCH_UNSCORED,
      [LEFT_OUT]: HATCH_LEFT_OUT,
    };
    const colors = new Uint32Array(cells.what.length);
    const hatched = new Uint8Array(cells.rows);
    for (let row = 0, k = 0; row < cells.rows; row++) {
      for (let column = 0; column < cells.columns; column++, k++) {
        const what = cells.what[k] ?? EMPTY;
        const code = what === SCORED ? color(cells.values[k] ?? Number.NaN) : (codes[what] ?? 0);
        colors[k] = code;
        if (code === HATCH_UNSCORED || code === HATCH_LEFT_OUT) hatched[row] = 1;
      }
    }
    return { cells, colors, hatched, levels };
  }

  private paint(picture: ImageData, shown: Colored, place: Placement, ratio: number): void {
    const { width, height } = picture;
    const pixels = new Uint32Array(picture.data.buffer);
    const { cells, colors, hatched } = shown;
    if (this.columns.length !== width) this.columns = new Int32Array(width);
    if (this.rows.length !== height) this.rows = new Int32Array(height);
    const { columns, rows } = this;
    const step = 1 / (place.scale * ratio);
    const left = place.x0 + step / 2;
    const top = place.y0 + step / 2;
    cells.column(left, step, width, columns);
    cells.row(top, step, height, rows);
    const [w0, h0] = this.slide?.size0 ?? [0, 0];
    clip(columns, left, step, w0);
    clip(rows, top, step, h0);
    const background = this.veil ? HATCH_UNSCORED : 0;
    // Hatches hold on to the slide when it moves.
    const shift = Math.round((place.x0 + place.y0) * place.scale * ratio);
    let begin = 0;
    for (let y = 0; y < height; y++) {
      const row = rows[y] ?? BEYOND_SLIDE;
      if (y === 0 || row !== rows[y - 1]) begin = y;
      const varies = row === -1 ? this.veil : row >= 0 && (this.veil || hatched[row] === 1);
      const like = varies ? y - PERIOD : y - 1;
      const to = y * width;
      if (like >= begin) {
        pixels.copyWithin(to, like * width, (like + 1) * width);
        continue;
      }
      if (row === BEYOND_SLIDE) {
        pixels.fill(0, to, to + width);
        continue;
      }
      const from = row * cells.columns;
      for (let x = 0; x < width; x++) {
        const column = columns[x] ?? BEYOND_SLIDE;
        let color = 0;
        if (column >= 0 && row >= 0) color = colors[from + column] ?? 0;
        else if (column !== BEYOND_SLIDE) color = background;
        if (color === HATCH_UNSCORED || color === HATCH_LEFT_OUT) {
          const phase = (((x + y + shift) % PERIOD) + PERIOD) % PERIOD;
          color = HATCHES[color]?.[phase < 2 ? 0 : 1] ?? 0;
        }
        pixels[to + x] = color;
      }
    }
  }
}

/** Marks samples beyond [0, end) of the slide. */
function clip(samples: Int32Array, start: number, step: number, end: number): void {
  for (let i = 0; i < samples.length; i++) {
    const place = start + i * step;
    if (place < 0 || place >= end) samples[i] = BEYOND_SLIDE;
  }
}
