import { openFile, siblingOf } from "#files";
import { ConfigError, checkOptions, type DType, type Engine } from "../../engine/index.js";
import type { Codec } from "../codec.js";
import type { ByteSink } from "../files/source.js";
import { FileError } from "../files/source.js";
import { isPickle, refusePickle } from "../pickle.js";
import {
  decodeFloat32,
  encodeFloat32,
  openSafetensors,
  type Safetensors,
  type SafetensorsLocation,
  type Written,
  writeSafetensors,
} from "../safetensors.js";
import type { LoadOptions } from "../state.js";
import { VAECodec, type VaeCodecOptions } from "./codec.js";
import { encodeVaeConfig, type VaeConfig, vaeConfig, vaeConfigOf } from "./config.js";
import { AutoencoderKL, newName } from "./vae.js";

/** Options of `openVae`. */
export interface OpenVaeOptions extends Omit<VaeCodecOptions, "fingerprint">, Pick<LoadOptions, "onProgress"> {
  /** Storage of the weights; default "f32". */
  dtype?: DType;
  /** Instead of a config.json: sizes by their names here, or the object of a config.json. */
  config?: Partial<VaeConfig> | Record<string, unknown>;
}

const WEIGHTS = [
  "diffusion_pytorch_model.safetensors",
  "diffusion_pytorch_model.safetensors.index.json",
  "diffusion_pytorch_model.fp16.safetensors",
  "model.safetensors",
];
const PICKLES = ["diffusion_pytorch_model.bin", "diffusion_pytorch_model.fp16.bin"];

const isMissing = (error: unknown) =>
  error instanceof FileError && ["ENOENT", "ENOTDIR", "EISDIR"].includes(error.code ?? "");

/** The text of a file, or undefined where there is none. */
async function textOf(location: string): Promise<string | undefined> {
  try {
    const source = await openFile(location);
    try {
      return new TextDecoder().decode(await source.read(0, source.size));
    } finally {
      await source.close();
    }
  } catch (error) {
    if (isMissing(error)) return undefined;
    throw error;
  }
}

const within = (folder: string, file: string) => `${folder.replace(/\/+$/, "")}/${file}`;

/** A file that is open, and the text of its configuration. */
interface Found {
  file: Safetensors;
  config: string | undefined;
}

/** The weights of a diffusers folder and its config.json. */
async function openFolder(folder: string): Promise<Found> {
  const config = await textOf(within(folder, "config.json"));
  for (const name of WEIGHTS)
    try {
      return { file: await openSafetensors(within(folder, name)), config };
    } catch (error) {
      if (!isMissing(error)) throw error;
    }
  for (const name of PICKLES) if (await exists(within(folder, name))) return refusePickle("vae", within(folder, name));
  throw new FileError(
    `vae: no weights: ${folder} holds none of ${WEIGHTS.join(", ")}; give a folder of a diffusers AutoencoderKL, or its safetensors file`,
    "ENOENT",
  );
}

async function exists(location: string): Promise<boolean> {
  try {
    await (await openFile(location)).close();
    return true;
  } catch (error) {
    if (isMissing(error)) return false;
    throw error;
  }
}

/** File and configuration of a location: a folder, a whole pipeline's folder, or a file with a config.json beside. */
async function find(location: SafetensorsLocation): Promise<Found> {
  const path = typeof location === "string" || location instanceof URL ? String(location) : undefined;
  if (path !== undefined && isPickle(path)) refusePickle("vae", path);
  if (path !== undefined && !/\.(safetensors|index\.json)$/i.test(path)) {
    const isPipeline = await exists(within(path, "model_index.json"));
    return openFolder(isPipeline ? within(path, "vae") : path);
  }
  const beside = path && (await textOf(siblingOf(path, "config.json")));
  const file = await openSafetensors(location);
  return { file, config: file.metadata.vae ?? beside };
}

/** FNV-1a over the text of a checkpoint's names, shapes and first numbers. */
function fnv1a(text: string, hash = 0x811c9dc5): number {
  let h = hash;
  for (let i = 0; i < text.length; i++) h = Math.imul(h ^ text.charCodeAt(i), 0x01000193);
  return h >>> 0;
}

/** Numbers of each tensor that a fingerprint takes in. */
const SAMPLED = 64;

/**
 * 8 hexadecimal digits that tell an autoencoder's weights apart: names, shapes and each tensor's first numbers, rounded
 * to halves, so that a file in f16 has the fingerprint of the one in f32 that it was made from.
 * @param prefix only tensors whose names begin with it, without it
 */
export async function vaeFingerprint(file: Safetensors, prefix = ""): Promise<string> {
  const names = [...file.tensors.keys()].filter((name) => name.startsWith(prefix));
  const pairs = names.map((name) => [newName(name.slice(prefix.length)), name] as const);
  let hash: number | undefined;
  for (const [own, name] of pairs.sort(([a], [b]) => (a < b ? -1 : 1))) {
    const { shape, dtype, begin, end } = file.info(name);
    const numbers = shape.reduce((a, b) => a * b, 1);
    const bytes = ((end - begin) / numbers) * Math.min(SAMPLED, numbers);
    for await (const { data } of file.readInto(name, bytes)) {
      const halves = encodeFloat32(decodeFloat32(data, dtype), "F16");
      hash = fnv1a(`${own} ${shape} ${halves.join()};`, hash);
      break;
    }
  }
  return (hash ?? 0).toString(16).padStart(8, "0");
}

/** Sizes as given, by their names here or by diffusers'. */
const configOf = (given: NonNullable<OpenVaeOptions["config"]>): VaeConfig =>
  "block_out_channels" in given || "_class_name" in given ? vaeConfigOf(given) : vaeConfig(given as Partial<VaeConfig>);

/** The configuration beside or in an open file, or the one given. @throws ConfigError where there is none */
function configFor({ file, config }: Found, given?: OpenVaeOptions["config"]): VaeConfig {
  if (given !== undefined) return configOf(given);
  if (config !== undefined) return vaeConfigOf(config);
  throw new ConfigError(
    `vae: no configuration: ${file.name} has no config.json beside it; put the one it came with there, or give the option config.`,
  );
}

/** What `openVae` would open: its sizes and its fingerprint, from headers and a few values of each tensor. */
export async function identifyVae(location: SafetensorsLocation): Promise<{ config: VaeConfig; fingerprint: string }> {
  const found = await find(location);
  try {
    return { config: configFor(found), fingerprint: await vaeFingerprint(found.file) };
  } finally {
    await found.file.close();
  }
}

/**
 * Opens an autoencoder as a codec: a folder as diffusers writes it (config.json and diffusion_pytorch_model.safetensors,
 * whole or in shards), the folder of a pipeline that holds one under `vae`, or a safetensors file with its config.json
 * beside or, as `saveVae` writes it, in its metadata. Tensors of any float type go to the GPU chunk by chunk.
 * @throws SafetensorsError for a pickle, with the line that converts it; ConfigError without a configuration or for one that cannot be;
 *   StateError for names or shapes that do not fit it; FileError where there is nothing
 */
export async function openVae(
  engine: Engine,
  location: SafetensorsLocation,
  options: OpenVaeOptions = {},
): Promise<VAECodec> {
  const { dtype, config: given, onProgress, ...rest } = options;
  checkOptions("openVae", rest, ["mode", "seed", "embed", "framesAtOnce", "tile", "overlap"]);
  const found = await find(location);
  const { file } = found;
  let vae: AutoencoderKL | undefined;
  try {
    vae = new AutoencoderKL(engine, configFor(found, given), { dtype });
    const report = await vae.loadStateDict(file, { onProgress });
    const codec = new VAECodec(vae, { ...rest, fingerprint: await vaeFingerprint(file) });
    codec.report = report;
    return codec;
  } catch (error) {
    vae?.dispose();
    throw error;
  } finally {
    await file.close();
  }
}

/**
 * Writes an autoencoder with its configuration in the metadata, atomically: `openVae` reads it without a config.json,
 * and diffusers with one.
 * @param metadata further strings for the metadata
 */
export function saveVae(
  target: string | ByteSink,
  vae: AutoencoderKL,
  metadata: Readonly<Record<string, string>> = {},
): Promise<Written> {
  if ("vae" in metadata) throw new ConfigError('saveVae: metadata "vae" is written already; take another name.');
  return writeSafetensors(target, vae.entries(), { ...metadata, vae: JSON.stringify(encodeVaeConfig(vae.config)) });
}

/**
 * The codec of a model file that says "vae": from the file itself where the weights are embedded, else the given one.
 * @returns undefined where the weights lie elsewhere and none is given
 * @throws ConfigError when another autoencoder is given than the model was trained with
 */
export async function openVaeCodec(
  engine: Engine,
  file: Safetensors,
  info: Readonly<Record<string, unknown>>,
  given?: Codec,
): Promise<Codec | undefined> {
  const { embedded, mode, seed, fingerprint } = info;
  if (!embedded) {
    // An autoencoder's codec, open or not.
    const its = (given as { fingerprint?: string } | undefined)?.fingerprint;
    if (given && its !== fingerprint)
      throw new ConfigError(
        `codec: ${file.name} was trained with an autoencoder whose fingerprint is ${fingerprint}: the one given ${its ? `has ${its}` : "is none"}; open that one with openVae.`,
      );
    return given;
  }
  if (given) throw new ConfigError(`codec: ${file.name} holds its own autoencoder; give none.`);
  const vae = new AutoencoderKL(engine, vaeConfigOf(info.config as Record<string, unknown>));
  try {
    const report = await vae.loadStateDict(file, { prefix: "codec." });
    const codec = new VAECodec(vae, {
      mode: mode as boolean,
      seed: seed as number,
      embed: true,
      fingerprint: fingerprint as string | undefined,
    });
    codec.report = report;
    return codec;
  } catch (error) {
    vae.dispose();
    throw error;
  }
}
