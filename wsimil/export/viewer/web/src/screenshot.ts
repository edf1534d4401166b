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

const HEAD_PX = 72;
/** The foot down to its lines about the legend, and how far these are apart. */
const FOOT_PX = 71;
const LINE_PX = 15;
const FONT = "system-ui, -apple-system, 'Segoe UI', sans-serif";

export async function takeShot(shot: Shot): Promise<Blob> {
  const ratio = window.devicePixelRatio || 1;
  const canvas = document.createElement("canvas");
  const lines = shot.legend ? linesOf(shot.legend) : [];
  const height = HEAD_PX + shot.height + FOOT_PX + LINE_PX * lines.length;
  canvas.width = Math.round(shot.width * ratio);
  canvas.height = Math.round(height * ratio);
  const context = canvas.getContext("2d");
  if (context === null) throw new Error("this browser gives no canvas to draw on");
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.fillStyle = "#ffffff";
  context.fillRect(0, 0, shot.width, height);
  head(context, shot);
  context.save();
  context.beginPath();
  context.rect(0, HEAD_PX, shot.width, shot.height);
  context.clip();
  for (const layer of shot.layers) {
    if (layer.width > 1) context.drawImage(layer, 0, HEAD_PX, shot.width, shot.height);
  }
  context.restore();
  foot(context, shot, lines);
  return await new Promise((resolve, reject) => {
    canvas.toBlob((blob) => (blob ? resolve(blob) : reject(new Error("the picture could not be encoded"))), "image/png");
  });
}

function head(context: CanvasRenderingContext2D, { title, facts, notice, width }: Shot): void {
  text(context, title, 14, 23, `600 15px ${FONT}`, "#14202b", width - 28);
  text(context, facts, 14, 43, `12px ${FONT}`, "#4c5a67", width - 28);
  text(context, notice, 14, 61, `12px ${FONT}`, "#8a5a00", width - 28);
}

/** All that is said of the legend, hatches too. */
function linesOf(legend: LegendFacts): readonly string[] {
  const { unscored, leftOut } = legend;
  const lines = legendLines(legend);
  if (unscored > 0) lines.push(`Hatched grey: not scored (${count(unscored)} tiles)`);
  if (leftOut > 0) lines.push(`Hatched white: left out (${count(leftOut)} tiles)`);
  return lines;
}

function foot(context: CanvasRenderingContext2D, shot: Shot, lines: readonly string[]): void {
  const top = HEAD_PX + shot.height;
  const right = shot.width - 14 - shot.bar.px;
  context.fillStyle = "#14202b";
  context.fillRect(right, top + 34, shot.bar.px, 4);
  context.textAlign = "right";
  text(
    context,
    `${shot.bar.text}   ${shot.magnification}`,
    shot.width - 14,
    top + 24,
    `600 13px ${FONT}`,
    "#14202b",
    260,
  );
  context.textAlign = "left";
  if (shot.legend === null) return text(context, "No overlay", 14, top + 24, `600 13px ${FONT}`, "#14202b", 300);
  const { score, look, task } = shot.legend;
  const wide = Math.min(320, shot.width - 28);
  text(context, scoreTitle(score), 14, top + 22, `600 13px ${FONT}`, "#14202b", wide);
  context.strokeStyle = "#c6ccd2";
  context.strokeRect(13.5, top + 30.5, wide + 1, 13);
  paintRamp(context, 14, top + 31, wide, 12, look);
  const [low, high] = look.range;
  const [down, up] = endWords(score, task);
  text(context, `${short(low)} ${down}`, 14, top + 59, `12px ${FONT}`, "#14202b", wide / 2);
  context.textAlign = "right";
  text(context, `${short(high)} ${score.unit} ${up}`, 14 + wide, top + 59, `12px ${FONT}`, "#14202b", wide / 2);
  context.textAlign = "left";
  lines.forEach((line, i) =>
    text(context, line, 14, top + 76 + LINE_PX * i, `11.5px ${FONT}`, "#4c5a67", shot.width - 28),
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
