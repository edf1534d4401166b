// One view of the slide: OpenSeadragon's pictures, the heat and the marks over them, all drawn in the same frame.

import OpenSeadragon from "openseadragon";
import type { SlideCase, Source } from "./data";
import { clamp, el } from "./dom";
import type { Heat, Placement } from "./heat";
import type { MarkLayer } from "./marks";
import { scaleAt } from "./scalebar";
import { tileSource } from "./tiles";
import type { Point } from "./types";

/** How far in and out one can go: CSS px of the screen for a level-0 px, and times the whole slide. */
const CLOSEST = 4;
const FARTHEST = 0.6;

/**
 * OpenSeadragon adds a style element to the page, which the page's policy forbids, unless it finds its own there; an element
 * of that name from no known namespace is found and styles nothing. We keep the focus outline anyway.
 */
function withoutForeignStyle(): void {
  const mark = "data-openseadragon-mobile-css";
  if (document.querySelector(`style[${mark}]`)) return;
  const inert = document.createElementNS("urn:wsimil:inert", "style");
  inert.setAttribute(mark, "true");
  document.head.append(inert);
}

/** OpenSeadragon warns of each picture that arrives after its slide was left, which is what leafing through slides is. */
function withoutNeedlessWarnings(): void {
  const warn = (text: unknown, ...more: unknown[]): void => {
    if (!String(text).startsWith("Ignoring tile")) console.warn(text, ...more);
  };
  const { log, debug, info, error, assert } = console;
  Object.assign(OpenSeadragon, { console: { log, debug, info, warn, error, assert } });
}

export class Pane {
  readonly element: HTMLElement;
  readonly viewer: OpenSeadragon.Viewer;
  private slide: SlideCase | null = null;
  private generation = 0;

  constructor(
    label: string,
    private readonly layers: { readonly heat?: Heat; readonly marks: MarkLayer },
    private readonly on: { frame(place: Placement): void; lead(): void; broken(): void },
    navigator: boolean,
  ) {
    this.element = el("div", { class: "pane", role: "group", "aria-label": label });
    const host = el("div", { class: "pane-view" });
    this.element.append(host);
    withoutForeignStyle();
    withoutNeedlessWarnings();
    this.viewer = new OpenSeadragon.Viewer({
      element: host,
      drawer: "canvas",
      showNavigationControl: false,
      showNavigator: navigator,
      navigatorPosition: "TOP_RIGHT",
      navigatorSizeRatio: 0.17,
      navigatorAutoFade: false,
      navigatorBackground: "#ffffff",
      navigatorBorderColor: "#c6ccd2",
      navigatorDisplayRegionColor: "#14202b",
      animationTime: 0.35,
      springStiffness: 9,
      visibilityRatio: 0.2,
      minZoomImageRatio: FARTHEST,
      maxZoomPixelRatio: CLOSEST,
      zoomPerScroll: 1.25,
      gestureSettingsMouse: { clickToZoom: false, dblClickToZoom: true },
      preserveImageSizeOnResize: true,
      imageLoaderLimit: 6,
      maxImageCacheCount: 400,
      timeout: 120_000,
    } as OpenSeadragon.Options);
    this.viewer.canvas.setAttribute("aria-label", `${label}: Shift and arrow keys pan, + and − zoom`);
    if (layers.heat) this.viewer.canvas.append(layers.heat.canvas);
    this.viewer.canvas.append(layers.marks.canvas);
    // The page has its own keys.
    this.viewer.addHandler("canvas-key", (event) => {
      event.preventDefaultAction = true;
    });
    this.viewer.addHandler("update-viewport", () => this.redraw());
    this.viewer.addHandler("tile-load-failed", () => this.on.broken());
    for (const name of ["pointerdown", "wheel"] as const) {
      this.element.addEventListener(name, () => this.on.lead(), { capture: true, passive: true });
    }
  }

  /** Shows a slide from its overview, once its first picture can be asked for. Throws where it cannot be opened. */
  open(slide: SlideCase, source: Source): Promise<void> {
    const mine = ++this.generation;
    this.slide = null;
    this.layers.heat?.setSlide(slide);
    return new Promise((resolve, reject) => {
      this.viewer.addOnceHandler("open", () => {
        if (mine !== this.generation) return resolve();
        this.slide = slide;
        this.viewer.viewport.goHome(true);
        this.viewer.forceRedraw();
        resolve();
      });
      this.viewer.addOnceHandler("open-failed", (event) => reject(new Error(event.message)));
      this.viewer.open({ tileSource: tileSource(slide, source) });
    });
  }

  close(): void {
    this.generation += 1;
    this.slide = null;
    this.layers.heat?.setSlide(null);
    this.viewer.close();
    this.redraw();
  }

  /** Where the slide is now, in the frame that is on the screen. */
  placement(): Placement | null {
    if (this.slide === null || !this.viewer.world.getItemCount()) return null;
    const [width0] = this.slide.size0;
    const bounds = this.viewer.viewport.getBounds(true);
    const size = this.viewer.viewport.getContainerSize();
    return {
      x0: bounds.x * width0,
      y0: bounds.y * width0,
      scale: size.x / (bounds.width * width0),
      width: size.x,
      height: size.y,
    };
  }

  /** Whether all pictures of what is in sight are there. */
  get complete(): boolean {
    return this.viewer.world.getItemAt(0)?.getFullyLoaded() ?? false;
  }

  redraw(): void {
    const place = this.placement();
    if (place === null) {
      for (const canvas of [this.layers.heat?.canvas, this.layers.marks.canvas]) if (canvas) canvas.width = 1;
      return;
    }
    this.layers.heat?.draw(place);
    this.layers.marks.draw(place);
    this.on.frame(place);
  }

  /** Where OpenSeadragon itself puts a point of the slide, level-0 px, in CSS px of the pane. */
  imageToViewer(x: number, y: number): Point | null {
    const item = this.viewer.world.getItemAt(0);
    if (!item) return null;
    const at = this.viewer.viewport.pixelFromPoint(item.imageToViewportCoordinates(x, y, true), true);
    return [at.x, at.y];
  }

  /** Level-0 px under a point of the pane, CSS px. */
  toSlide(x: number, y: number): Point | null {
    const place = this.placement();
    return place && [place.x0 + x / place.scale, place.y0 + y / place.scale];
  }

  home(): void {
    this.viewer.viewport?.goHome();
  }

  zoomBy(factor: number): void {
    this.viewer.viewport?.zoomBy(factor);
    this.viewer.viewport?.applyConstraints();
  }

  /** `x` and `y` are shares of the pane's width and height. */
  panBy(x: number, y: number): void {
    const bounds = this.viewer.viewport?.getBounds();
    if (!bounds) return;
    this.viewer.viewport.panBy(new OpenSeadragon.Point(x * bounds.width, y * bounds.height));
    this.viewer.viewport.applyConstraints();
  }

  magnify(magnification: number): void {
    if (this.slide === null) return;
    const scale = Math.min(CLOSEST, scaleAt(magnification, this.slide.mpp));
    const width = this.viewer.viewport.getContainerSize().x;
    this.viewer.viewport.zoomTo((scale * this.slide.size0[0]) / width);
  }

  /** Centers a rectangle (level-0 px) so that it fills `share` of the pane, not closer than the slide has pictures for. */
  flyTo(left: number, top: number, width: number, height: number, share: number): void {
    if (this.slide === null) return;
    const [width0] = this.slide.size0;
    const size = this.viewer.viewport.getContainerSize();
    const scale = clamp(share * Math.min(size.x / width, size.y / height), 0, 2);
    const w = size.x / scale / width0;
    const h = size.y / scale / width0;
    const x = (left + width / 2) / width0;
    const y = (top + height / 2) / width0;
    this.viewer.viewport.fitBounds(new OpenSeadragon.Rect(x - w / 2, y - h / 2, w, h));
  }

  resized(): void {
    this.viewer.forceResize();
  }
}
