import { type Compiled, compile } from "./compile/compile.js";
import type { Meaning } from "./compile/meaning.js";
import { Slots } from "./compile/slots.js";
import type { Trace } from "./compile/trace.js";
import { type DeviceInfo, platform, requestDevice } from "./device/adapter.js";
import { bytesOf, checkDType, type Data, type DType, encode } from "./dtype.js";
import {
  checkOptions,
  DeviceError,
  DeviceLostError,
  EspalierError,
  FeatureError,
  OutOfMemoryError,
  ShapeError,
} from "./errors.js";
import { Anomaly } from "./inspect/anomaly.js";
import { debug, debugLevel } from "./inspect/debug.js";
import type { Kernel, Params } from "./kernel.js";
import { Memory, type MemoryReport, megabytes, type Owner } from "./memory.js";
import { add, contiguous } from "./ops/elementwise.js";
import { sumTo } from "./ops/reduce.js";
import { addTo } from "./ops/update.js";
import { isPlain } from "./plain.js";
import { type Bound, type Limits, Queue } from "./queue.js";
import { Key } from "./random/key.js";
import { checkShape, denseStrides, type Shape, show, sizeOf } from "./shape.js";
import { Tape } from "./tape.js";
import { type Strided, Tensor } from "./tensor.js";
import { loadTuning } from "./tune/cache.js";
import { Tuning } from "./tune/tuning.js";

/** Options of `createEngine`. */
export interface EngineOptions {
  /** "hardware", "lavapipe", "swiftshader", or part of an adapter's name. Default: the best there is. */
  adapter?: string;
  power?: "high-performance" | "low-power";
  /** Most bytes of GPU memory to hold at once. Default: no limit of our own. */
  budget?: number;
  /** Seed of `engine.key()`. Default 0. */
  seed?: number;
  /** Reckon with memory only: nothing is allocated or computed, `memory()` tells what would be. Default false. */
  dry?: boolean;
  /** Run compiled functions op by op. Default false. */
  eager?: boolean;
  /** Features that the program cannot do without, such as "shader-f16". */
  features?: GPUFeatureName[];
  /** Features to leave alone although the adapter has them, such as "subgroups". */
  without?: GPUFeatureName[];
}

/** Nested arrays of numbers. */
export type Nested = number | readonly Nested[];

type Sync<T> = T extends Promise<any> ? never : T;

/** A GPU with its tensors: memory, recorded launches, the tape and the current scopes. Make one with `createEngine`. */
export class Engine {
  readonly memoryPool: Memory;
  readonly queue: Queue;
  readonly tape: Tape = new Tape(this);
  /** Path of the module that is running; module calls set it. */
  modulePath = "";
  /** Compiled functions run op by op: slower, and each launch belongs to one op. */
  eager: boolean;
  /** Set while a function is traced. */
  trace: Trace | undefined;
  /** Memory that compiled functions share. */
  readonly slots: Slots;
  /** Which of their variants kernels take on this adapter, where that was timed. */
  tuning = new Tuning();
  /** Checks each op's results when anomaly mode is on (inspect sets it). */
  anomalyHook: ((tensors: readonly (Tensor | undefined)[], op: string) => void) | undefined;
  /** Told when tensors are made and freed; debug output reports those that are collected without having been freed. */
  leakWatch: { made(t: Tensor): void; freed(t: Tensor): void } | undefined;
  private scopes: Set<Tensor>[] = [];
  private gradOff = 0;
  private lost: DeviceLostError | undefined;
  private fault: Error | undefined;
  private destroyed = false;

  constructor(
    readonly device: GPUDevice,
    /** Adapter name, kind and what would be faster. */
    readonly info: DeviceInfo,
    readonly seed: number,
    { budget, eager, dry }: { budget: number; eager: boolean; dry: boolean },
    private readonly platform: { wait<T>(p: Promise<T>): Promise<T>; release(): void },
  ) {
    this.memoryPool = new Memory(device, budget, device.limits.maxBufferSize, dry);
    this.queue = new Queue(device, this.memoryPool);
    this.slots = new Slots(this.memoryPool);
    this.eager = eager;
    device.lost.then((why) => {
      if (!this.destroyed)
        this.lost = new DeviceLostError(
          `device: the GPU was lost (${why.message || why.reason}); tensors of this engine are gone: make a new engine and load the last checkpoint.`,
        );
    });
    device.onuncapturederror = (event) => {
      const { error } = event;
      this.fault ??=
        typeof GPUOutOfMemoryError !== "undefined" && error instanceof GPUOutOfMemoryError
          ? this.memoryPool.exhausted(0, "a buffer", `what the GPU has (${error.message.split("\n")[0]})`)
          : new DeviceError(`device: a command was refused: ${error.message}`);
    };
  }

  /** "software", "integrated" or "discrete": kernels choose their variant by it. */
  get kind(): DeviceInfo["kind"] {
    return this.info.kind;
  }
  get limits(): Limits {
    return this.queue.limits;
  }
  has(feature: string): boolean {
    return this.queue.features.has(feature);
  }
  get bindingAlignment(): number {
    return this.queue.limits.minStorageBufferOffsetAlignment;
  }

  /** The key of the engine's seed: split it for everything that draws. */
  key(): Key {
    return Key.from(this.seed);
  }

  /** Throws when the device is lost, refused a command, or the engine was destroyed. */
  checkAlive(): void {
    if (this.destroyed) throw new DeviceLostError("engine: was destroyed; make a new one with createEngine().");
    if (this.lost) throw this.lost;
    if (this.fault) {
      const fault = this.fault;
      if (!(fault instanceof OutOfMemoryError)) throw fault;
      this.fault = undefined;
      throw fault;
    }
  }

  // ---- tensors -------------------------------------------------------------------------------------------------

  /** A tensor with undefined content. */
  empty(shape: Shape, dtype: DType = "f32", op = "empty", owner: Owner = "activations"): Tensor {
    this.checkAlive();
    checkShape(op, shape);
    if (dtype === "f16" && !this.has("shader-f16"))
      throw new FeatureError(`${op}: f16 is not offered by ${this.info.name} (feature shader-f16); use f32.`);
    const storage = this.memoryPool.take(
      Math.max(16, sizeOf(shape) * bytesOf(dtype)),
      owner,
      `${op} ${show(shape)} ${dtype}`,
    );
    return new Tensor(this, storage, shape.slice(), denseStrides(shape), 0, dtype, op);
  }

  /** A tensor from numbers: nested arrays give the shape, flat data takes `shape`. */
  tensor(
    data: Nested | Data,
    shape?: Shape,
    dtype: DType = data instanceof Int32Array ? "i32" : data instanceof Uint32Array ? "u32" : "f32",
  ): Tensor {
    checkDType("tensor", dtype);
    const flat: number[] = [];
    let inferred: number[] | undefined;
    if (!ArrayBuffer.isView(data)) {
      inferred = [];
      for (let d: any = data; Array.isArray(d); d = d[0]) inferred.push(d.length);
      const walk = (d: any, depth: number): void => {
        if (!Array.isArray(d)) {
          if (typeof d !== "number" || depth !== inferred!.length)
            throw new ShapeError(
              `tensor: nested arrays are ragged or hold what is no number: found ${JSON.stringify(d)} at depth ${depth} of ${show(inferred!)}.`,
            );
          flat.push(d);
          return;
        }
        if (depth >= inferred!.length || d.length !== inferred![depth])
          throw new ShapeError(
            `tensor: nested arrays are ragged: a row of ${d.length} at depth ${depth} where ${show(inferred!)} was expected.`,
          );
        for (const e of d) walk(e, depth + 1);
      };
      walk(data, 0);
    }
    const values = (ArrayBuffer.isView(data) ? data : flat) as Data;
    const to = shape ?? inferred ?? [values.length];
    if (sizeOf(to) !== values.length)
      throw new ShapeError(
        `tensor: ${values.length} values do not fill ${show(to)} (${sizeOf(to)}); give as many as the shape holds.`,
      );
    const t = this.empty(to, dtype, "tensor");
    this.write(t, encode(values, dtype));
    this.anomalyCheck([t], "tensor");
    return t;
  }

  /** A tensor of one repeated value. */
  full(shape: Shape, value: number, dtype: DType = "f32"): Tensor {
    const one = this.empty([1], dtype, "full");
    this.write(one, encode([value], dtype));
    const wide = one.view(
      shape,
      shape.map(() => 0),
      0,
      "full",
    );
    const out = contiguous(wide);
    wide.dispose();
    one.dispose();
    return out;
  }
  zeros(shape: Shape, dtype: DType = "f32"): Tensor {
    const t = this.empty(shape, dtype, "zeros");
    const { storage } = t;
    this.queue.clear({ storage, offset: 0, size: storage.bytes });
    return t;
  }
  ones(shape: Shape, dtype: DType = "f32"): Tensor {
    return this.full(shape, 1, dtype);
  }
  /** start, start + step, … below `end`. */
  arange(start: number, end: number, step = 1, dtype: DType = "f32"): Tensor {
    const n = Math.max(0, Math.ceil((end - start) / step));
    return this.tensor(
      Float64Array.from({ length: n }, (_, i) => start + i * step),
      [n],
      dtype,
    );
  }

  /** Overwrites a contiguous tensor's bytes (`encode` makes them), from byte `offset` on. */
  write(t: Tensor, bytes: Uint8Array, offset = 0): void {
    t.check("write");
    if (offset + bytes.byteLength > t.bytes)
      throw new ShapeError(`write: ${bytes.byteLength} bytes at ${offset} do not fit ${t.describe()}.`);
    this.queue.upload(this.bound(t, "write"), bytes, offset);
  }

  /** Bytes of a contiguous tensor on the host. */
  async read(t: Tensor): Promise<ArrayBuffer> {
    if (this.memoryPool.dry)
      throw new EspalierError(`read: this engine is dry: it computes nothing, so ${t.describe()} has no values.`);
    const { storage, offset } = this.bound(t, "read");
    const reading = this.queue.read(storage.buffer, offset, t.bytes, (p) => this.platform.wait(p));
    try {
      const bytes = await reading;
      this.checkAlive();
      return bytes;
    } catch (error) {
      // A lost device rejects the mapping; its own reason is the better text.
      await Promise.resolve();
      this.checkAlive();
      throw error instanceof EspalierError
        ? error
        : new DeviceLostError(`read: the GPU did not answer (${(error as Error).message}); make a new engine.`);
    }
  }

  /** Hands the recorded launches to the GPU without waiting. */
  submit(): void {
    this.queue.submit();
  }

  /** Waits until the GPU has done everything recorded so far. */
  async finish(): Promise<void> {
    this.submit();
    await this.platform.wait(this.device.queue.onSubmittedWorkDone());
    this.checkAlive();
  }

  // ---- what ops use --------------------------------------------------------------------------------------------

  /** The tensor itself when contiguous, else a dense copy. */
  dense(t: Tensor): Tensor {
    return t.isContiguous ? t : contiguous(t);
  }
  copy(t: Tensor): Tensor {
    return contiguous(t);
  }
  add(a: Tensor, b: Tensor): Tensor {
    return add(a, b);
  }
  /** Adds x to y in place; `fresh` overwrites y. */
  addTo(y: Tensor, x: Tensor, fresh: boolean): void {
    addTo(y, x, fresh);
  }
  /** Sums a broadcast gradient back to the shape that was broadcast. */
  sumTo(t: Tensor, shape: Shape): Tensor {
    return sumTo(t, shape);
  }

  private bound(t: Tensor | Strided, user: string): Bound {
    const tensor = t instanceof Tensor ? t : t.strided;
    const { storage } = tensor;
    let [offset, size] = [0, storage.bytes];
    if (t instanceof Tensor) {
      if (!t.isContiguous)
        throw new EspalierError(`${user}: is given a view where it needs contiguous memory: ${t.describe()}.`);
      offset = t.offset * bytesOf(t.dtype);
      size = Math.min(storage.bytes - offset, Math.max(16, Math.ceil(t.bytes / 16) * 16));
    }
    if (size > this.queue.limits.maxStorageBufferBindingSize)
      throw new OutOfMemoryError(
        `${user}: a tensor of ${megabytes(size)} is larger than this adapter binds at once (${megabytes(this.queue.limits.maxStorageBufferBindingSize)}); split it along its first axis.`,
      );
    return { storage, offset, size };
  }

  /**
   * Records one launch of a kernel.
   * @param tensors by binding name; plain ones must be contiguous, `strided(t)` binds the whole buffer
   * @param params the uniform's members by name
   * @param groups workgroups as [x, y, z], or a number that is folded into x and y (kernels then index by
   *   `wg.y * num_workgroups.x + wg.x` and check bounds)
   * @param meaning what it computes, for launches that can be computed together with others
   */
  launch(
    k: Kernel,
    tensors: Record<string, Tensor | Strided>,
    params: Params,
    groups: number | readonly [number, number, number],
    meaning?: Meaning,
  ): void {
    this.checkAlive();
    const label = `${k.name}.${k.entry}`;
    const bound: Bound[] = [];
    const given: Tensor[] = [];
    let used = 0;
    for (const b of k.bindings) {
      if (b.type === "uniform") continue;
      const t = tensors[b.name];
      if (!t) throw new EspalierError(`kernel ${label}: binding "${b.name}" is not given.`);
      used++;
      bound.push(this.bound(t, label));
      given.push(t instanceof Tensor ? t : t.strided);
    }
    if (used !== Object.keys(tensors).length)
      throw new EspalierError(
        `kernel ${label}: has no binding called ${Object.keys(tensors)
          .filter((n) => !k.bindings.some((b) => b.name === n))
          .join(", ")}.`,
      );
    const grid = typeof groups === "number" ? this.fold(groups) : groups;
    if (grid[0] === 0 || grid[1] === 0 || grid[2] === 0) return;
    this.queue.launch({ kernel: k, bound, tensors: given, params, groups: grid, label: this.modulePath, meaning });
  }

  /** Workgroups in one axis, or in two where that would be too long. */
  fold(count: number): [number, number, number] {
    const most = this.queue.limits.maxComputeWorkgroupsPerDimension;
    if (count <= most) return [count, 1, 1];
    const x = Math.ceil(Math.sqrt(count));
    return [x, Math.ceil(count / x), 1];
  }

  /** Watches every op's results for values that are not finite, until `stop()`: `console.log(`${await watch.check()}`)`. */
  anomaly(): Anomaly {
    return new Anomaly(this);
  }
  anomalyCheck(tensors: readonly (Tensor | undefined)[], name: string): void {
    this.anomalyHook?.(tensors, name);
  }

  // ---- compiled functions --------------------------------------------------------------------------------------

  /**
   * A function that does what `f` does, faster: the first call with arguments of some shapes notes what `f` launches
   * without running it, joins what can be joined, and gives it memory; that call and later ones only repeat the list.
   * Numbers equal those of `f` within rounding.
   *
   * What `f` does may depend on its arguments alone: tensors (by shape; their values are new in each call), keys (new
   * numbers in each call), records and arrays of those, and plain values (a new value is a new plan). It must be
   * synchronous, and can read nothing back. What it does on the host (counting steps, uploading a rate) happens once,
   * unless it is wrapped in `eachCall`. It returns fresh tensors, in the shape of f's result.
   *
   * @example const step = engine.compile((x, y) => { const loss = mse(model(x), y); loss.backward(); … return loss; });
   */
  compile<A extends readonly unknown[], R>(f: (...args: A) => Sync<R>): Compiled<A, R> {
    return compile(this, f as (...args: A) => R);
  }

  /** Runs `f` now; within a compiled function, before each of its calls. For host work such as uploading a new rate. */
  eachCall(f: () => void): void {
    if (this.trace) this.trace.hooks.push(f);
    else f();
  }

  /** Runs `f` at once even within a function that is traced: for state that is made once and kept. */
  untraced<T>(f: () => T): T {
    return this.traced(undefined, f);
  }

  /** Runs `f` with every command and every allocation going to `trace`. */
  traced<T>(trace: Trace | undefined, f: () => T): T {
    const before = this.trace;
    const set = (t: Trace | undefined) => {
      this.trace = t;
      this.queue.trace = t;
      this.memoryPool.trace = t;
    };
    set(trace);
    try {
      return f();
    } finally {
      set(before);
    }
  }

  // ---- scopes and gradients ------------------------------------------------------------------------------------

  /** Called by a tensor when it is made: the innermost scope owns it. */
  adopt(t: Tensor): void {
    this.scopes.at(-1)?.add(t);
    this.leakWatch?.made(t);
  }
  /** Takes a tensor out of the scopes that own it. */
  release(t: Tensor): void {
    for (const s of this.scopes) s.delete(t);
  }

  /**
   * Runs `f` and frees every tensor made inside, except what it returns (a tensor, or arrays and records of tensors),
   * what was kept, parameters with their gradients, and what the tape saved for a returned loss. Synchronous only.
   */
  scope<T>(f: () => Sync<T>): T {
    const mine = new Set<Tensor>();
    const mark = this.tape.entries.length;
    this.scopes.push(mine);
    let result: T;
    try {
      result = f() as T;
    } catch (error) {
      this.scopes.pop();
      for (const t of mine) t.dispose();
      if (this.tape.entries.length > mark) this.tape.truncate(mark);
      throw error;
    }
    this.scopes.pop();
    const outer = this.scopes.at(-1);
    let open = false;
    for (const t of tensorsIn(result)) {
      if (t.requiresGrad && !this.tape.isLeaf(t)) open = true;
      if (mine.delete(t)) outer?.add(t);
    }
    for (const t of mine) t.dispose();
    // Without a returned result to differentiate, nobody can walk what was recorded here.
    if (!open && this.tape.entries.length > mark) this.tape.truncate(mark);
    return result;
  }

  /** Like `scope`, for one op: a failure leaves nothing behind, and successes pay no bookkeeping. */
  atomically<T>(f: () => T): T {
    const mine = new Set<Tensor>();
    this.scopes.push(mine);
    let result: T;
    try {
      result = f();
    } catch (error) {
      this.scopes.pop();
      for (const t of mine) t.dispose();
      throw error;
    }
    this.scopes.pop();
    const outer = this.scopes.at(-1);
    const outs = new Set(tensorsIn(result));
    for (const t of mine) {
      if (outs.has(t)) outer?.add(t);
      else t.dispose();
    }
    return result;
  }

  get recording(): boolean {
    return this.gradOff === 0;
  }
  /** Runs `f` without recording ops on the tape. */
  noGrad<T>(f: () => T): T {
    this.gradOff++;
    try {
      return f();
    } finally {
      this.gradOff--;
    }
  }
  /** Runs `f` with recording on, inside a `noGrad` (checkpointed blocks re-run this way). */
  withGrad<T>(f: () => T): T {
    const before = this.gradOff;
    this.gradOff = 0;
    try {
      return f();
    } finally {
      this.gradOff = before;
    }
  }
  /** Runs `f` with `path` as the module that errors and traces name. */
  inModule<T>(path: string, f: () => T): T {
    const before = this.modulePath;
    this.modulePath = path;
    try {
      return f();
    } catch (error) {
      if (error instanceof EspalierError && path && !/\n {2}in /.test(error.message)) error.message += `\n  in ${path}`;
      throw error;
    } finally {
      this.modulePath = before;
    }
  }

  /** Live and pooled bytes, by owner. */
  memory(): MemoryReport {
    return this.memoryPool.report();
  }

  /** Gives the device back. Tensors of this engine cannot be used afterwards. */
  destroy(): void {
    if (this.destroyed) return;
    this.destroyed = true;
    this.device.destroy();
    this.platform.release();
  }
  [Symbol.dispose](): void {
    this.destroy();
  }
}

/** The tensors in a result: itself, or those in arrays and plain records. */
function* tensorsIn(value: unknown): Generator<Tensor> {
  if (value instanceof Tensor) yield value;
  else if (Array.isArray(value)) for (const v of value) yield* tensorsIn(v);
  else if (isPlain(value)) for (const v of Object.values(value)) yield* tensorsIn(v);
}

/**
 * Finds an adapter and makes an engine on it.
 * @throws NoAdapterError with the fix for this platform; FeatureError when a wanted feature is missing
 */
export async function createEngine(options: EngineOptions = {}): Promise<Engine> {
  checkOptions("createEngine", options, ["adapter", "power", "budget", "seed", "dry", "eager", "features", "without"]);
  const { device, info, release } = await requestDevice({
    adapter: options.adapter,
    power: options.power,
    features: options.features,
    without: options.without,
  });
  const { seed = 0, budget = Number.POSITIVE_INFINITY, eager = false, dry = false } = options;
  const engine = new Engine(device, info, seed, { budget, eager, dry }, { wait: (p) => platform.wait(p), release });
  engine.tuning = await loadTuning(info);
  const level = debugLevel(platform.env("DEBUG"));
  if (level) debug(engine, level);
  return engine;
}
