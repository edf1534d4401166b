// Which notes there are: the server's, and those that only this page has.

import type { SlideCase, Source } from "./data";
import { fileName, type Noted, notesCsv, notesGeojson } from "./notesfile";
import { download } from "./screenshot";
import type { Notes } from "./types";

export class Notebook {
  /** By number of the slide: not saved yet, and without a server all. */
  private readonly own = new Map<number, Noted>();

  constructor(private readonly source: Source) {}

  /** Whether something would be lost if the page were closed. */
  get dirty(): boolean {
    return this.own.size > 0;
  }

  /** Notes of a slide, and whether they are still to be saved. Rejects where they cannot be read. */
  async load(at: number): Promise<readonly [notes: Notes, unsaved: boolean]> {
    const held = this.own.get(at)?.notes;
    return held === undefined ? [await this.source.loadNotes(at), false] : [held, true];
  }

  hold(at: number, slide: SlideCase, notes: Notes): void {
    this.own.set(at, { slide, notes, saved: new Date().toISOString() });
  }

  /** Rejects where the server did not take them; they stay here then. */
  async save(at: number, notes: Notes): Promise<void> {
    await this.source.saveNotes(at, notes);
    if (this.own.get(at)?.notes === notes) this.own.delete(at);
  }

  /** Downloads the notes on one slide for QuPath; whether there are any. */
  downloadGeojson(at: number): boolean {
    const noted = this.own.get(at);
    if (!noted) return false;
    const text = JSON.stringify(notesGeojson(noted, this.source.index), null, 1);
    download(new Blob([text], { type: "application/geo+json" }), `${fileName(noted.slide.slideId)}.geojson`);
    return true;
  }

  /** Downloads the notes on all slides as a table. */
  downloadCsv(): void {
    const all = [...this.own.entries()].sort(([a], [b]) => a - b).map(([, noted]) => noted);
    download(new Blob([notesCsv(all, this.source.index)], { type: "text/csv" }), "notes.csv");
  }
}
