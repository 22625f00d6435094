import { ConfigError, type Engine, Key } from "../engine/index.js";
import { type OpenModelOptions, openModel, openModelFile, openModelText } from "../model/checkpoint.js";
import { foreignKind } from "../model/foreign/origin.js";
import { setTrained } from "../model/growth.js";
import { adaptedOf, addLora } from "../model/lora.js";
import { checkSampler, samplersOf } from "../model/pipeline.js";
import type { Safetensors } from "../model/safetensors.js";
import type { STDiT } from "../model/stdit.js";
import { identifyBranch, languageOf } from "../model/text/branch.js";
import { openCaptions } from "../model/text/captions.js";
import { MemoEncoder } from "../model/text/memo.js";
import { RuleRecaptioner } from "../model/text/recaption.js";
import { type EncoderSpec, namedIn } from "../model/text/spec.js";
import { VocabularyEncoder } from "../model/text/vocabulary.js";
import { type ExternalVae, externalVaeOf, isExternal } from "../model/vae/external.js";
import { assetsOf } from "./cache/encoder.js";
import type { Config } from "./config.js";
import { encoderAssets } from "./data/assets.js";
import type { Setup } from "./setup.js";

/** Where what a model needs lies here; it takes the place of what the model's file says. */
export interface Places {
  /** The folder that keeps what encoders make of captions. */
  cache?: string;
  /** An autoencoder. */
  codec?: string;
  /** The encoder of captions, and how its weights are held. */
  t5?: EncoderSpec;
  /** The language model of the model's branch. */
  llm?: string;
}

/** The places that a configuration names. */
export const placesOf = ({ data, codec, text: { t5, llm, bits, weights } }: Config): Places => ({
  cache: data.cache,
  codec: codec.vae,
  t5: t5 === undefined ? undefined : { encoder: t5, ...(bits && { bits }), ...(weights && { dtype: weights }) },
  llm,
});

/** How a model file is opened for training. */
export interface SetupOptions extends Pick<OpenModelOptions, "grow" | "language"> {
  /** Clips that a model begun from images is to be for. */
  clips?: { frames: number; size: number };
  /** Decides what such a model lacks. */
  key?: Key;
}

/**
 * The grid of a model that begins from images, which do not tell it.
 * @throws ShapeError for clips that the codec cannot encode
 */
const gridOf = (codec: ExternalVae, { frames, size }: { frames: number; size: number }) => {
  const [, , T, rows, columns] = codec.latentShape([1, 3, frames, size, size]);
  return { frames: T, latent: [rows, columns] as const };
};

/**
 * Opens a model file as something that can be trained: with its codec, its objective and its encoders. One that others
 * made gets them from the places.
 * @param options what is to become of the model while it is read
 * @throws ConfigError when one of them is not in the file or not here
 */
export async function openSetup(
  engine: Engine,
  location: string | Safetensors,
  options: SetupOptions = {},
  places: Places = {},
): Promise<Setup> {
  const { clips, key, ...more } = options;
  const found = await openModelFile(location);
  const { file, json } = found;
  try {
    const said = (await openModelText(file, { json })).codec;
    if (said && !isExternal(said) && places.codec !== undefined)
      throw new ConfigError(
        `train: codec.vae has no use: ${file.name} holds its own codec, of type ${JSON.stringify(said.type)}; leave it out (--codec).`,
      );
    const external = await externalVaeOf(engine, said, places.codec);
    const grid = external && clips && foreignKind(file) === "PixArt" ? gridOf(external, clips) : undefined;
    const foreign = { json, ...(key && { key }), ...(grid && { config: grid }) };
    return await setupOf(engine, file, { ...more, codec: external, foreign }, places);
  } finally {
    if (file !== location) await file.close();
  }
}

async function setupOf(engine: Engine, file: Safetensors, options: OpenModelOptions, places: Places): Promise<Setup> {
  const loaded = await openModel(engine, file, options);
  const held: { dispose?(): void }[] = [loaded];
  const dispose = () => {
    for (const part of held) part.dispose?.();
  };
  try {
    const { model, codec, objective, report } = loaded;
    if (!codec)
      throw new ConfigError(
        `train: ${file.name} holds no codec, and none is named: what makes its latents? Give the folder of its autoencoder (--codec).`,
      );
    if (codec === options.codec) held.push(codec);
    if (!objective)
      throw new ConfigError(
        `train: ${file.name} holds no objective: training needs one; a model that espalier train or grow wrote has it`,
      );
    const assets = assetsOf(places.cache);
    const captions = await openCaptions(engine, loaded, assets, places.t5);
    held.push(captions.encoder);
    const isElsewhere = namedIn(captions.said) !== undefined;
    const vectors = captions.encoder instanceof VocabularyEncoder ? captions.encoder.table() : undefined;
    const branch = await languageOf(engine, model, assets, places.llm);
    if (branch) held.push(branch.encoder);
    // What is written from here on says where it lies here.
    if (branch && places.llm !== undefined) model.language = { ...model.language!, encoder: { ...branch.said } };
    return {
      model,
      codec,
      objective,
      text: isElsewhere ? new MemoEncoder(captions.encoder) : captions.encoder,
      ...(branch && {
        language: new MemoEncoder(branch.encoder),
        promptForm: branch.said.form,
        recaptioner: new RuleRecaptioner(),
      }),
      about: { text: captions.said, vectors },
      ...(report && { report }),
      dispose,
    };
  } catch (error) {
    dispose();
    if (!held.includes(options.codec!)) options.codec?.dispose();
    throw error;
  }
}

/** @throws ConfigError when the data's clips are not of the size that the model was trained on */
function checkSize(config: Config, { model, codec }: Setup): void {
  const { frames, size } = config.data;
  const [, , T, h, w] = codec.latentShape([1, 3, frames, size, size]);
  const { frames: own, latent } = model.config;
  if (T !== own || h !== latent[0] || w !== latent[1])
    throw new ConfigError(
      `train: clips of ${frames} frames of ${size} x ${size} have latents of ${T} x ${h} x ${w}: ${config.model.from} was trained on ${own} x ${latent.join(" x ")}; change data.frames and data.size`,
    );
}

/** What a configuration adds of a language branch, as `openModel` takes it. */
async function branchOf(engine: Engine, { language, run }: Config): Promise<OpenModelOptions["language"]> {
  if (language.encoder === "none") return undefined;
  const { encoder: name, tokens, template, layer, form, gate, duplicate, embedInit } = language;
  const spec = { encoder: name, maxLength: tokens, template, layer };
  // The model's file names it, and from there it is opened: one way for new, saved and resumed models.
  const { dim, maxLength, said } = await identifyBranch(engine, spec, form, encoderAssets);
  const key = Key.from(run.seed).fold(2);
  return { channels: dim, maxLength, gate, duplicate, captionInit: embedInit, key, encoder: { ...said } };
}

/** `model.from` as the configuration wants it: grown, with a language branch, with adapters. */
export async function continuedSetup(engine: Engine, config: Config): Promise<Setup> {
  const { data, grow, lora, run } = config;
  const options = {
    ...(grow.mode !== "none" && { grow: { mode: grow.mode, blocks: grow.blocks! } }),
    language: await branchOf(engine, config),
    clips: data,
    key: Key.from(run.seed).fold(4),
  };
  const setup = await openSetup(engine, config.model.from!, options, placesOf(config));
  try {
    checkSize(config, setup);
    const { sampler = samplersOf(setup.objective)[0], eta, cfgChannels } = config.sample;
    // Sampling comes last, and what cannot be must not wait for it.
    checkSampler(sampler, setup.objective, eta);
    if (cfgChannels !== "all" && cfgChannels > setup.codec.channels)
      throw new ConfigError(
        `train: sample.cfgChannels too many: ${cfgChannels} of ${setup.codec.channels} latent channels; give "all" or up to ${setup.codec.channels}.`,
      );
    if (lora.pattern !== undefined)
      addLora(setup.model, {
        pattern: lora.pattern.split(",").map((part) => part.trim()),
        rank: lora.rank,
        alpha: lora.alpha,
        key: Key.from(run.seed).fold(3),
      });
    chooseTrained(setup.model, config);
    return setup;
  } catch (error) {
    setup.dispose();
    throw error;
  }
}

/** Freezes what the configuration leaves out of training. Of a model with adapters, they alone learn. */
export function chooseTrained(model: STDiT, config: Config): void {
  if (adaptedOf(model).length === 0) setTrained(model, config.train.scope);
}
