import type { Engine } from "../engine.js";
import type { Storage } from "../memory.js";
import { outputsOf } from "./element.js";
import { launchOf, MOST_SUMS } from "./emit.js";
import { Group, type Member } from "./group.js";
import { type Command, touches } from "./trace.js";

/** A place in the order of work: a group, or a command that stays as it is. */
interface Item {
  group?: Group;
  commands: Command[];
  reads: Set<Storage>;
  writes: Set<Storage>;
}

/** How far back a partner is looked for: what lies further away has left the caches. */
const WINDOW = 48;

function itemOf(c: Command): Item {
  const { reads, writes } = touches(c);
  return {
    commands: [c],
    reads: new Set(reads.map((b) => b.storage)),
    writes: new Set(writes.map((b) => b.storage)),
  };
}

function memberOf(c: Command): Member | undefined {
  if (c.kind !== "launch" || !c.launch.meaning) return undefined;
  const { kernel, bound, meaning, label } = c.launch;
  const storages = kernel.bindings.filter((b) => b.type !== "uniform");
  return { meaning, to: bound[storages.findIndex((b) => b.type === "storage")], label, launch: c.launch };
}

const touching = (a: Set<Storage>, b: Set<Storage>): boolean => {
  for (const s of a) if (b.has(s)) return true;
  return false;
};

/** Whether two items may change places: neither writes what the other touches. */
const swappable = (a: Item, b: Item): boolean =>
  !touching(a.writes, b.reads) && !touching(a.writes, b.writes) && !touching(b.writes, a.reads);

/** Takes `c` into the group of item `i`, which moves to the end or draws `c` forward; false where neither is allowed. */
function join(items: Item[], i: number, c: Item, m: Member): boolean {
  const item = items[i];
  const between = items.slice(i + 1);
  const sinks = between.every((x) => swappable(item, x));
  if (!sinks && !between.every((x) => swappable(c, x))) return false;
  item.group!.join(m);
  item.commands.push(...c.commands);
  for (const s of c.reads) item.reads.add(s);
  for (const s of c.writes) item.writes.add(s);
  if (sinks) items.push(...items.splice(i, 1));
  return true;
}

/** Joins commands into fewer that compute the same. `kept` are storages that outlive the call. */
export function fuse(engine: Engine, commands: readonly Command[], kept: (s: Storage) => boolean): Command[] {
  const items: Item[] = [];
  // What is summed next must not be computed where sums cannot be.
  const summed = new Set<Storage>();
  for (const c of commands)
    if (c.kind === "launch" && c.launch.meaning?.kind === "sum") summed.add(c.launch.meaning.operands[0].storage);
  for (const c of commands) {
    const item = itemOf(c);
    const member = memberOf(c);
    let joined = false;
    if (member)
      for (let i = items.length - 1; i >= Math.max(0, items.length - WINDOW) && !joined; i--) {
        const { group } = items[i];
        if (!group?.isNear(member) || (group.anchor && summed.has(member.meaning.y.storage))) continue;
        if (!group.accepts(member)) continue;
        const sums = [...group.members, member].filter((m) => m.meaning.kind === "sum").length;
        joined = sums <= MOST_SUMS && join(items, i, item, member);
      }
    if (joined) continue;
    items.push(member ? { ...item, group: new Group(member, engine.limits) } : item);
  }
  /** Items that touch a storage. */
  const users = new Map<Storage, Set<Item>>();
  for (const item of items)
    for (const s of [...item.reads, ...item.writes]) users.set(s, (users.get(s) ?? new Set()).add(item));
  return items.flatMap((item): Command[] => {
    const { group, commands } = item;
    const layout = group && commands.length > 1 ? group.layout() : undefined;
    if (!group || !layout) return commands;
    const needed = (i: number) => {
      const { storage } = group.members[i].meaning.y;
      return kept(storage) || users.get(storage)!.size > 1;
    };
    const outputs = outputsOf(group, needed);
    return [{ kind: "launch", launch: launchOf(engine, group, layout, outputs) }];
  });
}
