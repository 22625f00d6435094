import { readFile } from "node:fs/promises";
import { ConfigError, checkOptions, type Engine, Key, normal } from "../engine/index.js";
import type { LanguageOptions } from "../model/language.js";
import type { STDiT } from "../model/stdit.js";
import { identifyBranch } from "../model/text/branch.js";
import { promptForm } from "../model/text/form.js";
import type { EncoderSpec } from "../model/text/spec.js";
import { encoderAssets } from "./data/assets.js";

/** A language branch as a file or flags say it. */
export interface BranchSpec {
  /** Width of the language model's vectors; taken from the encoder where one is named. */
  channels?: number;
  maxLength?: number;
  gate?: LanguageOptions["gate"];
  duplicate?: boolean;
  captionInit?: LanguageOptions["captionInit"];
  /** Where the language model lies, or that with how it reads prompts: layer, template, form. */
  encoder?: string | (EncoderSpec & { form?: string });
}

const KEYS = ["channels", "maxLength", "gate", "duplicate", "captionInit", "encoder"] as const;

/**
 * Reads a branch from JSON.
 * @throws ConfigError for a file that is none, or an unknown key (with the nearest)
 */
export async function readBranch(path: string): Promise<BranchSpec> {
  let json: unknown;
  try {
    json = JSON.parse(await readFile(path, "utf8"));
  } catch (cause) {
    throw new ConfigError(
      `language: cannot read ${path}: ${(cause as Error).message}; it is to be JSON such as {"channels": 4096, "maxLength": 256}`,
      { cause },
    );
  }
  if (typeof json !== "object" || json === null || Array.isArray(json))
    throw new ConfigError(`language: ${path} must hold an object such as {"channels": 4096, "maxLength": 256}`);
  checkOptions(`language ${path}`, json, KEYS);
  return json as BranchSpec;
}

/**
 * What `addLanguage` takes for a branch. Of a language model that is named, headers are read, to know its width and to
 * write into the model's file which one it was.
 * @throws ConfigError without a width, or with one that is not the language model's
 */
export async function branchOptions(engine: Engine, spec: BranchSpec, seed: number): Promise<LanguageOptions> {
  const { encoder: named, ...rest } = spec;
  const key = Key.from(seed);
  if (named === undefined) {
    if (rest.channels === undefined)
      throw new ConfigError(
        "language: channels missing: the width of the language model's vectors (4096 for Llama-3-8B); give it, or name the encoder",
      );
    return { ...rest, channels: rest.channels, key };
  }
  const { form = "S", ...given } =
    typeof named === "string" ? { encoder: named } : (named as EncoderSpec & { form?: string });
  const { maxLength } = rest;
  const {
    dim,
    maxLength: length,
    said,
  } = await identifyBranch(
    engine,
    { ...given, ...(maxLength !== undefined && { maxLength }) },
    promptForm(form),
    encoderAssets,
  );
  if (rest.channels !== undefined && rest.channels !== dim)
    throw new ConfigError(
      `language: channels must be ${dim}, the width of ${given.encoder}'s vectors: got ${rest.channels}; leave it out`,
    );
  return { ...rest, channels: dim, maxLength: length, encoder: { ...said }, key };
}

/** Most tokens of a clip that outputs are compared on; beyond that a smaller one says as much. */
const MOST = 512;

/** Outputs of a model for random latents, two times and random captions, which a key decides. */
export async function probe(model: STDiT, key: Key): Promise<Float32Array> {
  const { engine, config: c } = model;
  const [pt, ph, pw] = c.patch;
  const own = [c.frames, ...c.latent];
  const tokens = (c.frames / pt) * (c.latent[0] / ph) * (c.latent[1] / pw);
  const grid = tokens <= MOST ? own : own.map((n, i) => Math.min(n, [2, 4, 4][i] * c.patch[i]));
  const B = 2;
  const caption = (length: number, channels: number, fold: number) => {
    const L = Math.min(length, 12);
    // The second caption is shorter, so that masks count.
    const mask = Int32Array.from({ length: B * L }, (_, i) => (i < L || i % L < L / 2 ? 1 : 0));
    return { y: normal(engine, key.fold(fold), [B, L, channels]), mask: engine.tensor(mask, [B, L]) };
  };
  const out = engine.noGrad(() =>
    engine.scope(() => {
      const x = normal(engine, key.fold(0), [B, c.inChannels, ...grid]);
      const { y, mask } = caption(c.maxLength, c.captionChannels, 1);
      const language = c.languageChannels ? caption(c.languageLength, c.languageChannels, 2) : undefined;
      return model.forward(x, [37, 812], y, mask, { language });
    }),
  );
  const values = (await out.data()) as Float32Array;
  out.dispose();
  return values;
}

/** How outputs of two models compare. */
export interface Comparison {
  values: number;
  /** Values whose bits differ. */
  different: number;
  largest: number;
  /** Whether all of the first are 0, so that being equal says little. */
  silent: boolean;
}

export function compareBits(before: Float32Array, after: Float32Array): Comparison {
  const bits = (v: Float32Array) => new Uint32Array(v.buffer, v.byteOffset, v.length);
  const [a, b] = [bits(before), bits(after)];
  let [different, largest] = [0, 0];
  for (let i = 0; i < a.length; i++) {
    if (a[i] !== b[i]) different++;
    largest = Math.max(largest, Math.abs(before[i] - after[i]));
  }
  return { values: a.length, different, largest, silent: before.every((v) => v === 0) };
}

/** A comparison in words. */
export function comparisonText({ values, different, largest }: Comparison): string {
  const all = values.toLocaleString("en");
  return different === 0
    ? `all ${all} outputs on random inputs are equal bit for bit`
    : `${different.toLocaleString("en")} of ${all} outputs on random inputs differ, by up to ${largest.toExponential(1)}`;
}
