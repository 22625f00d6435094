import { openFile, siblingOf } from "#files";
import { nearest, SafetensorsError } from "../../engine/errors.js";
import { type ByteSource, blobSource, FileError, memorySource } from "../files/source.js";
import { DTYPE_BYTES, decodeFloat32, decodeFloat64, decodeInt32 } from "./dtype.js";
import { bytesOfShape, headerLength, parseHeader, type TensorInfo } from "./header.js";
import { isPickle, isPickled, refusePickle } from "./pickle.js";

/** Where a safetensors file may come from: a path or address, a Blob or picked File, bytes in memory, or a source. */
export type SafetensorsLocation = string | URL | Blob | Uint8Array | ArrayBuffer | ByteSource;

/** Options of `openSafetensors`. */
export interface OpenOptions {
  /** Finds a shard by the file name that an index gives. By default it lies beside the index. */
  shard?: (file: string) => SafetensorsLocation;
}

/** One tensor with its bytes. */
export interface TensorBytes extends TensorInfo {
  readonly data: Uint8Array;
}

/** A piece of one tensor: `data` starts `offset` bytes into it. */
export interface TensorChunk {
  readonly offset: number;
  readonly data: Uint8Array;
}

interface Part {
  source: ByteSource;
  info: TensorInfo;
}

/**
 * A safetensors file, or several behind an index, opened lazily: only headers have been read. Tensors are read by name,
 * whole or in chunks; several may be read at once. `close` when done.
 */
export class Safetensors {
  /** What it was opened from. */
  readonly name: string;
  /** Free-form strings of the header; of an index, those of its shards together. */
  readonly metadata: Readonly<Record<string, string>>;
  /** Every tensor's type, shape and range in its file. */
  readonly tensors: ReadonlyMap<string, TensorInfo>;
  readonly #parts: ReadonlyMap<string, Part>;
  readonly #sources: readonly ByteSource[];

  constructor(
    name: string,
    parts: ReadonlyMap<string, Part>,
    metadata: Record<string, string>,
    sources: readonly ByteSource[],
  ) {
    this.name = name;
    this.metadata = metadata;
    this.tensors = new Map(Array.from(parts, ([key, part]) => [key, part.info]));
    this.#parts = parts;
    this.#sources = sources;
  }

  /** Bytes of all tensors together. */
  get bytes(): number {
    let total = 0;
    for (const { begin, end } of this.tensors.values()) total += end - begin;
    return total;
  }

  has(name: string): boolean {
    return this.#parts.has(name);
  }

  /** A tensor's type, shape and range. Throws SafetensorsError with the nearest name for one that is not there. */
  info(name: string): TensorInfo {
    return this.#part(name).info;
  }

  #part(name: string): Part {
    const part = this.#parts.get(name);
    if (part !== undefined) return part;
    const guess = nearest(name, this.#parts.keys());
    throw new SafetensorsError(
      `safetensors: no such tensor: "${name}" in ${this.name}, which holds ${this.#parts.size}${guess === undefined ? "" : `; did you mean "${guess}"?`}`,
    );
  }

  /** Reads one tensor's byte range. */
  async tensor(name: string): Promise<TensorBytes> {
    const { source, info } = this.#part(name);
    return { ...info, data: await source.read(info.begin, info.end - info.begin) };
  }

  /** One tensor's elements as f32, whatever its type in the file. */
  async float32(name: string): Promise<Float32Array> {
    const { data, dtype } = await this.tensor(name);
    return decodeFloat32(data, dtype);
  }

  /** One tensor's elements as f64. */
  async float64(name: string): Promise<Float64Array> {
    const { data, dtype } = await this.tensor(name);
    return decodeFloat64(data, dtype);
  }

  /** One integer or BOOL tensor's elements as i32. */
  async int32(name: string): Promise<Int32Array> {
    const { data, dtype } = await this.tensor(name);
    return decodeInt32(data, dtype);
  }

  /**
   * Reads one tensor piece by piece, at most `chunkBytes` (rounded down to whole elements) at a time, so that a large
   * one never lies in memory whole. The next piece is fetched while the caller handles the present one.
   */
  async *readInto(name: string, chunkBytes: number): AsyncGenerator<TensorChunk> {
    const { source, info } = this.#part(name);
    const step = chunkBytes - (chunkBytes % DTYPE_BYTES[info.dtype]);
    if (!(step > 0))
      throw new SafetensorsError(
        `safetensors: chunk too small: ${chunkBytes} bytes; "${name}" is ${info.dtype}, so give at least ${DTYPE_BYTES[info.dtype]}`,
      );
    const read = (at: number) => {
      const chunk = source.read(at, Math.min(step, info.end - at));
      // An early return leaves a read in flight whose failure no one would see.
      chunk.catch(() => {});
      return chunk;
    };
    let next = info.begin < info.end ? read(info.begin) : undefined;
    for (let at = info.begin; next !== undefined; at += step) {
      const data = await next;
      next = at + step < info.end ? read(at + step) : undefined;
      yield { offset: at - info.begin, data };
    }
  }

  /**
   * The same tensors under other names or in other shapes of as many elements; what `f` gives no name is left out. Bytes
   * stay where they are: closing either file closes both.
   */
  mapped(f: (info: TensorInfo) => { name: string; shape?: readonly number[] } | undefined): Safetensors {
    const parts = new Map<string, Part>();
    for (const { source, info } of this.#parts.values()) {
      const to = f(info);
      if (to === undefined) continue;
      const { name, shape = info.shape } = to;
      if (bytesOfShape(shape, info.dtype) !== info.end - info.begin)
        throw new SafetensorsError(
          `safetensors: shapes hold different numbers: tensor "${info.name}" is [${info.shape.join(", ")}], to be [${shape.join(", ")}]`,
        );
      if (parts.has(name))
        throw new SafetensorsError(`safetensors: name given twice: tensor "${info.name}" is to be "${name}" too`);
      parts.set(name, { source, info: { ...info, name, shape } });
    }
    return new Safetensors(this.name, parts, this.metadata, this.#sources);
  }

  /** Closes the files. Reading afterwards fails. */
  async close(): Promise<void> {
    await Promise.all(this.#sources.map((source) => source.close()));
  }
}

function isSource(location: SafetensorsLocation): location is ByteSource {
  return typeof location === "object" && "read" in location && "size" in location;
}

/** Opens any kind of location for reading in ranges. */
export async function toSource(location: SafetensorsLocation): Promise<ByteSource> {
  if (typeof location === "string" || location instanceof URL) return openFile(location);
  if (location instanceof Uint8Array || location instanceof ArrayBuffer) return memorySource(location);
  if (isSource(location)) return location;
  return blobSource(location);
}

async function openOne(source: ByteSource) {
  try {
    const first = source.size < 8 ? new Uint8Array(0) : await source.read(0, 8);
    const length = headerLength(first, source.size, source.name);
    return parseHeader(await source.read(8, length), source.size, source.name);
  } catch (error) {
    // Looked at only now: whatever it is called, a file that holds the format is read.
    if (error instanceof SafetensorsError && (isPickle(source.name) || (await isPickled(source))))
      refusePickle("safetensors", source.name);
    throw error;
  }
}

/** File name by tensor name, from the JSON of an index. */
async function readIndex(source: ByteSource): Promise<Map<string, string>> {
  let map: unknown;
  try {
    map = JSON.parse(new TextDecoder().decode(await source.read(0, source.size))).weight_map;
  } catch (cause) {
    throw new SafetensorsError(`safetensors: index is not JSON: ${source.name}: ${(cause as Error).message}`, {
      cause,
    });
  }
  if (typeof map !== "object" || map === null || Array.isArray(map))
    throw new SafetensorsError(`safetensors: index without weight_map: ${source.name}`);
  const files = new Map<string, string>();
  for (const [name, file] of Object.entries(map)) {
    // A path could lead out of the folder.
    if (typeof file !== "string" || file === "" || file === ".." || /[/\\]/.test(file))
      throw new SafetensorsError(
        `safetensors: bad shard name: tensor "${name}" is in ${JSON.stringify(file)}, in ${source.name}; a shard is a file beside the index`,
      );
    files.set(name, file);
  }
  return files;
}

async function openShard(
  index: string,
  file: string,
  shard: (file: string) => SafetensorsLocation,
  count: number,
): Promise<ByteSource> {
  try {
    return await toSource(shard(file));
  } catch (cause) {
    if (!(cause instanceof FileError && cause.code === "ENOENT")) throw cause;
    throw new SafetensorsError(
      `safetensors: shard missing: ${index} names "${file}" for ${count} of its tensors: ${cause.message}; put that file beside the index`,
      { cause },
    );
  }
}

async function openIndex(index: ByteSource, shard: (file: string) => SafetensorsLocation): Promise<Safetensors> {
  const sources: ByteSource[] = [];
  try {
    const files = await readIndex(index);
    const parts = new Map<string, Part>();
    const metadata: Record<string, string> = {};
    const headers = new Map<string, { source: ByteSource; tensors: ReadonlyMap<string, TensorInfo> }>();
    const wanted = new Set(files.values());
    for (const file of wanted) {
      const source = await openShard(index.name, file, shard, [...files.values()].filter((f) => f === file).length);
      sources.push(source);
      const header = await openOne(source).catch((error) => {
        if (!isPickle(file)) throw error;
        const beside = (f: string) => source.name.slice(0, -file.length) + f;
        return refusePickle("safetensors", source.name.endsWith(file) ? [...wanted].map(beside) : [...wanted]);
      });
      headers.set(file, { source, tensors: header.tensors });
      Object.assign(metadata, header.metadata);
    }
    for (const [name, file] of files) {
      const { source, tensors } = headers.get(file)!;
      const info = tensors.get(name);
      if (info === undefined)
        throw new SafetensorsError(`safetensors: tensor missing from its shard: "${name}" should be in ${source.name}`);
      parts.set(name, { source, info });
    }
    await index.close();
    return new Safetensors(index.name, parts, metadata, sources);
  } catch (error) {
    await Promise.all([index, ...sources].map((source) => source.close()));
    throw error;
  }
}

/**
 * Opens a safetensors file, or an `*.index.json` with the files it names, and reads headers only.
 * Throws SafetensorsError for a file that breaks the format (https://github.com/huggingface/safetensors), FileError for
 * one that cannot be read.
 */
export async function openSafetensors(location: SafetensorsLocation, options: OpenOptions = {}): Promise<Safetensors> {
  const source = await toSource(location);
  if (/\.json($|\?)/.test(source.name)) {
    const beside = (file: string): string => {
      if (typeof location === "string" || location instanceof URL) return siblingOf(location, file);
      throw new SafetensorsError(
        `safetensors: shards not found: ${source.name} names "${file}"; give openSafetensors a shard function that finds it`,
      );
    };
    return openIndex(source, options.shard ?? beside);
  }
  try {
    const { tensors, metadata } = await openOne(source);
    const parts = new Map(Array.from(tensors, ([name, info]) => [name, { source, info }]));
    return new Safetensors(source.name, parts, metadata, [source]);
  } catch (error) {
    await source.close();
    throw error;
  }
}
