import type { DType } from "../dtype.js";
import { bytesOf } from "../dtype.js";
import type { Engine } from "../engine.js";
import { type Kernel, type Params, pack } from "../kernel.js";
import type { Storage } from "../memory.js";
import type { Bound, Launch, Program, Step } from "../queue.js";
import { Key } from "../random/key.js";
import { denseStrides, type Shape, sizeOf } from "../shape.js";
import { Tensor } from "../tensor.js";
import { fuse } from "./fuse.js";
import { settle } from "./settle.js";
import type { Life, Slots } from "./slots.js";
import { type Command, storagesOf, type Trace, touches } from "./trace.js";

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

/** A launch whose uniform changes from call to call: it draws by a key that the function is given. */
interface Dynamic {
  kernel: Kernel;
  params: Params;
  at: number;
}

const isDynamic = (params: Params): boolean =>
  Object.values(params).some((value) => value instanceof Key && value.isTraced);

/** Drops commands whose results nobody reads. `kept` are storages that outlive the call. */
function withoutDead(commands: readonly Command[], kept: (s: Storage) => boolean): Command[] {
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

/** Storages that are filled from the host and by nothing else: constants, which are filled once. */
function constantsOf(commands: readonly Command[]): Map<Storage, Uint8Array[]> {
  const uploads = new Map<Storage, Uint8Array[]>();
  for (const c of commands)
    if (c.kind === "upload") uploads.set(c.to.storage, [...(uploads.get(c.to.storage) ?? []), c.bytes]);
  for (const c of commands)
    if (c.kind !== "upload") for (const { storage } of touches(c).writes) uploads.delete(storage);
  return uploads;
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
  private readonly uniforms: GPUBuffer | undefined;
  private readonly bytesOfUniforms: Uint8Array<ArrayBuffer>;
  private readonly shadow: DataView;
  private readonly dynamic: Dynamic[] = [];
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
    for (const s of escaped) this.hold(s);
    const kept = (s: Storage) => !trace.made.has(s) || s.refs > 0 || outputs.has(s);
    const commands = withoutDead(fuse(engine, withoutDead(trace.commands, kept), kept), kept);
    const fixed = (s: Storage) => kept(s) || ends.inputs.some((i) => i.storage === s);
    this.commands = this.fill(settle(commands, engine.bindingAlignment, fixed));
    const [lives, outside] = this.lives(outputs, trace.made);
    this.outside = outside.map((storage) => ({ storage, life: storage.life, shown: storage.shown }));
    const { homes, release } = this.settle(slots, lives);
    this.homes = homes;
    this.giveBack = release;
    const align = engine.queue.limits.minUniformBufferOffsetAlignment;
    const sizes = this.commands.map((c) =>
      c.kind === "launch" ? Math.ceil(c.launch.kernel.uniformBytes / align) * align : 0,
    );
    const total = Math.max(
      16,
      sizes.reduce((a, b) => a + b, 0),
    );
    this.bytesOfUniforms = new Uint8Array(total);
    this.shadow = new DataView(this.bytesOfUniforms.buffer);
    if (engine.memoryPool.dry) return;
    this.uniforms = engine.device.createBuffer({
      label: "plan",
      size: total,
      usage: GPUBufferUsage.UNIFORM | GPUBufferUsage.COPY_DST,
    });
    this.program = this.assemble(sizes, this.uniforms);
    engine.device.queue.writeBuffer(this.uniforms, 0, this.bytesOfUniforms);
  }

  private hold(s: Storage): void {
    s.realize();
    s.owned.owner = s.owned.owner === "saved" ? "activations" : s.owned.owner;
    this.own.push(s.retain());
  }

  /** Fills constants now; what is filled anew in each call gets a copy from a constant instead of the upload. */
  private fill(commands: readonly Command[]): Command[] {
    const constants = constantsOf(commands);
    const known = new Map<string, Storage>();
    const same = new Map<Storage, Storage>();
    for (const [storage, parts] of constants) {
      if (!storage.isVirtual) continue;
      const key = parts.length === 1 && parts[0].length <= 4096 ? `${storage.bytes} ${parts[0]}` : undefined;
      const twin = key !== undefined ? known.get(key) : undefined;
      if (twin) {
        same.set(storage, twin);
        continue;
      }
      this.hold(storage);
      if (key !== undefined) known.set(key, storage);
    }
    const out: Command[] = [];
    const moved = (b: Bound): Bound => ({ ...b, storage: same.get(b.storage) ?? b.storage });
    for (const c of commands) {
      if (c.kind === "upload") {
        if (same.has(c.to.storage)) continue;
        if (constants.has(c.to.storage) && !c.to.storage.isVirtual) {
          this.engine.queue.upload(c.to, c.bytes);
          if (this.own.includes(c.to.storage)) continue;
        }
        // Written to by others too, or not ours: each call writes it again.
        const bytes = Math.ceil(c.bytes.length / 4) * 4;
        const master = this.engine.memoryPool.take(Math.max(16, bytes), "plan", "constant");
        this.own.push(master);
        const from = { storage: master, offset: 0, size: bytes };
        this.engine.queue.upload(from, c.bytes);
        out.push({ kind: "copy", from, to: c.to, bytes, label: c.label });
      } else if (c.kind === "launch" && same.size)
        out.push({ kind: "launch", launch: { ...c.launch, bound: c.launch.bound.map(moved) } });
      else if (c.kind === "copy") out.push({ ...c, from: moved(c.from) });
      else out.push(c);
    }
    return out;
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
  private settle(slots: Slots, lives: readonly Life[]): ReturnType<Slots["assign"]> {
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

  private assemble(sizes: readonly number[], uniforms: GPUBuffer): Program {
    const { queue } = this.engine;
    let used = 0;
    const steps = this.commands.map((c, i): Step => {
      if (c.kind === "launch") {
        const { kernel, params, groups } = c.launch;
        const bound = c.launch.bound.map((b) => this.at(b));
        const launch: Launch = { ...c.launch, bound };
        const offset = kernel.uniformBytes ? [used] : undefined;
        if (kernel.uniformBytes) {
          pack(kernel, params, this.shadow, used);
          if (isDynamic(params)) this.dynamic.push({ kernel, params, at: used });
          used += sizes[i];
        }
        const { pipeline } = queue.pipelines.of(kernel);
        return { pipeline, group: queue.pipelines.bind(kernel, bound, uniforms), groups, offset, launch };
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
    if (this.dynamic.length && this.uniforms) this.refresh(this.uniforms);
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

  /** Draws by this call's keys. What was recorded with the last call's must go first. */
  private refresh(uniforms: GPUBuffer): void {
    const { queue } = this.engine;
    queue.submit();
    const [first, last] = [this.dynamic[0], this.dynamic[this.dynamic.length - 1]];
    for (const { kernel, params, at } of this.dynamic) pack(kernel, params, this.shadow, at);
    const end = last.at + last.kernel.uniformBytes;
    this.engine.device.queue.writeBuffer(uniforms, first.at, this.bytesOfUniforms, first.at, end - first.at);
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

/** A dense place of its own for an input of this shape. */
export const inputSpot = (storage: Storage, { shape, dtype }: Tensor): Spot => ({
  storage,
  shape,
  strides: denseStrides(shape),
  offset: 0,
  dtype,
});
