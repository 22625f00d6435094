import { mkdir, readdir, stat, unlink } from "node:fs/promises";
import { join } from "node:path";
import { EspalierError } from "../engine/errors.js";
import { ASIDE } from "../model/files/node.js";
import { openSafetensors, type Safetensors, type SafetensorsEntry, writeSafetensors } from "../model/safetensors.js";

const NAME = /^checkpoint-(\d{6,})\.safetensors$/;

/** A checkpoint that cannot be written, or one that is not what its name says. */
export class CheckpointError extends EspalierError {
  override name = "CheckpointError";
}

/** Values that JSON holds exactly. */
export type Json = null | boolean | number | string | readonly Json[] | { readonly [key: string]: Json };

/** What a checkpoint holds: tensors (`model.*`, `ema.*`, `optimizer.*` …) and named values (config, cursor, keys). */
export interface CheckpointContent {
  readonly tensors: readonly SafetensorsEntry[];
  readonly state: Readonly<Record<string, Json>>;
}

/** A checkpoint on disk. */
export interface CheckpointFile {
  readonly step: number;
  readonly path: string;
  readonly bytes: number;
}

/** A checkpoint opened for reading: tensors are read on demand; close `file` when done. */
export interface Checkpoint {
  readonly step: number;
  readonly path: string;
  readonly file: Safetensors;
  readonly state: Readonly<Record<string, Json>>;
}

/** A value's JSON. Throws for what JSON would change in silence, such as NaN, undefined or a typed array. */
function encodeState(name: string, value: Json): string {
  const check = (path: string, at: unknown): void => {
    if (at === null || typeof at === "string" || typeof at === "boolean") return;
    if (typeof at === "number" && Number.isFinite(at)) return;
    if (Array.isArray(at)) {
      for (const [i, item] of at.entries()) check(`${path}[${i}]`, item);
      return;
    }
    if (typeof at === "object" && Object.getPrototypeOf(at) === Object.prototype) {
      for (const [key, item] of Object.entries(at)) if (item !== undefined) check(`${path}.${key}`, item);
      return;
    }
    const given = typeof at === "object" ? at?.constructor?.name : String(at);
    throw new CheckpointError(
      `checkpoint: not JSON: state.${path} is ${given}; store numbers, text, lists and objects`,
    );
  };
  check(name, value);
  return JSON.stringify(value);
}

/**
 * Opens one checkpoint file and checks it: a whole safetensors file whose metadata says that it is a checkpoint.
 * Throws SafetensorsError, FileError or CheckpointError.
 */
export async function openCheckpoint(path: string): Promise<Checkpoint> {
  const file = await openSafetensors(path);
  try {
    const { espalier, step, ...rest } = file.metadata;
    if (espalier !== "checkpoint/1")
      throw new CheckpointError(
        `checkpoint: not a checkpoint: ${path} says ${espalier === undefined ? "nothing" : `"${espalier}"`} of its kind; "checkpoint/1" is read here`,
      );
    const state: Record<string, Json> = {};
    for (const [key, text] of Object.entries(rest)) {
      try {
        state[key] = JSON.parse(text);
      } catch (cause) {
        throw new CheckpointError(`checkpoint: state is not JSON: "${key}" of ${path}`, { cause });
      }
    }
    if (!/^\d+$/.test(step ?? "")) throw new CheckpointError(`checkpoint: no step: ${path} says "${step}"`);
    return { step: Number(step), path, file, state };
  } catch (error) {
    await file.close();
    throw error;
  }
}

/** True while the process that wrote a file aside lives, so that its file is not taken for one left behind. */
function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === "EPERM";
  }
}

/**
 * The checkpoints of one run: files `checkpoint-000123.safetensors` of one folder, the newest `keep` of them. Each is
 * written aside, flushed and renamed, so that being killed at any moment never leaves an unreadable newest one.
 */
export class CheckpointFolder {
  readonly dir: string;
  readonly keep: number;
  readonly #warn: (message: string) => void;
  // Once, before the first save: later ones may run side by side, and their files aside are in use.
  #swept: Promise<void> | undefined;

  /** @param warn is told of every checkpoint that had to be skipped; by default stderr. */
  constructor(dir: string, keep = 3, warn: (message: string) => void = (message) => console.warn(message)) {
    if (!(Number.isInteger(keep) && keep >= 1))
      throw new CheckpointError(`checkpoint: bad count: keep is ${keep}; keep at least 1`);
    this.dir = dir;
    this.keep = keep;
    this.#warn = warn;
  }

  /** The path of a step's checkpoint. */
  pathOf(step: number): string {
    return join(this.dir, `checkpoint-${String(step).padStart(6, "0")}.safetensors`);
  }

  /** Every checkpoint in the folder by step, oldest first, whether it opens or not. A missing folder has none. */
  async list(): Promise<CheckpointFile[]> {
    const found: CheckpointFile[] = [];
    for (const name of await this.#names()) {
      const match = NAME.exec(name);
      if (match === null) continue;
      const path = join(this.dir, name);
      // One may be removed by another process between the two calls.
      const about = await stat(path).catch(() => undefined);
      if (about?.isFile()) found.push({ step: Number(match[1]), path, bytes: about.size });
    }
    return found.sort((a, b) => a.step - b.step);
  }

  async #names(): Promise<string[]> {
    return readdir(this.dir).catch((error: NodeJS.ErrnoException) => {
      if (error.code === "ENOENT") return [];
      throw new CheckpointError(`checkpoint: folder not readable: ${this.dir}: ${error.message}`, { cause: error });
    });
  }

  /**
   * Writes the checkpoint of a step, atomically, then removes the oldest beyond `keep`. Throws FileError where the disk
   * is full: the earlier checkpoints are then still there.
   * @returns the file's path
   */
  async save(step: number, content: CheckpointContent): Promise<string> {
    if (!(Number.isSafeInteger(step) && step >= 0)) throw new CheckpointError(`checkpoint: bad step: ${step}`);
    const metadata: Record<string, string> = { espalier: "checkpoint/1", step: String(step) };
    for (const [key, value] of Object.entries(content.state)) {
      if (key in metadata)
        throw new CheckpointError(`checkpoint: reserved name: state.${key}; the folder writes it itself`);
      metadata[key] = encodeState(key, value);
    }
    await mkdir(this.dir, { recursive: true });
    this.#swept ??= this.#sweep();
    await this.#swept;
    const path = this.pathOf(step);
    await writeSafetensors(path, content.tensors, metadata);
    const files = await this.list();
    for (const old of files.slice(0, -this.keep)) if (old.step !== step) await unlink(old.path).catch(() => {});
    return path;
  }

  /** Removes files that killed processes left aside; one of this process's own number is from an earlier life of it. */
  async #sweep(): Promise<void> {
    for (const name of await this.#names()) {
      const match = ASIDE.exec(name);
      if (match === null || !NAME.test(match[1])) continue;
      const pid = Number(match[2]);
      if (pid === process.pid || !isAlive(pid)) await unlink(join(this.dir, name)).catch(() => {});
    }
  }

  /** The newest checkpoint that opens and is whole, or undefined. Those that do not are skipped with a warning. */
  async latest(): Promise<Checkpoint | undefined> {
    for (const { path } of (await this.list()).reverse()) {
      try {
        return await openCheckpoint(path);
      } catch (error) {
        this.#warn(`checkpoint: skipped, not readable: ${path}: ${(error as Error).message}`);
      }
    }
    return undefined;
  }

  /** Opens the checkpoint of one step. Throws CheckpointError naming the steps there are. */
  async open(step: number): Promise<Checkpoint> {
    const files = await this.list();
    const found = files.find((file) => file.step === step);
    if (found !== undefined) return openCheckpoint(found.path);
    const steps = files.map((file) => file.step).join(", ");
    throw new CheckpointError(
      `checkpoint: no such step: ${step} in ${this.dir}; ${steps ? `there are ${steps}` : "it has none"}`,
    );
  }

  /**
   * Removes checkpoints of later steps. A run that goes on from `step` calls it first, so that a later one, torn or of
   * another course, is not taken for its newest.
   */
  async removeAfter(step: number): Promise<void> {
    for (const file of await this.list()) if (file.step > step) await unlink(file.path);
  }
}
