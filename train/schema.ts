import { z } from "zod";
import { WORLDS } from "./data/world.js";

const count = (least: number) => z.int().min(least);
const share = z.number().min(0).max(1);
const positive = z.number().positive();

/**
 * Every option, by section: type, range, default and what it does. The configuration's type, its checks, the flags and
 * the help text are all read from here.
 */
export const sections = {
  run: z.strictObject({
    out: z.string().min(1).default("runs/espalier").describe("folder for checkpoints, logs, clips and the report"),
    seed: z.int().min(0).max(0xffffffff).default(42).describe("decides every random number of the run"),
    resume: z.boolean().default(false).describe("go on from the newest checkpoint in run.out"),
    keep: count(1).default(3).describe("how many checkpoints are kept; older ones are removed"),
    checkpointEvery: count(1).default(200).describe("steps between checkpoints; the last step always makes one"),
    sampleEvery: count(0).default(200).describe("steps between sampled clips; 0 samples only at the end"),
    logEvery: count(1).default(10).describe("steps between lines of the logs"),
  }),
  data: z.strictObject({
    kind: z.enum(["world", "folder", "csv"]).default("world").describe("composed clips, captions.jsonl, or path,text"),
    world: z
      .enum(Object.keys(WORLDS) as [string, ...string[]])
      .default("easy")
      .describe("which composed clips (kind world)"),
    path: z.string().min(1).optional().describe("the folder with captions.jsonl, or the CSV file"),
    frames: count(1).default(8).describe("frames of a clip"),
    size: count(1).default(32).describe("height and width of a clip in pixels"),
    frameInterval: count(1).default(3).describe("source frames from one kept frame to the next (kinds folder, csv)"),
    flip: z
      .boolean()
      .default(true)
      .describe("mirror clips at random; not where captions tell left from right (kinds folder, csv)"),
    imageFraction: share.default(0).describe("share of samples that are images: clips of equal frames"),
    variants: count(1)
      .optional()
      .describe("ways in which each clip is cut, in turn; by default cut anew each time (kinds folder, csv)"),
    cache: z
      .string()
      .min(1)
      .optional()
      .describe(
        "a folder that keeps what language models make of captions and, with data.variants and no replay, latents of clips; espalier encode fills it",
      ),
  }),
  replay: z.strictObject({
    fraction: share.default(0).describe("share of samples taken from earlier data, against forgetting; 0 is none"),
    clips: z
      .enum(Object.keys(WORLDS) as [string, ...string[]])
      .optional()
      .describe("composed clips to replay"),
    folder: z.string().min(1).optional().describe("or: a folder with captions.jsonl, or a CSV file, to replay"),
  }),
  codec: z.strictObject({
    kind: z
      .enum(["pca", "pixels", "vae"])
      .default("pca")
      .describe("latents from principal components, raw pixels, or latents of an autoencoder"),
    vae: z
      .string()
      .min(1)
      .optional()
      .describe(
        "folder or file of an autoencoder (AutoencoderKL): the codec of kind vae, or where that of model.from lies here",
      ),
    patch: count(1).default(4).describe("side in pixels of the square that becomes one latent position (kind pca)"),
    channels: count(1).default(8).describe("components kept of each square (kind pca)"),
    alsoFit: z
      .enum(Object.keys(WORLDS) as [string, ...string[]])
      .optional()
      .describe("further composed clips to fit to, for a model that is to go on with them (kind pca)"),
  }),
  text: z.strictObject({
    t5: z
      .string()
      .min(1)
      .optional()
      .describe(
        "folder of a T5 v1.1 as Hugging Face lays it out: reads captions in place of word vectors, or where that of model.from lies here",
      ),
    llm: z
      .string()
      .min(1)
      .optional()
      .describe("where the language model of model.from's branch lies here, if its file does not say so"),
    bits: z
      .union([z.literal(8), z.literal(4)])
      .optional()
      .describe("round the linear layers of text.t5; by default as the model's file says, else full weights"),
    weights: z
      .enum(["f32", "f16"])
      .optional()
      .describe("storage of text.t5's weights; by default as the model's file says, else f32"),
  }),
  model: z.strictObject({
    from: z
      .string()
      .min(1)
      .optional()
      .describe(
        "a model file to go on from, or a STDiT of Open-Sora 1.0 or a PixArt-alpha; sizes, codec, objective and text are then its own",
      ),
    hidden: count(4).default(64).describe("width of the transformer"),
    depth: count(1).default(3).describe("number of blocks"),
    heads: count(1).default(4).describe("attention heads"),
    mlpRatio: positive.default(4).describe("width of the MLP as a multiple of hidden"),
    patch: z
      .tuple([count(1), count(1), count(1)])
      .default([1, 2, 2])
      .describe("latent frames, rows and columns that one token covers"),
    captionChannels: count(1).default(64).describe("width of the text embeddings"),
    maxLength: count(1).default(16).describe("words of a caption that the model sees"),
    spaceScale: positive.default(1).describe("divides the positions of rows and columns"),
    timeScale: positive.default(1).describe("divides the positions of frames"),
    patchBias: z.enum(["zero", "uniform"]).default("zero").describe("start of the patch embedding's bias"),
    captionInit: z
      .enum(["xavier", "normal"])
      .default("xavier")
      .describe("start of the caption MLP; normal is N(0, 0.02)"),
    gateBias: z.number().default(0.5).describe("added to the start of each block's two gates"),
  }),
  grow: z.strictObject({
    mode: z
      .enum(["none", "insert", "prefix", "suffix"])
      .default("none")
      .describe("duplicate blocks of model.from: spread among the old ones, before them or after them"),
    blocks: count(1).optional().describe("how many new blocks"),
  }),
  language: z.strictObject({
    encoder: z
      .string()
      .min(1)
      .default("none")
      .describe('adds a cross-attention to a language model: "language" (embedded), or a folder of a Llama model'),
    tokens: count(1)
      .optional()
      .describe("tokens of a caption that the language branch sees; by default the language model's own choice"),
    gate: z.enum(["scalar", "head", "channel"]).default("scalar").describe("one gate a block, a head or a channel"),
    duplicate: z
      .boolean()
      .default(true)
      .describe("start the branch as a copy of each block's caption attention; otherwise by Xavier's rule"),
    embedInit: z
      .enum(["xavier", "normal"])
      .default("xavier")
      .describe("start of the branch's caption MLP; normal is N(0, 0.02)"),
    template: z.boolean().default(true).describe("wrap captions in the language model's chat template"),
    layer: z.int().max(-1).default(-1).describe("whose hidden states: -1 the last with its norm, -2 the one before, …"),
    form: z
      .enum(["S", "L", "SL"])
      .default("S")
      .describe("what the language model reads: the short caption, a long one, or the short followed by the long"),
  }),
  lora: z.strictObject({
    pattern: z
      .string()
      .min(1)
      .optional()
      .describe('trains low-rank adapters on these layers alone, such as "blocks.*.attn.**"; several with commas'),
    rank: count(1).default(8).describe("rank of an adapter"),
    alpha: positive.optional().describe("an adapter counts alpha / rank; by default rank"),
  }),
  objective: z.strictObject({
    kind: z.enum(["flow", "v", "iddpm"]).default("flow").describe("rectified flow, or v or noise on 1000 steps"),
    flowShift: positive.default(4).describe("moves training and sampling times towards noise (kind flow)"),
    learnSigma: z.boolean().optional().describe("also predict variances; by default only with kind iddpm"),
    variational: z.boolean().optional().describe("add the variational bound that trains variances (learnSigma)"),
  }),
  optim: z.strictObject({
    lr: positive.default(3e-3).describe("AdamW's highest rate"),
    betas: z
      .tuple([z.number().min(0).lt(1), z.number().min(0).lt(1)])
      .default([0.9, 0.999])
      .describe("AdamW's decay of gradient and square averages"),
    eps: positive.default(1e-8).describe("AdamW's guard against division by zero"),
    weightDecay: z.number().min(0).default(0).describe("decoupled weight decay"),
    gradClip: z.number().min(0).default(1).describe("largest global gradient norm; 0 clips nothing"),
    schedule: z
      .enum(["constant", "warmup", "cosine", "linear-decay"])
      .default("linear-decay")
      .describe("course of the rate; all but constant warm up first"),
    warmupSteps: count(0).default(20).describe("steps of linear warm-up from 0 (not with constant)"),
    decayFraction: share.default(0.3).describe("last share of steps in which the rate falls (linear-decay)"),
    finalFraction: share.default(0.02).describe("share of lr left at the end (cosine, linear-decay)"),
    state: z
      .enum(["f32", "f16", "8bit"])
      .default("f32")
      .describe("storage of AdamW's averages: 8, 4.1 or 2.1 bytes a parameter"),
    accumulate: count(1).default(1).describe("batches whose gradients are averaged into one step"),
  }),
  ema: z.strictObject({
    decay: z.number().min(0).lt(1).default(0.99).describe("decay of the averaged weights that samples use"),
    warmup: z.boolean().default(true).describe("start with a faster average: decay at most (1 + n) / (10 + n)"),
  }),
  train: z.strictObject({
    steps: count(1).default(1329).describe("optimizer steps"),
    batchSize: count(1).default(8).describe("clips in one batch"),
    precision: z
      .enum(["f32", "mixed"])
      .default("f32")
      .describe("mixed computes in f16 with weights and optimizer in f32, and scales the loss (adapters with f16)"),
    eager: z
      .boolean()
      .default(false)
      .describe("run op by op instead of compiling each step: slower, for looking inside"),
    checkpointBlocks: z
      .boolean()
      .default(false)
      .describe("keep only what enters each block and run the block again in backward: far less memory, more time"),
    scope: z
      .enum(["all", "new"])
      .default("all")
      .describe("which parameters learn; new is the grown blocks and the language branch alone"),
    conditionDropout: share
      .optional()
      .describe(
        "share of samples whose captions are all replaced by null captions; by default 0.1, 0.05 with a language branch",
      ),
    languageDropout: share
      .optional()
      .describe("share of samples whose language caption alone is replaced; by default 0.05 with a language branch"),
  }),
  sample: z.strictObject({
    sampler: z
      .enum(["ddpm", "ddim", "dpm-solver++", "euler", "heun"])
      .optional()
      .describe("by default euler with flow, ddim with v and iddpm; of model.from by its own objective"),
    steps: z.int().min(1).max(1000).default(16).describe("sampling steps"),
    guidance: z.number().min(0).default(1.5).describe("weight of the caption; 1 guides nothing"),
    languageGuidance: z
      .number()
      .min(0)
      .default(2)
      .describe("weight of the language caption, for models with a language branch"),
    cfgChannels: z
      .union([z.literal("all"), count(1)])
      .default("all")
      .describe("how many latent channels are guided; 3 for parity with Open-Sora 1.0"),
    count: count(1).default(8).describe("clips sampled at a time"),
    eta: share.default(0).describe("noise added at each step (ddim)"),
  }),
};

/** The whole configuration. */
export const schema = z.strictObject({
  run: sections.run.prefault({}),
  data: sections.data.prefault({}),
  replay: sections.replay.prefault({}),
  codec: sections.codec.prefault({}),
  text: sections.text.prefault({}),
  model: sections.model.prefault({}),
  grow: sections.grow.prefault({}),
  language: sections.language.prefault({}),
  lora: sections.lora.prefault({}),
  objective: sections.objective
    .transform(({ learnSigma, variational, ...rest }) => {
      const sigma = learnSigma ?? rest.kind === "iddpm";
      return { ...rest, learnSigma: sigma, variational: variational ?? sigma };
    })
    .prefault({}),
  optim: sections.optim.prefault({}),
  ema: sections.ema.prefault({}),
  train: sections.train.prefault({}),
  sample: sections.sample.prefault({}),
});

/** A configuration with every default filled in, as `parseConfig` returns it and a checkpoint stores it. */
export type Config = z.output<typeof schema>;
/** A configuration as written: sections and options may be left out. */
export type ConfigInput = z.input<typeof schema>;
export type Sampler = "ddpm" | "ddim" | "dpm-solver++" | "euler" | "heun";
/** One option's schema. */
export type Leaf = z.ZodType;

/** Every option by its full name, such as "optim.lr". */
export const leaves: ReadonlyMap<string, Leaf> = new Map(
  Object.entries(sections).flatMap(([section, object]) =>
    Object.entries(object.shape).map(([name, leaf]) => [`${section}.${name}`, leaf as Leaf] as const),
  ),
);

interface JsonSchema {
  type?: string;
  enum?: string[];
  const?: string | number;
  anyOf?: JsonSchema[];
  prefixItems?: JsonSchema[];
  minimum?: number;
  maximum?: number;
  exclusiveMinimum?: number;
  exclusiveMaximum?: number;
}

/** What an option takes, in words: "a number above 0", "flow, v or iddpm". */
export function wants(leaf: Leaf): string {
  const words = (json: JsonSchema): string => {
    if (json.const !== undefined) return typeof json.const === "number" ? `${json.const}` : `"${json.const}"`;
    if (json.enum !== undefined) return `${json.enum.slice(0, -1).join(", ")} or ${json.enum[json.enum.length - 1]}`;
    if (json.anyOf !== undefined) return json.anyOf.map(words).join(" or ");
    if (json.prefixItems !== undefined) return `${json.prefixItems.length} values, each ${words(json.prefixItems[0])}`;
    if (json.type === "boolean") return "true or false";
    if (json.type === "string") return "text";
    const kind = json.type === "integer" ? "an integer" : "a number";
    const low = json.exclusiveMinimum !== undefined ? `above ${json.exclusiveMinimum}` : `from ${json.minimum}`;
    const least = json.exclusiveMinimum ?? json.minimum ?? Number.MIN_SAFE_INTEGER;
    const most = json.exclusiveMaximum ?? json.maximum ?? Number.MAX_SAFE_INTEGER;
    if (least === Number.MIN_SAFE_INTEGER) return kind;
    if (most === Number.MAX_SAFE_INTEGER) return `${kind} ${low.replace("from", "of at least")}`;
    return `${kind} ${low} ${json.exclusiveMaximum !== undefined ? "to below" : "to"} ${most}`;
  };
  return words(z.toJSONSchema(leaf) as JsonSchema);
}

/** The value of "section.name" in an object of sections, or undefined. */
export function valueAt(config: unknown, path: readonly PropertyKey[]): unknown {
  return path.reduce<unknown>((at, key) => (at as Record<PropertyKey, unknown> | undefined)?.[key], config);
}
