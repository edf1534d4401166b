// A picture of the view as a PNG: the slide with its overlay and marks, a line about the case, the legend and the scale bar.

import { count, short } from "./dom";
import type { LegendFacts } from "./legend";
import { endWords, legendLines, paintRamp, scoreTitle } from "./legend";
import type { Bar } from "./scalebar";

export interface Shot {
  readonly layers: readonly HTMLCanvasElement[];
  /** CSS px of the view. */
  readonly width: number;
  readonly height: number;
  readonly title: string;
  /** Under the title: what the model said; and what the reader has to know of it. */
  readonly facts: string;
  readonly notice: string;
  readonly legend: LegendFacts | null;
  readonly bar: Bar;
  readonly magnification: string;
}

/** The head with two lines below its title, the foot down to its lines about the legend, and how far lines are apart. */
const HEAD_PX = 72;
const FOOT_PX = 71;
const LINE_PX = 15;
/** Left and right of all words, and as wide as the words about the scale bar may be. */
const EDGE_PX = 14;
const BAR_WORDS_PX = 260;
const FONT = "system-ui, -apple-system, 'Segoe UI', sans-serif";
const HEAD_FONT = `12px ${FONT}`;
const LINE_FONT = `11.5px ${FONT}`;

export async function takeShot(shot: Shot): Promise<Blob> {
  const ratio = window.devicePixelRatio || 1;
  const canvas = document.createElement("canvas");
  const context = canvas.getContext("2d");
  if (context === null) throw new Error("this browser gives no canvas to draw on");
  const most = shot.width - 2 * EDGE_PX;
  const [facts, notice] = [shot.facts, shot.notice].map((words) => wrapped(context, words, HEAD_FONT, most));
  const heading = { facts: facts ?? [], notice: notice ?? [] };
  const lines = shot.legend ? linesOf(shot.legend).flatMap((line) => wrapped(context, line, LINE_FONT, most)) : [];
  const top = HEAD_PX + LINE_PX * (heading.facts.length + heading.notice.length - 2);
  const height = top + shot.height + FOOT_PX + LINE_PX * lines.length;
  canvas.width = Math.round(shot.width * ratio);
  canvas.height = Math.round(height * ratio);
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.fillStyle = "#ffffff";
  context.fillRect(0, 0, shot.width, height);
  head(context, shot, heading);
  context.save();
  context.beginPath();
  context.rect(0, top, shot.width, shot.height);
  context.clip();
  for (const layer of shot.layers) {
    if (layer.width > 1) context.drawImage(layer, 0, top, shot.width, shot.height);
  }
  context.restore();
  foot(context, shot, lines, top + shot.height);
  return await new Promise((resolve, reject) => {
    canvas.toBlob((blob) => (blob ? resolve(blob) : reject(new Error("the picture could not be encoded"))), "image/png");
  });
}

interface Heading {
  readonly facts: readonly string[];
  readonly notice: readonly string[];
}

function head(context: CanvasRenderingContext2D, { title, width }: Shot, { facts, notice }: Heading): void {
  const most = width - 2 * EDGE_PX;
  text(context, title, EDGE_PX, 23, `600 15px ${FONT}`, "#14202b", most);
  facts.forEach((line, i) => text(context, line, EDGE_PX, 43 + LINE_PX * i, HEAD_FONT, "#4c5a67", most));
  const below = 61 + LINE_PX * (facts.length - 1);
  notice.forEach((line, i) => text(context, line, EDGE_PX, below + LINE_PX * i, HEAD_FONT, "#8a5a00", most));
}

/** Words in lines of at most so many px, broken between words, not before a %; one line at least. */
function wrapped(context: CanvasRenderingContext2D, words: string, font: string, most: number): string[] {
  context.font = font;
  const lines = [""];
  for (const word of words.split(/ (?!%)/)) {
    const line = lines.at(-1) ?? "";
    if (line !== "" && context.measureText(`${line} ${word}`).width > most) lines.push(word === "·" ? "" : word);
    else lines[lines.length - 1] = line === "" ? word : `${line} ${word}`;
  }
  return lines;
}

/** All that is said of the legend, hatches too. */
function linesOf(legend: LegendFacts): readonly string[] {
  const { unscored, leftOut } = legend;
  const lines = legendLines(legend);
  if (unscored > 0) lines.push(`Hatched grey: not scored (${count(unscored)} tiles)`);
  if (leftOut > 0) lines.push(`Hatched white: left out (${count(leftOut)} tiles)`);
  return lines;
}

function foot(context: CanvasRenderingContext2D, shot: Shot, lines: readonly string[], top: number): void {
  const right = shot.width - EDGE_PX - shot.bar.px;
  context.fillStyle = "#14202b";
  context.fillRect(right, top + 34, shot.bar.px, 4);
  context.textAlign = "right";
  text(
    context,
    `${shot.bar.text}   ${shot.magnification}`,
    shot.width - EDGE_PX,
    top + 24,
    `600 13px ${FONT}`,
    "#14202b",
    BAR_WORDS_PX,
  );
  context.textAlign = "left";
  if (shot.legend === null) return text(context, "No overlay", EDGE_PX, top + 24, `600 13px ${FONT}`, "#14202b", 300);
  const { score, look, task } = shot.legend;
  const wide = Math.min(320, shot.width - 2 * EDGE_PX);
  const beside = Math.max(wide, shot.width - 3 * EDGE_PX - BAR_WORDS_PX);
  text(context, scoreTitle(score), EDGE_PX, top + 22, `600 13px ${FONT}`, "#14202b", beside);
  context.strokeStyle = "#c6ccd2";
  context.strokeRect(13.5, top + 30.5, wide + 1, 13);
  paintRamp(context, EDGE_PX, top + 31, wide, 12, look);
  const [low, high] = look.range;
  const [down, up] = endWords(score, task);
  text(context, `${short(low)} ${down}`, EDGE_PX, top + 59, `12px ${FONT}`, "#14202b", wide / 2);
  context.textAlign = "right";
  text(context, `${short(high)} ${score.unit} ${up}`, EDGE_PX + wide, top + 59, `12px ${FONT}`, "#14202b", wide / 2);
  context.textAlign = "left";
  lines.forEach((line, i) =>
    text(context, line, EDGE_PX, top + 76 + LINE_PX * i, LINE_FONT, "#4c5a67", shot.width - 2 * EDGE_PX),
  );
}

function text(
  context: CanvasRenderingContext2D,
  words: string,
  x: number,
  y: number,
  font: string,
  color: string,
  most: number,
): void {
  context.font = font;
  context.fillStyle = color;
  let shown = words;
  while (shown.length > 1 && context.measureText(shown).width > most) shown = `${shown.slice(0, -2)}…`;
  context.fillText(shown, x, y);
}

/** Hands a file to the reader. */
export function download(blob: Blob, name: string): void {
  const url = URL.createObjectURL(blob);
  const link = document.createElement("a");
  link.href = url;
  link.download = name;
  document.body.append(link);
  link.click();
  link.remove();
  window.setTimeout(() => URL.revokeObjectURL(url), 10_000);
}
