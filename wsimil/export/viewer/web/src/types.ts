// What the page is given: the shapes of the JSON that wsimil/export/viewer writes. Lengths in level-0 px unless said.

export type Kind = "signed" | "sequential";

/** Numbers of an answer; null = not known. */
export type Values = readonly (number | null)[];

export interface Answer {
  readonly name: string;
  readonly title: string;
  readonly unit: string;
  readonly probability: boolean;
}

export interface Task {
  readonly kind: string;
  readonly answers: readonly Answer[];
  readonly outputs: readonly string[];
  readonly raises?: readonly [string, string];
}

export interface ScoreFacts {
  readonly name: string;
  readonly label: string;
  readonly kind: Kind;
  readonly unit: string;
  /** What zero means, or nothing. */
  readonly zero: string;
  /** How the score was made. */
  readonly rule: string;
  readonly normalization: string;
  /** Null where no slide says anything of it. */
  readonly range: readonly [number, number] | null;
}

export interface CaseRow {
  readonly index: number;
  readonly slide_id: string;
  readonly patient_id: string | null;
  readonly label: string | null;
  readonly split: string | null;
  readonly predicted: string | null;
  readonly right: boolean | null;
  readonly values: Values | null;
  /** The probability of what is predicted; null where the answer has none. */
  readonly confidence: number | null;
  readonly uncertainty: number | null;
  readonly unusual: boolean | null;
  readonly tiles: number | null;
  readonly scored: boolean;
  readonly status: string;
}

export interface Index {
  readonly version: string;
  readonly date: string;
  readonly notice: string;
  readonly unit: "slide" | "patient";
  readonly model: Readonly<Record<string, string>>;
  readonly task: Task;
  /** Those that were chosen to decide by. */
  readonly thresholds: readonly number[];
  readonly scores: readonly ScoreFacts[];
  readonly cases: readonly CaseRow[];
}

export interface Pyramid {
  readonly width: number;
  readonly height: number;
  readonly tile_size: number;
  readonly min_level: number;
  readonly max_level: number;
  /** An address with {level}, {x} and {y}, or the tiles themselves by "level/x_y". */
  readonly tiles: { readonly url: string } | { readonly data: Readonly<Record<string, string>> };
}

/** From logits to the numbers of an answer; see whatif.ts. */
export type Link =
  | { readonly kind: "softmax"; readonly temperature: number; readonly shifts: readonly number[] }
  | { readonly kind: "isotonic"; readonly curves: readonly (readonly Point[])[] }
  | { readonly kind: "sigmoid" }
  /** Each logit by itself, as the second of two classes whose first has the logit 0. */
  | { readonly kind: "labels"; readonly each: readonly Link[] }
  | { readonly kind: "corn" }
  | { readonly kind: "linear"; readonly mean: readonly number[]; readonly scale: readonly number[] }
  | { readonly kind: "cox"; readonly baseline: readonly number[] }
  | { readonly kind: "hazard"; readonly edges: readonly number[]; readonly horizons: readonly number[] };

/** How heads share the tiles: one head, one for each output, or the mean of heads. */
export type Mix = "single" | "output" | "mean";

export type WhatIfPayload =
  | {
      readonly form: "closed";
      readonly mix: Mix;
      readonly attention: readonly string[];
      readonly logit_parts: Readonly<Record<string, string>>;
      readonly link: Link;
    }
  | { readonly form: "server" }
  | { readonly form: null; readonly reason: string };

export interface CasePayload {
  readonly index: number;
  readonly slide_id: string;
  readonly size0_px: readonly [number, number];
  /** Null where nobody knows where the scan begins. */
  readonly bounds0_px: readonly [number, number, number, number] | null;
  readonly mpp: number;
  readonly tile: { readonly size0: number; readonly stride0: number; readonly mpp: number };
  /** Which places the numbers of tiles are. */
  readonly tiling: string;
  readonly xy0: string;
  readonly scores: Readonly<Record<string, string>>;
  readonly main_score: string | null;
  readonly values: Values;
  readonly logits: Values;
  readonly bias: Values;
  readonly predicted: string;
  readonly effective_tiles: Readonly<Record<string, number | null>>;
  readonly whatif: WhatIfPayload;
  readonly pyramid: Pyramid | null;
  readonly pyramid_note: string | null;
  readonly crops: { readonly url: string } | { readonly tiles: Readonly<Record<string, string>> } | null;
  readonly tissue: MultiPolygon | null;
}

export interface MultiPolygon {
  readonly type: "MultiPolygon";
  readonly coordinates: readonly (readonly (readonly (readonly number[])[])[])[];
}

export interface PagePayload {
  readonly mode: "server" | "static";
  readonly base: string;
  readonly index: Index;
  readonly cases?: Readonly<Record<string, CasePayload | { readonly error: string }>>;
}

export type Point = readonly [number, number];

export type Verdict = "agree" | "disagree" | "unsure";

export interface Pin {
  readonly kind: "point" | "rectangle" | "lasso" | "what-if";
  readonly xy0: readonly Point[];
  readonly text: string;
  readonly without?: readonly number[];
  readonly values?: Values;
}

export interface Notes {
  readonly verdict: Verdict | null;
  readonly text: string;
  readonly pins: readonly Pin[];
}
