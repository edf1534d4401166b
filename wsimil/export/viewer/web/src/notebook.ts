// Which notes there are: the server's, and those that only this page has.

import { NO_NOTES, type SlideCase, type Source, type Stamped } from "./data";
import { fileName, type Noted, notesCsv, notesGeojson } from "./notesfile";
import { download } from "./screenshot";
import type { Notes } from "./types";

export class Notebook {
  /** By number of the slide: not saved yet, and without a server all. */
  private readonly own = new Map<number, Noted>();
  /** By number of the slide: what the server had when it was last heard. */
  private readonly theirs = new Map<number, Stamped>();

  constructor(private readonly source: Source) {}

  /** Whether something would be lost if the page were closed. */
  get dirty(): boolean {
    return this.own.size > 0;
  }

  /** Notes of a slide, and whether they are still to be saved. Rejects where they cannot be read. */
  async load(at: number): Promise<readonly [notes: Notes, unsaved: boolean]> {
    const held = this.own.get(at)?.notes;
    if (held !== undefined) return [held, true];
    const found = await this.source.loadNotes(at);
    this.theirs.set(at, found);
    return [found.notes, false];
  }

  /** Notes changed elsewhere, with what was changed here; still to be saved. Rejects where they cannot be read. */
  async join(at: number): Promise<Notes> {
    const found = await this.source.loadNotes(at);
    const noted = this.own.get(at);
    const before = this.theirs.get(at)?.notes ?? NO_NOTES;
    this.theirs.set(at, found);
    if (noted === undefined) return found.notes;
    const notes = joined(before, found.notes, noted.notes);
    this.own.set(at, { ...noted, notes });
    return notes;
  }

  hold(at: number, slide: SlideCase, notes: Notes): void {
    this.own.set(at, { slide, notes, saved: new Date().toISOString() });
  }

  /** Rejects where the server did not take them; they stay here then. */
  async save(at: number, notes: Notes): Promise<void> {
    const stamp = await this.source.saveNotes(at, notes, this.theirs.get(at)?.stamp ?? null);
    this.theirs.set(at, { notes, stamp });
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

/** What two made of the notes `before`: nothing that either wrote is lost; of two verdicts the one given here stays. */
function joined(before: Notes, theirs: Notes, mine: Notes): Notes {
  const had = (notes: Notes): ReadonlySet<string> => new Set(notes.pins.map((pin) => JSON.stringify(pin)));
  const [old, other, own] = [had(before), had(theirs), had(mine)];
  const [deleted, added] = [
    (pin: string) => old.has(pin) && !own.has(pin),
    (pin: string) => !old.has(pin) && !other.has(pin),
  ];
  const changed = mine.text !== before.text && mine.text !== theirs.text;
  const both = theirs.text !== before.text ? [theirs.text, mine.text].filter(Boolean).join("\n") : mine.text;
  return {
    verdict: mine.verdict === before.verdict ? theirs.verdict : mine.verdict,
    text: changed ? both : theirs.text,
    pins: [
      ...theirs.pins.filter((pin) => !deleted(JSON.stringify(pin))),
      ...mine.pins.filter((pin) => added(JSON.stringify(pin))),
    ],
  };
}
