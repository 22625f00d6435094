import { mkdir } from "node:fs/promises";
import { join } from "node:path";
import { ConfigError, createEngine, type Engine } from "../../engine/index.js";
import { openModel, openModelText } from "../../model/checkpoint.js";
import { checkScale, type GuidanceParts } from "../../model/diffusion/guidance.js";
import { describeImport } from "../../model/foreign/report.js";
import { languagePrompts, type Pipeline, type SampleRequest, type SamplerName, sample } from "../../model/pipeline.js";
import { languageOf } from "../../model/text/branch.js";
import { captionEncoderOf } from "../../model/text/captions.js";
import { promptForm } from "../../model/text/form.js";
import { MemoEncoder } from "../../model/text/memo.js";
import { OpenAIRecaptioner } from "../../model/text/openai.js";
import type { Recaptioner } from "../../model/text/recaption.js";
import type { EncoderSpec, OpenEncoder } from "../../model/text/spec.js";
import { externalVaeOf, isExternal } from "../../model/vae/external.js";
import { type Arguments, parseArguments } from "../arguments.js";
import { encoderAssets } from "../data/assets.js";
import { clipsOf } from "../evaluate.js";
import { writeAnimatedWebp, writeContactSheet, writeGif, writeMp4 } from "../media.js";
import { Progress } from "../progress.js";
import { adapterLine } from "./adapter.js";

const usage = `Usage: espalier sample MODEL "PROMPT" ["PROMPT" …] [options]

Samples one clip a prompt and writes it as animated WebP, GIF and, where ffmpeg is installed, MP4. MODEL is a model file
of Espalier's, or the STDiT of Open-Sora 1.0 under its own names: a safetensors file, the index of its shards, or their
folder; then --codec and --t5 say what it was trained with.

  --out FOLDER          where to write [samples]
  --steps N             sampling steps [16]
  --guidance X          weight of the prompt; 1 guides nothing [1.5]
  --sampler NAME        euler or heun for flow models; ddim, dpm-solver++ or ddpm for others
  --cfg-channels N      how many latent channels are guided [all]
  --eta X               noise added at each step by ddim, 0 to 1 [0]
  --seed N              decides the noise [0]
  --frames N            frames of the clip [as trained]
  --size N              height and width in pixels [as trained]
  --fps N               frames a second of the files [8]
  --parts auto|1|3      run what a guided step needs in one batch (1), each by itself with less memory (3), or in one
                        batch as long as it fits (auto); the clips are the same [auto]
  --t5 ENCODER          what reads the prompt, where the model file names no encoder or one that lies elsewhere: the
                        folder of a T5 as Hugging Face lays it out [what the model file names]
  --t5-bits 8|4         round the linear layers of that T5, so that it fits smaller GPUs, where the model file does not say
                        how it is held [full weights]
  --codec WHERE         what makes clips of latents, where the model file names no autoencoder or one that lies elsewhere:
                        the folder or file of an AutoencoderKL [what the model file holds or names]
  --eager               run op by op, without compiling a step first: slower; the clips are the same within rounding
  --adapter NAME        hardware, lavapipe, swiftshader, or part of a GPU's name

Models with a language branch read each prompt twice and are guided by two scales,
e(0, 0) + t5 (e(prompt, 0) - e(0, 0)) + llm (e(prompt, language) - e(prompt, 0)):

  --t5-scale X          another name of --guidance [1.5]; large models: 7
  --llm-scale X         weight of what the language model read [2]; large models: 12.5
  --llm ENCODER         the language model: "language" (Espalier's small one), or the folder of a Llama as Hugging Face
                        lays it out [what the model file names]
  --prompt-form FORM    what it reads: S the prompt, L a long prompt, SL the prompt followed by the long one [as trained;
                        with --long-prompt L, unless SL was trained]
  --long-prompt TEXT    a long prompt: once for all prompts, or once for each, in order [made by rules]
  --recaption-url URL   make long prompts by a language model behind an OpenAI-compatible endpoint instead, such as
                        http://localhost:8080/v1; a key, if it needs one, is read from ESPALIER_RECAPTION_KEY
  --recaption-model NAME
                        the model to ask for, by the endpoint's name

Examples:
  espalier sample base.safetensors "an ox moving left on a blue background"
  espalier sample large.safetensors "a dog runs on a beach" --t5 ./t5-v1_1-xxl --llm ./Meta-Llama-3-8B-Instruct \\
    --codec ./sd-vae-ft-ema --t5-scale 7 --llm-scale 12.5 --prompt-form SL --sampler ddpm --steps 100
  espalier sample OpenSora-v1-HQ-16x256x256.safetensors "a dog runs on a beach" --codec ./sd-vae-ft-ema \\
    --t5 ./t5-v1_1-xxl --t5-bits 8 --sampler ddpm --steps 100 --guidance 7 --cfg-channels 4`;

/** Options that only a model with a language branch has a use for. */
const OF_LANGUAGE = ["llm-scale", "llm", "prompt-form", "long-prompt", "recaption-url", "recaption-model"] as const;

/** A file name that says what the clip shows. */
const slug = (prompt: string) =>
  prompt
    .toLowerCase()
    .replace(/[^\p{L}\p{N}]+/gu, "-")
    .replace(/^-|-$/g, "")
    .slice(0, 60) || "clip";

const noUse = (option: string, why: string) => new ConfigError(`sample: --${option} has no use: ${why}; leave it out`);

/** One long prompt for each prompt, where any were given. */
function longPromptsOf(given: readonly string[] | undefined, prompts: readonly string[]): string[] | undefined {
  if (given === undefined) return undefined;
  if (given.length === 1) return prompts.map(() => given[0]);
  if (given.length === prompts.length) return [...given];
  throw new ConfigError(
    `sample: --long-prompt comes once, or once for each prompt: got ${given.length} for ${prompts.length} prompts`,
  );
}

function recaptionerOf({ values, lists }: Arguments): Recaptioner | undefined {
  const [url, model] = [values["recaption-url"], values["recaption-model"]] as (string | undefined)[];
  if (url === undefined && model === undefined) return undefined;
  if (url === undefined) throw new ConfigError("sample: --recaption-model needs an endpoint: give --recaption-url URL");
  if (model === undefined)
    throw new ConfigError("sample: the endpoint's model is not named: give --recaption-model NAME");
  if (lists["long-prompt"]) throw noUse("recaption-url", "long prompts are given");
  if (values["prompt-form"] === "S") throw noUse("recaption-url", "the form is S, the prompt alone");
  return new OpenAIRecaptioner({ url, model, key: process.env.ESPALIER_RECAPTION_KEY });
}

/** What the command line asks for, checked as far as it can be without the model. */
function requestOf(given: Arguments, prompts: string[]): SampleRequest {
  const { values, lists } = given;
  if (values.guidance !== undefined && values["t5-scale"] !== undefined)
    throw new ConfigError("sample: --guidance and --t5-scale are one option: both were given; give one");
  const guidance = (values["t5-scale"] ?? values.guidance) as number | undefined;
  const languageGuidance = values["llm-scale"] as number | undefined;
  if (guidance !== undefined) checkScale("scale", guidance);
  if (languageGuidance !== undefined) checkScale("language scale", languageGuidance);
  const form = values["prompt-form"] as string | undefined;
  const parts = (values.parts as string | undefined) ?? "auto";
  if (!["auto", "1", "3"].includes(parts)) throw new ConfigError(`sample: --parts takes auto, 1 or 3: got "${parts}"`);
  return {
    prompts,
    steps: values.steps as number | undefined,
    guidance,
    languageGuidance,
    promptForm: form === undefined ? undefined : promptForm(form),
    longPrompts: longPromptsOf(lists["long-prompt"], prompts),
    parts: (parts === "auto" ? parts : Number(parts)) as GuidanceParts,
    sampler: values.sampler as SamplerName | undefined,
    cfgChannels: values["cfg-channels"] as number | undefined,
    eta: values.eta as number | undefined,
    seed: values.seed as number | undefined,
    frames: values.frames as number | undefined,
    height: values.size as number | undefined,
    width: values.size as number | undefined,
  };
}

/** Encodes at once, and tells what is amiss with the prompts. */
async function readBy(encoder: OpenEncoder, prompts: string[], label: string): Promise<MemoEncoder> {
  const memo = new MemoEncoder(encoder);
  const { warnings } = await memo.encode(prompts);
  for (const warning of warnings) console.error(`${label}: ${warning}`);
  return memo;
}

/** What lies elsewhere, as the file and the command line say it. */
function namedAt(
  file: string,
  values: Arguments["values"],
  { codec: said, text }: Awaited<ReturnType<typeof openModelText>>,
) {
  const { codec, t5: encoder, "t5-bits": bits } = values as Record<string, string | undefined> & { "t5-bits"?: number };
  if (codec !== undefined && said && !isExternal(said))
    throw noUse("codec", `${file} holds its own codec, of type ${JSON.stringify(said.type)}`);
  if (bits !== undefined && bits !== 8 && bits !== 4)
    throw new ConfigError(`sample: --t5-bits takes 8 or 4: got "${bits}"`);
  if (bits !== undefined && (encoder === undefined || text.info !== undefined))
    throw noUse("t5-bits", encoder === undefined ? "no --t5 is given" : `${file} says how its encoder is held`);
  const t5: EncoderSpec | undefined = encoder === undefined ? undefined : { encoder, ...(bits && { bits }) };
  return { said, codec, t5 };
}

/** Opens a model with its encoders and lets them read the prompts. */
async function openPipeline(
  engine: Engine,
  file: string,
  request: SampleRequest,
  recaptioner: Recaptioner | undefined,
  { values }: Arguments,
  about: Awaited<ReturnType<typeof openModelText>>,
): Promise<{ pipeline: Pipeline; request: SampleRequest; dispose(): void }> {
  const { said, t5, codec: place } = namedAt(file, values, about);
  const external = await externalVaeOf(engine, said, place);
  const loaded = await openModel(engine, file, { codec: external });
  const encoders: OpenEncoder[] = [];
  try {
    const { model, codec, objective, report } = loaded;
    if (report) console.error(describeImport(report));
    if (!codec)
      throw new ConfigError(
        `sample: ${file} holds no codec, and names none: what makes clips of its latents? Give the folder of its autoencoder (--codec)`,
      );
    if (!objective)
      throw new ConfigError(`sample: ${file} holds no objective; a model that espalier train wrote has one`);
    encoders.push(await captionEncoderOf(engine, loaded, encoderAssets, t5));
    const text = await readBy(encoders[0], request.prompts, "prompt");
    const pipeline: Pipeline = { model, codec, objective, text };
    const branch = await languageOf(engine, model, encoderAssets, values.llm as string | undefined);
    if (!branch) return { pipeline, request, dispose: loaded.dispose };
    encoders.push(branch.encoder);
    const spoken = { promptForm: branch.said.form, recaptioner };
    if (recaptioner && (request.promptForm ?? spoken.promptForm) === "S")
      throw noUse(
        "recaption-url",
        "the model was trained with form S, the prompt alone (--prompt-form L or SL reads more)",
      );
    const long = await languagePrompts(spoken, request);
    for (const prompt of new Set(long.filter((prompt, i) => prompt !== request.prompts[i])))
      console.error(`language prompt: ${prompt}`);
    const language = await readBy(branch.encoder, long, "language prompt");
    // What it has read is settled: the pipeline is to ask for the same.
    const settled: SampleRequest = { ...request, promptForm: "L", longPrompts: long };
    return { pipeline: { ...pipeline, language }, request: settled, dispose: loaded.dispose };
  } catch (error) {
    loaded.dispose();
    throw error;
  } finally {
    // What they read is kept; their memory is for the clips.
    for (const encoder of encoders) encoder.dispose?.();
  }
}

export async function run(args: string[]): Promise<number> {
  const given = parseArguments("sample", args, {
    out: "text",
    steps: "whole",
    guidance: "number",
    "t5-scale": "number",
    "llm-scale": "number",
    sampler: "text",
    "cfg-channels": "whole",
    eta: "number",
    seed: "whole",
    frames: "whole",
    size: "whole",
    fps: "number",
    parts: "text",
    t5: "text",
    "t5-bits": "whole",
    codec: "text",
    llm: "text",
    "prompt-form": "text",
    "long-prompt": "list",
    "recaption-url": "text",
    "recaption-model": "text",
    eager: "switch",
    adapter: "text",
  });
  const { values, lists, words, help } = given;
  if (help) {
    console.log(usage);
    return 0;
  }
  const [file, ...prompts] = words;
  if (file === undefined)
    throw new ConfigError(
      'sample: no model given; espalier sample MODEL.safetensors "an ox moving left on a blue background"',
    );
  if (prompts.length === 0)
    throw new ConfigError(`sample: no prompt given; espalier sample ${file} "an ox moving left on a blue background"`);
  const asked = requestOf(given, prompts);
  const recaptioner = recaptionerOf(given);
  if (asked.promptForm === "S" && asked.longPrompts) throw noUse("long-prompt", "the form is S, the prompt alone");
  const about = await openModelText(file);
  const { config } = about.model;
  namedAt(file, values, about);
  if (!config.languageChannels)
    for (const name of OF_LANGUAGE)
      if (values[name] !== undefined || lists[name]) throw noUse(name, `${file} has no language branch`);
  const engine = await createEngine({
    adapter: values.adapter as string | undefined,
    eager: values.eager === true,
  });
  try {
    console.error(adapterLine(engine));
    const { pipeline, request, dispose } = await openPipeline(engine, file, asked, recaptioner, given, about);
    const out = (values.out as string | undefined) ?? "samples";
    await mkdir(out, { recursive: true });
    const bar = new Progress({ total: request.steps ?? 16, label: "sample" });
    const { video, shape } = await sample(pipeline, request, { onStep: (p) => bar.update(p.step) }).finally(() =>
      bar.stop(),
    );
    const clips = clipsOf(video, shape);
    const fps = values.fps as number | undefined;
    let noMp4: string | undefined;
    for (const [i, clip] of clips.entries()) {
      const base = join(
        out,
        `${slug(prompts[i])}-${request.seed ?? 0}${prompts.indexOf(prompts[i]) === i ? "" : `-${i}`}`,
      );
      await writeAnimatedWebp(`${base}.webp`, clip, { fps });
      await writeGif(`${base}.gif`, clip, { fps });
      const mp4 = await writeMp4(`${base}.mp4`, clip, { fps });
      if (!mp4.written) noMp4 = mp4.reason;
      console.log(`${base}.webp  ${prompts[i]}`);
    }
    if (clips.length > 1) await writeContactSheet(join(out, "sheet.png"), clips);
    if (noMp4) console.error(`no MP4: ${noMp4}`);
    dispose();
    return 0;
  } finally {
    engine.destroy();
  }
}
