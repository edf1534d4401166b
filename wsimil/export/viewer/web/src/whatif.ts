// The slide's answer without some of its tiles, at once where it is a closed form; all in float64.
//
// With attention a over all tiles and a linear head, the logit of output c is bias_c + sum_i v_ic where v_ic = a_i (w_c . h_i).
// Without some tiles the attention of the others grows so that it sums to 1 again, and their parts of the logit with it.

import type { ClosedForm } from "./data";
import type { Link, Point } from "./types";

const LEAST_ATTENTION = 1e-30;

/** Logits [C] without the tiles. Throws where nothing that counts would be left. */
export function logitsWithout(form: ClosedForm, without: ReadonlySet<number>): number[] {
  const kept: number[] = [];
  const tiles = form.attention[0]?.length ?? 0;
  for (let tile = 0; tile < tiles; tile++) if (!without.has(tile)) kept.push(tile);
  const sum = (values: Float32Array): number => kept.reduce((total, tile) => total + known(values[tile]), 0);
  const shares = form.attention.map(sum);
  if (kept.length === 0 || shares.some((share) => !(share >= LEAST_ATTENTION))) {
    throw new Error("nothing is left to judge; leave out fewer tiles");
  }
  return form.parts.map((parts, output) => (form.bias[output] ?? Number.NaN) + scaled(parts, output));

  function scaled(parts: Float32Array, output: number): number {
    if (form.mix === "single") return sum(parts) / (shares[0] ?? Number.NaN);
    if (form.mix === "output") return sum(parts) / (shares[output] ?? Number.NaN);
    // Heads are averaged: each tile's part is shared among them as their attention is, and each grows by itself.
    const heads = form.attention.length;
    let total = 0;
    for (const tile of kept) {
      const mean = form.attention.reduce((all, head) => all + known(head[tile]), 0) / heads;
      if (!(mean > 0)) continue;
      const grown =
        form.attention.reduce((all, head, k) => all + known(head[tile]) / (shares[k] ?? Number.NaN), 0) / heads;
      total += (known(parts[tile]) / mean) * grown;
    }
    return total;
  }
}

const KNOWN: ReadonlySet<string> = new Set<Link["kind"]>([
  "softmax",
  "isotonic",
  "sigmoid",
  "labels",
  "corn",
  "linear",
  "cox",
  "hazard",
]);

/** Whether `valuesOf` knows how to answer. */
export function isKnown(link: Link): boolean {
  return KNOWN.has(link.kind) && (link.kind !== "labels" || link.each.every(isKnown));
}

/** The numbers of an answer [V] that logits [C] give. */
export function valuesOf(logits: readonly number[], link: Link): number[] {
  switch (link.kind) {
    case "softmax":
      return softmax(logits.map((logit, k) => logit / link.temperature + (link.shifts[k] ?? 0)));
    case "isotonic":
      return isotonic(softmax(logits), link.curves);
    case "sigmoid":
      return logits.map(sigmoid);
    case "labels":
      return logits.map((logit, k) => {
        const each = link.each[k];
        return each === undefined ? Number.NaN : (valuesOf([0, logit], each)[1] ?? Number.NaN);
      });
    case "corn": {
      // Number k says whether a slide above all lower levels is above level k too.
      let above = 1;
      const values = logits.map((logit) => {
        const here = above * sigmoid(-logit);
        above *= sigmoid(logit);
        return here;
      });
      return [...values, above];
    }
    case "linear":
      return logits.map((logit, k) => (link.mean[k] ?? Number.NaN) + (link.scale[k] ?? Number.NaN) * logit);
    case "cox": {
      const risk = logits[0] ?? Number.NaN;
      return [risk, ...link.baseline.map((hazard) => Math.exp(-Math.exp(risk) * hazard))];
    }
    case "hazard": {
      let sum = 0;
      const hazards = logits.map((logit) => (sum += softplus(logit)));
      const risk = -hazards.reduce((total, hazard) => total + Math.exp(-hazard), 0);
      const curve: Point[] = [[0, 0], ...hazards.map((hazard, k): Point => [link.edges[k] ?? Number.NaN, hazard])];
      return [risk, ...link.horizons.map((time) => Math.exp(-interpolate(curve, time)))];
    }
  }
}

/** The share of attention (mean of heads) that tiles hold. */
export function attentionOf(form: ClosedForm, tiles: ReadonlySet<number>): number {
  const shares = form.attention.map((head) => {
    let all = 0;
    let held = 0;
    head.forEach((share, tile) => {
      all += known(share);
      if (tiles.has(tile)) held += known(share);
    });
    return held / all;
  });
  return shares.reduce((a, b) => a + b, 0) / shares.length;
}

function isotonic(p: readonly number[], curves: readonly (readonly Point[])[]): number[] {
  const [only] = curves;
  if (curves.length === 1 && only) {
    const second = interpolate(only, p[1] ?? Number.NaN);
    return [1 - second, second];
  }
  const mapped = p.map((one, k) => interpolate(curves[k] ?? [], one));
  const sum = mapped.reduce((a, b) => a + b, 0);
  return mapped.map((one) => (sum > 0 ? one / sum : 1 / mapped.length));
}

/** Between knots in ascending order; the ends hold beyond. */
function interpolate(knots: readonly Point[], x: number): number {
  const next = knots.findIndex(([knot]) => knot > x);
  const [first, last] = [knots[0], knots.at(-1)];
  if (first === undefined || last === undefined || Number.isNaN(x)) return Number.NaN;
  if (next === 0) return first[1];
  if (next === -1) return last[1];
  const [x0, y0] = knots[next - 1] ?? first;
  const [x1, y1] = knots[next] ?? last;
  return y0 + ((y1 - y0) * (x - x0)) / (x1 - x0);
}

function softmax(logits: readonly number[]): number[] {
  const top = Math.max(...logits);
  const odds = logits.map((logit) => Math.exp(logit - top));
  const sum = odds.reduce((a, b) => a + b, 0);
  return odds.map((one) => one / sum);
}

function softplus(x: number): number {
  return Math.max(x, 0) + Math.log1p(Math.exp(-Math.abs(x)));
}

function sigmoid(x: number): number {
  return x >= 0 ? 1 / (1 + Math.exp(-x)) : Math.exp(x) / (1 + Math.exp(x));
}

/** A tile without a number counts as 0. */
function known(value: number | undefined): number {
  return value === undefined || Number.isNaN(value) ? 0 : value;
}
