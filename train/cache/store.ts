import { createHash, randomBytes } from "node:crypto";
import { mkdir, readdir, readFile, stat, unlink } from "node:fs/promises";
import { basename, join } from "node:path";
import { ConfigError } from "../../engine/errors.js";
import { ASIDE, createFile } from "../../model/files/node.js";
import { FileError } from "../../model/files/source.js";
import { dropLock, isAlive, takeLock } from "../lock.js";
import {
  bytesOf,
  type CacheDtype,
  type CacheKind,
  type Numbers,
  type PackedEntry,
  pack,
  Shard,
  unpack,
  writeShard,
} from "./shard.js";

/** New entries are gathered up to so many bytes or seconds, so that a kill loses little and files do not get many. */
const SHARD_BYTES = 64 * 2 ** 20;
const SHARD_SECONDS = 20;
/** Entries of a shard, whose header must stay small. */
const SHARD_ENTRIES = 20_000;
/** Shards kept open. */
const OPEN = 64;

const SHARD = /^shard-[0-9a-z]+-[0-9a-f]{8}\.safetensors$/;

/** One cached result. */
export interface Entry {
  tensors: Record<string, Numbers>;
  /** What else is known of it; JSON. */
  note?: unknown;
}

/** Options of `CacheStore.open`. */
export interface StoreOptions {
  /** How new entries are stored; by default as those that are there, f32 in a new cache. */
  dtype?: CacheDtype;
  /** Seconds after which new entries are written; default 20. */
  seconds?: number;
  /** Told of everything that had to be left out; by default stderr. */
  warn?: (message: string) => void;
}

interface IndexFile {
  espalier: string;
  kind: string;
  fingerprint: string;
  about: Record<string, unknown> | null;
  shards: Record<string, { bytes: number; keys: string[] }>;
}

/** A content key: the first 128 bits of SHA-256. */
export const keyOf = (...parts: string[]): string =>
  createHash("sha256").update(JSON.stringify(parts)).digest("hex").slice(0, 32);

const reasonOf = (error: unknown) => (error as Error).message;

/**
 * Results of one encoder by content key, in a folder of their own: `text-1a2b3c4d5e6f/` holds safetensors shards and
 * `index.json`. A shard is written aside and renamed, the index last; a shard says by itself what it holds, so an index
 * that is torn or behind is made again from them, and a torn shard costs its own entries only.
 */
export class CacheStore {
  private readonly places = new Map<string, string>();
  private readonly shards = new Map<string, { bytes: number; keys: string[] }>();
  /** In the order of their last use. */
  private readonly open = new Map<string, { shard: Promise<Shard>; readers: number }>();
  private readonly pending = new Map<string, PackedEntry>();
  private pendingBytes = 0;
  private lastWrite = Date.now();
  private writing: Promise<void> = Promise.resolve();
  private described: Record<string, unknown> | undefined;
  private held = false;
  private swept = false;

  private constructor(
    readonly folder: string,
    private readonly what: CacheKind,
    private readonly seconds: number,
    private readonly warn: (message: string) => void,
  ) {}

  /**
   * Opens what a cache holds of one encoder; nothing is written until something is stored.
   * @param root the cache's folder, which may hold results of many encoders
   * @throws ConfigError for a dtype other than that of what is there, FileError where the folder cannot be read
   */
  static async open(root: string, what: CacheKind, options: StoreOptions = {}): Promise<CacheStore> {
    const { dtype, seconds = SHARD_SECONDS, warn = (message: string) => console.warn(message) } = options;
    const folder = join(root, `${what.kind}-${keyOf(what.kind, what.fingerprint).slice(0, 12)}`);
    const store = new CacheStore(folder, what, seconds, warn);
    await store.read();
    const there = store.described?.dtype;
    if (dtype !== undefined && there !== undefined && dtype !== there)
      throw new ConfigError(
        `cache: ${folder} holds ${there}: ${dtype} was asked for; leave the dtype out, or take another cache folder`,
      );
    store.dtype = (there as CacheDtype | undefined) ?? dtype ?? "f32";
    return store;
  }

  /** How new entries are stored. */
  dtype: CacheDtype = "f32";

  /** What was said with `describe`; undefined in a new cache. */
  get about(): Readonly<Record<string, unknown>> | undefined {
    return this.described;
  }

  /** Says what all entries have in common, once, before the first is stored. */
  describe(about: Record<string, unknown>): void {
    this.described ??= { ...about, dtype: this.dtype };
  }

  /** Entries that can be had. */
  get size(): number {
    return new Set([...this.places.keys(), ...this.pending.keys()]).size;
  }

  has(key: string): boolean {
    return this.places.has(key) || this.pending.has(key);
  }

  /** An entry; undefined where there is none, or where it turns out to be damaged, which is said once. */
  async get(key: string): Promise<Entry | undefined> {
    const kept = this.pending.get(key) ?? (await this.load(key));
    if (kept === undefined) return undefined;
    const tensors = Object.fromEntries(Object.entries(kept.tensors).map(([name, packed]) => [name, unpack(packed)]));
    return { tensors, note: kept.note };
  }

  /**
   * Stores an entry: at once for `get`, on the disk when enough has gathered.
   * @throws FileError where the disk is full; then what was stored before is whole, and what was not stays in memory
   */
  async put(key: string, { tensors, note = null }: Entry): Promise<void> {
    if (this.described === undefined) throw new Error("cache: describe comes before put");
    const packed: PackedEntry = {
      tensors: Object.fromEntries(Object.entries(tensors).map(([name, t]) => [name, pack(t, this.dtype)])),
      note,
    };
    this.pending.set(key, packed);
    this.pendingBytes += bytesOf(packed);
    const due = Date.now() - this.lastWrite >= this.seconds * 1000;
    if (due || this.pendingBytes >= SHARD_BYTES || this.pending.size >= SHARD_ENTRIES) await this.flush();
  }

  /** Writes what has gathered. */
  flush(): Promise<void> {
    const next = this.writing.catch(() => {}).then(() => this.write());
    this.writing = next;
    next.catch(() => {});
    return next;
  }

  /**
   * Keeps other processes from encoding into this part of the cache until `close`.
   * @throws ConfigError when one does
   */
  async hold(): Promise<void> {
    await this.makeFolder();
    let owner: number | undefined;
    try {
      owner = takeLock(this.lockPath);
    } catch (error) {
      throw new ConfigError(`cache: folder not writable: ${this.folder}: ${reasonOf(error)}`);
    }
    if (owner !== undefined)
      throw new ConfigError(
        `cache: process ${owner} is writing into ${this.folder}; wait for it, or take another cache folder`,
      );
    this.held = true;
  }

  /** Writes what has gathered and closes files. */
  async close(): Promise<void> {
    try {
      await this.flush();
    } finally {
      if (this.held) dropLock(this.lockPath);
      this.held = false;
      const open = [...this.open.values()];
      this.open.clear();
      await Promise.all(open.map(({ shard }) => shard.then((s) => s.close()).catch(() => {})));
    }
  }

  private get lockPath(): string {
    return join(this.folder, "lock");
  }

  private async makeFolder(): Promise<void> {
    await mkdir(this.folder, { recursive: true }).catch((error: Error) => {
      throw new ConfigError(`cache: folder cannot be made: ${this.folder}: ${error.message}; choose another`);
    });
  }

  private async names(): Promise<string[]> {
    return readdir(this.folder).catch((error: NodeJS.ErrnoException) => {
      if (error.code === "ENOENT") return [];
      throw new FileError(`cache: folder not readable: ${this.folder}: ${error.message}`, error.code);
    });
  }

  private async readIndex(): Promise<IndexFile | undefined> {
    const path = join(this.folder, "index.json");
    let text: string;
    try {
      text = await readFile(path, "utf8");
    } catch {
      return undefined;
    }
    try {
      const index: IndexFile = JSON.parse(text);
      if (index.espalier !== "cache/1" || typeof index.shards !== "object") throw new Error("it is none of a cache");
      const { kind, fingerprint } = index;
      if (kind !== this.what.kind || fingerprint !== this.what.fingerprint)
        throw new Error(`it is of ${kind} by ${fingerprint}`);
      return index;
    } catch (error) {
      this.warn(`cache: index not readable, made again from the shards: ${path}: ${reasonOf(error)}`);
      return undefined;
    }
  }

  /** Takes in every shard of the folder: by the index where it knows one, else by the shard's own word. */
  private async read(): Promise<void> {
    const names = (await this.names()).filter((name) => SHARD.test(name)).sort();
    const index = names.length > 0 ? await this.readIndex() : undefined;
    if (index?.about) this.described = index.about;
    for (const name of Object.keys(index?.shards ?? {}))
      if (!names.includes(name))
        this.warn(`cache: skipped, missing: ${join(this.folder, name)}; its entries are made again`);
    for (const name of names) {
      const { size } = await stat(join(this.folder, name)).catch(() => ({ size: -1 }));
      const known = index?.shards[name];
      if (known?.bytes === size) this.takeIn(name, size, known.keys);
      else {
        const shard = await this.reader(name, async (opened) => opened);
        if (shard === undefined) continue;
        this.described ??= shard.about;
        this.takeIn(name, size, shard.keys());
      }
    }
  }

  /** Later shards win: an entry that was found damaged has been made again in one of them. */
  private takeIn(name: string, bytes: number, keys: string[]): void {
    this.shards.set(name, { bytes, keys });
    for (const key of keys) this.places.set(key, name);
  }

  private forget(name: string): void {
    this.shards.delete(name);
    for (const [key, place] of this.places) if (place === name) this.places.delete(key);
  }

  /** Does something with an open shard; one that does not open is left out with a warning, and gives undefined. */
  private async reader<T>(name: string, read: (shard: Shard) => Promise<T>): Promise<T | undefined> {
    const path = join(this.folder, name);
    let entry = this.open.get(name);
    this.open.delete(name);
    entry ??= { shard: Shard.open(path, this.what), readers: 0 };
    this.open.set(name, entry);
    entry.readers++;
    try {
      let shard: Shard;
      try {
        shard = await entry.shard;
      } catch (error) {
        if (this.open.get(name) === entry) {
          this.open.delete(name);
          this.warn(`cache: skipped, not readable: ${path}: ${reasonOf(error)}; its entries are made again, remove it`);
          this.forget(name);
        }
        return undefined;
      }
      return await read(shard);
    } finally {
      entry.readers--;
      for (const [other, { shard, readers }] of this.open) {
        if (this.open.size <= OPEN) break;
        if (readers > 0) continue;
        this.open.delete(other);
        shard.then((s) => s.close()).catch(() => {});
      }
    }
  }

  private async load(key: string): Promise<PackedEntry | undefined> {
    const name = this.places.get(key);
    if (name === undefined) return undefined;
    return this.reader(name, (shard) =>
      shard.read(key).catch((error: unknown) => {
        if (this.places.get(key) === name) {
          this.places.delete(key);
          this.warn(`${reasonOf(error)}; it is made again`);
        }
        return undefined;
      }),
    );
  }

  private async write(): Promise<void> {
    this.lastWrite = Date.now();
    if (this.pending.size === 0) return;
    await this.makeFolder();
    await this.sweep();
    // More may be put while these are written.
    const entries = new Map(this.pending);
    const name = `shard-${Date.now().toString(36).padStart(9, "0")}-${randomBytes(4).toString("hex")}.safetensors`;
    let bytes: number;
    try {
      bytes = await writeShard(join(this.folder, name), this.what, this.described!, entries);
    } catch (error) {
      if (error instanceof FileError && error.code === "ENOSPC")
        throw new FileError(
          `${error.message}. cache: the ${this.places.size} entries stored before are whole; with more space the same command goes on after them`,
          "ENOSPC",
          { cause: error },
        );
      throw error;
    }
    this.takeIn(name, bytes, [...entries.keys()]);
    for (const [key, entry] of entries)
      if (this.pending.get(key) === entry) {
        this.pending.delete(key);
        this.pendingBytes -= bytesOf(entry);
      }
    await this.writeIndex().catch((error: NodeJS.ErrnoException) => {
      if (error.code !== "ENOSPC") throw error;
    });
  }

  /** The index is a convenience: where another process has the lock or the disk is full, the shards speak for themselves. */
  private async writeIndex(): Promise<void> {
    if (!this.held && takeLock(this.lockPath) !== undefined) return;
    try {
      const others = (await this.names()).filter((name) => SHARD.test(name) && !this.shards.has(name));
      const theirs = others.length > 0 ? (await this.readIndex())?.shards : undefined;
      for (const name of others) if (theirs?.[name]) this.takeIn(name, theirs[name].bytes, theirs[name].keys);
      const index: IndexFile = {
        espalier: "cache/1",
        ...this.what,
        about: this.described ?? null,
        shards: Object.fromEntries(this.shards),
      };
      const sink = await createFile(join(this.folder, "index.json"));
      try {
        await sink.write(new TextEncoder().encode(JSON.stringify(index)));
        await sink.commit();
      } catch (error) {
        await sink.abort();
        throw error;
      }
    } finally {
      if (!this.held) dropLock(this.lockPath);
    }
  }

  /** Removes, once, what killed processes left half written. */
  private async sweep(): Promise<void> {
    if (this.swept) return;
    this.swept = true;
    for (const name of await this.names()) {
      const match = ASIDE.exec(name);
      if (match && !isAlive(Number(match[2]))) await unlink(join(this.folder, basename(name))).catch(() => {});
    }
  }
}
