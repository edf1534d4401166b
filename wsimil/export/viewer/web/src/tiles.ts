// The slide's pictures as OpenSeadragon asks for them: DeepZoom levels over the whole level-0 frame, or a neutral ground.

import OpenSeadragon from "openseadragon";
import type { SlideCase, Source } from "./data";
import { words } from "./dom";
import { isHandedOver, loadPicture } from "./picture";
import type { Pyramid } from "./types";

/** A light grey pixel, for slides that are not at hand. */
const GROUND = "data:image/gif;base64,R0lGODlhAQABAIAAAO/x8////yH5BAAAAAAALAAAAAABAAEAAAICRAEAOw==";

/** Image coordinates of the source are level-0 px, whatever the finest level that it holds. */
export function tileSource(slide: SlideCase, source: Source): OpenSeadragon.TileSource {
  const { pyramid } = slide;
  return pyramid === null ? ground(slide) : deepZoom(String(slide.index), pyramid, source);
}

/** The level of full resolution: its longer side is at most 2 to the power of it. */
export function fullLevel(pyramid: Pyramid): number {
  return Math.ceil(Math.log2(Math.max(pyramid.width, pyramid.height)));
}

export function levelScale(pyramid: Pyramid, level: number): number {
  return 2 ** (level - fullLevel(pyramid));
}

function deepZoom(name: string, pyramid: Pyramid, source: Source): OpenSeadragon.TileSource {
  const { width, height, tile_size: side, min_level: minLevel, max_level: maxLevel } = pyramid;
  const pixels = (level: number): [number, number] => {
    const scale = levelScale(pyramid, level);
    return [Math.ceil(width * scale), Math.ceil(height * scale)];
  };
  return custom({
    name,
    width,
    height,
    minLevel,
    maxLevel,
    side,
    scale: (level) => levelScale(pyramid, level),
    // The last tile of a level ends at the level's whole pixels, a little beyond the slide's edge.
    pixels,
    url: (level, x, y) => source.tile(pyramid, level, x, y),
  });
}

function ground(slide: SlideCase): OpenSeadragon.TileSource {
  const [width, height] = slide.size0;
  return custom({
    name: "ground",
    width,
    height,
    minLevel: 0,
    maxLevel: 0,
    side: Math.max(width, height),
    scale: () => 1,
    pixels: () => [width, height],
    url: () => GROUND,
  });
}

interface Levels {
  /** Keys of pictures begin with it; data URLs would be long keys. */
  readonly name: string;
  readonly width: number;
  readonly height: number;
  readonly minLevel: number;
  readonly maxLevel: number;
  readonly side: number;
  scale(level: number): number;
  pixels(level: number): [number, number];
  url(level: number, x: number, y: number): string;
}

function custom(levels: Levels): OpenSeadragon.TileSource {
  const { width, height, side } = levels;
  const source = new OpenSeadragon.TileSource({
    width,
    height,
    tileSize: side,
    tileOverlap: 0,
    minLevel: levels.minLevel,
    maxLevel: levels.maxLevel,
  } as OpenSeadragon.TileSourceOptions);
  source.getLevelScale = (level: number) => levels.scale(level);
  source.getNumTiles = (level: number) => {
    const [w, h] = levels.pixels(level);
    return new OpenSeadragon.Point(Math.ceil(w / side), Math.ceil(h / side));
  };
  source.getTileBounds = (level: number, x: number, y: number, isSource?: boolean) => {
    const [w, h] = levels.pixels(level);
    const wide = Math.min(side, w - x * side);
    const high = Math.min(side, h - y * side);
    if (isSource) return new OpenSeadragon.Rect(0, 0, wide, high);
    // Viewport units: the width of the slide is 1.
    const unit = 1 / (levels.scale(level) * width);
    return new OpenSeadragon.Rect(x * side * unit, y * side * unit, wide * unit, high * unit);
  };
  const tileAtPoint = (level: number, point: OpenSeadragon.Point): OpenSeadragon.Point => {
    const last = source.getNumTiles(level);
    const unit = (levels.scale(level) * width) / side;
    const at = (value: number, n: number) => Math.min(n - 1, Math.max(0, Math.floor(value * unit)));
    return new OpenSeadragon.Point(at(point.x, last.x), at(point.y, last.y));
  };
  // Column and row, as OpenSeadragon has it; its types speak of a tile.
  source.getTileAtPoint = tileAtPoint as unknown as typeof source.getTileAtPoint;
  source.getTileHashKey = (level: number, x: number, y: number) => `${levels.name}/${level}/${x}_${y}`;
  source.getTileUrl = (level: number, x: number, y: number) => levels.url(level, x, y);
  // OpenSeadragon finds "png" in the base64 of a data: URL, and clears around such a tile: a bright seam where edges are smooth.
  source.hasTransparency = () => false;
  const { downloadTileStart } = source;
  source.downloadTileStart = (job) => (isHandedOver(job.src) ? download(job) : downloadTileStart.call(source, job));
  return source;
}

function download(job: OpenSeadragon.ImageJob): void {
  loadPicture(job.src).then(
    (image) => job.finish(image, null, "image"),
    // A job that was given up has failed already, and has no id any more.
    (error: unknown) => job.jobId !== null && job.fail(words(error), null),
  );
}

/** Draws the place of one tile from the pyramid, as large as the canvas; where there is no picture it stays blank. */
export async function drawPlace(
  canvas: HTMLCanvasElement,
  slide: SlideCase,
  from: Source,
  tile: number,
): Promise<void> {
  const { pyramid, xy0, tileSize0 } = slide;
  const context = canvas.getContext("2d");
  if (pyramid === null || context === null) return;
  const wanted = fullLevel(pyramid) + Math.ceil(Math.log2(canvas.width / tileSize0));
  const level = Math.max(pyramid.min_level, Math.min(pyramid.max_level, wanted));
  const scale = levelScale(pyramid, level);
  const left = (xy0[2 * tile] ?? 0) * scale;
  const top = (xy0[2 * tile + 1] ?? 0) * scale;
  const side = tileSize0 * scale;
  const zoom = canvas.width / side;
  const px = pyramid.tile_size;
  const jobs: Promise<void>[] = [];
  for (let y = Math.max(0, Math.floor(top / px)); y * px < top + side; y++) {
    for (let x = Math.max(0, Math.floor(left / px)); x * px < left + side; x++) {
      const url = from.tile(pyramid, level, x, y);
      if (url === "") continue;
      jobs.push(
        loadPicture(url).then(
          (image) => {
            const [x0, x1] = edges(x * px - left, image.naturalWidth, zoom);
            const [y0, y1] = edges(y * px - top, image.naturalHeight, zoom);
            context.drawImage(image, x0, y0, x1 - x0, y1 - y0);
          },
          // A tile that cannot be read leaves its part blank, as in the view.
          () => undefined,
        ),
      );
    }
  }
  await Promise.all(jobs);
}

/** In whole pixels of the canvas: an edge between two of them is smoothed, and two smooth edges leave a bright line. */
function edges(start: number, length: number, zoom: number): [number, number] {
  return [Math.round(start * zoom), Math.round((start + length) * zoom)];
}
