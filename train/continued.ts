import { ConfigError, type Engine } from "../engine/index.js";
import { openModel } from "../model/checkpoint.js";
import { grow, setTrained } from "../model/growth.js";
import type { Safetensors } from "../model/safetensors.js";
import type { STDiT } from "../model/stdit.js";
import { encoderOf } from "../model/text/open.js";
import { VocabularyEncoder } from "../model/text/vocabulary.js";
import type { Config } from "./config.js";
import { wordTable } from "./data/assets.js";
import type { Setup } from "./setup.js";

/**
 * Opens a model file as something that can be trained: with its codec, its objective and its encoders.
 * @throws ConfigError when one of them is not in the file or not here
 */
export async function openSetup(engine: Engine, location: string | Safetensors): Promise<Setup> {
  const loaded = await openModel(engine, location);
  try {
    const { model, codec, objective, dispose } = loaded;
    if (!codec || !objective)
      throw new ConfigError(
        `train: ${typeof location === "string" ? location : location.name} holds no ${codec ? "objective" : "codec"}: training needs both; a model that espalier train wrote has them`,
      );
    const text = await encoderOf(loaded, wordTable);
    const vectors = text instanceof VocabularyEncoder ? text.table() : undefined;
    return { model, codec, objective, text, about: { text: loaded.text.info, vectors }, dispose };
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

/** `model.from` as the configuration wants it: grown, with a language branch, with adapters. */
export async function continuedSetup(engine: Engine, config: Config): Promise<Setup> {
  const { grow: growth } = config;
  const setup = await openSetup(engine, config.model.from!);
  const replace = (next: STDiT) => {
    setup.model.dispose();
    setup.model = next;
  };
  const dispose = () => {
    setup.model.dispose();
    setup.codec.dispose();
  };
  try {
    checkSize(config, setup);
    if (growth.mode !== "none") replace(await grow(setup.model, { mode: growth.mode, blocks: growth.blocks! }));
    chooseTrained(setup.model, config);
    return { ...setup, dispose };
  } catch (error) {
    dispose();
    throw error;
  }
}

/** Freezes what the configuration leaves out of training. */
export function chooseTrained(model: STDiT, config: Config): void {
  if (config.lora.pattern === undefined) setTrained(model, config.train.scope);
}
