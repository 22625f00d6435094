import { stat } from "node:fs/promises";
import { ConfigError, createEngine, type DType, type Engine } from "../../engine/index.js";
import { formPrompts, type PromptForm, promptForm } from "../../model/text/form.js";
import { OpenAIRecaptioner } from "../../model/text/openai.js";
import { type Recaptioner, RuleRecaptioner } from "../../model/text/recaption.js";
import { type EncoderSpec, type FoundEncoder, findEncoder } from "../../model/text/spec.js";
import { parseArguments } from "../arguments.js";
import { CachedRecaptioner } from "../cache/captions.js";
import { cachedEncoder } from "../cache/encoder.js";
import { LatentDataset } from "../cache/latents.js";
import type { CacheDtype } from "../cache/shard.js";
import { captionsOf, openCodecAt } from "../cache/sources.js";
import { encoderAssets } from "../data/assets.js";
import { FolderDataset } from "../data/folder.js";
import { Skips } from "../data/rows.js";
import { Progress } from "../progress.js";
import { adapterLine } from "./adapter.js";
import { interruption } from "./train.js";

const usage = `Usage: espalier encode DATA [--text ENCODERS] [--codec WHERE] --out CACHE [options]

Encodes captions, clips or both, once, into a cache that training reads without loading an encoder. Killed or
interrupted, the same command goes on where it was. A cache may hold the results of many encoders.

DATA is a folder with captions.jsonl, a CSV with columns path and text, or captions alone: a .txt with one a line, or a
.jsonl with "text", "caption" or "name".

  --out FOLDER           the cache; it may be there already
  --text ENCODERS        text encoders, with commas between: "words" (the word vectors of Espalier), "t5" and "language" (its
                         small T5 and language model), a model file of Espalier's (the encoder of captions in it, or that it
                         names), or a folder of a T5 or a Llama as Hugging Face lays it out
  --codec WHERE          what makes latents of clips: a model file of Espalier's (the codec in it, or that it names), or a
                         folder or file of an autoencoder (AutoencoderKL)
  --dtype f32|f16        how numbers are stored [as in the cache; f32 in a new one]
  --adapter NAME         hardware, lavapipe, swiftshader, or part of a GPU's name

Captions (with several encoders, each must know the options given):
  --form S|L|SL          encode the short caption, a long one, or the short followed by the long [S]
  --recaption URL        long captions by an OpenAI-compatible endpoint, such as http://localhost:8080/v1, whose key, if it
                         wants one, is in ESPALIER_RECAPTION_KEY [rules for the composed clips' captions]
  --recaption-model NAME the endpoint's model
  --max-length N         vectors a caption [words 16, language 24, T5 120, Llama 256]
  --layer N              whose hidden states, for language models: -1 the last with its norm, -2 the one before [-1]
  --no-template          leave out the language model's chat template
  --no-clean             leave captions as they are, for a T5
  --weights f32|f16      storage of the encoder's weights [f32]
  --bits 8|4             round its linear layers, so that it fits smaller GPUs; not for word vectors [full weights]
  --batch N              captions encoded at a time [16]

Clips (as in training: a latent is of use where all of these are the same):
  --frames N             frames of a clip [8]
  --size N               height and width in pixels [32]
  --frame-interval N     source frames from one kept frame to the next [3]
  --no-flip              never mirror clips
  --image-fraction X     share of samples that are images: clips of equal frames [0]
  --variants N           ways in which each clip is cut and mirrored, each encoded once [1]`;

/** Options that only captions or only clips have a use for. */
const OF_TEXT = [
  "form",
  "recaption",
  "recaption-model",
  "max-length",
  "layer",
  "no-template",
  "no-clean",
  "weights",
  "bits",
  "batch",
];
const OF_CLIPS = ["frames", "size", "frame-interval", "no-flip", "image-fraction", "variants"];

type Values = Record<string, string | number | boolean | undefined>;

function oneOf<T extends string>(values: Values, name: string, options: readonly T[]): T | undefined {
  const value = values[name];
  if (value === undefined || options.includes(value as T)) return value as T | undefined;
  throw new ConfigError(`encode: --${name} takes ${options.join(" or ")}: got "${value}"`);
}

function bitsOf({ bits }: Values): 8 | 4 | undefined {
  if (bits === undefined || bits === 8 || bits === 4) return bits;
  throw new ConfigError(`encode: --bits takes 8 or 4: got "${bits}"`);
}

const exists = (path: string) =>
  stat(path).then(
    () => true,
    () => false,
  );

/** What is to be encoded, checked. */
interface Plan {
  data: string;
  out: string;
  encoders: EncoderSpec[];
  codec: string | undefined;
  dtype: CacheDtype | undefined;
  form: PromptForm;
  recaptioner: Recaptioner;
  values: Values;
}

async function planOf(words: string[], values: Values): Promise<Plan> {
  const [data, ...more] = words;
  if (data === undefined || more.length > 0)
    throw new ConfigError(
      `encode: one set is needed: ${data === undefined ? "none was given" : `got ${words.join(", ")}`}; espalier encode DATA --text words --out CACHE`,
    );
  const { out, text, codec, recaption } = values as Record<string, string | undefined>;
  if (text === undefined && codec === undefined)
    throw new ConfigError("encode: nothing to encode with: give --text ENCODERS for captions, --codec WHERE for clips");
  if (out === undefined) throw new ConfigError("encode: --out is missing: name the folder of the cache");
  for (const [used, by, names] of [
    [text, "--text", OF_TEXT],
    [codec, "--codec", OF_CLIPS],
  ] as const)
    for (const name of names)
      if (used === undefined && values[name] !== undefined)
        throw new ConfigError(`encode: --${name} has no use without ${by}; leave it out`);
  if (codec !== undefined && !/^https?:/i.test(codec) && !(await exists(codec)))
    throw new ConfigError(
      `encode: --codec must exist: there is nothing at ${codec}; a model file, or an autoencoder's folder or file`,
    );
  const form = promptForm((values.form as string | undefined) ?? "S");
  const model = values["recaption-model"] as string | undefined;
  if ((recaption !== undefined || model !== undefined) && form === "S")
    throw new ConfigError("encode: --recaption has no use: the form is S, the short caption; give --form L or SL");
  if (model !== undefined && recaption === undefined)
    throw new ConfigError("encode: --recaption-model needs an endpoint: give --recaption URL");
  if (recaption !== undefined && model === undefined)
    throw new ConfigError("encode: the endpoint's model is not named: give --recaption-model NAME");
  const recaptioner =
    recaption === undefined
      ? new RuleRecaptioner()
      : new OpenAIRecaptioner({ url: recaption, model: model!, key: process.env.ESPALIER_RECAPTION_KEY });
  // A comma may be part of a folder's name.
  const whole =
    text !== undefined &&
    (await stat(text).then(
      () => true,
      () => false,
    ));
  const named = text === undefined ? [] : whole ? [text] : text.split(",").map((name) => name.trim());
  if (named.includes("")) throw new ConfigError(`encode: --text names an encoder that is empty: "${text}"`);
  const reading = {
    maxLength: values["max-length"] as number | undefined,
    layer: values.layer as number | undefined,
    template: values["no-template"] ? false : undefined,
    clean: values["no-clean"] ? false : undefined,
    dtype: oneOf<DType>(values, "weights", ["f32", "f16"]),
    bits: bitsOf(values),
  };
  return {
    data,
    out,
    encoders: named.map((encoder) => ({ encoder, ...reading })),
    codec,
    dtype: oneOf(values, "dtype", ["f32", "f16"]),
    form,
    recaptioner,
    values,
  };
}

/** Long captions, from the cache where an endpoint writes them. */
async function captionsIn(plan: Plan, captions: string[], signal: AbortSignal): Promise<string[]> {
  const { form, recaptioner, out, values } = plan;
  if (form === "S" || values.recaption === undefined) return formPrompts(captions, form, recaptioner, signal);
  const cached = await CachedRecaptioner.open(out, recaptioner);
  const bar = new Progress({ total: new Set(captions).size, label: "recaption" });
  const asking = {
    ...recaptioner,
    expand: (prompts: string[], stop?: AbortSignal) => cached.expand(prompts, stop, (done) => bar.update(done)),
  };
  try {
    return await formPrompts(captions, form, asking, signal);
  } finally {
    bar.stop();
    await cached.close();
  }
}

/** Does the work with a cache and closes it, whose own failure must not hide the work's. */
async function closing(cache: { close(): Promise<void> }, work: () => Promise<void>): Promise<void> {
  try {
    await work();
  } catch (error) {
    await cache.close().catch(() => {});
    throw error;
  }
  await cache.close();
}

async function encodeText(
  plan: Plan,
  captions: string[],
  gpu: () => Promise<Engine>,
  signal: AbortSignal,
): Promise<void> {
  // All are found before the first is opened: a wrong name must not cost an hour.
  const found: FoundEncoder[] = [];
  for (const spec of plan.encoders) found.push(await findEncoder(spec, encoderAssets));
  const texts = await captionsIn(plan, captions, signal);
  const { dtype, out, values } = plan;
  const options = { dtype, batch: values.batch as number | undefined, exclusive: true };
  for (const [i, spec] of plan.encoders.entries()) {
    const cache = await cachedEncoder(out, gpu, spec, options, found[i]);
    await closing(cache, async () => {
      const all = new Set(texts).size;
      const before = cache.size;
      const bar = new Progress({ total: all, label: spec.encoder });
      const cut = await cache.fill(texts, (done) => bar.update(done), signal).finally(() => bar.stop());
      if (cut.length > 0)
        console.error(
          `text: ${cut.length} captions have more than ${cache.maxLength} vectors and lost their end, the first being ${JSON.stringify(cut[0])}; a higher --max-length reads more`,
        );
      console.log(`text   ${spec.encoder}: ${all} captions, ${cache.size - before} of them new, in ${cache.folder}`);
    });
  }
}

async function encodeClips(plan: Plan, gpu: () => Promise<Engine>, signal: AbortSignal): Promise<void> {
  const { values } = plan;
  const size = (values.size as number | undefined) ?? 32;
  const variants = (values.variants as number | undefined) ?? 1;
  if (variants < 1) throw new ConfigError(`encode: --variants must be at least 1: got ${variants}`);
  const clips = await FolderDataset.open(plan.data, {
    frames: (values.frames as number | undefined) ?? 8,
    height: size,
    width: size,
    frameInterval: (values["frame-interval"] as number | undefined) ?? 3,
    flip: !values["no-flip"],
    imageFraction: values["image-fraction"] as number | undefined,
    variants,
  });
  const engine = await gpu();
  const codec = await openCodecAt(engine, plan.codec!);
  try {
    const cache = await LatentDataset.open(plan.out, clips, engine, codec, { dtype: plan.dtype });
    await closing(cache, async () => {
      await cache.hold();
      const bar = new Progress({ total: clips.listed * variants, label: "clips" });
      await cache.fill((done) => bar.update(done), signal).finally(() => bar.stop());
      if (clips.skips.count) console.error(`data: ${clips.skips}`);
      console.log(
        `clips  ${plan.codec}: ${cache.size} clips in ${variants} variant${variants === 1 ? "" : "s"}, ${cache.encoded} latents [${cache.latentShape.join(", ")}] new, in ${cache.folder}`,
      );
    });
  } finally {
    codec.dispose();
  }
}

export async function run(args: string[]): Promise<number> {
  const { values, words, help } = parseArguments("encode", args, {
    out: "text",
    text: "text",
    codec: "text",
    dtype: "text",
    adapter: "text",
    form: "text",
    recaption: "text",
    "recaption-model": "text",
    "max-length": "whole",
    layer: "number",
    "no-template": "switch",
    "no-clean": "switch",
    weights: "text",
    bits: "whole",
    batch: "whole",
    frames: "whole",
    size: "whole",
    "frame-interval": "whole",
    "no-flip": "switch",
    "image-fraction": "number",
    variants: "whole",
  });
  if (help) {
    console.log(usage);
    return 0;
  }
  const plan = await planOf(words, values);
  if (plan.codec !== undefined && /\.(txt|jsonl)$/i.test(plan.data))
    throw new ConfigError(
      `encode: --codec needs clips: ${plan.data} lists captions alone; give a folder or a CSV file`,
    );
  const skips = new Skips();
  const captions = plan.encoders.length > 0 ? await captionsOf(plan.data, skips) : [];
  if (skips.count > 0) console.error(`data: ${skips}`);
  let engine: Promise<Engine> | undefined;
  const gpu = () => {
    engine ??= createEngine({ adapter: values.adapter as string | undefined }).then((made) => {
      console.error(adapterLine(made));
      return made;
    });
    return engine;
  };
  const { signal, end } = interruption();
  try {
    if (plan.encoders.length > 0) await encodeText(plan, captions, gpu, signal);
    if (plan.codec !== undefined) await encodeClips(plan, gpu, signal);
    return 0;
  } finally {
    end();
    (await engine?.catch(() => undefined))?.destroy();
  }
}
