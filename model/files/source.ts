import { EspalierError } from "../../engine/errors.js";

/** A file, folder or address that cannot be read or written. `code` is the system's own word for it (`ENOENT`, `ENOSPC`). */
export class FileError extends EspalierError {
  override name = "FileError";
  readonly code: string | undefined;
  constructor(message: string, code?: string, options?: ErrorOptions) {
    super(message, options);
    this.code = code;
  }
}

/** Bytes that can be read in any order: a file on disk, a Blob, an address that honours HTTP ranges, memory. */
export interface ByteSource {
  /** What to call it in an error: a path, an address, a file's name. */
  readonly name: string;
  /** Length in bytes. */
  readonly size: number;
  /** Exactly `length` bytes from `offset`; throws FileError where fewer can be had. The bytes may share memory with the source. */
  read(offset: number, length: number): Promise<Uint8Array>;
  close(): Promise<void>;
}

/** Bytes written in order that become visible all at once: either `commit` or `abort` ends it. */
export interface ByteSink {
  readonly name: string;
  write(bytes: Uint8Array): Promise<void>;
  /** Makes the bytes durable under their name. Until it returns, a reader sees what was there before. */
  commit(): Promise<void>;
  /** Leaves what was there before, and nothing else. Never throws. */
  abort(): Promise<void>;
}

/** Throws FileError unless `offset` and `length` lie inside a source. */
export function checkRange(source: { name: string; size: number }, offset: number, length: number): void {
  if (!(offset >= 0 && length >= 0 && offset + length <= source.size))
    throw new FileError(
      `read: outside the file: bytes ${offset} to ${offset + length} of ${source.name}, which has ${source.size}`,
      "ERANGE",
    );
}

/** A source over bytes already in memory; `read` returns views of them. */
export function memorySource(data: Uint8Array | ArrayBuffer, name = "memory"): ByteSource {
  const bytes = data instanceof Uint8Array ? data : new Uint8Array(data);
  const source: ByteSource = {
    name,
    size: bytes.length,
    async read(offset, length) {
      checkRange(source, offset, length);
      return bytes.subarray(offset, offset + length);
    },
    async close() {},
  };
  return source;
}

/** A source over a Blob or a File that a person picked; only the ranges asked for are read. */
export function blobSource(blob: Blob): ByteSource {
  const source: ByteSource = {
    name: "name" in blob && typeof blob.name === "string" ? blob.name : "blob",
    size: blob.size,
    async read(offset, length) {
      checkRange(source, offset, length);
      const part = await blob.slice(offset, offset + length).arrayBuffer();
      if (part.byteLength !== length)
        throw new FileError(
          `read: file changed: ${source.name} gave ${part.byteLength} bytes of ${length} at ${offset}`,
        );
      return new Uint8Array(part);
    },
    async close() {},
  };
  return source;
}

/** A sink that gathers bytes in memory; `bytes()` hands them over after `commit`. */
export function memorySink(name = "memory"): ByteSink & { bytes(): Uint8Array } {
  const parts: Uint8Array[] = [];
  let size = 0;
  let committed = false;
  return {
    name,
    async write(bytes) {
      // A copy: the caller may reuse its buffer before commit.
      parts.push(bytes.slice());
      size += bytes.length;
    },
    async commit() {
      committed = true;
    },
    async abort() {
      parts.length = 0;
      size = 0;
    },
    bytes() {
      if (!committed) throw new FileError(`write: not finished: ${name} was never committed`);
      const all = new Uint8Array(size);
      let at = 0;
      for (const part of parts) {
        all.set(part, at);
        at += part.length;
      }
      return all;
    },
  };
}
