// The viewer: one slide at a time, how it is shown, and what is said of it. Modules draw; only this one holds state.

import { AnswerCard, valuesText } from "./answer";
import { Asking, NO_TILES } from "./asking";
import { CaseList } from "./cases";
import type { Look } from "./colors";
import { Controls, FIRST_VIEW, family, scoreFor, type View } from "./controls";
import { NO_NOTES, type SlideCase, Source } from "./data";
import { clamp, el, fill, short, words } from "./dom";
import { extremeTiles, Gallery } from "./gallery";
import { Heat, type Placement } from "./heat";
import { type Commands, keymap } from "./keymap";
import { Help, Keyboard } from "./keys";
import { inside, Sheet, type Drawn, type Tool } from "./lasso";
import { banner, Messages, modelFacts, Tabs, Toolbar } from "./layout";
import { endWords, Legend, type LegendFacts } from "./legend";
import { MarkLayer, type Marks } from "./marks";
import { NotesPanel } from "./notes";
import { fileName, notesCsv, notesGeojson, type Noted } from "./notesfile";
import { Pane } from "./pane";
import { magnificationAt, ScaleBar, scaleBar } from "./scalebar";
import { download, takeShot } from "./screenshot";
import { Linked } from "./sidebyside";
import type { CaseRow, Notes, PagePayload, Pin, Point, ScoreFacts } from "./types";
import { attentionOf } from "./whatif";
import { WhatIfPanel } from "./whatifpanel";

const MOST_THRESHOLD = 0.95;

export class App {
  private readonly source: Source;
  private readonly heat = new Heat();
  private readonly mainMarks = new MarkLayer();
  private readonly besideMarks = new MarkLayer();
  private readonly main: Pane;
  private beside: Pane | null = null;
  private linked: Linked | null = null;
  private readonly sheet: Sheet;
  private readonly list: CaseList;
  private readonly toolbar: Toolbar;
  private readonly tabs: Tabs;
  private readonly card: AnswerCard;
  private readonly controls: Controls;
  private readonly gallery: Gallery;
  private readonly asking: Asking;
  private readonly whatIfPanel: WhatIfPanel;
  private readonly notesPanel: NotesPanel;
  private readonly legend = new Legend();
  private readonly scaleBar = new ScaleBar();
  private readonly messages = new Messages();
  private readonly readout = el("div", { class: "readout", "aria-hidden": "true" });
  private readonly panes = el("div", { class: "panes" });
  private readonly help: Help;

  private view: View = FIRST_VIEW;
  private row: CaseRow | null = null;
  private slide: SlideCase | null = null;
  private opening = 0;
  private scoreWasChosen = false;
  private hidden = false;
  private sideBySide = false;
  private tool: Tool = "pan";
  private toolFor: "notes" | "whatif" = "notes";
  private drawing: Marks["drawing"] = null;
  private tile: number | null = null;
  private notes: Notes = NO_NOTES;
  private picturesFailed = false;
  private readonly noted = new Map<number, Noted>();

  constructor(root: HTMLElement, page: PagePayload) {
    this.source = new Source(page);
    const { index } = this.source;
    this.main = this.makePane("Slide with overlay", true);
    this.sheet = new Sheet(this.main, {
      drawing: (kind, xy0) => this.setDrawing({ kind, xy0: [...xy0] }),
      drawn: (shape) => this.drawn(shape),
      cancelled: () => this.setDrawing(null),
    });
    this.asking = new Asking(this.source, () => {
      this.showScores();
      this.refresh();
    });
    this.list = new CaseList(index, (at) => void this.open(at));
    this.card = new AnswerCard(index);
    this.controls = new Controls(index, (part) => {
      if (part.score !== undefined) this.scoreWasChosen = true;
      this.setView(part);
    });
    this.gallery = new Gallery(this.source, index.task, (tile) => this.flyToTile(tile));
    this.whatIfPanel = new WhatIfPanel({
      tool: (tool) => this.setTool(tool, "whatif"),
      extremes: (n, sign) => this.leaveOutExtremes(n, sign),
      view: () => this.leaveOutView(),
      clear: () => this.asking.clear(),
      keep: () => this.keepWhatIf(),
    });
    this.notesPanel = new NotesPanel({
      save: this.source.live ? (at, notes) => this.source.saveNotes(at, notes) : null,
      download: this.source.live ? null : (kind) => this.downloadNotes(kind),
      changed: (notes) => this.notesChanged(notes),
      tool: (tool) => this.setTool(tool, "notes"),
      go: (pin) => this.goToPin(pin),
      answer: (values) => valuesText(index, values),
    });
    const keys = keymap(this.commands());
    this.help = new Help(keys);
    new Keyboard(keys, (held) => {
      this.hidden = held;
      this.showVisible();
    });
    this.toolbar = new Toolbar({
      fit: () => this.main.home(),
      magnify: (zoom) => this.main.magnify(zoom),
      overlay: () => this.setView({ visible: !this.view.visible }),
      sideBySide: () => this.setSideBySide(!this.sideBySide),
      screenshot: () => void this.screenshot(),
      help: () => this.help.open(),
    });
    this.tabs = new Tabs(
      [
        ["overlay", "Overlay", this.controls.element],
        ["tiles", "Tiles", this.gallery.element],
        ["whatif", "What if", this.whatIfPanel.element],
        ["notes", "Notes", this.notesPanel.element],
      ],
      () => this.setTool("pan", "notes"),
    );
    this.panes.append(this.main.element);
    const { problem, hint, toast } = this.messages;
    fill(
      root,
      el("a", { class: "skip", href: "#stage" }, "Skip to the slide"),
      banner(index),
      this.list.element,
      el(
        "main",
        { class: "stage", id: "stage", tabindex: -1 },
        this.toolbar.element,
        el("div", { class: "ground" }, this.panes, this.scaleBar.element, this.readout, this.legend.element, hint, problem, toast),
      ),
      el("aside", { class: "panel", "aria-label": "Answer and tools" }, this.card.element, this.tabs.element),
      this.help.element,
    );
    root.classList.add("app");
    this.main.element.addEventListener("pointermove", (event) => this.readAt(event));
    this.main.element.addEventListener("pointerleave", () => fill(this.readout));
    window.addEventListener("beforeunload", (event) => {
      this.notesPanel.flush();
      if (!this.source.live && this.noted.size > 0) event.preventDefault();
    });
    const first = Number(/^#(\d+)$/.exec(window.location.hash)?.[1] ?? Number.NaN);
    const start = index.cases[first] ?? index.cases.find((row) => row.scored) ?? index.cases[0];
    if (start) void this.open(start.index);
    else this.messages.refuse("There are no slides to show", "No predictions were found.", () => window.location.reload());
  }

  // Slides

  async open(at: number): Promise<void> {
    const row = this.source.index.cases[at];
    if (!row) return;
    const mine = ++this.opening;
    this.notesPanel.flush();
    this.row = row;
    this.slide = null;
    this.asking.begin(null);
    this.drawing = null;
    this.tile = null;
    this.notes = NO_NOTES;
    this.picturesFailed = false;
    this.setTool("pan", "notes");
    this.messages.clear();
    this.list.show(at);
    this.main.close();
    this.beside?.close();
    this.notesPanel.load(null, NO_NOTES);
    window.history.replaceState(null, "", `#${at}`);
    document.title = `${row.slide_id} · wsimil`;
    this.refresh();
    try {
      const slide = await this.source.loadCase(at);
      if (mine !== this.opening) return;
      await Promise.all([this.main.open(slide, this.source), this.beside?.open(slide, this.source)]);
      if (mine !== this.opening) return;
      this.slide = slide;
      this.asking.begin(slide);
    } catch (error) {
      if (mine !== this.opening) return;
      this.messages.refuse(`${row.slide_id} could not be loaded`, words(error), () => void this.open(at));
      return;
    }
    const { slide } = this;
    if (slide === null) return;
    if (slide.pyramid === null) {
      this.messages.tell(`The slide is not at hand${slide.pyramidNote ? `: ${slide.pyramidNote}` : ""}. Only the map is shown, on a neutral ground.`);
    }
    const kept = this.scoreWasChosen && this.view.score !== null && slide.scores.has(this.view.score);
    this.view = { ...this.view, score: kept ? this.view.score : (slide.mainScore ?? this.source.index.scores[0]?.name ?? null) };
    this.showScores();
    this.refresh();
    await this.loadNotes(at, mine);
  }

  private async loadNotes(at: number, mine: number): Promise<void> {
    try {
      const notes = this.noted.get(at)?.notes ?? (await this.source.loadNotes(at));
      if (mine !== this.opening) return;
      this.notes = notes;
      this.notesPanel.load(at, notes);
      this.showMarks();
    } catch (error) {
      if (mine === this.opening) this.notesPanel.refuse(words(error));
    }
  }

  // What is shown

  setView(part: Partial<View>): void {
    const before = this.view;
    this.view = { ...before, ...part };
    if (this.view.score !== before.score) this.showScores();
    this.refresh();
  }

  private get score(): ScoreFacts | null {
    const found = this.source.index.scores.find((score) => score.name === this.view.score);
    return found && this.slide?.scores.has(found.name) ? found : null;
  }

  private get look(): Look | null {
    const { score, view } = this;
    return score?.range ? { kind: score.kind, range: score.range, threshold: view.threshold, opacity: view.opacity } : null;
  }

  private showScores(): void {
    const scores = this.look && this.score ? (this.slide?.scores.get(this.score.name) ?? null) : null;
    this.heat.setScores(scores, this.asking.now.without);
    this.gallery.update(this.slide, this.score);
    this.gallery.show(this.tile);
  }

  private refresh(): void {
    const { score, look, slide, row } = this;
    if (look) this.heat.setLook(look, this.view.veil);
    this.controls.update(this.view, score, Boolean(slide?.tissue));
    this.legend.update(this.view.visible ? this.legendFacts() : null);
    this.toolbar.update(this.view.visible, this.sideBySide);
    this.scaleBar.element.hidden = slide === null;
    if (row) this.card.update(row, slide?.values ?? row.values, slide?.predicted ?? row.predicted, this.asking.now.values);
    this.showWhatIf();
    this.showVisible();
    this.showMarks();
  }

  private showVisible(): void {
    this.heat.setVisible(this.view.visible && !this.hidden);
    this.main.redraw();
  }

  private legendFacts(): LegendFacts | null {
    const { score, look, slide } = this;
    if (!score || !look || !slide) return null;
    let unscored = 0;
    for (const value of slide.scores.get(score.name) ?? []) if (Number.isNaN(value)) unscored++;
    const effectiveTiles = slide.effectiveTiles[score.name] ?? undefined;
    return { score, look, task: this.source.index.task, effectiveTiles, tiles: slide.count, unscored, leftOut: this.asking.now.without.size };
  }

  private showMarks(): void {
    const { slide, tile, drawing, view } = this;
    const marks: Marks = {
      pins: this.notes.pins,
      tile: slide && tile !== null ? [slide.xy0[2 * tile] ?? 0, slide.xy0[2 * tile + 1] ?? 0, slide.tileSize0] : null,
      drawing,
      lassos: this.asking.now.lassos,
      tissue: view.tissue ? (slide?.tissue ?? null) : null,
    };
    this.mainMarks.set(marks);
    this.besideMarks.set({ ...marks, drawing: null });
    this.main.redraw();
    this.beside?.redraw();
  }

  private makePane(label: string, first: boolean): Pane {
    const layers = first ? { heat: this.heat, marks: this.mainMarks } : { marks: this.besideMarks };
    const pane: Pane = new Pane(
      label,
      layers,
      {
        frame: (place) => first && this.slide && this.scaleBar.update(place.scale, this.slide.mpp),
        lead: () => this.linked?.lead(pane),
        broken: () => this.pictureFailed(),
      },
      first,
    );
    return pane;
  }

  private pictureFailed(): void {
    if (this.picturesFailed) return;
    this.picturesFailed = true;
    this.messages.say("Some of the slide's pictures could not be read; those parts stay blank.");
  }

  setSideBySide(on: boolean): void {
    this.sideBySide = on;
    if (this.beside === null) {
      this.beside = this.makePane("Slide without overlay", false);
      this.panes.prepend(this.beside.element);
      this.linked = new Linked(this.main, this.beside, () => this.sideBySide);
      if (this.slide) void this.beside.open(this.slide, this.source).then(() => this.linked?.follow());
    }
    this.beside.element.hidden = !on;
    this.panes.classList.toggle("two", on);
    this.main.resized();
    this.beside.resized();
    this.linked?.lead(this.main);
    this.linked?.follow();
    this.refresh();
  }

  private readAt(event: PointerEvent): void {
    const box = this.main.element.getBoundingClientRect();
    const at = this.main.toSlide(event.clientX - box.left, event.clientY - box.top);
    const tile = at && this.heat.tileAt(at[0], at[1]);
    const value = tile === null || this.score === null ? undefined : this.slide?.scores.get(this.score.name)?.[tile];
    if (tile === null || value === undefined) return fill(this.readout);
    const unit = this.score?.unit ? ` ${this.score.unit}` : "";
    fill(this.readout, `tile ${tile}: ${Number.isNaN(value) ? "not scored" : `${short(value)}${unit}`}`);
  }

  private flyToTile(tile: number): void {
    const { slide } = this;
    if (!slide) return;
    this.tile = tile;
    this.linked?.lead(this.main);
    this.main.flyTo(slide.xy0[2 * tile] ?? 0, slide.xy0[2 * tile + 1] ?? 0, slide.tileSize0, slide.tileSize0);
    this.gallery.show(tile);
    this.showMarks();
  }

  // Drawing

  private setTool(tool: Tool, what: "notes" | "whatif"): void {
    this.tool = tool;
    this.toolFor = what;
    this.sheet.choose(tool);
    this.notesPanel.showTool(what === "notes" ? tool : "pan");
    this.whatIfPanel.showTool(what === "whatif" ? tool : "pan");
  }

  private setDrawing(drawing: Marks["drawing"]): void {
    this.drawing = drawing;
    this.showMarks();
  }

  private drawn(shape: Drawn): void {
    this.drawing = null;
    if (this.toolFor === "whatif") return this.leaveOutWithin(shape.xy0, shape.adds);
    this.setTool("pan", "notes");
    this.notesPanel.addPin({ kind: shape.kind, xy0: shape.xy0, text: "" });
  }

  // What if

  private leaveOutWithin(polygon: readonly Point[], adds: boolean): void {
    const { slide } = this;
    if (!slide) return;
    const half = slide.tileSize0 / 2;
    const found = new Set(adds ? this.asking.now.without : NO_TILES);
    for (let tile = 0; tile < slide.count; tile++) {
      if (inside((slide.xy0[2 * tile] ?? 0) + half, (slide.xy0[2 * tile + 1] ?? 0) + half, polygon)) found.add(tile);
    }
    this.asking.leaveOut(found, [...(adds ? this.asking.now.lassos : []), polygon]);
    if (found.size === 0) this.messages.say("No tile has its center in there.");
  }

  private leaveOutExtremes(n: number, sign: 1 | -1): void {
    const scores = this.score && this.slide?.scores.get(this.score.name);
    if (scores) this.asking.leaveOut(new Set(extremeTiles(scores, n, sign)), []);
  }

  private leaveOutView(): void {
    const place = this.main.placement();
    if (!place) return;
    const [right, bottom] = [place.x0 + place.width / place.scale, place.y0 + place.height / place.scale];
    const corner = (x: number, y: number): Point => [Math.round(x * 100) / 100, Math.round(y * 100) / 100];
    this.leaveOutWithin([corner(place.x0, place.y0), corner(right, place.y0), corner(right, bottom), corner(place.x0, bottom)], false);
  }

  private showWhatIf(): void {
    const { slide } = this;
    const whatIf = this.asking.now;
    const form = slide?.whatIf;
    this.whatIfPanel.update({
      without: whatIf.without,
      tiles: slide?.count ?? 0,
      attention: form?.form === "closed" && whatIf.without.size > 0 ? attentionOf(form, whatIf.without) : null,
      said: whatIf.said,
      closed:
        form === undefined
          ? "No slide is shown."
          : form.form === null
            ? `Not for this slide: ${form.reason}.`
            : form.form === "server" && !this.source.live
              ? "This model has to be run again for that; open the slide with wsimil view."
              : null,
      ends: this.score ? endWords(this.score, this.source.index.task) : ["low", "high"],
    });
  }

  private keepWhatIf(): void {
    const { without, lassos, values } = this.asking.now;
    if (values === null || !this.notesPanel.editable) return;
    const [only] = lassos;
    const xy0 = lassos.length === 1 && only ? only : [];
    this.notesPanel.addPin({ kind: "what-if", xy0, text: "", without: [...without].sort((a, b) => a - b), values });
    this.tabs.show("notes");
    this.messages.say("Kept with the notes.");
  }

  // Notes

  private notesChanged(notes: Notes): void {
    const { slide, row } = this;
    this.notes = notes;
    if (!this.source.live && slide && row) this.noted.set(row.index, { slide, notes, saved: new Date().toISOString() });
    this.showMarks();
  }

  private goToPin(pin: Pin): void {
    const { slide } = this;
    if (!slide) return;
    if (pin.kind === "what-if") this.asking.leaveOut(new Set(pin.without), pin.xy0.length ? [pin.xy0] : []);
    const side = slide.tileSize0;
    const corners = pin.xy0.length
      ? pin.xy0
      : (pin.without ?? []).flatMap((tile): Point[] => {
          const [x, y] = [slide.xy0[2 * tile] ?? 0, slide.xy0[2 * tile + 1] ?? 0];
          return [[x, y], [x + side, y + side]];
        });
    let [left, top, right, bottom] = [Infinity, Infinity, -Infinity, -Infinity];
    for (const [x, y] of corners) {
      [left, top, right, bottom] = [Math.min(left, x), Math.min(top, y), Math.max(right, x), Math.max(bottom, y)];
    }
    if (left > right) return;
    const point = pin.kind === "point";
    this.linked?.lead(this.main);
    if (point) this.main.flyTo(left - side, top - side, 2 * side, 2 * side);
    else this.main.flyTo(left, top, right - left, bottom - top, 0.7);
  }

  private downloadNotes(kind: "geojson" | "csv"): void {
    const { index } = this.source;
    const mine = this.row ? this.noted.get(this.row.index) : undefined;
    if (kind === "csv") {
      const all = [...this.noted.entries()].sort(([a], [b]) => a - b).map(([, noted]) => noted);
      download(new Blob([notesCsv(all, index)], { type: "text/csv" }), "notes.csv");
    } else if (mine) {
      const text = JSON.stringify(notesGeojson(mine, index), null, 1);
      download(new Blob([text], { type: "application/geo+json" }), `${fileName(mine.slide.slideId)}.geojson`);
    } else this.messages.say("There are no notes on this slide yet.");
  }

  // Pictures

  private async screenshot(): Promise<void> {
    const { slide, row } = this;
    const place = this.main.placement();
    if (!slide || !row || !place) return this.messages.say("There is no slide to take a picture of.");
    try {
      const blob = await this.shot(slide, row, place);
      download(blob, `${fileName(slide.slideId)}.png`);
      this.messages.say("The screenshot was saved as a download.");
    } catch (error) {
      this.messages.say(`No screenshot: ${words(error)}`);
    }
  }

  private shot(slide: SlideCase, row: CaseRow, place: Placement): Promise<Blob> {
    const { index } = this.source;
    const drawer = (this.main.viewer.drawer as unknown as { canvas: HTMLCanvasElement }).canvas;
    const without = this.asking.now.values;
    return takeShot({
      layers: [drawer, this.heat.canvas, this.mainMarks.canvas],
      width: place.width,
      height: place.height,
      title: slide.slideId,
      facts: [
        `predicted ${slide.predicted}`,
        valuesText(index, slide.values),
        row.label === null ? "" : `label ${row.label}`,
        without ? `without ${this.asking.now.without.size} tiles: ${valuesText(index, without)}` : "",
      ]
        .filter(Boolean)
        .join("  ·  "),
      notice: [index.notice, `wsimil ${index.version}`, index.date, ...modelFacts(index)].join("  ·  "),
      legend: this.view.visible ? this.legendFacts() : null,
      bar: scaleBar(place.scale, slide.mpp),
      magnification: `${short(magnificationAt(place.scale, slide.mpp), 3)}×`,
    });
  }

  // Keys

  private commands(): Commands {
    const { index } = this.source;
    return {
      step: (by) => this.list.step(by),
      list: () => this.list.focus(),
      pan: (x, y) => {
        this.linked?.lead(this.main);
        this.main.panBy(x, y);
      },
      zoom: (factor) => {
        this.linked?.lead(this.main);
        this.main.zoomBy(factor);
      },
      fit: () => this.main.home(),
      sideBySide: () => this.setSideBySide(!this.sideBySide),
      screenshot: () => void this.screenshot(),
      overlay: () => this.setView({ visible: !this.view.visible }),
      opacity: (by) => this.setView({ opacity: stepped(this.view.opacity, by, 1) }),
      threshold: (by) => this.setView({ threshold: stepped(this.view.threshold, by, MOST_THRESHOLD) }),
      setThreshold: () => {
        this.tabs.show("overlay");
        this.controls.threshold.input.focus();
      },
      veil: () => this.setView({ veil: !this.view.veil }),
      output: (number) => {
        const output = index.task.outputs[number - 1];
        const score = output === undefined ? null : scoreFor(index, this.view.score, output);
        if (score === null) return this.messages.say(`There is no map of class ${number}.`);
        this.scoreWasChosen = true;
        this.setView({ score });
      },
      attention: () => this.toggleAttention(),
      tiles: () => this.tabs.focus("tiles"),
      whatIf: () => {
        this.tabs.focus("whatif");
        if (this.slide && this.slide.whatIf.form !== null) this.setTool("lasso", "whatif");
      },
      note: () => {
        this.tabs.show("notes");
        this.notesPanel.text.focus();
      },
      escape: () => {
        if (this.tool !== "pan") this.setTool("pan", "notes");
        else this.asking.clear();
      },
      help: () => this.help.open(),
    };
  }

  private toggleAttention(): void {
    const { scores } = this.source.index;
    const attention = this.view.score !== null && family(this.view.score)[0] === "attention";
    const score = attention
      ? (this.slide?.mainScore ?? null)
      : (scores.find((one) => family(one.name)[0] === "attention" && this.slide?.scores.has(one.name))?.name ?? null);
    if (score === null) return this.messages.say("There is no map of attention.");
    this.scoreWasChosen = true;
    this.setView({ score });
  }

  // For tests; see main.ts.

  get ready(): boolean {
    return this.slide !== null && this.main.placement() !== null && this.notesPanel.editable;
  }

  get complete(): boolean {
    return this.ready && this.main.complete && (!this.sideBySide || (this.beside?.complete ?? false));
  }

  get state() {
    return {
      case: this.row?.index ?? null,
      slideId: this.slide?.slideId ?? null,
      ...this.view,
      hidden: this.hidden,
      sideBySide: this.sideBySide,
      tool: this.tool,
      tile: this.tile,
      without: [...this.asking.now.without],
      withoutValues: this.asking.now.values,
      notes: this.notes,
      placement: this.main.placement(),
      besidePlacement: this.beside?.placement() ?? null,
    };
  }

  /** Where OpenSeadragon shows a point of the slide (level-0 px), CSS px of the view. */
  imageToViewer(x: number, y: number): Point | null {
    return this.main.imageToViewer(x, y);
  }

  /** Where the heat on the screen has the same point. */
  heatToViewer(x: number, y: number): Point | null {
    const place = this.heat.drawn;
    return place && [(x - place.x0) * place.scale, (y - place.y0) * place.scale];
  }
}

/** A share moved by a step, in whole hundredths. */
function stepped(value: number, by: number, most: number): number {
  return clamp(Math.round(100 * (value + by)) / 100, 0, most);
}
