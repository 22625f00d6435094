import type { Engine } from "../engine.js";
import { EspalierError } from "../errors.js";
import type { MemoryTrace, Storage } from "../memory.js";
import type { Bound, CommandTrace, Launch } from "../queue.js";
import type { Tensor } from "../tensor.js";

/** A command as a function gave it while it was traced. */
export type Command =
  | { kind: "launch"; launch: Launch }
  | { kind: "copy"; from: Bound; to: Bound; bytes: number; label: string }
  | { kind: "clear"; to: Bound; label: string }
  | { kind: "upload"; to: Bound; bytes: Uint8Array; label: string };

/** The ranges that a command reads and those that it writes; what a kernel may do both to is in both lists. */
export function touches(c: Command): { reads: readonly Bound[]; writes: readonly Bound[] } {
  if (c.kind === "copy") return { reads: [c.from], writes: [c.to] };
  if (c.kind !== "launch") return { reads: [], writes: [c.to] };
  const { kernel, bound, meaning } = c.launch;
  const storages = kernel.bindings.filter((b) => b.type !== "uniform");
  const writes = bound.filter((_, i) => storages[i].type === "storage");
  // What a launch with a meaning writes it writes whole, and reads nothing of what lay there.
  const reads = meaning ? bound.filter((_, i) => storages[i].type !== "storage") : bound;
  return { reads, writes };
}

/** All storages that a command touches. */
export function storagesOf(c: Command): Storage[] {
  const { reads, writes } = touches(c);
  return [...new Set([...reads, ...writes].map((b) => b.storage))];
}

/**
 * What a function did, without anything having been done: commands, the memory they name, and what of the outside it
 * looked at. Set as the engine's trace while the function runs.
 */
export class Trace implements CommandTrace, MemoryTrace {
  readonly commands: Command[] = [];
  /** Storages that were taken meanwhile. They have no memory. */
  readonly made = new Set<Storage>();
  /** What is to be done on the host before each call. */
  readonly hooks: (() => void)[] = [];
  /** Where the gradient of each tensor lay that was asked for or set, before the function ran. */
  readonly leaves = new Map<Tensor, Storage | undefined>();
  private readonly gone = new Set<Storage>();

  constructor(private readonly engine: Engine) {}

  launch(launch: Launch): void {
    this.commands.push({ kind: "launch", launch });
  }
  copy(from: Bound, to: Bound, bytes: number): void {
    this.commands.push({ kind: "copy", from, to, bytes, label: this.engine.modulePath });
  }
  clear(to: Bound): void {
    this.commands.push({ kind: "clear", to, label: this.engine.modulePath });
  }
  upload(to: Bound, bytes: Uint8Array): void {
    this.commands.push({ kind: "upload", to, bytes: bytes.slice(), label: this.engine.modulePath });
  }
  taken(storage: Storage): void {
    this.made.add(storage);
  }
  freed(storage: Storage): void {
    if (!storage.isVirtual) this.gone.add(storage);
  }
  leaf(t: Tensor, grad: Tensor | undefined): void {
    if (!this.leaves.has(t)) this.leaves.set(t, grad?.storage);
  }

  /** Runs `f` under this trace. */
  run<T>(f: () => T): T {
    const { engine } = this;
    const mark = engine.tape.entries.length;
    try {
      return engine.traced(this, f);
    } catch (error) {
      if (engine.tape.entries.length > mark) engine.tape.truncate(mark);
      throw error;
    }
  }

  /** Throws when the function freed memory that its commands use and that is not its own. */
  check(): void {
    if (!this.gone.size) return;
    for (const c of this.commands)
      for (const s of storagesOf(c))
        if (this.gone.has(s))
          throw new EspalierError(
            `compile: the function frees a tensor that it did not make (${s.owned.what}), which the next call would miss; free it outside, or clear gradients with zeroGrad() before the call.`,
          );
  }
}
