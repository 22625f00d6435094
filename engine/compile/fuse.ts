import type { Engine } from "../engine.js";
import type { Storage } from "../memory.js";
import type { Command } from "./trace.js";

/** Joins commands into fewer that compute the same. `kept` are storages that outlive the call. */
export function fuse(_engine: Engine, commands: readonly Command[], _kept: (s: Storage) => boolean): Command[] {
  return [...commands];
}
