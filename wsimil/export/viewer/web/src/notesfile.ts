// Notes as the two files that wsimil view writes too (wsimil/export/viewer/notes.py): GeoJSON for QuPath, and CSV.

import type { SlideCase } from "./data";
import type { Index, Notes, Pin, Point } from "./types";

export interface Noted {
  readonly slide: SlideCase;
  readonly notes: Notes;
  /** When they were last changed, ISO 8601. */
  readonly saved: string;
}

type Json = null | boolean | number | string | readonly Json[] | { readonly [key: string]: Json };

const COLORS: Readonly<Record<string, readonly number[]>> = {
  note: [0, 114, 178],
  "what-if": [204, 121, 167],
  agree: [0, 158, 115],
  disagree: [213, 94, 0],
  unsure: [120, 120, 120],
};

/**
 * Annotations in the frame in which QuPath shows the slide, or in that of level 0 where nobody knows where the scan begins, and all
 * notes as they are under the key "wsimil".
 */
export function notesGeojson({ slide, notes, saved }: Noted, index: Index): Json {
  const features: Json[] = [];
  if (notes.verdict || notes.text) features.push(verdictFeature(slide, notes));
  for (const pin of notes.pins) features.push(pinFeature(slide, pin, index));
  return {
    type: "FeatureCollection",
    wsimil: {
      schema: "wsimil/notes/1",
      version: index.version,
      slide: slide.slideId,
      saved,
      origin: slide.bounds0 === null ? "level0" : "bounds",
      offset_level0_px: begin(slide),
      tiling: slide.tiling,
      model: index.model,
      answer: {
        names: index.task.answers.map((answer) => answer.name),
        values: slide.values,
        predicted: slide.predicted,
      },
      notes: notes as unknown as Json,
    },
    features,
  };
}

export function notesCsv(all: readonly Noted[], index: Index): string {
  const answers = index.task.answers.map((answer) => `without_${answer.name}`);
  const head = ["slide_id", "saved", "verdict", "kind", "text", "x0", "y0", "width0", "height0", "tiles_left_out"];
  const lines: string[][] = [[...head, ...answers.map(inert)]];
  for (const { slide, notes, saved } of all) {
    const start = [inert(slide.slideId), saved, notes.verdict ?? ""];
    lines.push([...start, "slide", inert(notes.text), ...Array<string>(5 + answers.length).fill("")]);
    for (const pin of notes.pins) {
      const values = answers.map((_, k) => (pin.values?.[k] == null ? "" : short(pin.values[k] ?? 0, 9)));
      const left = pin.kind === "what-if" ? String(pin.without?.length ?? 0) : "";
      lines.push([...start, pin.kind, inert(pin.text), ...box(pin.xy0), left, ...values]);
    }
  }
  return lines.map((line) => `${line.map(cell).join(",")}\n`).join("");
}

/** A name for a file that no system takes for a path; letters, digits, dots, dashes and underscores stay. */
export function fileName(slideId: string): string {
  return (
    slideId
      .replace(/[^\p{L}\p{N}._-]+/gu, "_")
      .replace(/^[._-]+/, "")
      .slice(0, 100) || "slide"
  );
}

/** Where places count from, level-0 px. */
function begin({ bounds0 }: SlideCase): Point {
  return bounds0 === null ? [0, 0] : [bounds0[0], bounds0[1]];
}

function verdictFeature(slide: SlideCase, notes: Notes): Json {
  const { xy0, tileSize0 } = slide;
  let [left, top, right, bottom] = [Infinity, Infinity, -Infinity, -Infinity];
  for (let i = 0; i < xy0.length; i += 2) {
    const [x, y] = [xy0[i] ?? 0, xy0[i + 1] ?? 0];
    [left, top, right, bottom] = [Math.min(left, x), Math.min(top, y), Math.max(right, x), Math.max(bottom, y)];
  }
  const side = Math.round(tileSize0);
  const area = ring(
    [
      [left, top],
      [right + side, bottom + side],
    ],
    true,
  );
  const name = notes.verdict ?? "note";
  const metadata = { "wsimil.slide": slide.slideId, "wsimil.verdict": notes.verdict ?? "", "wsimil.text": notes.text };
  return feature(slide, "Polygon", [area], name, `Slide: ${name}`, notes.text, {}, metadata);
}

function pinFeature(slide: SlideCase, pin: Pin, index: Index): Json {
  const measured: Record<string, Json> = {};
  if (pin.kind === "what-if") {
    measured["wsimil: tiles left out"] = pin.without?.length ?? 0;
    index.task.answers.forEach((answer, k) => {
      const value = pin.values?.[k];
      if (value != null) measured[`wsimil: ${answer.title} without them`] = value;
    });
  }
  const name = pin.kind === "what-if" ? "what-if" : "note";
  const title = pin.kind.charAt(0).toUpperCase() + pin.kind.slice(1);
  const metadata = { "wsimil.slide": slide.slideId, "wsimil.kind": pin.kind, "wsimil.text": pin.text };
  const [type, points] = geometry(slide, pin);
  return feature(slide, type, points, name, title, pin.text, measured, metadata);
}

/** An outline that crosses itself is written as a line, for QuPath refuses such areas; tiles without one as their centers. */
function geometry(slide: SlideCase, pin: Pin): [string, readonly Point[] | readonly (readonly Point[])[]] {
  const [first] = pin.xy0;
  if (pin.kind === "point" && first) return ["Point", [first]];
  if (pin.kind === "rectangle") return ["Polygon", [ring(pin.xy0, true)]];
  if (pin.xy0.length >= 3) {
    const closed = ring(pin.xy0, false);
    return crosses(closed) ? ["LineString", closed] : ["Polygon", [closed]];
  }
  const half = slide.tileSize0 / 2;
  const centers = (pin.without ?? []).map((tile): Point => [
    (slide.xy0[2 * tile] ?? 0) + half,
    (slide.xy0[2 * tile + 1] ?? 0) + half,
  ]);
  return ["MultiPoint", centers];
}

function feature(
  slide: SlideCase,
  type: string,
  points: readonly Point[] | readonly (readonly Point[])[],
  kind: string,
  title: string,
  text: string,
  measurements: { readonly [key: string]: Json },
  metadata: { readonly [key: string]: Json },
): Json {
  const [dx, dy] = begin(slide);
  const moved = ([x, y]: Point): Json => [round(x - dx), round(y - dy)];
  const lists =
    type === "Polygon"
      ? (points as readonly (readonly Point[])[]).map((one) => one.map(moved))
      : (points as readonly Point[]).map(moved);
  const line = text.split(/\s+/).filter(Boolean).join(" ").slice(0, 120);
  const color = COLORS[kind] ?? [0, 0, 0];
  return {
    type: "Feature",
    geometry: { type, coordinates: type === "Point" ? (lists[0] ?? [0, 0]) : lists },
    properties: {
      objectType: "annotation",
      name: line ? `${title}: ${line}` : title,
      classification: { name: `wsimil: ${kind}`, color },
      color,
      isLocked: true,
      measurements,
      metadata,
    },
  };
}

function ring(points: readonly Point[], corners: boolean): Point[] {
  if (!corners) {
    const [first] = points;
    const distinct = points.filter(
      (point, i) => !same(point, points[i - 1]) && (i === 0 || i < points.length - 1 || !same(point, first)),
    );
    return [...distinct, first ?? [0, 0]];
  }
  const [a, b] = [points[0] ?? [0, 0], points[1] ?? [0, 0]];
  const [left, right, top, bottom] = [
    Math.min(a[0], b[0]),
    Math.max(a[0], b[0]),
    Math.min(a[1], b[1]),
    Math.max(a[1], b[1]),
  ];
  return [
    [left, top],
    [right, top],
    [right, bottom],
    [left, bottom],
    [left, top],
  ];
}

function same(a: Point, b: Point | undefined): boolean {
  return b !== undefined && a[0] === b[0] && a[1] === b[1];
}

/** Whether two sides of a closed ring meet elsewhere than where one ends and the next begins. */
function crosses(closed: readonly Point[]): boolean {
  const sides = closed.length - 1;
  const turn = (a: Point, b: Point, c: Point): number =>
    Math.sign((b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0]));
  const overlap = (a: number, b: number, c: number, d: number): boolean =>
    Math.max(Math.min(a, b), Math.min(c, d)) <= Math.min(Math.max(a, b), Math.max(c, d));
  for (let i = 0; i < sides; i++) {
    for (let j = i + 1; j < sides; j++) {
      const [a, b, c, d] = [closed[i], closed[i + 1], closed[j], closed[j + 1]];
      if (!a || !b || !c || !d) continue;
      const neighbors = j === i + 1 || (i === 0 && j === sides - 1);
      if (neighbors) {
        // Neighbors share a point; they may not lie back on one another.
        const [far, hub, other] = j === i + 1 ? [a, b, d] : [b, a, c];
        const dot = (far[0] - hub[0]) * (other[0] - hub[0]) + (far[1] - hub[1]) * (other[1] - hub[1]);
        if (turn(far, hub, other) === 0 && dot >= 0) return true;
      } else if (
        turn(a, b, c) * turn(a, b, d) <= 0 &&
        turn(c, d, a) * turn(c, d, b) <= 0 &&
        overlap(a[0], b[0], c[0], d[0]) &&
        overlap(a[1], b[1], c[1], d[1])
      )
        return true;
    }
  }
  return false;
}

function box(points: readonly Point[]): string[] {
  if (points.length === 0) return ["", "", "", ""];
  const [x, y] = [points.map((point) => point[0]), points.map((point) => point[1])];
  const [left, top] = [Math.min(...x), Math.min(...y)];
  return [left, top, Math.max(...x) - left, Math.max(...y) - top].map((value) => short(value, 10));
}

function round(value: number): number {
  return Math.round(value * 100) / 100;
}

function short(value: number, digits: number): string {
  return String(Number(value.toPrecision(digits)));
}

/** Text that a spreadsheet will not run as a formula. */
function inert(text: string): string {
  return (/^[=+\-@\t\r]/.test(text) ? "'" : "") + text.replaceAll("\r", " ");
}

function cell(text: string): string {
  return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}
