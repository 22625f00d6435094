import type { SamplerName } from "../../model/pipeline.js";

/** What the page asks of the worker. `run` numbers the requests for clips, so that late answers can be told apart. */
export type Ask =
  | { kind: "start" }
  | { kind: "open"; from: string | File }
  | { kind: "read"; prompt: string }
  | { kind: "sample"; run: number; wish: Wish }
  | { kind: "cancel" };

/** One clip to sample. */
export interface Wish {
  prompt: string;
  guidance: number;
  steps: number;
  seed: number;
  sampler: SamplerName;
}

/** The adapter that was taken. */
export interface AdapterNote {
  name: string;
  kind: "software" | "integrated" | "discrete" | "unknown";
  /** What would be faster, for software adapters. */
  faster?: string;
}

/** What is known of an opened model. */
export interface ModelNote {
  name: string;
  parameters: number;
  /** Size of its clips. */
  frames: number;
  height: number;
  width: number;
  /** The usual one first. */
  samplers: readonly SamplerName[];
  /** Captions made of words that it knows. */
  captions: string[];
}

/** A clip as pictures: `frames` times [height, width, 4] bytes, one after the other. */
export interface Film {
  frames: number;
  height: number;
  width: number;
  pixels: Uint8ClampedArray<ArrayBuffer>;
}

/** What the worker was doing when it failed. */
export type Deed = "start" | "open" | "sample";

/** What the worker tells the page. */
export type Tell =
  | { kind: "adapter"; adapter: AdapterNote }
  | { kind: "opening"; name: string; share: number }
  | { kind: "opened"; model: ModelNote }
  | { kind: "read"; prompt: string; warnings: string[]; refusal?: string }
  | { kind: "step"; run: number; step: number; steps: number; film: Film }
  | { kind: "done"; run: number }
  /** The GPU went away; `again` says whether it is being taken once more, which "recovered" or "failed" ends. */
  | { kind: "lost"; again: boolean }
  | { kind: "recovered" }
  | { kind: "failed"; during: Deed; error: string; message: string };
