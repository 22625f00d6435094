import type { Storage } from "../memory.js";
import { type Command, touches } from "./trace.js";

/** Drops commands whose results nobody reads. `kept` are storages that outlive the call. */
export function withoutDead(commands: readonly Command[], kept: (s: Storage) => boolean): Command[] {
  const wanted = new Set<Storage>();
  const live: Command[] = [];
  for (let i = commands.length - 1; i >= 0; i--) {
    const c = commands[i];
    const { reads, writes } = touches(c);
    if (!writes.some(({ storage }) => kept(storage) || wanted.has(storage))) continue;
    for (const b of [...reads, ...writes]) wanted.add(b.storage);
    live.push(c);
  }
  return live.reverse();
}
