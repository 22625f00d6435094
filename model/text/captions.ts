import { ConfigError, type Engine } from "../../engine/index.js";
import type { LoadedModel } from "../checkpoint.js";
import type { STDiT } from "../stdit.js";
import type { Identity } from "./encoder.js";
import { encoderOf } from "./open.js";
import { type EncoderAssets, type EncoderSpec, namedIn, type OpenEncoder, openNamed } from "./spec.js";

/** An encoder of captions, opened. */
export interface OpenCaptions {
  encoder: OpenEncoder;
  /** As the model's file is to say it, under "text". */
  said: Readonly<Record<string, unknown>> | undefined;
}

/** What a model's file is to say of an encoder that lies elsewhere. */
export function captionsSaid(spec: EncoderSpec, { fingerprint }: Pick<Identity, "fingerprint">) {
  // Fingerprints begin with the family.
  return { type: fingerprint?.split(" ")[0] ?? "unknown", ...spec, fingerprint };
}

/** @throws ConfigError when an encoder's vectors are not what a model of this configuration reads */
export function checkCaptions(
  { dim, maxLength }: Pick<Identity, "dim" | "maxLength">,
  { captionChannels, maxLength: most }: STDiT["config"],
  where: string,
): void {
  if (dim !== captionChannels)
    throw new ConfigError(
      `text: the model's captions are ${captionChannels} wide: those of ${where} are ${dim}; give the encoder that the model was trained with.`,
    );
  if (maxLength > most)
    throw new ConfigError(
      `text: the model's captions have at most ${most} vectors: ${where} makes ${maxLength}; let it make ${most}.`,
    );
}

/**
 * The encoder of a model's captions: the one that its file holds or names, or one that is named here.
 * @param where takes the place of what the file says, such as the folder of a T5; for files that say nothing of it also
 *   with how it reads
 * @throws ConfigError when neither says which, when the model was trained with word vectors and something else is named,
 *   or when what is found gives other vectors
 */
export async function captionEncoderOf(
  engine: Engine,
  loaded: Pick<LoadedModel, "text"> & { model: Pick<STDiT, "config"> },
  assets: EncoderAssets,
  where?: string | EncoderSpec,
): Promise<OpenEncoder> {
  return (await openCaptions(engine, loaded, assets, where)).encoder;
}

/** As `captionEncoderOf`, with what the model's file is to say of it. */
export async function openCaptions(
  engine: Engine,
  loaded: Pick<LoadedModel, "text"> & { model: Pick<STDiT, "config"> },
  assets: EncoderAssets,
  given?: string | EncoderSpec,
): Promise<OpenCaptions> {
  const { encoder: where, ...reading } = typeof given === "string" ? { encoder: given } : (given ?? {});
  const { info, encoder: own } = loaded.text;
  const { maxLength } = loaded.model.config;
  if (where === undefined && info === undefined && !own)
    throw new ConfigError(
      "text: the file does not say which encoder reads the model's captions; name it (--t5, or the encoder of captionEncoderOf), such as a T5's folder as Hugging Face lays it out.",
    );
  const words = own !== undefined || info?.type === "words";
  if (words && where !== undefined && where !== "words")
    throw new ConfigError(
      `text: the model was trained with word vectors: ${where} was given; leave it out (--t5 is for models that read a T5).`,
    );
  const named = namedIn(info);
  if (words || (where === undefined && !named)) return { encoder: await encoderOf(loaded, assets.words), said: info };
  const fingerprint = info?.fingerprint;
  const spec: EncoderSpec = {
    ...named,
    ...(Object.fromEntries(Object.entries(reading).filter(([, value]) => value !== undefined)) as typeof reading),
    encoder: where ?? named!.encoder,
    maxLength: named?.maxLength ?? maxLength,
  };
  const encoder = await openNamed(engine, spec, assets, "--t5", where === undefined);
  const found = (encoder as { fingerprint?: string }).fingerprint;
  try {
    checkCaptions(encoder, loaded.model.config, spec.encoder);
    if (fingerprint !== undefined && fingerprint !== found)
      throw new ConfigError(
        `text: the model was trained with ${fingerprint}: ${spec.encoder} is ${found ?? "another"}; give the encoder that the model was trained with.`,
      );
  } catch (error) {
    encoder.dispose?.();
    throw error;
  }
  return { encoder, said: captionsSaid(spec, { fingerprint: found }) };
}
