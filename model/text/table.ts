import { DataError } from "../../engine/errors.js";

// "ESPW", little-endian.
const MAGIC = 0x57505345;
const VERSION = 1;
const HEADER_BYTES = 24;

/**
 * Bytes of a word table: magic, version, count, dim, salt, bytes of text (u32 each), the words in UTF-8 one a
 * line, then int8 [count, dim]. Rows are directions: each is scaled so that its largest entry is 127.
 * @param vectors [words, dim]
 * @param salt seed of the words' orthogonal parts, which is part of what a trained model has learned
 */
export function packWordTable(words: readonly string[], vectors: Float32Array, dim: number, salt: number): Uint8Array {
  const text = new globalThis.TextEncoder().encode(words.join("\n"));
  const out = new Uint8Array(HEADER_BYTES + text.length + words.length * dim);
  const header = new DataView(out.buffer);
  [MAGIC, VERSION, words.length, dim, salt, text.length].forEach((value, i) => {
    header.setUint32(4 * i, value, true);
  });
  out.set(text, HEADER_BYTES);
  const codes = new Int8Array(out.buffer, HEADER_BYTES + text.length);
  for (let i = 0; i < words.length; i++) {
    const row = vectors.subarray(i * dim, (i + 1) * dim);
    const top = row.reduce((a, b) => Math.max(a, Math.abs(b)), 0);
    for (let d = 0; d < dim; d++) codes[i * dim + d] = top === 0 ? 0 : Math.round((row[d] / top) * 127);
  }
  return out;
}

/** A word table in memory; rows are decoded when asked for. */
export class WordTable {
  readonly dim: number;
  readonly salt: number;
  /** FNV-1a of all bytes: two tables with one fingerprint give the same vectors. */
  readonly fingerprint: string;
  private readonly places: Map<string, number>;
  private readonly codes: Int8Array;

  /** @throws DataError when the bytes are no whole word table */
  constructor(bytes: Uint8Array) {
    const refuse = (what: string): never => {
      throw new DataError(
        `word table: ${what}; take model/text/words.bin as it ships, or build it again with examples/words.ts`,
      );
    };
    if (bytes.length < HEADER_BYTES) refuse(`the header is cut off: ${bytes.length} bytes`);
    const header = new DataView(bytes.buffer, bytes.byteOffset, HEADER_BYTES);
    const [magic, version, count, dim, salt, textBytes] = Array.from({ length: 6 }, (_, i) =>
      header.getUint32(4 * i, true),
    );
    if (magic !== MAGIC) refuse("the first bytes are not a word table's");
    if (version !== VERSION) refuse(`version ${VERSION} is read: it is ${version}`);
    const wanted = HEADER_BYTES + textBytes + count * dim;
    if (bytes.length !== wanted) refuse(`the header speaks of ${wanted} bytes: there are ${bytes.length}`);
    const text = bytes.subarray(HEADER_BYTES, HEADER_BYTES + textBytes);
    const words = new TextDecoder().decode(text).split("\n");
    if (words.length !== count) refuse(`the header speaks of ${count} words: there are ${words.length}`);
    this.dim = dim;
    this.salt = salt;
    this.places = new Map(words.map((word, i) => [word, i]));
    this.codes = new Int8Array(bytes.buffer, bytes.byteOffset + HEADER_BYTES + textBytes, count * dim);
    this.fingerprint = fnv1a(bytes, 0).toString(16).padStart(8, "0");
  }

  has(word: string): boolean {
    return this.places.has(word);
  }

  /** Unit vector of a word's meaning, undefined where the table does not have it. */
  row(word: string): Float64Array | undefined {
    const place = this.places.get(word);
    if (place === undefined) return undefined;
    const row = Float64Array.from(this.codes.subarray(place * this.dim, (place + 1) * this.dim));
    const norm = Math.sqrt(row.reduce((a, b) => a + b * b, 0));
    return norm === 0 ? undefined : row.map((x) => x / norm);
  }
}

/** FNV-1a hash, 32 bits, continued from `salt`. */
export function fnv1a(bytes: Uint8Array, salt: number): number {
  let hash = 0x811c9dc5 ^ salt;
  for (const byte of bytes) hash = Math.imul(hash ^ byte, 0x01000193);
  return hash >>> 0;
}
