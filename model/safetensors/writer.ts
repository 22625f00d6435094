import { createFile, freeBytes, openFile, removeFile, siblingOf } from "#files";
import { SafetensorsError } from "../../engine/errors.js";
import { type ByteSink, FileError } from "../files/source.js";
import { DTYPE_BYTES, isSafetensorsDtype, type SafetensorsDtype } from "./dtype.js";
import { bytesOfShape } from "./header.js";

/** A tensor to write: its bytes, little-endian, at once or piece by piece. */
export interface SafetensorsEntry {
  readonly name: string;
  readonly dtype: SafetensorsDtype;
  readonly shape: readonly number[];
  readonly data: Uint8Array | AsyncIterable<Uint8Array>;
}

/** Options of `writeSafetensors`. */
export interface WriteOptions {
  /** Splits into `NAME-00001-of-0000N.safetensors` of at most this many bytes of tensors each, with an index. */
  maxShardBytes?: number;
}

/** What `writeSafetensors` wrote: the file to open (the index where there are shards), all files, and their bytes. */
export interface Written {
  readonly path: string;
  readonly files: readonly string[];
  readonly bytes: number;
}

function checkEntries(entries: readonly SafetensorsEntry[], metadata: Readonly<Record<string, string>>): void {
  const names = new Set<string>();
  for (const { name, dtype, shape, data } of entries) {
    if (name === "__metadata__")
      throw new SafetensorsError('safetensors: reserved name: a tensor is named "__metadata__"');
    if (names.has(name)) throw new SafetensorsError(`safetensors: name given twice: tensor "${name}"`);
    names.add(name);
    if (!isSafetensorsDtype(dtype))
      throw new SafetensorsError(
        `safetensors: unsupported dtype: tensor "${name}" is ${dtype}; supported are ${Object.keys(DTYPE_BYTES).join(", ")}`,
      );
    const bytes = shape.every((n) => Number.isSafeInteger(n) && n >= 0) ? bytesOfShape(shape, dtype) : undefined;
    if (bytes === undefined)
      throw new SafetensorsError(`safetensors: bad shape: tensor "${name}" has [${shape.join(", ")}]`);
    if (data instanceof Uint8Array && data.length !== bytes)
      throw new SafetensorsError(
        `safetensors: size differs from its shape: tensor "${name}" is ${dtype} [${shape.join(", ")}] = ${bytes} bytes, given ${data.length}`,
      );
  }
  for (const [key, value] of Object.entries(metadata))
    if (typeof value !== "string")
      throw new SafetensorsError(`safetensors: metadata is not text: "${key}" is ${typeof value}; JSON.stringify it`);
}

const sizeOf = (entry: SafetensorsEntry): number => bytesOfShape(entry.shape, entry.dtype) as number;

/** The 8-byte length and the JSON, padded with spaces so that the data begins at a multiple of 8. */
function encodeHeader(entries: readonly SafetensorsEntry[], metadata: Readonly<Record<string, string>>): Uint8Array {
  const header: [string, unknown][] = [];
  if (Object.keys(metadata).length > 0) header.push(["__metadata__", metadata]);
  let at = 0;
  for (const entry of entries) {
    const { name, dtype, shape } = entry;
    header.push([name, { dtype, shape, data_offsets: [at, at + sizeOf(entry)] }]);
    at += sizeOf(entry);
  }
  // Joined by hand: an object would move names that look like numbers to the front.
  const json = `{${header.map(([key, value]) => `${JSON.stringify(key)}:${JSON.stringify(value)}`).join(",")}}`;
  const text = new TextEncoder().encode(json);
  const length = Math.ceil(text.length / 8) * 8;
  const bytes = new Uint8Array(8 + length).fill(0x20, 8);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, length, true);
  view.setUint32(4, Math.floor(length / 2 ** 32), true);
  bytes.set(text, 8);
  return bytes;
}

async function writeEntries(sink: ByteSink, header: Uint8Array, entries: readonly SafetensorsEntry[]): Promise<void> {
  await sink.write(header);
  for (const entry of entries) {
    if (entry.data instanceof Uint8Array) {
      await sink.write(entry.data);
      continue;
    }
    let written = 0;
    for await (const piece of entry.data) {
      written += piece.length;
      if (written > sizeOf(entry)) break;
      await sink.write(piece);
    }
    if (written !== sizeOf(entry))
      throw new SafetensorsError(
        `safetensors: size differs from its shape: tensor "${entry.name}" is ${entry.dtype} [${entry.shape.join(", ")}] = ${sizeOf(entry)} bytes, its pieces gave ${written > sizeOf(entry) ? "more" : written}`,
      );
  }
}

/** Entries in groups of at most `limit` bytes, in order; an entry larger than that is a group of its own. */
function shardsOf(entries: readonly SafetensorsEntry[], limit: number): SafetensorsEntry[][] {
  const shards: SafetensorsEntry[][] = [[]];
  let bytes = 0;
  for (const entry of entries) {
    if (bytes > 0 && bytes + sizeOf(entry) > limit) {
      shards.push([]);
      bytes = 0;
    }
    shards[shards.length - 1].push(entry);
    bytes += sizeOf(entry);
  }
  return shards;
}

async function checkSpace(path: string, bytes: number): Promise<void> {
  const free = await freeBytes(path);
  if (free !== undefined && free < bytes)
    throw new FileError(
      `write: disk full: ${path} needs ${bytes} bytes, ${free} are free; free some space or choose another folder`,
      "ENOSPC",
    );
}

/** Runs `fill` on a fresh sink and commits it; on any failure nothing is left and a full disk says what was needed. */
async function atomically(sink: ByteSink, bytes: number, fill: () => Promise<void>): Promise<void> {
  try {
    await fill();
    await sink.commit();
  } catch (error) {
    await sink.abort();
    if (error instanceof FileError && error.code === "ENOSPC")
      throw new FileError(
        `${error.message} (${bytes} bytes are needed; what was there before is unchanged)`,
        "ENOSPC",
        {
          cause: error,
        },
      );
    throw error;
  }
}

/** Files that the index at `path` names, if there is a readable one. */
async function shardsInIndex(path: string): Promise<string[]> {
  try {
    const source = await openFile(path);
    try {
      const text = new TextDecoder().decode(await source.read(0, source.size));
      return [...new Set(Object.values<string>(JSON.parse(text).weight_map))].map((file) => siblingOf(path, file));
    } finally {
      await source.close();
    }
  } catch {
    return [];
  }
}

async function writeShards(
  path: string,
  shards: readonly SafetensorsEntry[][],
  metadata: Readonly<Record<string, string>>,
): Promise<Written> {
  const stem = path.replace(/\.safetensors$/, "");
  const index = `${stem}.safetensors.index.json`;
  const old = await shardsInIndex(index);
  const plan = shards.map((entries) => ({ entries, header: encodeHeader(entries, metadata) }));
  const bytesOf = ({ entries, header }: (typeof plan)[number]) =>
    entries.reduce((sum, entry) => sum + sizeOf(entry), header.length);
  const bytes = plan.reduce((sum, shard) => sum + bytesOf(shard), 0);
  await checkSpace(index, bytes);

  // The index switches from one set of files to the next at once, so new shards never take the names of those in use.
  const nameOf = (i: number, tag: string) => {
    const number = (n: number) => String(n).padStart(5, "0");
    return `${stem}${tag}-${number(i + 1)}-of-${number(shards.length)}.safetensors`;
  };
  let tag = "";
  for (let turn = 2; plan.some((_, i) => old.includes(nameOf(i, tag))); turn++) tag = `-${turn}`;
  const files = plan.map((_, i) => nameOf(i, tag));
  try {
    for (const [i, shard] of plan.entries()) {
      const sink = await createFile(files[i]);
      await atomically(sink, bytes, () => writeEntries(sink, shard.header, shard.entries));
    }
    const weightMap = Object.fromEntries(
      plan.flatMap(({ entries }, i) => entries.map(({ name }) => [name, files[i].replace(/^.*[/\\:]/, "")])),
    );
    const total = plan.reduce((sum, shard) => sum + bytesOf(shard) - shard.header.length, 0);
    const text = JSON.stringify({ metadata: { total_size: total }, weight_map: weightMap }, null, 2);
    const sink = await createFile(index);
    await atomically(sink, bytes, () => sink.write(new TextEncoder().encode(`${text}\n`)));
  } catch (error) {
    for (const file of files) await removeFile(file).catch(() => {});
    throw error;
  }
  for (const file of old) if (!files.includes(file)) await removeFile(file);
  return { path: index, files: [index, ...files], bytes };
}

/**
 * Writes tensors as safetensors (https://github.com/huggingface/safetensors), atomically: to a file aside in the same
 * folder, flushed, then renamed over `target`. Tensors are ordered by element size so that each is aligned in the file;
 * within a size they keep their order. Throws SafetensorsError for entries that contradict themselves, before anything
 * is written, and FileError where the disk is full or refuses; then the earlier file is still whole.
 */
export async function writeSafetensors(
  target: string | ByteSink,
  entries: readonly SafetensorsEntry[],
  metadata: Readonly<Record<string, string>> = {},
  options: WriteOptions = {},
): Promise<Written> {
  checkEntries(entries, metadata);
  const sorted = [...entries].sort((a, b) => DTYPE_BYTES[b.dtype] - DTYPE_BYTES[a.dtype]);
  const limit = options.maxShardBytes ?? Number.POSITIVE_INFINITY;
  if (!(limit > 0))
    throw new SafetensorsError(`safetensors: bad shard size: maxShardBytes is ${limit}; give bytes > 0`);
  const shards = shardsOf(sorted, limit);
  if (shards.length > 1) {
    if (typeof target !== "string")
      throw new SafetensorsError("safetensors: shards need a path: a sink takes one file; drop maxShardBytes");
    return writeShards(target, shards, metadata);
  }
  const header = encodeHeader(sorted, metadata);
  const bytes = sorted.reduce((sum, entry) => sum + sizeOf(entry), header.length);
  if (typeof target === "string") await checkSpace(target, bytes);
  const sink = typeof target === "string" ? await createFile(target) : target;
  await atomically(sink, bytes, () => writeEntries(sink, header, sorted));
  return { path: sink.name, files: [sink.name], bytes };
}
