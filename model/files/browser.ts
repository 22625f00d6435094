import { type ByteSink, type ByteSource, blobSource, FileError } from "./source.js";
import { urlSource } from "./url.js";

// Paths such as `opfs:models/base.safetensors` lie in the page's own private file system.
const OWN = "opfs:";

async function ownFolder(path: string, create: boolean): Promise<[FileSystemDirectoryHandle, string]> {
  if (!path.startsWith(OWN))
    throw new FileError(
      `write: not a page's file: "${path}"; a page writes to "${OWN}NAME", to memorySink(), or to a sink of its own`,
    );
  const parts = path.slice(OWN.length).split("/").filter(Boolean);
  const name = parts.pop();
  if (name === undefined) throw new FileError(`open: no file name: "${path}"; give ${OWN}NAME`);
  let folder = await navigator.storage.getDirectory();
  for (const part of parts) folder = await folder.getDirectoryHandle(part, { create });
  return [folder, name];
}

/** Opens an address (relative to the page) or an `opfs:` path for reading in ranges. Throws FileError. */
export async function openFile(location: string | URL): Promise<ByteSource> {
  const text = String(location);
  if (!text.startsWith(OWN)) return urlSource(new URL(text, globalThis.location.href));
  try {
    const [folder, name] = await ownFolder(text, false);
    return blobSource(await (await folder.getFileHandle(name)).getFile());
  } catch (cause) {
    if (cause instanceof FileError) throw cause;
    throw new FileError(`open: no such file or folder: ${text}`, "ENOENT", { cause });
  }
}

/** The location of `file` in the folder that holds `location`. */
export function siblingOf(location: string | URL, file: string): string {
  const text = String(location);
  if (text.startsWith(OWN)) return text.slice(0, Math.max(OWN.length, text.lastIndexOf("/") + 1)) + file;
  return new URL(encodeURIComponent(file), new URL(text, globalThis.location.href)).href;
}

/** Bytes that the page may still store; undefined where the browser does not say. */
export async function freeBytes(_location: string): Promise<number | undefined> {
  const { quota, usage } = await navigator.storage.estimate();
  return quota === undefined || usage === undefined ? undefined : quota - usage;
}

/** A sink for an `opfs:` path. The browser writes to a swap file, which replaces the old one only on `commit`. */
export async function createFile(path: string): Promise<ByteSink> {
  const [folder, name] = await ownFolder(path, true);
  const isNew = await folder.getFileHandle(name).then(
    () => false,
    () => true,
  );
  const stream = await (await folder.getFileHandle(name, { create: true })).createWritable();
  const failed = (cause: unknown): FileError =>
    (cause as DOMException).name === "QuotaExceededError"
      ? new FileError(`write: disk full: ${path} does not fit into the page's quota; free some space`, "ENOSPC", {
          cause,
        })
      : new FileError(`write: ${(cause as Error).message}: ${path}`, undefined, { cause });
  return {
    name: path,
    async write(bytes) {
      await stream.write(bytes as Uint8Array<ArrayBuffer>).catch((cause: unknown) => {
        throw failed(cause);
      });
    },
    async commit() {
      await stream.close().catch((cause: unknown) => {
        throw failed(cause);
      });
    },
    async abort() {
      await stream.abort().catch(() => {});
      if (isNew) await folder.removeEntry(name).catch(() => {});
    },
  };
}

/** Removes an `opfs:` file; one that is not there is no error. */
export async function removeFile(path: string): Promise<void> {
  const [folder, name] = await ownFolder(path, true);
  await folder.removeEntry(name).catch((cause: DOMException) => {
    if (cause.name !== "NotFoundError") throw new FileError(`remove: ${cause.message}: ${path}`, undefined, { cause });
  });
}
