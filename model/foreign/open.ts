import { siblingOf } from "#files";
import { DataError } from "../../engine/index.js";
import { folderOf, jsonObject } from "../files/folder.js";
import { FileError } from "../files/source.js";
import { isPickle } from "../safetensors/pickle.js";
import { toSource } from "../safetensors/reader.js";
import { openSafetensors, Safetensors, type SafetensorsLocation } from "../safetensors.js";

/** An open checkpoint, and the object of the config.json beside it if there is one. */
export interface OpenCheckpoint {
  file: Safetensors;
  json: Readonly<Record<string, unknown>> | undefined;
}

/** Names that a folder's weights go by. */
const WEIGHTS = ["model.safetensors", "model.safetensors.index.json", "diffusion_pytorch_model.safetensors"];

/** The object of the config.json beside a location, undefined where there is none. */
export async function jsonBeside(location: string): Promise<OpenCheckpoint["json"]> {
  const at = siblingOf(location, "config.json");
  try {
    const source = await toSource(at);
    try {
      return jsonObject(new TextDecoder().decode(await source.read(0, source.size)), at);
    } finally {
      await source.close();
    }
  } catch (error) {
    if (error instanceof FileError && error.code === "ENOENT") return undefined;
    throw error;
  }
}

/**
 * Opens a checkpoint that others made: a safetensors file, the index of its shards, or a folder that holds either. An
 * open file is taken as it is, and stays open.
 * @throws SafetensorsError for a pickle, with the line that converts it; DataError for a folder without weights
 */
export async function openCheckpoint(
  subject: string,
  location: SafetensorsLocation | Safetensors,
): Promise<OpenCheckpoint> {
  if (location instanceof Safetensors) return { file: location, json: undefined };
  if (typeof location !== "string" && !(location instanceof URL))
    return { file: await openSafetensors(location), json: undefined };
  const path = String(location);
  if (/\.(safetensors|json)([?#].*)?$/i.test(path) || isPickle(path)) {
    const file = await openSafetensors(path);
    try {
      return { file, json: await jsonBeside(path) };
    } catch (error) {
      await file.close();
      throw error;
    }
  }
  const folder = folderOf(path);
  for (const name of WEIGHTS) {
    const found = await folder.open(name);
    if (!found) continue;
    await found.close();
    return openCheckpoint(subject, String(folder.locate(name)));
  }
  throw new DataError(
    `${subject}: no weights: none of ${WEIGHTS.join(", ")} in ${path}; give a safetensors file, the index of its shards, or their folder`,
  );
}
