import { randomBytes } from "node:crypto";
import { type FileHandle, open, rename, statfs, unlink } from "node:fs/promises";
import { basename, dirname, join, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { type ByteSink, type ByteSource, checkRange, FileError } from "./source.js";
import { urlSource } from "./url.js";

// One read or write call moves at most 2 GiB on Linux.
const CALL_BYTES = 1 << 30;

/** A system error as a FileError that says what was being done to which path. */
function fileError(action: string, path: string, cause: unknown): FileError {
  const { code, message } = cause as NodeJS.ErrnoException;
  const reason =
    code === "ENOENT"
      ? "no such file or folder"
      : code === "EACCES" || code === "EPERM"
        ? "not permitted"
        : code === "EISDIR"
          ? "it is a folder"
          : message;
  return new FileError(`${action}: ${reason}: ${path}`, code, { cause });
}

async function pathSource(path: string): Promise<ByteSource> {
  let handle: FileHandle;
  let size: number;
  try {
    handle = await open(path, "r");
  } catch (cause) {
    throw fileError("open", path, cause);
  }
  try {
    const stat = await handle.stat();
    if (!stat.isFile()) throw new FileError(`open: not a file: ${path}`, "EISDIR");
    size = stat.size;
  } catch (error) {
    await handle.close();
    throw error;
  }
  const source: ByteSource = {
    name: path,
    size,
    async read(offset, length) {
      checkRange(source, offset, length);
      const bytes = new Uint8Array(length);
      let done = 0;
      while (done < length) {
        const { bytesRead } = await handle
          .read(bytes, done, Math.min(length - done, CALL_BYTES), offset + done)
          .catch((cause: unknown) => {
            throw fileError("read", path, cause);
          });
        if (bytesRead === 0)
          throw new FileError(`read: file changed: ${path} ended at byte ${offset + done}; it had ${size}`, "ECHANGED");
        done += bytesRead;
      }
      return bytes;
    },
    close: () => handle.close(),
  };
  return source;
}

/** Opens a path, a file: URL or an http(s) address for reading in ranges. Throws FileError. */
export async function openFile(location: string | URL): Promise<ByteSource> {
  const text = String(location);
  if (/^https?:\/\//i.test(text)) return urlSource(text);
  return pathSource(/^file:\/\//i.test(text) ? fileURLToPath(text) : text);
}

/** The location of `file` in the folder that holds `location`. */
export function siblingOf(location: string | URL, file: string): string {
  const text = String(location);
  if (/^(https?|file):\/\//i.test(text)) return new URL(encodeURIComponent(file), text).href;
  return join(dirname(text), file);
}

/** Bytes that this user may still write on the disk of a location's folder; undefined where the system does not say. */
export async function freeBytes(location: string): Promise<number | undefined> {
  try {
    const { bavail, bsize } = await statfs(dirname(resolve(location)));
    return bavail * bsize;
  } catch {
    return undefined;
  }
}

async function syncFolder(folder: string): Promise<void> {
  let handle: FileHandle | undefined;
  try {
    handle = await open(folder, "r");
    await handle.sync();
  } catch (cause) {
    // Windows cannot open a folder and some file systems cannot flush one; the rename is then as durable as they make it.
    const { code } = cause as NodeJS.ErrnoException;
    if (!["EINVAL", "ENOTSUP", "EPERM", "EISDIR"].includes(code ?? "")) throw cause;
  } finally {
    await handle?.close();
  }
}

/** The name under which `createFile` writes a file aside: `.NAME.PID-RANDOM.tmp` in the same folder. */
export const ASIDE = /^\.(.+)\.(\d+)-[0-9a-f]{8}\.tmp$/;

/**
 * A sink for a path. Bytes go to a file aside in the same folder; `commit` flushes it, renames it over the path and
 * flushes the folder, so that a crash at any moment leaves either the old file or the new one, whole.
 */
export async function createFile(path: string): Promise<ByteSink> {
  const folder = dirname(path);
  const aside = join(folder, `.${basename(path)}.${process.pid}-${randomBytes(4).toString("hex")}.tmp`);
  let written = 0;
  const failed = async (action: string, cause: unknown): Promise<FileError> => {
    const { code } = cause as NodeJS.ErrnoException;
    if (code !== "ENOSPC" && code !== "EDQUOT") return fileError(action, path, cause);
    const free = await freeBytes(path);
    return new FileError(
      `write: disk full: ${path} had ${written} bytes written${free === undefined ? "" : `, ${free} are left in ${folder}`}; free some space or choose another folder`,
      "ENOSPC",
      { cause },
    );
  };
  let handle: FileHandle | undefined;
  try {
    handle = await open(aside, "wx");
  } catch (cause) {
    throw await failed("create", cause);
  }
  const close = async () => {
    const closing = handle;
    handle = undefined;
    await closing?.close();
  };
  return {
    name: path,
    async write(bytes) {
      if (handle === undefined) throw new FileError(`write: already closed: ${path}`);
      let done = 0;
      while (done < bytes.length) {
        try {
          const length = Math.min(bytes.length - done, CALL_BYTES);
          const { bytesWritten } = await handle.write(bytes, done, length);
          done += bytesWritten;
          written += bytesWritten;
        } catch (cause) {
          throw await failed("write", cause);
        }
      }
    },
    async commit() {
      if (handle === undefined) throw new FileError(`write: already closed: ${path}`);
      try {
        await handle.sync();
        await close();
        await rename(aside, path);
        await syncFolder(folder);
      } catch (cause) {
        throw await failed("write", cause);
      }
    },
    async abort() {
      await close().catch(() => {});
      await unlink(aside).catch(() => {});
    },
  };
}

/** Removes a file; one that is not there is no error. */
export async function removeFile(path: string): Promise<void> {
  await unlink(path).catch((cause: NodeJS.ErrnoException) => {
    if (cause.code !== "ENOENT") throw fileError("remove", path, cause);
  });
}
