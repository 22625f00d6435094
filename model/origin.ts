import { ConfigError, type DType, type Engine } from "../engine/index.js";
import type { STDiTConfig } from "./config.js";
import type { GrowthRecord } from "./growth.js";
import type { LanguageRecord } from "./language.js";
import { adaptedOf, attachLora, type LoraConfig } from "./lora.js";
import type { LoadOptions, StateSource } from "./state.js";
import { STDiT } from "./stdit.js";

/**
 * A model that is not built yet: its configuration, where its numbers are to come from, and how it was made. Growing
 * and adding a branch turn one into another without GPU memory; only the last one is built.
 */
export interface Origin {
  readonly config: STDiTConfig;
  readonly source: StateSource;
  readonly growth?: GrowthRecord;
  readonly language?: LanguageRecord;
  /** Adapters that the source holds beside the model's own parameters. */
  readonly lora?: LoraConfig;
}

/** @throws ConfigError when layers that are to change have adapters, which belong to them as they are */
export function needPlain(subject: string, hasAdapters: boolean): void {
  if (hasAdapters)
    throw new ConfigError(
      `${subject}: the model has adapters (LoRA), which cannot follow layers that change; call mergeLora and removeLora with keepMerged first, or removeLora alone to drop them.`,
    );
}

/** A model as the origin of another. It must live until the other is built. @throws ConfigError when it has adapters */
export function originOf(model: STDiT): Origin {
  const { config, growth, language } = model;
  needPlain(
    "stdit",
    adaptedOf(model).some(({ linear }) => !linear.loraBase),
  );
  return { config, source: model.stateDict(), growth, language };
}

/**
 * Builds a model: the only copy on the GPU beside what its source has there.
 * @throws StateError where the source does not fit the configuration
 */
export async function buildModel(
  engine: Engine,
  origin: Origin,
  options: Pick<LoadOptions, "ignore" | "onProgress"> & { dtype?: DType } = {},
): Promise<STDiT> {
  const { dtype, ...load } = options;
  const model = new STDiT(engine, origin.config, { dtype });
  try {
    if (origin.lora) attachLora(model, origin.lora);
    await model.loadStateDict(origin.source, load);
  } catch (error) {
    model.dispose();
    throw error;
  }
  model.growth = origin.growth;
  model.language = origin.language;
  return model;
}
