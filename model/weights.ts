import { DataError, SafetensorsError } from "../engine/index.js";
import type { Folder } from "./files/folder.js";
import { FileError } from "./files/source.js";
import { openSafetensors, type Safetensors } from "./safetensors.js";
import { fnv1a } from "./text/table.js";

const WHOLE = "model.safetensors";
const INDEX = "model.safetensors.index.json";
const PICKLES = ["pytorch_model.bin", "pytorch_model.bin.index.json"];

/**
 * Opens the weights of a folder as Hugging Face lays it out: model.safetensors, or shards behind its index. Only headers
 * are read.
 * @param subject begins the errors, such as "t5"
 * @param loader the class of Hugging Face's `transformers` that reads such a folder's pickles, for the line that
 *   converts them
 * @throws DataError for a folder without weights; SafetensorsError for one that has only pickles, or lacks a shard
 */
export async function openWeights(folder: Folder, subject: string, loader: string): Promise<Safetensors> {
  const whole = await folder.open(WHOLE);
  if (whole) return openSafetensors(whole);
  const index = await folder.open(INDEX);
  if (index) {
    const shard = (file: string) => {
      const at = folder.locate(file);
      if (at === undefined) throw new FileError(`open: no such file: ${file} is not among ${folder.name}`, "ENOENT");
      return at;
    };
    // A picked file may go by any name; by this one it is known to be an index.
    return openSafetensors({ ...index, name: `${folder.name}/${INDEX}` }, { shard });
  }
  for (const pickle of PICKLES) {
    const found = await folder.open(pickle);
    if (!found) continue;
    await found.close();
    throw new SafetensorsError(
      `${subject}: a pickle is a program, and none is run here: ${folder.name} has ${pickle} but no ${WHOLE}; convert it once, where you trust it:\n` +
        `  python3 -c "from transformers import ${loader} as M; M.from_pretrained('${folder.name}', torch_dtype='auto').save_pretrained('${folder.name}', safe_serialization=True)"`,
    );
  }
  throw new DataError(
    `${subject}: no weights: none of ${WHOLE}, ${INDEX} in ${folder.name}; take a folder as Hugging Face lays it out`,
  );
}

/**
 * A hash of weights: names, types and shapes of all tensors and the values of the norms, which any further training
 * changes; and of `more`, such as a configuration.
 */
export async function weightsPrint(file: Safetensors, more: readonly Uint8Array[]): Promise<string> {
  let hash = 0;
  const add = (bytes: Uint8Array) => {
    hash = fnv1a(bytes, hash);
  };
  for (const name of [...file.tensors.keys()].sort()) {
    const { dtype, shape } = file.info(name);
    add(new TextEncoder().encode(`${name} ${dtype} ${shape}`));
    if (name.endsWith("norm.weight")) add((await file.tensor(name)).data);
  }
  more.forEach(add);
  return hash.toString(16).padStart(8, "0");
}
