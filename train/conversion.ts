import { ConfigError, type Engine } from "../engine/index.js";
import type { STDiTConfig } from "../model/config.js";
import { foreignKind } from "../model/foreign/origin.js";
import type { Safetensors } from "../model/safetensors.js";
import { captionsSaid, checkCaptions } from "../model/text/captions.js";
import { type EncoderSpec, findEncoder, namedIn } from "../model/text/spec.js";
import type { ExternalVae } from "../model/vae/external.js";
import type { Arguments } from "./arguments.js";
import { encoderAssets } from "./data/assets.js";

/** The T5 that `grow` is to name. @throws ConfigError for a value that cannot be, or without a use */
export function t5Of(values: Arguments["values"]): EncoderSpec | undefined {
  const { t5, "t5-bits": bits, "t5-weights": dtype } = values;
  if (bits !== undefined && bits !== 8 && bits !== 4)
    throw new ConfigError(`grow: --t5-bits takes 8 or 4: got "${bits}"`);
  if (dtype !== undefined && dtype !== "f32" && dtype !== "f16")
    throw new ConfigError(`grow: --t5-weights takes f32 or f16: got "${dtype}"`);
  if (t5 !== undefined) return { encoder: t5 as string, ...(bits && { bits }), ...(dtype && { dtype }) };
  for (const name of ["t5-bits", "t5-weights"])
    if (values[name] !== undefined) throw new ConfigError(`grow: --${name} has no use without --t5; leave it out`);
  return undefined;
}

/**
 * What a base that others made is to be for. A PixArt says nothing of clips: 16 frames of 256 x 256 where nothing is given.
 * @throws ConfigError for a size without the autoencoder that decides its latents
 */
export function gridOf(
  values: Arguments["values"],
  file: Safetensors,
  codec: ExternalVae | undefined,
): Partial<STDiTConfig> {
  const { frames, size, heads } = values as Record<string, number | undefined>;
  for (const [name, value] of Object.entries({ frames, size, heads }))
    if (value === 0) throw new ConfigError(`grow: --${name} must be at least 1: got 0`);
  const isImage = foreignKind(file) === "PixArt";
  const side = size ?? (isImage && codec ? 256 : undefined);
  if (side !== undefined && !codec)
    throw new ConfigError("grow: --size needs the autoencoder, which decides the latents of that size: give --codec");
  const [, , , rows, columns] = side === undefined ? [] : codec!.latentShape([1, 3, 1, side, side]);
  return {
    ...(frames !== undefined && { frames }),
    ...(side !== undefined && { latent: [rows!, columns!] as const }),
    ...(heads !== undefined && { heads }),
  };
}

/**
 * What the new file is to say of the encoder of captions that is named.
 * @throws ConfigError when its vectors do not fit the model, or are others than it was trained with
 */
export async function captionsOf(
  engine: Engine,
  given: EncoderSpec,
  config: STDiTConfig,
  said: Readonly<Record<string, unknown>> | undefined,
): Promise<Readonly<Record<string, unknown>>> {
  const named = namedIn(said);
  if (said && !named)
    throw new ConfigError(
      `grow: --t5 has no use: the base was trained with an encoder of type ${JSON.stringify(said.type)}; leave it out`,
    );
  const spec = { ...named, ...given, maxLength: named?.maxLength ?? config.maxLength };
  const found = await (await findEncoder(spec, encoderAssets)).identify(engine);
  checkCaptions(found, config, spec.encoder);
  if (said?.fingerprint !== undefined && said.fingerprint !== found.fingerprint)
    throw new ConfigError(
      `grow: --t5 is another: the base was trained with ${said.fingerprint}, ${spec.encoder} is ${found.fingerprint}; give the one that it was trained with`,
    );
  return captionsSaid(spec, found);
}
