import { createHash } from "node:crypto";
import { DataError, EspalierError } from "../../engine/errors.js";
import {
  decodeFloat32,
  encodeFloat32,
  openSafetensors,
  type Safetensors,
  writeSafetensors,
} from "../../model/safetensors.js";

/** How numbers are stored. */
export type CacheDtype = "f32" | "f16";

/** What all entries of a cache have in common. */
export interface CacheKind {
  kind: "text" | "latents" | "captions";
  /** Of the encoder: entries of another are never taken for these. */
  fingerprint: string;
}

/** One tensor of an entry, as bytes. */
export interface Packed {
  dtype: "F32" | "F16";
  shape: number[];
  bytes: Uint8Array;
}

/** An entry as it lies in a shard: its tensors by name, and what else is known of it. */
export interface PackedEntry {
  tensors: Record<string, Packed>;
  note: unknown;
}

/** Numbers with their shape. */
export interface Numbers {
  shape: number[];
  data: Float32Array;
}

/** The largest number of f16. */
const LARGEST = 65504;

/**
 * Numbers as they are stored; a copy.
 * @throws EspalierError for one that is none, which would be kept for ever, or too large for f16
 */
export function pack({ shape, data }: Numbers, dtype: CacheDtype): Packed {
  for (const x of data) {
    if (!Number.isFinite(x))
      throw new EspalierError(`cache: the encoder gave ${x}, which is no result to keep; run it with weights in f32`);
    // The next number above rounds to infinity.
    if (dtype === "f16" && Math.abs(x) >= LARGEST + 16)
      throw new EspalierError(
        `cache: too large for f16: the encoder gave ${x}; take dtype f32 and another cache folder`,
      );
  }
  const name = dtype === "f16" ? "F16" : "F32";
  return { dtype: name, shape, bytes: encodeFloat32(data.slice(), name) };
}

/** Stored numbers; a copy, so that writing into them harms nothing. */
export function unpack({ dtype, shape, bytes }: Packed): Numbers {
  return { shape, data: decodeFloat32(bytes.slice(), dtype) };
}

/** Bytes of an entry's tensors. */
export const bytesOf = ({ tensors }: PackedEntry): number =>
  Object.values(tensors).reduce((sum, { bytes }) => sum + bytes.length, 0);

function sumOf(tensors: Record<string, Packed>): string {
  const hash = createHash("sha256");
  for (const name of Object.keys(tensors).sort()) hash.update(tensors[name].bytes);
  return hash.digest("hex").slice(0, 16);
}

interface Listed {
  tensors: string[];
  sum: string;
  note: unknown;
}

/** Writes entries as one safetensors file, atomically. The file says by itself what it holds. */
export async function writeShard(
  path: string,
  what: CacheKind,
  about: Record<string, unknown>,
  entries: ReadonlyMap<string, PackedEntry>,
): Promise<number> {
  const listed: Record<string, Listed> = {};
  for (const [key, { tensors, note }] of entries)
    listed[key] = { tensors: Object.keys(tensors), sum: sumOf(tensors), note };
  const tensors = [...entries].flatMap(([key, entry]) =>
    Object.entries(entry.tensors).map(([name, { dtype, shape, bytes }]) => ({
      name: `${key}/${name}`,
      dtype,
      shape,
      data: bytes,
    })),
  );
  const metadata = {
    espalier: "cache/1",
    cache: JSON.stringify({ ...what, about }),
    entries: JSON.stringify(listed),
  };
  return (await writeSafetensors(path, tensors, metadata)).bytes;
}

/** A shard opened for reading. */
export class Shard {
  private constructor(
    private readonly file: Safetensors,
    readonly about: Record<string, unknown>,
    private readonly listed: ReadonlyMap<string, Listed>,
  ) {}

  /** @throws SafetensorsError for a torn file, DataError for one of another kind or encoder */
  static async open(path: string, what: CacheKind): Promise<Shard> {
    const file = await openSafetensors(path);
    try {
      const { espalier, cache = "{}", entries = "{}" } = file.metadata;
      if (espalier !== "cache/1") throw new DataError(`cache: not a shard of a cache: ${path}`);
      const { kind, fingerprint, about } = JSON.parse(cache);
      if (kind !== what.kind || fingerprint !== what.fingerprint)
        throw new DataError(`cache: a shard of another encoder: ${path} is of ${kind} by ${fingerprint}`);
      return new Shard(file, about, new Map(Object.entries(JSON.parse(entries) as Record<string, Listed>)));
    } catch (error) {
      await file.close();
      throw error;
    }
  }

  keys(): string[] {
    return [...this.listed.keys()];
  }

  /** @throws DataError for an entry that is not there or whose bytes are not those that were written */
  async read(key: string): Promise<PackedEntry> {
    const listed = this.listed.get(key);
    if (listed === undefined) throw new DataError(`cache: no such entry: ${key} in ${this.file.name}`);
    const tensors: Record<string, Packed> = {};
    for (const name of listed.tensors) {
      const { dtype, shape, data } = await this.file.tensor(`${key}/${name}`);
      tensors[name] = { dtype: dtype as Packed["dtype"], shape: [...shape], bytes: data };
    }
    if (sumOf(tensors) !== listed.sum) throw new DataError(`cache: damaged entry: ${key} in ${this.file.name}`);
    return { tensors, note: listed.note };
  }

  close(): Promise<void> {
    return this.file.close();
  }
}
