import type { Engine } from "./engine.js";
import { EspalierError, ShapeError } from "./errors.js";
import { sameShape, show } from "./shape.js";
import type { Tensor } from "./tensor.js";

/** One recorded op: enough to print it, and to turn gradients of its outputs into gradients of its inputs. */
export interface Entry {
  op: string;
  module: string;
  /** Gradient identity and shape of each input; `leaf` is the tensor itself when the user made it. */
  inputs: { name: string; uid: number; shape: readonly number[]; needs: boolean; leaf?: Tensor }[];
  outputs: { uid: number; shape: readonly number[] }[];
  savedBytes: number;
  attrs: unknown;
  /** Gradients of the inputs, in order; undefined where none is needed. Runs in a scope with recording off. */
  backward(dys: (Tensor | undefined)[]): (Tensor | undefined)[];
  /** Instead of `backward`: records the ops between inputs and outputs anew and returns those outputs. */
  replay?(): Tensor[];
  /** Gives back what was saved. */
  release(): void;
}

/** Bytes of a gradient that may be held beside its place in an optimizer's buffer. */
const SMALL = 1 << 20;

/** A flat list of entries in the order in which ops ran; `backward` walks it in reverse. */
export class Tape {
  entries: Entry[] = [];
  /** uid of an op's output to the index of its entry. */
  private readonly made = new Map<number, number>();
  private readonly spent = new Set<number>();

  constructor(private readonly engine: Engine) {}

  record(entry: Entry): void {
    for (const o of entry.outputs) this.made.set(o.uid, this.entries.length);
    this.entries.push(entry);
  }

  isLeaf(t: Tensor): boolean {
    return !this.made.has(t.uid);
  }

  /** Drops entries from `from` on, giving back what they saved. */
  truncate(from: number): void {
    for (let i = this.entries.length - 1; i >= from; i--) this.drop(i);
    this.entries.length = from;
  }

  private drop(i: number): void {
    const entry = this.entries[i];
    for (const o of entry.outputs) this.made.delete(o.uid);
    entry.release();
  }

  backward(loss: Tensor, gradient: Tensor | undefined, retain: boolean): void {
    loss.check("backward");
    const { engine } = this;
    const start = this.made.get(loss.uid);
    if (start === undefined) {
      if (this.spent.has(loss.uid))
        throw new EspalierError(
          "backward: this graph was already walked and freed; pass { retainGraph: true } the first time.",
        );
      throw new EspalierError(
        `backward: nothing to differentiate: ${loss.describe()} does not depend on a tensor that requires a gradient (or was computed under noGrad).`,
      );
    }
    if (!gradient && loss.size !== 1)
      throw new ShapeError(
        `backward: needs one number or a gradient: got ${show(loss.shape)}; reduce it with mean() or pass a gradient of its shape.`,
      );
    if (gradient && !sameShape(gradient.shape, loss.shape))
      throw new ShapeError(
        `backward: the gradient's shape differs: ${show(gradient.shape)} for ${show(loss.shape)}; they must be equal.`,
      );
    const grads = new Map<number, Tensor>();
    engine.noGrad(() =>
      engine.scope(() => {
        grads.set(loss.uid, gradient ? gradient.alias() : engine.full(loss.shape, 1, loss.dtype));
        this.walk(start, 0, grads, retain);
      }),
    );
    if (!retain) this.entries.splice(0, start + 1);
    if (this.entries.length === 0) this.made.clear();
    else if (!retain) this.reindex();
    if (this.spent.size > 100_000) this.spent.clear();
  }

  /** Turns gradients of outputs into gradients of inputs, from entry `start` down to entry `floor`. */
  private walk(start: number, floor: number, grads: Map<number, Tensor>, retain: boolean): void {
    for (let i = start; i >= floor; i--) {
      const entry = this.entries[i];
      const dys = entry.outputs.map((o) => grads.get(o.uid));
      if (dys.some((d) => d)) {
        for (const o of entry.outputs) grads.delete(o.uid);
        this.engine.inModule(entry.module, () =>
          entry.replay ? this.replay(entry.replay, dys, grads) : this.step(entry, dys, grads),
        );
        for (const d of dys) d?.dispose();
      }
      if (!retain) {
        for (const o of entry.outputs) this.spent.add(o.uid);
        this.drop(i);
      }
    }
  }

  /**
   * Walks what a checkpoint recorded anew. It shares `grads`, so that sums form in the order they have without a
   * checkpoint: the result is equal to the last bit.
   */
  private replay(record: () => Tensor[], dys: (Tensor | undefined)[], grads: Map<number, Tensor>): void {
    const mark = this.entries.length;
    try {
      const outs = this.engine.withGrad(record);
      const made = outs.filter((o) => (this.made.get(o.uid) ?? -1) >= mark);
      outs.forEach((o, j) => {
        const dy = dys[j];
        if (dy && o.requiresGrad) this.flow(o.uid, dy.alias(), grads);
      });
      this.walk(this.entries.length - 1, mark, grads, false);
      for (const o of made) o.dispose();
    } finally {
      this.truncate(mark);
    }
  }

  /** Adds a gradient, which it takes over, to what has flowed to `uid` so far. */
  private flow(uid: number, g: Tensor, grads: Map<number, Tensor>): void {
    const old = grads.get(uid);
    if (!old) grads.set(uid, g);
    else {
      grads.set(uid, this.engine.add(old, g));
      old.dispose();
      g.dispose();
    }
  }

  private reindex(): void {
    this.made.clear();
    this.entries.forEach((e, i) => {
      for (const o of e.outputs) this.made.set(o.uid, i);
    });
  }

  private step(entry: Entry, dys: (Tensor | undefined)[], grads: Map<number, Tensor>): void {
    const { engine } = this;
    const list = engine.scope(() => entry.backward(dys));
    engine.anomalyCheck(list, `${entry.op} backward`);
    // A thunk may hand on dy itself, or one result for two inputs: each input gets a handle of its own.
    const handed = new Set(dys);
    entry.inputs.forEach((input, k) => {
      const result = list[k];
      if (!result || !input.needs) return;
      const raw = handed.has(result) ? result.alias() : result;
      handed.add(result);
      // Broadcasting is undone here, once for all ops.
      const g = sameShape(raw.shape, input.shape) ? raw : engine.sumTo(raw, input.shape);
      if (g !== raw) raw.dispose();
      if (input.leaf) this.accumulate(input.leaf, g);
      else this.flow(input.uid, g, grads);
    });
  }

  /** Gives an optimizer's place the values of a gradient. A plan makes the gradient there, instead of the copy. */
  private settle(place: Tensor, g: Tensor): void {
    const { engine } = this;
    if (!engine.trace || !g.isContiguous) {
      engine.addTo(place, g, true);
      return;
    }
    const range = ({ storage, offset, bytes }: Tensor) => ({ storage, offset: 4 * offset, size: bytes });
    engine.queue.copy(range(g), range(place), g.bytes);
  }

  private accumulate(leaf: Tensor, g: Tensor): void {
    const { engine } = this;
    const old = leaf.grad;
    const place = leaf.gradPlace;
    // A small first gradient stays where it is: an optimizer gathers all of those by one batch of copies, without launches.
    if (place && (old || place.bytes > SMALL)) {
      if (old && old.storage !== place.storage) {
        this.settle(place, old);
        old.dispose();
        leaf.grad = undefined;
      }
      if (old) engine.addTo(place, g, false);
      else this.settle(place, g);
      g.dispose();
      leaf.grad ??= place.view(place.shape, place.strides, place.offset, "backward").keep();
      return;
    }
    let next: Tensor;
    if (old) {
      next = engine.add(old, g);
      g.dispose();
      old.dispose();
    } else if (g.storage.refs > 1 || !g.isContiguous) {
      // A gradient that is a view of another would keep more memory alive than it needs.
      next = engine.copy(g);
      g.dispose();
    } else next = g;
    next.storage.owned.owner = "gradients";
    leaf.grad = next.keep();
  }

  /** A table of what is recorded: op, shapes, bytes saved, module. */
  print(): string {
    const rows = this.entries.map((e, i) => [
      `${i}`,
      e.op,
      e.inputs.map((x) => `${x.name}${show(x.shape)}${x.needs ? "*" : ""}`).join(" "),
      e.outputs.map((o) => show(o.shape)).join(" "),
      `${e.savedBytes}`,
      e.module,
    ]);
    const head = ["#", "op", "inputs (* wants a gradient)", "outputs", "saved bytes", "module"];
    const widths = head.map((h, c) => Math.max(h.length, ...rows.map((r) => r[c].length)));
    return [head, ...rows]
      .map((r) =>
        r
          .map((s, c) => s.padEnd(widths[c]))
          .join("  ")
          .trimEnd(),
      )
      .join("\n");
  }
}
