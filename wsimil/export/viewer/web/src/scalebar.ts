// Lengths on the screen: the scale bar in micrometres, and magnification as pathologists count it.

import { el, fill, short } from "./dom";

/** 10x is 1 µm on a screen pixel, so 40x is 0.25 µm. */
const MICROMETRES_AT_1X = 10;
export const PRESETS: readonly number[] = [5, 10, 20, 40];
const LONGEST_PX = 150;

/** CSS px of the screen for each level-0 px. */
export function scaleAt(magnification: number, mpp: number): number {
  return (mpp * magnification) / MICROMETRES_AT_1X;
}

export function magnificationAt(scale: number, mpp: number): number {
  return (scale * MICROMETRES_AT_1X) / mpp;
}

export interface Bar {
  readonly px: number;
  readonly text: string;
}

/** The longest of 1, 2, 5, 10, … µm that fits; `scale` is CSS px per level-0 px. */
export function scaleBar(scale: number, mpp: number): Bar {
  const perMicrometre = scale / mpp;
  const most = LONGEST_PX / perMicrometre;
  const power = 10 ** Math.floor(Math.log10(most));
  const length = ([5, 2].find((step) => step * power <= most) ?? 1) * power;
  const text = length >= 1000 ? `${short(length / 1000)} mm` : `${short(length)} µm`;
  return { px: length * perMicrometre, text };
}

export class ScaleBar {
  readonly element = el("div", { class: "scalebar", role: "img" });
  private readonly text = el("span", { class: "scalebar-text" });
  private readonly line = el("span", { class: "scalebar-line" });
  private shown = "";

  constructor() {
    fill(this.element, this.text, this.line);
  }

  update(scale: number, mpp: number): void {
    const bar = scaleBar(scale, mpp);
    this.line.style.width = `${bar.px}px`;
    const zoom = magnificationAt(scale, mpp);
    const said = `${bar.text} · ${zoom < 10 ? short(zoom, 2) : Math.round(zoom)}×`;
    if (said === this.shown) return;
    this.shown = said;
    this.text.textContent = said;
    this.element.setAttribute("aria-label", `Scale bar: ${said}`);
  }
}
