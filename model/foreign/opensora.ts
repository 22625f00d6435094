import { ConfigError, checkOptions, type DType, type Engine } from "../../engine/index.js";
import type { STDiTConfig } from "../config.js";
import type { ByteSink } from "../files/source.js";
import {
  decodeFloat32,
  encodeFloat32,
  type Safetensors,
  type SafetensorsEntry,
  type SafetensorsLocation,
  type WriteOptions,
  type Written,
  writeSafetensors,
} from "../safetensors.js";
import { type LoadOptions, StateError, saveTensors } from "../state.js";
import { STDiT } from "../stdit.js";
import { deduceConfig, readArguments } from "./config.js";
import { openCheckpoint } from "./open.js";
import { grouped, type ImportReport, importReport } from "./report.js";

/** Options of `openOpenSora`. */
export interface OpenSoraOptions extends Pick<LoadOptions, "onProgress"> {
  /** Storage of the parameters; default "f32". */
  dtype?: DType;
  /** What tensors cannot tell (heads), or the grid (frames, latent) that the model is to be for instead of the file's. */
  config?: Partial<STDiTConfig>;
  /** The object of a config.json, where none lies beside the file. */
  json?: Readonly<Record<string, unknown>>;
  /** Refuse names that the model lacks, and parameters that the file lacks. Default true; else the latter are drawn. */
  strict?: boolean;
}

/** A model with what was taken from where. */
export interface Imported {
  model: STDiT;
  report: ImportReport;
}

/** Tables of positions, which the configuration determines. */
const TABLES = ["pos_embed", "pos_embed_temporal"];
/** The one tensor whose name ends so tells what training scripts put before all names. */
export const LANDMARK = "x_embedder.proj.weight";

/** The file without what precedes all of its names, such as "module.". */
export function withoutPrefix(file: Safetensors): { file: Safetensors; prefix: string } {
  const found = [...file.tensors.keys()].filter((name) => name.endsWith(LANDMARK));
  if (found.length !== 1 || found[0] === LANDMARK) return { file, prefix: "" };
  const prefix = found[0].slice(0, -LANDMARK.length);
  const short = file.mapped(({ name }) => ({ name: name.startsWith(prefix) ? name.slice(prefix.length) : name }));
  return { file: short, prefix };
}

/**
 * Opens a STDiT of Open-Sora 1.0 (https://github.com/hpcaitech/Open-Sora) from safetensors under its own names: a file,
 * the index of its shards or their folder, of any float types. The configuration is read off the tensors; heads come
 * from `config`, from a config.json beside the file, or are the original's 16. Tensors go to the GPU chunk by chunk.
 * @throws SafetensorsError for a pickle, with the line that converts it; ConfigError for a file of another model or a
 *   contradiction; StateError for missing or unexpected names
 */
export async function openOpenSora(
  engine: Engine,
  location: SafetensorsLocation | Safetensors,
  options: OpenSoraOptions = {},
): Promise<Imported> {
  checkOptions("openOpenSora", options, ["dtype", "config", "json", "strict", "onProgress"]);
  const { dtype, config: wanted = {}, strict = true, onProgress } = options;
  const found = await openCheckpoint("openOpenSora", location);
  let model: STDiT | undefined;
  try {
    const { file, prefix } = withoutPrefix(found.file);
    const json = options.json ?? found.json;
    const said = json ? readArguments(json, options.json ? "json" : "config.json") : { given: {}, notes: [] };
    const { config, notes } = await deduceConfig(file, { ...said.given, ...wanted });
    const missing: string[] = [];
    // Built on what the file has; what it lacks must not be left undefined.
    const isWhole = [...file.tensors.keys()].includes("y_embedder.y_embedding");
    model = new STDiT(engine, config, { dtype, key: strict && isWhole ? undefined : engine.key() });
    const own = model.stateDict();
    const fits = file.mapped((info) => {
      const grid = TABLES.includes(info.name) && `${info.shape}` !== `${own[info.name].shape}`;
      return grid || !(info.name in own) ? undefined : { name: info.name };
    });
    const ignored = [...file.tensors.keys()].filter((name) => !fits.has(name));
    const unexpected = ignored.filter((name) => !TABLES.includes(name));
    missing.push(...Object.keys(own).filter((name) => !fits.has(name)));
    const lacking = missing.filter((name) => !TABLES.includes(name));
    if (strict && (lacking.length || unexpected.length))
      throw new StateError(
        `openOpenSora: ${file.name} does not fit STDiT of Open-Sora 1.0:${lacking.length ? `\n  missing: ${grouped(lacking)}` : ""}${unexpected.length ? `\n  unexpected: ${grouped(unexpected)}` : ""}\n  strict: false ignores what is unexpected and draws what is missing.`,
        lacking,
        unexpected,
        [],
      );
    await model.loadStateDict(fits, { strict: false, onProgress });
    if (lacking.length) notes.push(`drawn anew: ${grouped(lacking)}`);
    const tables = missing.filter((name) => TABLES.includes(name));
    if (tables.length)
      notes.push(`computed for the grid of ${config.frames} x ${config.latent.join(" x ")}: ${grouped(tables)}`);
    if (prefix) notes.push(`names begin with "${prefix}" in the file`);
    const rest = { missing, ignored, notes: [...said.notes, ...notes] };
    return { model, report: importReport(file.name, [...fits.tensors.values()], rest) };
  } catch (error) {
    model?.dispose();
    throw error;
  } finally {
    if (found.file !== location) await found.file.close();
  }
}

/** Options of `saveOpenSora`. */
export interface SaveOpenSoraOptions extends WriteOptions {
  /** Type of the floats in the file; default that of each in `like`, else "F32". */
  dtype?: "F32" | "F16" | "BF16";
  /** An open file whose order and types are kept: one that was opened and not trained is written bit for bit. */
  like?: Safetensors;
}

/** An entry's f32 or f16 pieces as another float type. */
async function* encoded(entry: SafetensorsEntry, dtype: "F32" | "F16" | "BF16"): AsyncGenerator<Uint8Array> {
  const { data } = entry;
  for await (const piece of data instanceof Uint8Array ? [data] : data)
    yield encodeFloat32(decodeFloat32(piece, entry.dtype), dtype);
}

/**
 * Writes a model as Open-Sora 1.0 names its tensors, buffers included, atomically: its scripts load the file, as does
 * `openOpenSora`. Several files with an index where `maxShardBytes` asks for it.
 * @throws ConfigError for models that Open-Sora 1.0 does not know: grown ones whose first block does not own the frames'
 *   positions, or with a language branch
 */
export function saveOpenSora(
  target: string | ByteSink,
  model: STDiT,
  options: SaveOpenSoraOptions = {},
): Promise<Written> {
  const { dtype, like, ...rest } = options;
  checkOptions("saveOpenSora", rest, ["maxShardBytes"]);
  const { languageChannels, temporalOwner } = model.config;
  if (languageChannels)
    throw new ConfigError("saveOpenSora: Open-Sora 1.0 has no language branch: the model has one; use saveModel.");
  if (temporalOwner !== 0)
    throw new ConfigError(
      `saveOpenSora: Open-Sora 1.0 adds positions of frames in its first block: this model does in block ${temporalOwner}; use saveModel.`,
    );
  const own = saveTensors(model.engine, model.stateDict());
  const order = like && [...like.tensors.keys()];
  if (order) own.sort((a, b) => order.indexOf(a.name) - order.indexOf(b.name));
  const entries = own.map((entry) => {
    const to = dtype ?? (like?.has(entry.name) ? like.info(entry.name).dtype : "F32");
    if (entry.dtype !== "F32" && entry.dtype !== "F16")
      throw new ConfigError(`saveOpenSora: "${entry.name}" is ${entry.dtype}; quantised models are for saveQuantized.`);
    if (to !== "F32" && to !== "F16" && to !== "BF16")
      throw new ConfigError(`saveOpenSora: "${entry.name}" is ${to} in ${like!.name}; give dtype.`);
    return to === entry.dtype ? entry : { ...entry, dtype: to, data: encoded(entry, to) };
  });
  return writeSafetensors(target, entries, { format: "pt" }, rest);
}
