// The viewer: one slide at a time, how it is shown, and what is said of it.
//
// Long, for it is the one place that holds state: what it has changed it hands to the modules that draw, and they know nothing
// of one another.

import { AnswerCard, valuesText } from "./answer";
import { Asking, NO_TILES } from "./asking";
import { CaseList } from "./cases";
import type { Look } from "./colors";
import { Controls, FIRST_VIEW, family, scoreFor, type View } from "./controls";
import { NO_NOTES, type SlideCase, Source } from "./data";
import { clamp, count, el, fill, short, words } from "./dom";
import { extremeTiles, Gallery } from "./gallery";
import type { Placement } from "./heat";
import { type Commands, keymap } from "./keymap";
import { Help, Keyboard } from "./keys";
import type { Drawn, Tool } from "./lasso";
import { banner, type Messages, modelFacts, Tabs, Toolbar } from "./layout";
import { endWords, type LegendFacts } from "./legend";
import type { Marks } from "./marks";
import { Notebook } from "./notebook";
import { NotesPanel } from "./notes";
import { fileName } from "./notesfile";
import { boxOf, cornerOf, sightOf, tilesWithin } from "./places";
import { magnificationAt, scaleBar } from "./scalebar";
import { download, takeShot } from "./screenshot";
import { Stage } from "./stage";
import type { CaseRow, Notes, PagePayload, Pin, Point, ScoreFacts } from "./types";
import { attentionOf } from "./whatif";
import { WhatIfPanel } from "./whatifpanel";

const MOST_THRESHOLD = 0.95;
/** How much of the view a tile fills, and an outline, that was flown to. */
const TILE_SHARE = 0.35;
const OUTLINE_SHARE = 0.7;

export class App {
  private readonly source: Source;
  private readonly stage: Stage;
  private readonly list: CaseList;
  private readonly toolbar: Toolbar;
  private readonly tabs: Tabs;
  private readonly card: AnswerCard;
  private readonly controls: Controls;
  private readonly gallery: Gallery;
  private readonly asking: Asking;
  private readonly whatIfPanel: WhatIfPanel;
  private readonly notebook: Notebook;
  private readonly notesPanel: NotesPanel;
  private readonly messages: Messages;
  private readonly help: Help;

  private view: View = FIRST_VIEW;
  private row: CaseRow | null = null;
  private slide: SlideCase | null = null;
  private opening = 0;
  private scoreWasChosen = false;
  private hidden = false;
  private tool: Tool = "pan";
  private toolFor: "notes" | "whatif" = "notes";
  private drawing: Marks["drawing"] = null;
  private tile: number | null = null;
  private notes: Notes = NO_NOTES;

  constructor(root: HTMLElement, page: PagePayload) {
    this.source = new Source(page);
    const { index } = this.source;
    this.stage = new Stage(this.source, {
      drawing: (kind, xy0) => this.setDrawing({ kind, xy0: [...xy0] }),
      drawn: (shape) => this.drawn(shape),
      cancelled: () => this.setDrawing(null),
      read: (tile) => this.read(tile),
    });
    this.messages = this.stage.messages;
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
    this.whatIfPanel = new WhatIfPanel(index.unit, {
      tool: (tool) => this.setTool(tool, "whatif"),
      extremes: (n, sign) => this.leaveOutExtremes(n, sign),
      view: () => this.leaveOutView(),
      clear: () => this.asking.clear(),
      keep: () => this.keepWhatIf(),
    });
    this.notebook = new Notebook(this.source);
    this.notesPanel = new NotesPanel({
      save: this.source.live ? (at, notes) => this.notebook.save(at, notes) : null,
      join: (at) => void this.joinNotes(at),
      lost: (at, reason) =>
        this.messages.say(`The notes on ${index.cases[at]?.slide_id ?? at} were not saved yet: ${reason}`),
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
      this.showHeat();
    });
    this.toolbar = new Toolbar({
      fit: () => this.stage.fit(),
      magnify: (zoom) => this.stage.magnify(zoom),
      overlay: () => this.setView({ visible: !this.view.visible }),
      sideBySide: () => this.setSideBySide(!this.stage.sideBySide),
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
    fill(
      root,
      el("a", { class: "skip", href: "#stage" }, "Skip to the slide"),
      banner(index),
      this.list.element,
      el("main", { class: "stage", id: "stage", tabindex: -1 }, this.toolbar.element, this.stage.element),
      el("aside", { class: "panel", "aria-label": "Answer and tools" }, this.card.element, this.tabs.element),
      this.help.element,
    );
    root.classList.add("app");
    window.addEventListener("beforeunload", (event) => {
      this.notesPanel.flush();
      if (this.notebook.dirty) event.preventDefault();
    });
    const first = Number(/^#(\d+)$/.exec(window.location.hash)?.[1] ?? Number.NaN);
    const start = index.cases[first] ?? index.cases.find((row) => row.scored) ?? index.cases[0];
    if (start) void this.open(start.index);
    else
      this.messages.refuse("There are no slides to show", "No predictions were found.", () => window.location.reload());
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
    this.setTool("pan", "notes");
    this.messages.clear();
    this.list.show(at);
    this.stage.close();
    this.notesPanel.load(null, NO_NOTES);
    window.history.replaceState(null, "", `#${at}`);
    document.title = `${row.slide_id} · wsimil`;
    this.refresh();
    try {
      const slide = await this.source.loadCase(at);
      if (mine !== this.opening) return;
      await this.stage.open(slide);
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
      this.messages.tell(
        `The slide is not at hand${slide.pyramidNote ? `: ${slide.pyramidNote}` : ""}. Only the map is shown, on a neutral ground.`,
      );
    }
    const kept = this.scoreWasChosen && this.view.score !== null && slide.scores.has(this.view.score);
    this.view = {
      ...this.view,
      score: kept ? this.view.score : (slide.mainScore ?? this.source.index.scores[0]?.name ?? null),
    };
    this.showScores();
    this.refresh();
    await this.loadNotes(at, mine);
  }

  private async loadNotes(at: number, mine: number): Promise<void> {
    try {
      const [notes, unsaved] = await this.notebook.load(at);
      if (mine !== this.opening) return;
      this.notes = notes;
      this.notesPanel.load(at, notes, unsaved);
      this.showMarks();
    } catch (error) {
      if (mine === this.opening) this.notesPanel.refuse(words(error));
    }
  }

  private async joinNotes(at: number): Promise<void> {
    const mine = this.opening;
    try {
      const notes = await this.notebook.join(at);
      if (mine !== this.opening) return;
      this.notes = notes;
      this.notesPanel.load(at, notes, true);
      this.showMarks();
    } catch (error) {
      if (mine === this.opening) this.messages.say(`Notes could not be read: ${words(error)}`);
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
    return score?.range
      ? { kind: score.kind, range: score.range, threshold: view.threshold, opacity: view.opacity, style: view.style }
      : null;
  }

  private showScores(): void {
    const scores = this.look && this.score ? (this.slide?.scores.get(this.score.name) ?? null) : null;
    this.stage.showScores(scores, this.asking.now.without);
    this.gallery.update(this.slide, this.score);
    this.gallery.show(this.tile);
  }

  private refresh(): void {
    const { score, look, slide, row } = this;
    if (look) this.stage.showLook(look, this.view.veil);
    this.controls.update(this.view, score, Boolean(slide?.tissue));
    this.stage.legend.update(this.view.visible ? this.legendFacts() : null);
    this.toolbar.update(this.view.visible, this.stage.sideBySide);
    if (row)
      this.card.update(row, slide?.values ?? row.values, slide?.predicted ?? row.predicted, this.asking.now.values);
    this.showWhatIf();
    this.showMarks();
    this.showHeat();
  }

  private showHeat(): void {
    this.stage.showHeat(this.view.visible && !this.hidden);
    this.stage.redraw();
  }

  private legendFacts(): LegendFacts | null {
    const { score, look, slide } = this;
    if (!score || !look || !slide) return null;
    let unscored = 0;
    for (const value of slide.scores.get(score.name) ?? []) if (Number.isNaN(value)) unscored++;
    const effectiveTiles = slide.effectiveTiles[score.name] ?? undefined;
    return {
      score,
      look,
      task: this.source.index.task,
      effectiveTiles,
      tiles: slide.count,
      unscored,
      leftOut: this.asking.now.without.size,
    };
  }

  private showMarks(): void {
    const { slide, tile, drawing, view } = this;
    this.stage.showMarks({
      pins: this.notes.pins,
      tile: slide && tile !== null ? [...cornerOf(slide, tile), slide.tileSize0] : null,
      drawing,
      lassos: this.asking.now.lassos,
      tissue: view.tissue ? (slide?.tissue ?? null) : null,
    });
    this.stage.redraw();
  }

  setSideBySide(on: boolean): void {
    this.stage.setSideBySide(on);
    this.refresh();
  }

  private read(tile: number | null): string {
    const value = tile === null || this.score === null ? undefined : this.slide?.scores.get(this.score.name)?.[tile];
    if (value === undefined) return "";
    const unit = this.score?.unit ? ` ${this.score.unit}` : "";
    return `tile ${tile}: ${Number.isNaN(value) ? "not scored" : `${short(value)}${unit}`}`;
  }

  private flyToTile(tile: number): void {
    const { slide } = this;
    if (!slide) return;
    this.tile = tile;
    const [x, y] = cornerOf(slide, tile);
    this.stage.flyTo([x, y, x + slide.tileSize0, y + slide.tileSize0], TILE_SHARE);
    this.gallery.show(tile);
    this.showMarks();
  }

  // Drawing

  private setTool(tool: Tool, what: "notes" | "whatif"): void {
    this.tool = tool;
    this.toolFor = what;
    this.stage.choose(tool);
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
    const found = new Set([...(adds ? this.asking.now.without : NO_TILES), ...tilesWithin(slide, polygon)]);
    this.asking.leaveOut(found, [...(adds ? this.asking.now.lassos : []), polygon]);
    if (found.size === 0) this.messages.say("No tile has its center in there.");
  }

  private leaveOutExtremes(n: number, sign: 1 | -1): void {
    const { score } = this;
    const scores = score && this.slide?.scores.get(score.name);
    if (!score || !scores) return;
    const found = extremeTiles(scores, n, sign, score.kind);
    this.asking.leaveOut(new Set(found), []);
    if (score.kind !== "signed" || found.length === n) return;
    const word = endWords(score, this.source.index.task)[sign === 1 ? 1 : 0];
    this.messages.say(found.length === 0 ? `No tile speaks ${word}.` : `No more than ${count(found.length)} tiles speak ${word}.`);
  }

  private leaveOutView(): void {
    const place = this.stage.placement;
    if (place) this.leaveOutWithin(sightOf(place), false);
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
    const { slide } = this;
    const { without, lassos, values } = this.asking.now;
    if (slide === null || values === null || !this.notesPanel.editable) return;
    // An outline is kept where it tells all that was left out: a lasso may have added to tiles that none was drawn around.
    const [only] = lassos;
    const xy0 = lassos.length === 1 && only && tilesWithin(slide, only).length === without.size ? only : [];
    this.notesPanel.addPin({ kind: "what-if", xy0, text: "", without: [...without].sort((a, b) => a - b), values });
    this.tabs.show("notes");
    this.messages.say("Kept with the notes.");
  }

  // Notes

  private notesChanged(notes: Notes): void {
    const { slide, row } = this;
    this.notes = notes;
    if (slide && row) this.notebook.hold(row.index, slide, notes);
    this.showMarks();
  }

  private goToPin(pin: Pin): void {
    const { slide } = this;
    if (!slide) return;
    if (pin.kind === "what-if") this.asking.leaveOut(new Set(pin.without), pin.xy0.length ? [pin.xy0] : []);
    const box = boxOf(slide, pin);
    if (box) this.stage.flyTo(box, pin.kind === "point" ? TILE_SHARE : OUTLINE_SHARE);
  }

  private downloadNotes(kind: "geojson" | "csv"): void {
    if (kind === "csv") this.notebook.downloadCsv();
    else if (!this.row || !this.notebook.downloadGeojson(this.row.index))
      this.messages.say("There are no notes on this slide yet.");
    else if (this.slide?.bounds0 === null)
      this.messages.say(
        "Where the scan begins is not known, and QuPath counts from there: these places count from level 0, and may lie aside.",
      );
  }

  // Pictures

  private async screenshot(): Promise<void> {
    const { slide, row } = this;
    const place = this.stage.placement;
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
    const without = this.asking.now.values;
    return takeShot({
      layers: this.stage.layers,
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
      pan: (x, y) => this.stage.panBy(x, y),
      zoom: (factor) => this.stage.zoomBy(factor),
      fit: () => this.stage.fit(),
      sideBySide: () => this.setSideBySide(!this.stage.sideBySide),
      screenshot: () => void this.screenshot(),
      overlay: () => this.setView({ visible: !this.view.visible }),
      opacity: (by) => this.setView({ opacity: stepped(this.view.opacity, by, 1) }),
      threshold: (by) => this.setView({ threshold: stepped(this.view.threshold, by, MOST_THRESHOLD) }),
      setThreshold: () => {
        this.tabs.show("overlay");
        this.controls.threshold.input.focus();
      },
      style: () => this.setView({ style: this.view.style === "tiles" ? "contours" : "tiles" }),
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
    return this.slide !== null && this.stage.placement !== null && this.notesPanel.editable;
  }

  get complete(): boolean {
    return this.ready && this.stage.complete;
  }

  get state() {
    return {
      case: this.row?.index ?? null,
      slideId: this.slide?.slideId ?? null,
      ...this.view,
      hidden: this.hidden,
      sideBySide: this.stage.sideBySide,
      tool: this.tool,
      tile: this.tile,
      without: [...this.asking.now.without],
      withoutValues: this.asking.now.values,
      notes: this.notes,
      placement: this.stage.placement,
      besidePlacement: this.stage.besidePlacement,
    };
  }

  imageToViewer(x: number, y: number): Point | null {
    return this.stage.imageToViewer(x, y);
  }

  heatToViewer(x: number, y: number): Point | null {
    return this.stage.heatToViewer(x, y);
  }
}

/** A share moved by a step, in whole hundredths. */
function stepped(value: number, by: number, most: number): number {
  return clamp(Math.round(100 * (value + by)) / 100, 0, most);
}
