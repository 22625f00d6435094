import type { Storage } from "../memory.js";
import type { Bound } from "../queue.js";
import { type Command, touches } from "./trace.js";

/** Where what is made in a storage of the plan's own is wanted in the end: a range of one outside. */
interface Move {
  to: Bound;
  /** The command that copies it there. */
  at: number;
}

const overlap = (a: Bound, b: Bound): boolean =>
  a.storage === b.storage && a.offset < b.offset + b.size && b.offset < a.offset + a.size;

/** Every command that touches each storage. */
function usersOf(commands: readonly Command[]): Map<Storage, number[]> {
  const users = new Map<Storage, number[]>();
  commands.forEach((c, i) => {
    const { reads, writes } = touches(c);
    for (const storage of new Set([...reads, ...writes].map((b) => b.storage))) {
      const list = users.get(storage);
      if (list) list.push(i);
      else users.set(storage, [i]);
    }
  });
  return users;
}

/** Whether a launch may bind `storage` beside the others of `group`: WebGPU takes one buffer either to read or to write. */
function mixes(c: Command, group: (s: Storage) => boolean): boolean {
  const { reads, writes } = touches(c);
  const written = writes.filter((b) => group(b.storage));
  return written.length > 0 && reads.some((b) => group(b.storage) && !writes.includes(b));
}

/**
 * Lets what is copied whole to a place outside be made in that place: no copy, and no memory of its own. So gradients go
 * straight into an optimizer's buffers.
 * @param fixed storages that must stay what they are
 */
export function settle(commands: readonly Command[], align: number, fixed: (s: Storage) => boolean): Command[] {
  const users = usersOf(commands);
  const moves = new Map<Storage, Move>();
  const placed = new Map<Storage, Storage[]>();
  commands.forEach((c, at) => {
    if (c.kind !== "copy" || c.from.offset !== 0 || c.to.offset % align || fixed(c.from.storage)) return;
    // A kernel may write whole vectors of four numbers, and what lies beside is another's.
    if (c.bytes % 16) return;
    const { storage } = c.from;
    const to: Bound = { ...c.to, size: c.bytes };
    if (!storage.isVirtual || to.storage.isVirtual || moves.has(storage)) return;
    const mine = users.get(storage)!;
    // Nothing may look at either place while the value is on its way, nor at the old one afterwards.
    if (mine[mine.length - 1] !== at) return;
    const isBusy = users.get(to.storage)!.some((i) => {
      if (i < mine[0] || i >= at) return false;
      const { reads, writes } = touches(commands[i]);
      return [...reads, ...writes].some((b) => overlap(b, to));
    });
    if (isBusy) return;
    const others = placed.get(to.storage) ?? [];
    const group = (s: Storage) => s === to.storage || s === storage || others.includes(s);
    if (mine.some((i) => i !== at && commands[i].kind === "launch" && mixes(commands[i], group))) return;
    if (mine.some((i) => i !== at && commands[i].kind !== "launch")) return;
    moves.set(storage, { to, at });
    placed.set(to.storage, [...others, storage]);
  });
  if (!moves.size) return [...commands];
  const gone = new Set([...moves.values()].map(({ at }) => at));
  const moved = (b: Bound): Bound => {
    const to = moves.get(b.storage)?.to;
    return to ? { storage: to.storage, offset: to.offset + b.offset, size: Math.min(b.size, to.size - b.offset) } : b;
  };
  return commands
    .filter((_, i) => !gone.has(i))
    .map((c) =>
      c.kind === "launch" ? { kind: "launch", launch: { ...c.launch, bound: c.launch.bound.map(moved) } } : c,
    );
}
