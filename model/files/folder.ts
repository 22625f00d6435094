import { siblingOf } from "#files";
import { DataError } from "../../engine/errors.js";
import { type SafetensorsLocation, toSource } from "../safetensors/reader.js";
import { type ByteSource, FileError } from "./source.js";

/** Several files that belong together: a folder's path or address, or where each is, by name. */
export type FolderLocation = string | URL | Readonly<Record<string, SafetensorsLocation>>;

/** Files found by name. Nothing is opened before it is asked for. */
export interface Folder {
  /** What to call it in an error. */
  readonly name: string;
  /** Where a file of that name is, or would be; undefined when a list of files does not have it. */
  locate(file: string): SafetensorsLocation | undefined;
  /** Opens a file; undefined when there is none of that name. @throws FileError for one that cannot be read */
  open(file: string): Promise<ByteSource | undefined>;
  /** A file's bytes, undefined when there is none. */
  bytes(file: string): Promise<Uint8Array | undefined>;
  /** The object in a JSON file, undefined when there is none. @throws DataError when it holds something else */
  json(file: string): Promise<Record<string, unknown> | undefined>;
}

/** The object that a JSON text holds. @throws DataError naming `file` when it is no JSON, or no object */
export function jsonObject(text: string, file: string): Record<string, unknown> {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (cause) {
    throw new DataError(`json: ${file} is not JSON: ${(cause as Error).message}; fetch the file again`, { cause });
  }
  if (typeof value !== "object" || value === null || Array.isArray(value))
    throw new DataError(`json: ${file} must hold an object: it begins ${text.trim().slice(0, 20)}`);
  return value as Record<string, unknown>;
}

/** Makes files findable by name. A list of files may hold paths, addresses, Blobs and bytes. */
export function folderOf(location: FolderLocation): Folder {
  const isPath = typeof location === "string" || location instanceof URL;
  const list = isPath ? undefined : Object.keys(location);
  const name = isPath ? String(location) : `files ${list?.join(", ") || "(none)"}`;
  const locate = (file: string): SafetensorsLocation | undefined =>
    isPath ? siblingOf(`${String(location).replace(/\/+$/, "")}/${file}`, file) : location[file];
  const open = async (file: string) => {
    const at = locate(file);
    if (at === undefined) return undefined;
    try {
      return await toSource(at);
    } catch (error) {
      // A list says that the file is there; a folder is only searched.
      if (isPath && error instanceof FileError && (error.code === "ENOENT" || error.code === "ENOTDIR"))
        return undefined;
      throw error;
    }
  };
  const bytes = async (file: string) => {
    const source = await open(file);
    if (source === undefined) return undefined;
    try {
      return await source.read(0, source.size);
    } finally {
      await source.close();
    }
  };
  const json = async (file: string) => {
    const data = await bytes(file);
    return data && jsonObject(new TextDecoder().decode(data), isPath ? String(locate(file)) : file);
  };
  return { name, locate, open, bytes, json };
}
