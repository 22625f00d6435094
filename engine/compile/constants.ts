import type { Engine } from "../engine.js";
import type { Storage } from "../memory.js";
import type { Bound } from "../queue.js";
import { type Command, touches } from "./trace.js";

/** Storages that are filled from the host and by nothing else: constants, which are filled once. */
function constantsOf(commands: readonly Command[]): Map<Storage, Uint8Array[]> {
  const uploads = new Map<Storage, Uint8Array[]>();
  for (const c of commands)
    if (c.kind === "upload") uploads.set(c.to.storage, [...(uploads.get(c.to.storage) ?? []), c.bytes]);
  for (const c of commands)
    if (c.kind !== "upload") for (const { storage } of touches(c).writes) uploads.delete(storage);
  return uploads;
}

/** Gives a storage of a trace memory of its own, which `own` keeps. */
export function hold(s: Storage, own: Storage[]): void {
  s.realize();
  s.owned.owner = s.owned.owner === "saved" ? "activations" : s.owned.owner;
  own.push(s.retain());
}

/** Constants of up to this many bytes are compared, so that equal ones are kept once. */
const SMALL = 4096;

/**
 * Fills constants now; what is filled anew in each call gets a copy from a constant instead of the upload.
 * @param own takes the storages that are kept for it
 */
export function fill(engine: Engine, commands: readonly Command[], own: Storage[]): Command[] {
  const constants = constantsOf(commands);
  const known = new Map<string, Storage>();
  const same = new Map<Storage, Storage>();
  for (const [storage, parts] of constants) {
    if (!storage.isVirtual) continue;
    const key = parts.length === 1 && parts[0].length <= SMALL ? `${storage.bytes} ${parts[0]}` : undefined;
    const twin = key !== undefined ? known.get(key) : undefined;
    if (twin) {
      same.set(storage, twin);
      continue;
    }
    hold(storage, own);
    if (key !== undefined) known.set(key, storage);
  }
  const moved = (b: Bound): Bound => ({ ...b, storage: same.get(b.storage) ?? b.storage });
  return commands.flatMap((c): Command[] => {
    if (c.kind === "launch")
      return [same.size ? { kind: "launch", launch: { ...c.launch, bound: c.launch.bound.map(moved) } } : c];
    if (c.kind === "copy") return [{ ...c, from: moved(c.from) }];
    if (c.kind === "clear" || same.has(c.to.storage)) return c.kind === "clear" ? [c] : [];
    if (constants.has(c.to.storage) && own.includes(c.to.storage)) {
      engine.queue.upload(c.to, c.bytes);
      return [];
    }
    // Written to by others too, or not ours: each call writes it again.
    const bytes = Math.ceil(c.bytes.length / 4) * 4;
    const master = engine.memoryPool.take(Math.max(16, bytes), "plan", "constant");
    own.push(master);
    const from = { storage: master, offset: 0, size: bytes };
    engine.queue.upload(from, c.bytes);
    return [{ kind: "copy", from, to: c.to, bytes, label: c.label }];
  });
}
