// Reads what the page was given, and asks the server for the rest; numbers arrive as base64 of little-endian arrays.

import type { CasePayload, Index, Link, Mix, MultiPolygon, Notes, PagePayload, Pyramid, Values } from "./types";
import { isKnown } from "./whatif";

export interface SlideCase {
  readonly index: number;
  readonly slideId: string;
  readonly size0: readonly [number, number];
  readonly bounds0: CasePayload["bounds0_px"];
  readonly mpp: number;
  readonly tileSize0: number;
  readonly stride0: number;
  readonly tileMpp: number;
  /** Digest of where the tiles lie: numbers of tiles are of this tiling alone. */
  readonly tiling: string;
  readonly count: number;
  /** Level-0 px of top-left corners, x and y by turns. */
  readonly xy0: Int32Array;
  /** NaN = not scored. */
  readonly scores: ReadonlyMap<string, Float32Array>;
  readonly mainScore: string | null;
  readonly values: Values;
  readonly predicted: string;
  readonly effectiveTiles: Readonly<Record<string, number | null>>;
  readonly whatIf: ClosedForm | FromServer | NoWhatIf;
  readonly pyramid: Pyramid | null;
  readonly pyramidNote: string | null;
  readonly crops: CasePayload["crops"];
  readonly tissue: MultiPolygon | null;
}

/** All that whatif.ts needs: attention [head][N], parts of logits [output][N], bias [output]. */
export interface ClosedForm {
  readonly form: "closed";
  readonly mix: Mix;
  readonly attention: readonly Float32Array[];
  readonly parts: readonly Float32Array[];
  readonly bias: readonly number[];
  readonly link: Link;
}

export interface FromServer {
  readonly form: "server";
}

export interface NoWhatIf {
  readonly form: null;
  readonly reason: string;
}

export interface Reply {
  readonly values: Values;
  readonly predicted: string | null;
}

/** Notes as the server has them; it is told by the stamp, null without a server, which ones were seen. */
export interface Stamped {
  readonly notes: Notes;
  readonly stamp: string | null;
}

/** Notes were not saved, for others than those that were seen are there. */
export class ChangedElsewhere extends Error {}

export const NO_NOTES: Notes = { verdict: null, text: "", pins: [] };

const LITTLE_ENDIAN = new Uint8Array(new Uint16Array([1]).buffer)[0] === 1;

/** Where cases, notes and answers come from: the server, or the page itself. */
export class Source {
  readonly index: Index;
  readonly live: boolean;

  constructor(private readonly page: PagePayload) {
    this.index = page.index;
    this.live = page.mode === "server";
  }

  url(path: string): string {
    return this.page.base + path;
  }

  async loadCase(index: number): Promise<SlideCase> {
    if (this.live) return decodeCase((await this.ask(`cases/${index}.json`)) as CasePayload, this.index.task.outputs);
    const held = this.page.cases?.[String(index)];
    if (held === undefined)
      throw new Error("this export does not hold the slide; export it again with wsimil export html");
    if ("error" in held) throw new Error(held.error);
    return decodeCase(held, this.index.task.outputs);
  }

  async loadNotes(index: number): Promise<Stamped> {
    if (!this.live) return { notes: NO_NOTES, stamp: null };
    const response = await this.reply(`cases/${index}/notes`);
    return { notes: (await response.json()) as Notes, stamp: response.headers.get("ETag") };
  }

  /** The new stamp. Rejects with ChangedElsewhere where others than those that were `seen` are there. */
  async saveNotes(index: number, notes: Notes, seen: string | null): Promise<string | null> {
    const response = await this.reply(`cases/${index}/notes`, notes, seen === null ? {} : { "If-Match": seen });
    return response.headers.get("ETag");
  }

  async answerWithout(index: number, without: readonly number[]): Promise<Reply> {
    return (await this.ask(`cases/${index}/what-if`, { without })) as Reply;
  }

  /** The picture of one tile at full resolution, null where this page holds none. */
  crop(slide: SlideCase, tile: number): string | null {
    const { crops } = slide;
    if (crops === null) return null;
    if ("url" in crops) return this.url(crops.url.replace("{tile}", String(tile)));
    return crops.tiles[String(tile)] ?? null;
  }

  /** The picture of one tile of the pyramid; "" where this page holds none. */
  tile(pyramid: Pyramid, level: number, x: number, y: number): string {
    const { tiles } = pyramid;
    if ("data" in tiles) return tiles.data[`${level}/${x}_${y}`] ?? "";
    return this.url(tiles.url.replace("{level}", String(level)).replace("{x}", String(x)).replace("{y}", String(y)));
  }

  private async ask(path: string, body?: unknown): Promise<unknown> {
    return await (await this.reply(path, body)).json();
  }

  private async reply(path: string, body?: unknown, headers: Readonly<Record<string, string>> = {}): Promise<Response> {
    let response: Response;
    try {
      response = await fetch(this.url(path), {
        credentials: "same-origin",
        cache: "no-store",
        ...(body === undefined
          ? {}
          : {
              method: "POST",
              headers: { "Content-Type": "application/json", ...headers },
              ...sent(JSON.stringify(body)),
            }),
      });
    } catch {
      throw new Error("the server does not answer; is wsimil view still running?");
    }
    if (response.ok) return response;
    let said = "";
    try {
      said = String(((await response.json()) as { error?: unknown }).error ?? "");
    } catch {
      // An answer without JSON has no words of its own.
    }
    if (response.status === 412) throw new ChangedElsewhere(said);
    throw new Error(said || `the server answered with ${response.status} ${response.statusText}`);
  }
}

/** A small body is sent even where the page is closed meanwhile; browsers allow 64 KiB of that. */
function sent(body: string): { readonly body: string; readonly keepalive: boolean } {
  return { body, keepalive: body.length < 15_000 };
}

/** The page's own data, which lie in parts. Throws where the page has none or it is broken. */
export function readPage(): PagePayload {
  const text = [...document.querySelectorAll(".wsimil-data")].map((part) => part.textContent).join("");
  if (!text) throw new Error("this page holds no data; make it again with wsimil export html, or run wsimil view");
  return JSON.parse(text) as PagePayload;
}

/** Throws where arrays do not have the length that the tiles say, so that no score lands on another tile. */
export function decodeCase(payload: CasePayload, outputs: readonly string[]): SlideCase {
  const xy0 = new Int32Array(bytes(payload.xy0, "xy0"));
  if (xy0.length % 2 !== 0) throw new Error(`xy0 holds ${xy0.length} numbers, wanted two for each tile`);
  const tiles = xy0.length / 2;
  const floats = (text: string, name: string): Float32Array => {
    const values = new Float32Array(bytes(text, name));
    if (values.length !== tiles)
      throw new Error(`${name} holds ${values.length} values, wanted one for each of ${tiles} tiles`);
    return values;
  };
  const form = payload.whatif;
  return {
    index: payload.index,
    slideId: payload.slide_id,
    size0: payload.size0_px,
    bounds0: payload.bounds0_px,
    mpp: payload.mpp,
    tileSize0: payload.tile.size0,
    stride0: payload.tile.stride0,
    tileMpp: payload.tile.mpp,
    tiling: payload.tiling,
    count: tiles,
    xy0,
    scores: new Map(Object.entries(payload.scores).map(([name, text]) => [name, floats(text, name)])),
    mainScore: payload.main_score,
    values: payload.values,
    predicted: payload.predicted,
    effectiveTiles: payload.effective_tiles,
    whatIf: form.form === "closed" ? closedForm(form, payload.bias, outputs, floats) : form,
    pyramid: payload.pyramid,
    pyramidNote: payload.pyramid_note,
    crops: payload.crops,
    tissue: payload.tissue,
  };
}

function closedForm(
  form: CasePayload["whatif"] & { form: "closed" },
  bias: Values,
  outputs: readonly string[],
  floats: (text: string, name: string) => Float32Array,
): ClosedForm | FromServer {
  // A way to answer that this page does not know is left to the server.
  if (!isKnown(form.link)) return { form: "server" };
  const heads = form.mix === "output" ? outputs.length : form.mix === "single" ? 1 : form.attention.length;
  if (form.attention.length !== heads || heads === 0) {
    throw new Error(`attention of ${form.attention.length} heads, wanted ${heads}`);
  }
  return {
    form: "closed",
    mix: form.mix,
    attention: form.attention.map((text, head) => floats(text, `attention of head ${head}`)),
    parts: outputs.map((name) => {
      const part = form.logit_parts[name];
      if (part === undefined) throw new Error(`no parts of the logit of ${name}`);
      return floats(part, `parts of the logit of ${name}`);
    }),
    bias: outputs.map((_, output) => bias[output] ?? Number.NaN),
    link: form.link,
  };
}

function bytes(text: string, name: string): ArrayBuffer {
  if (!LITTLE_ENDIAN)
    throw new Error("this machine stores numbers in another byte order than the data; use another one");
  const binary = atob(text);
  if (binary.length % 4 !== 0) throw new Error(`${name} holds ${binary.length} bytes, wanted a multiple of 4`);
  const out = new Uint8Array(binary.length);
  for (let i = 0; i < binary.length; i++) out[i] = binary.charCodeAt(i);
  return out.buffer;
}
