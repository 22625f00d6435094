import { ConfigError, type Engine, Key } from "../engine/index.js";
import { type OpenModelOptions, openModel } from "../model/checkpoint.js";
import { setTrained } from "../model/growth.js";
import { adaptedOf, addLora } from "../model/lora.js";
import type { Safetensors } from "../model/safetensors.js";
import type { STDiT } from "../model/stdit.js";
import { languageOf, openBranch } from "../model/text/branch.js";
import { MemoEncoder } from "../model/text/memo.js";
import { encoderOf } from "../model/text/open.js";
import { RuleRecaptioner } from "../model/text/recaption.js";
import { VocabularyEncoder } from "../model/text/vocabulary.js";
import { assetsOf } from "./cache/encoder.js";
import type { Config } from "./config.js";
import { wordTable } from "./data/assets.js";
import type { Setup } from "./setup.js";

/**
 * Opens a model file as something that can be trained: with its codec, its objective and its encoders.
 * @param options what is to become of the model while it is read
 * @param cache the folder that keeps what its language model makes of captions
 * @throws ConfigError when one of them is not in the file or not here
 */
export async function openSetup(
  engine: Engine,
  location: string | Safetensors,
  options: Pick<OpenModelOptions, "grow" | "language"> = {},
  cache?: string,
): Promise<Setup> {
  const loaded = await openModel(engine, location, options);
  try {
    const { model, codec, objective } = loaded;
    if (!codec || !objective)
      throw new ConfigError(
        `train: ${typeof location === "string" ? location : location.name} holds no ${codec ? "objective" : "codec"}: training needs both; a model that espalier train wrote has them`,
      );
    const text = await encoderOf(loaded, wordTable);
    const vectors = text instanceof VocabularyEncoder ? text.table() : undefined;
    const branch = await languageOf(engine, model, assetsOf(cache));
    return {
      model,
      codec,
      objective,
      text,
      ...(branch && {
        language: new MemoEncoder(branch.encoder),
        promptForm: branch.said.form,
        recaptioner: new RuleRecaptioner(),
      }),
      about: { text: loaded.text.info, vectors },
      dispose: () => {
        loaded.dispose();
        branch?.encoder.dispose?.();
      },
    };
  } catch (error) {
    loaded.dispose();
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
async function branchOf(engine: Engine, { data, language, run }: Config): Promise<OpenModelOptions["language"]> {
  if (language.encoder === "none") return undefined;
  const { encoder: name, tokens, template, layer, form, gate, duplicate, embedInit } = language;
  const spec = { encoder: name, maxLength: tokens, template, layer };
  const { encoder, said } = await openBranch(engine, spec, form, assetsOf(data.cache));
  const { dim, maxLength } = encoder;
  // The model's file names it, and from there it is opened again: one way for new, saved and resumed models.
  encoder.dispose?.();
  const key = Key.from(run.seed).fold(2);
  return { channels: dim, maxLength, gate, duplicate, captionInit: embedInit, key, encoder: { ...said } };
}

/** `model.from` as the configuration wants it: grown, with a language branch, with adapters. */
export async function continuedSetup(engine: Engine, config: Config): Promise<Setup> {
  const { data, grow, lora, run } = config;
  const options = {
    ...(grow.mode !== "none" && { grow: { mode: grow.mode, blocks: grow.blocks! } }),
    language: await branchOf(engine, config),
  };
  const setup = await openSetup(engine, config.model.from!, options, data.cache);
  try {
    checkSize(config, setup);
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
