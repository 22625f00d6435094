import { bytesOf, type DType } from "../dtype.js";
import type { Engine } from "../engine.js";
import type { Storage } from "../memory.js";
import type { Bound, Program, Step } from "../queue.js";
import { type Shape, sizeOf } from "../shape.js";
import { Tensor } from "../tensor.js";
import { fill, hold } from "./constants.js";
import { withoutDead } from "./dead.js";
import { fuse } from "./fuse.js";
import { settle } from "./settle.js";
import type { Life, Slots } from "./slots.js";
import { type Command, storagesOf, type Trace } from "./trace.js";
import { Uniforms } from "./uniforms.js";

/** A tensor of the trace as a place in memory. */
export interface Spot {
  storage: Storage;
  shape: Shape;
  strides: readonly number[];
  offset: number;
  dtype: DType;
}

export const spotOf = ({ storage, shape, strides, offset, dtype }: Tensor): Spot => ({
  storage,
  shape,
  strides,
  offset,
  dtype,
});

/** What a traced function was given and gave back. */
export interface Ends {
  inputs: readonly Spot[];
  /** Dense tensors that are copied out after each call. */
  outputs: readonly Spot[];
}

/**
 * A traced function as a list of commands with memory and bind groups of their own: a call records them again, and
 * makes nothing.
 */
export class Plan {
  readonly commands: readonly Command[];
  /** Commands before anything was fused or dropped. */
  readonly traced: number;
  /** Missing where nothing can run: a dry engine. */
  private readonly program: Program | undefined;
  private readonly uniforms: Uniforms | undefined;
  private readonly homes: Map<Storage, Storage>;
  private readonly giveBack: () => void;
  /** Storages that only this plan keeps: constants, and what the function left behind. */
  private readonly own: Storage[] = [];
  /** What lies outside, as it was when the plan was made. */
  private readonly outside: { storage: Storage; life: number; shown: number }[];
  private readonly before: Map<Tensor, Storage | undefined>;
  private readonly after = new Map<Tensor, Spot | undefined>();
  private readonly hooks: readonly (() => void)[];

  constructor(
    private readonly engine: Engine,
    trace: Trace,
    private readonly ends: Ends,
    slots: Slots,
  ) {
    trace.check();
    this.hooks = trace.hooks;
    this.traced = trace.commands.length;
    this.before = new Map([...trace.leaves].filter(([leaf]) => !leaf.isDisposed));
    for (const leaf of this.before.keys()) this.after.set(leaf, leaf.grad && spotOf(leaf.grad));
    const outputs = new Set(ends.outputs.map((o) => o.storage));
    // What the function kept in spite of its end lives on in memory of its own.
    const escaped = [...trace.made].filter((s) => s.refs > 0);
    for (const s of escaped) hold(s, this.own);
    const kept = (s: Storage) => !trace.made.has(s) || s.refs > 0 || outputs.has(s);
    const commands = withoutDead(fuse(engine, withoutDead(trace.commands, kept), kept), kept);
    const fixed = (s: Storage) => kept(s) || ends.inputs.some((i) => i.storage === s);
    this.commands = fill(engine, settle(commands, engine.bindingAlignment, fixed), this.own);
    const [lives, outside] = this.lives(outputs, trace.made);
    this.outside = outside.map((storage) => ({ storage, life: storage.life, shown: storage.shown }));
    const { homes, release } = this.assign(slots, lives);
    this.homes = homes;
    this.giveBack = release;
    if (engine.memoryPool.dry) return;
    const launches = this.commands.flatMap((c) => (c.kind === "launch" ? [c.launch.kernel] : []));
    this.uniforms = new Uniforms(engine, launches);
    this.program = this.assemble(this.uniforms);
    this.uniforms.write();
  }

  /** How long each storage of the plan's own is needed, and the storages from outside. */
  private lives(outputs: Set<Storage>, made: Set<Storage>): [Life[], Storage[]] {
    const lives = new Map<Storage, Life>();
    const outside = new Set<Storage>();
    const touch = (storage: Storage, i: number) => {
      if (!storage.isVirtual) {
        if (!made.has(storage) && !this.own.includes(storage)) outside.add(storage);
        return;
      }
      const life = lives.get(storage);
      if (life) life.last = i;
      else lives.set(storage, { storage, first: i, last: i });
    };
    for (const { storage } of this.ends.inputs) touch(storage, -1);
    this.commands.forEach((c, i) => {
      for (const s of storagesOf(c)) touch(s, i);
    });
    for (const storage of outputs) touch(storage, this.commands.length);
    return [[...lives.values()], [...outside]];
  }

  /** Where memory is short, nothing is held on to. */
  private assign(slots: Slots, lives: readonly Life[]): ReturnType<Slots["assign"]> {
    try {
      return slots.assign(lives);
    } catch (error) {
      for (const s of this.own.splice(0)) s.release();
      throw error;
    }
  }

  private at(b: Bound): Bound {
    const storage = this.homes.get(b.storage);
    return storage ? { ...b, storage } : b;
  }

  private assemble(uniforms: Uniforms): Program {
    const { pipelines } = this.engine.queue;
    const steps = this.commands.map((c): Step => {
      if (c.kind === "launch") {
        const { kernel, params, groups } = c.launch;
        const bound = c.launch.bound.map((b) => this.at(b));
        const at = uniforms.add(kernel, params);
        return {
          pipeline: pipelines.of(kernel).pipeline,
          group: pipelines.bind(kernel, bound, uniforms.buffer),
          groups,
          offset: at === undefined ? undefined : [at],
          launch: { ...c.launch, bound },
        };
      }
      if (c.kind === "copy") {
        const [from, to, { bytes }] = [this.at(c.from), this.at(c.to), c];
        const [source, target] = [from.storage.buffer, to.storage.buffer];
        const encode = (e: GPUCommandEncoder) => e.copyBufferToBuffer(source, from.offset, target, to.offset, bytes);
        return { pipeline: undefined, encode };
      }
      const to = this.at(c.to);
      const { buffer } = to.storage;
      return { pipeline: undefined, encode: (e) => e.clearBuffer(buffer, to.offset, to.size) };
    });
    const touched = [...this.outside.map(({ storage }) => storage.id), ...this.own.map(({ id }) => id)];
    return { steps, touched };
  }

  /** Bytes of the plan's own buffers, which it may share with other plans. */
  get bytes(): number {
    return [...new Set(this.homes.values())].reduce((n, s) => n + s.bytes, 0);
  }

  /** The sum of all that was taken meanwhile: what it would hold if nothing were used twice. */
  get unplanned(): number {
    return [...this.homes.keys()].reduce((n, s) => n + s.bytes, 0);
  }

  /** Whether something that the plan reads was freed: it can never be called again. */
  get isStale(): boolean {
    return this.outside.some(({ storage, life }) => storage.life !== life);
  }

  /** Whether what the plan reads lies where it lay. */
  get isValid(): boolean {
    for (const { storage, life, shown } of this.outside)
      if (storage.life !== life || storage.shown !== shown) return false;
    for (const [leaf, storage] of this.before) if (leaf.isDisposed || leaf.grad?.storage !== storage) return false;
    return true;
  }

  /** Records a call: inputs in, commands, outputs out. */
  run(inputs: readonly Tensor[]): Tensor[] {
    const { engine } = this;
    const { queue } = engine;
    for (const hook of this.hooks) hook();
    inputs.forEach((given, i) => {
      const t = engine.noGrad(() => engine.dense(given));
      const bytes = Math.ceil(t.bytes / 4) * 4;
      const from = { storage: t.storage, offset: t.offset * bytesOf(t.dtype), size: bytes };
      const to = { storage: this.ends.inputs[i].storage, offset: 0, size: bytes };
      const home = this.homes.get(to.storage);
      if (bytes && home) queue.copy(from, { ...to, storage: home }, bytes);
      if (t !== given) t.dispose();
    });
    this.uniforms?.refresh();
    if (this.program) queue.replay(this.program);
    const outputs = this.ends.outputs.map((o) => {
      const t = engine.empty(o.shape, o.dtype, "compile");
      const bytes = Math.ceil((sizeOf(o.shape) * bytesOf(o.dtype)) / 4) * 4;
      const from = { storage: o.storage, offset: o.offset * bytesOf(o.dtype), size: bytes };
      if (bytes) queue.copy(this.at(from), { storage: t.storage, offset: 0, size: bytes }, bytes);
      return t;
    });
    for (const [leaf, spot] of this.after) this.leave(leaf, spot);
    return outputs;
  }

  /** Gives a leaf the gradient that the function left it. */
  private leave(leaf: Tensor, spot: Spot | undefined): void {
    const old = leaf.grad;
    if (old?.storage === spot?.storage) return;
    old?.dispose();
    leaf.grad =
      spot &&
      new Tensor(
        this.engine,
        spot.storage.retain(),
        spot.shape,
        spot.strides,
        spot.offset,
        spot.dtype,
        "backward",
      ).keep();
  }

  dispose(): void {
    this.engine.queue.submit();
    this.giveBack();
    for (const s of this.own.splice(0)) s.release();
    this.uniforms?.destroy();
  }
}
