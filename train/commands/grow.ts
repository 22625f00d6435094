import { realpath, stat } from "node:fs/promises";
import { ConfigError, createEngine, type DType, type Engine, Key } from "../../engine/index.js";
import {
  encodeObjective,
  type LoadedModel,
  modelEntries,
  openModel,
  openModelFile,
  openModelText,
} from "../../model/checkpoint.js";
import type { Objective } from "../../model/diffusion/objective.js";
import { type ForeignOptions, foreignKind } from "../../model/foreign/origin.js";
import { describeImport } from "../../model/foreign/report.js";
import { describeGrowth, type GrowthMode, type GrowthOptions, growthPlan } from "../../model/growth.js";
import type { LanguageOptions } from "../../model/language.js";
import { copyEntries, type Safetensors, writeSafetensors } from "../../model/safetensors.js";
import type { STDiT } from "../../model/stdit.js";
import { type ExternalVae, externalVaeOf, isExternal } from "../../model/vae/external.js";
import { type Arguments, parseArguments } from "../arguments.js";
import { captionsOf, gridOf, t5Of } from "../conversion.js";
import {
  type BranchSpec,
  branchOptions,
  type Comparison,
  compareBits,
  comparisonText,
  probe,
  readBranch,
} from "../growing.js";
import { adapterLine } from "./adapter.js";

const usage = `Usage: espalier grow BASE --out GROWN.safetensors [--mode MODE --blocks N] [--language FILE] [options]

Makes a trained model deeper, gives it a language branch, or both, without changing its outputs: new blocks are copies
whose last linears are zero, the branch is a copy whose gates are zero. Before it writes, it compares the outputs of both
models on random inputs, bit for bit. The new file keeps the base's codec, objective and text encoder; it is trained by
espalier train --from. BASE may be a file, or the index of one in shards; it stays as it is.

BASE may also be the STDiT of Open-Sora 1.0 or PixArt-alpha (XL-2-512x512), which a STDiT then begins from, under their
own names: a safetensors file, the index of its shards, or their folder. They say neither what makes latents of clips nor
what reads captions: --codec and --t5 do, and the new file then names both. Without --mode and --language BASE is
converted alone.

  --out FILE             where to write
  --force                write over a file that is there

Blocks:
  --mode MODE            where copies go: insert spreads them among the old blocks, prefix puts copies of the first one
                         before them, suffix copies of the last one after them
  --blocks N             how many to add; insert puts p copies after every q old blocks, where N / old = p / q
  --owner WHICH          the block that sees the frames' positions afterwards: original, the one that does now, or first,
                         as in Open-Sora's own code, where a prefix then changes the outputs [original]

Language branch, from a file or by options:
  --language FILE        JSON with channels, maxLength, gate, duplicate, captionInit and encoder: the options below
  --language-channels N  width of the language model's vectors, such as 4096 [that of the encoder]
  --language-length N    longest caption in tokens [that of the encoder, or 256]
  --language-gate SHAPE  scalar, head or channel: one gate a block, a head or a channel [scalar]
  --language-encoder E   "language" (Espalier's small one) or the folder of a Llama as Hugging Face lays it out; the file
                         will say which it was. In JSON it may be {"encoder": E, "layer": -1, "template": true, "bits": 8, "form": "S"}
  --no-duplicate         begin by Xavier's rule, not as copies of the attention to the caption: for comparison, and for
                         models whose attention to the caption is still zero

What a base names not, or not as it lies here (folders as Hugging Face lays them out; headers alone are read):
  --codec WHERE          the autoencoder (AutoencoderKL, such as sd-vae-ft-ema): its folder, a pipeline's, or a file
  --t5 WHERE             the T5 v1.1 that reads captions
  --t5-bits 8|4          round the linear layers of that T5, wherever it is opened for this model [full weights]
  --t5-weights f32|f16   storage of its weights [f32]

Bases that others made:
  --frames N             frames of a clip that the model is for [as in the file; 16 for a PixArt]
  --size N               height and width in pixels [as in the file; 256 for a PixArt]
  --heads N              attention heads, which tensors do not tell [16, or what a config.json beside BASE says]

  --seed N               decides what is drawn for the branch and the random inputs [0]
  --dtype f32|f16        how numbers are stored [as in the base]
  --adapter NAME         hardware, lavapipe, swiftshader, or part of a GPU's name

Examples:
  espalier grow base.safetensors --mode insert --blocks 28 --language llm.json --out grown.safetensors
  espalier grow base.safetensors --language-encoder language --out spoken.safetensors
  espalier grow OpenSora-v1-HQ-16x256x256.safetensors --codec ./sd-vae-ft-ema --t5 ./t5-v1_1-xxl --t5-bits 8 \\
    --mode insert --blocks 28 --language-encoder ./Meta-Llama-3-8B-Instruct --out grown.safetensors
  espalier grow PixArt-XL-2-512x512.safetensors --codec ./sd-vae-ft-ema --t5 ./t5-v1_1-xxl --out base.safetensors`;

const flags = {
  out: "text",
  force: "switch",
  mode: "text",
  blocks: "number",
  owner: "text",
  language: "text",
  "language-channels": "whole",
  "language-length": "whole",
  "language-gate": "text",
  "language-encoder": "text",
  "no-duplicate": "switch",
  codec: "text",
  t5: "text",
  "t5-bits": "whole",
  "t5-weights": "text",
  frames: "whole",
  size: "whole",
  heads: "whole",
  seed: "whole",
  dtype: "text",
  adapter: "text",
} as const;

function growthOf(values: Arguments["values"]): GrowthOptions | undefined {
  const { mode, blocks, owner } = values;
  if (mode === undefined && blocks === undefined && owner === undefined) return undefined;
  const missing = mode === undefined ? "--mode insert" : blocks === undefined ? "--blocks N" : undefined;
  if (missing)
    throw new ConfigError(
      `grow: ${missing.split(" ")[0]} missing: it says ${mode === undefined ? "where new blocks go" : "how many new blocks"}; add ${missing}`,
    );
  return {
    mode: mode as GrowthMode,
    blocks: blocks as number,
    temporalOwner: owner as GrowthOptions["temporalOwner"],
  };
}

async function branchOf(values: Arguments["values"]): Promise<BranchSpec | undefined> {
  const given: BranchSpec = {
    channels: values["language-channels"] as number | undefined,
    maxLength: values["language-length"] as number | undefined,
    gate: values["language-gate"] as BranchSpec["gate"],
    encoder: values["language-encoder"] as string | undefined,
    duplicate: values["no-duplicate"] ? false : undefined,
  };
  const set = Object.fromEntries(Object.entries(given).filter(([, value]) => value !== undefined));
  if (values.language !== undefined) return { ...(await readBranch(values.language as string)), ...set };
  return Object.keys(set).length > 0 ? set : undefined;
}

/** @throws ConfigError when writing would destroy something that the user did not give up */
async function checkTarget(base: string, out: string, force: boolean): Promise<void> {
  if (!/\.safetensors$/.test(out))
    throw new ConfigError(`grow: --out must end in .safetensors: got "${out}"; take "${out}.safetensors"`);
  const there = await stat(out).catch(() => undefined);
  if (!there) return;
  if (there.isDirectory()) throw new ConfigError(`grow: --out is a folder: ${out}; name a file in it`);
  const [a, b] = await Promise.all([base, out].map((path) => realpath(path).catch(() => path)));
  if (a === b) throw new ConfigError(`grow: --out is the base itself: ${out}; the base is kept, name another file`);
  if (!force)
    throw new ConfigError(`grow: ${out} is there already; add --force to write over it, or name another file`);
}

const BESIDE = /^(codec|text|train)\./;

function dtypeOf(file: Safetensors, engine: Engine, given: string | undefined): DType {
  if (given !== undefined && given !== "f32" && given !== "f16")
    throw new ConfigError(`grow: --dtype must be f32 or f16: got "${given}"`);
  if (given) return given as DType;
  const own = [...file.tensors].filter(([name]) => !BESIDE.test(name));
  return own.every(([, t]) => t.dtype === "F16") && engine.has("shader-f16") ? "f16" : "f32";
}

/** Strings of a base's metadata that are of the model as it was, or of its training. */
const OLD = ["model", "growth", "language", "lora", "train", "config", "step", "espalier"];

const parameters = (model: STDiT) => {
  const n = model.countParameters();
  return `${n.toLocaleString("en")} parameters${n >= 1e7 ? ` (${(n / 1e9).toFixed(3)}e9)` : ""} in ${model.config.depth} blocks`;
};

/** Says how outputs compare; throws where they differ and should not. */
function judge(comparison: Comparison, moved: boolean): string {
  const { values, different, silent } = comparison;
  const all = values.toLocaleString("en");
  if (silent && different === 0)
    return `all ${all} outputs on random inputs are 0 before and after: the base is untrained, so this says little`;
  const text = comparisonText(comparison);
  if (different === 0) return text;
  if (moved) return `${text}: --owner first moved the frames' positions to another block`;
  throw new ConfigError(`grow: ${text}: nothing was written; they should be equal, this is a fault of Espalier's`);
}

export async function run(args: string[]): Promise<number> {
  const { values, words, help } = parseArguments("grow", args, flags);
  if (help) {
    console.log(usage);
    return 0;
  }
  const [base, ...more] = words;
  if (base === undefined)
    throw new ConfigError("grow: no model given; espalier grow BASE.safetensors --mode insert --blocks N --out FILE");
  if (more.length) throw new ConfigError(`grow: takes one model: got ${words.join(", ")}`);
  if (values.out === undefined) throw new ConfigError("grow: --out missing: where to write the grown model?");
  const out = values.out as string;
  const growth = growthOf(values);
  // Checked before anything is opened; the model's own number of blocks only changes the message.
  if (growth) growthPlan(1, growth);
  const branch = await branchOf(values);
  const t5 = t5Of(values);
  await checkTarget(base, out, values.force === true);
  const { file, json } = await openModelFile(base);
  const kind = foreignKind(file);
  try {
    for (const name of ["frames", "size", "heads"])
      if (!kind && values[name] !== undefined)
        throw new ConfigError(`grow: --${name} has no use: ${base} says itself what it is for; leave it out`);
    if (!kind && !growth && !branch && !t5 && values.codec === undefined)
      throw new ConfigError(
        "grow: nothing to do; give --mode and --blocks, --language, or both (espalier grow --help)",
      );
  } catch (error) {
    await file.close();
    throw error;
  }
  const engine = await createEngine({ adapter: values.adapter as string | undefined });
  try {
    console.error(adapterLine(engine));
    const dtype = dtypeOf(file, engine, values.dtype as string | undefined);
    const seed = (values.seed as number | undefined) ?? 0;
    const said = kind ? undefined : (await openModelText(file)).codec;
    if (said && !isExternal(said) && values.codec !== undefined)
      throw new ConfigError(
        `grow: --codec has no use: ${base} holds its own codec, of type ${JSON.stringify(said.type)}; leave it out`,
      );
    const codec = await externalVaeOf(engine, values.codec === undefined ? undefined : said, values.codec as string);
    const foreign = { json, key: Key.from(seed).fold(2), config: gridOf(values, file, codec) };
    const { model, text } = await openModelText(file, foreign);
    if (codec && codec.channels !== model.config.inChannels)
      throw new ConfigError(
        `grow: --codec does not fit: latents of ${values.codec} have ${codec.channels} channels, ${base} takes ${model.config.inChannels}; give the autoencoder that it was trained with`,
      );
    const captions = t5 && (await captionsOf(engine, t5, model.config, text.info));
    const language = branch && (await branchOptions(engine, branch, seed));
    const key = Key.from(seed).fold(1);
    await write(engine, file, out, { dtype, growth, language, foreign: kind && foreign, codec, captions, key });
    for (const [flag, is, what] of [
      ["--codec", codec ?? said, "what makes its latents"],
      ["--t5", captions ?? text.info, "what reads its captions"],
    ] as const)
      if (!is) console.log(`note     the file does not say ${what}: espalier train and sample will need ${flag}`);
    return 0;
  } finally {
    await file.close();
    engine.destroy();
  }
}

interface Wanted {
  dtype: DType;
  /** Of a base that others made. */
  foreign?: ForeignOptions;
  /** What the new file is to name: its autoencoder, and what reads captions. */
  codec?: ExternalVae;
  captions?: Readonly<Record<string, unknown>>;
  growth?: GrowthOptions;
  language?: LanguageOptions;
  key: Key;
}

async function write(engine: Engine, file: Safetensors, out: string, wanted: Wanted): Promise<void> {
  const { dtype, growth, language, foreign, key } = wanted;
  /** One model at a time is on the GPU. */
  const withModel = async <T>(more: object, use: (loaded: LoadedModel) => Promise<T>): Promise<T> => {
    const loaded = await openModel(engine, file, { dtype, ...more, ...(foreign && { foreign }) });
    try {
      return await use(loaded);
    } finally {
      loaded.dispose();
      engine.memoryPool.trim();
    }
  };
  const changes = growth !== undefined || language !== undefined;
  const before = await withModel({}, async ({ model, report, objective }) => {
    if (report) console.log(`foreign  ${describeImport(report).replaceAll("\n", "\n         ")}`);
    console.log(`base     ${file.name}: ${parameters(model)}, ${dtype}`);
    if (changes) return { outputs: await probe(model, key), config: model.config };
    await save(file, out, wanted, model, objective);
    return undefined;
  });
  if (!before) return;
  await withModel({ grow: growth, language }, async ({ model, objective }) => {
    const { config } = model;
    console.log(`grown    ${parameters(model)}`);
    console.log(`blocks   ${describeGrowth(model).replaceAll("\n", "\n         ")}`);
    if (language)
      console.log(
        `branch   ${config.languageChannels} channels, up to ${config.languageLength} tokens, ${config.languageGate} gates at 0, ${model.language!.duplicated ? "copied from the attention to the caption" : "drawn by Xavier's rule"}`,
      );
    const { depth, temporalOwner } = before.config;
    const kept = growth && growthPlan(depth, { ...growth, temporalOwner: "original" }, temporalOwner).temporalOwner;
    const moved = kept !== undefined && kept !== config.temporalOwner;
    console.log(`checked  ${judge(compareBits(before.outputs, await probe(model, key)), moved)}`);
    await save(file, out, wanted, model, objective);
  });
}

/** Writes a model with what its base says and holds beside it, and with what is named anew. */
async function save(
  file: Safetensors,
  out: string,
  { foreign, codec, captions }: Wanted,
  model: STDiT,
  objective: Objective | undefined,
): Promise<void> {
  const kept = Object.entries(file.metadata).filter(([name]) => !OLD.includes(name) && !(foreign && name === "format"));
  const metadata = {
    ...Object.fromEntries(kept),
    ...(foreign && objective && { objective: JSON.stringify(encodeObjective(objective)) }),
    ...(codec && { codec: JSON.stringify(codec.state().info) }),
    ...(captions && { text: JSON.stringify(captions) }),
  };
  const own = modelEntries({ model, metadata });
  const beside = foreign ? [] : [...file.tensors.keys()].filter((name) => /^(codec|text)\./.test(name));
  const written = await writeSafetensors(out, [...own.entries, ...copyEntries(file, beside)], own.metadata);
  if (codec) console.log(`codec    ${codec.location} (${codec.fingerprint})`);
  if (captions) console.log(`text     ${captions.encoder} (${captions.fingerprint})`);
  console.log(`written  ${written.path}  ${(written.bytes / 2 ** 20).toFixed(1)} MiB`);
}
