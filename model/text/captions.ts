import { ConfigError, type Engine } from "../../engine/index.js";
import type { LoadedModel } from "../checkpoint.js";
import type { STDiT } from "../stdit.js";
import { encoderOf } from "./open.js";
import { type EncoderAssets, type EncoderSpec, type OpenEncoder, openEncoder } from "./spec.js";

/**
 * The encoder of a model's captions: the one that its file holds or names, or one that is named here.
 * @param where takes the place of what the file says, such as the folder of a T5; for files that say nothing of it
 * @throws ConfigError when neither says which, when the model was trained with word vectors and something else is named,
 *   or when what is found gives other vectors
 */
export async function captionEncoderOf(
  engine: Engine,
  loaded: Pick<LoadedModel, "text"> & { model: Pick<STDiT, "config"> },
  assets: EncoderAssets,
  where?: string,
): Promise<OpenEncoder> {
  const { info, encoder: own } = loaded.text;
  const { captionChannels, maxLength } = loaded.model.config;
  if (where === undefined && info === undefined && !own)
    throw new ConfigError(
      "text: the file does not say which encoder reads the model's captions; name it (--t5, or the encoder of captionEncoderOf), such as a T5's folder as Hugging Face lays it out.",
    );
  const words = own !== undefined || info?.type === "words";
  if (words && where !== undefined && where !== "words")
    throw new ConfigError(
      `text: the model was trained with word vectors: ${where} was given; leave it out (--t5 is for models that read a T5).`,
    );
  if (words || (where === undefined && typeof info?.encoder !== "string")) return encoderOf(loaded, assets.words);
  const { type: _, fingerprint, ...said } = (info ?? {}) as Partial<EncoderSpec> & Record<string, unknown>;
  const spec = {
    ...said,
    encoder: where ?? said.encoder!,
    maxLength: said.maxLength ?? maxLength,
  } satisfies EncoderSpec;
  const encoder = await openEncoder(engine, spec, assets);
  const found = (encoder as { fingerprint?: string }).fingerprint;
  const refuse = (rule: string): never => {
    encoder.dispose?.();
    throw new ConfigError(`text: ${rule}; give the encoder that the model was trained with.`);
  };
  if (encoder.dim !== captionChannels)
    refuse(`the model's captions are ${captionChannels} wide: those of ${spec.encoder} are ${encoder.dim}`);
  if (fingerprint !== undefined && fingerprint !== found)
    refuse(`the model was trained with ${fingerprint}: ${spec.encoder} is ${found ?? "another"}`);
  return encoder;
}
