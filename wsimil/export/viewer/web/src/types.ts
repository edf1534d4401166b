// What the page is given: the shapes of the JSON that wsimil/export/viewer writes. Lengths in level-0 px unless said.

export type Kind = "signed" | "sequential";

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
  readonly normalization: string;
  readonly range: readonly [number, number];
}

export interface CaseRow {
  readonly index: number;
  readonly slide_id: string;
  readonly patient_id: string | null;
  readonly label: string | null;
  readonly split: string | null;
  readonly predicted: string;
  readonly right: boolean | null;
  readonly values: readonly number[];
  readonly uncertainty: number | null;
  readonly unusual: boolean | null;
  readonly tiles: number;
  readonly status: string;
}

export interface Index {
  readonly version: string;
  readonly date: string;
  readonly notice: string;
  readonly model: Readonly<Record<string, string | number | null>>;
  readonly task: Task;
  readonly scores: readonly ScoreFacts[];
  readonly cases: readonly CaseRow[];
}

export interface Pyramid {
  readonly width: number;
  readonly height: number;
  readonly tile_size: number;
  readonly min_level: number;
  readonly max_level: number;
  readonly tiles: string | Readonly<Record<string, string>>;
}

export type Link =
  | { readonly kind: "softmax" | "sigmoid" | "corn" }
  | { readonly kind: "linear"; readonly mean: readonly number[]; readonly scale: readonly number[] };

export type WhatIfPayload =
  | {
      readonly form: "closed";
      readonly attention: string;
      readonly logit_parts: Readonly<Record<string, string>>;
      readonly link: Link;
    }
  | { readonly form: "server" };

export interface CasePayload {
  readonly index: number;
  readonly slide_id: string;
  readonly size0_px: readonly [number, number];
  readonly bounds0_px: readonly [number, number, number, number];
  readonly mpp: number;
  readonly tile: { readonly size0: number; readonly stride0: number; readonly mpp: number };
  readonly xy0: string;
  readonly scores: Readonly<Record<string, string>>;
  readonly values: readonly number[];
  readonly logits: readonly number[];
  readonly bias: readonly number[];
  readonly effective_tiles: Readonly<Record<string, number>>;
  readonly whatif: WhatIfPayload | null;
  readonly pyramid: Pyramid | null;
  readonly crops: Readonly<Record<string, string>> | null;
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
  readonly values?: readonly number[];
}

export interface Notes {
  readonly verdict: Verdict | null;
  readonly text: string;
  readonly pins: readonly Pin[];
}
