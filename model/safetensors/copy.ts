import type { Safetensors } from "./reader.js";
import type { SafetensorsEntry } from "./writer.js";

/** Bytes that are read ahead of the writer. */
const CHUNK = 4 << 20;

async function* pieces(file: Safetensors, name: string): AsyncGenerator<Uint8Array> {
  for await (const { data } of file.readInto(name, CHUNK)) yield data;
}

/**
 * Entries for `writeSafetensors` that pass an open file's tensors on as they are: name, type, shape and every bit, some
 * MiB at a time. The file must stay open until they are written.
 * @param names default: all
 */
export function copyEntries(file: Safetensors, names: Iterable<string> = file.tensors.keys()): SafetensorsEntry[] {
  return Array.from(names, (name) => {
    const { dtype, shape } = file.info(name);
    return { name, dtype, shape, data: pieces(file, name) };
  });
}
