import { bytesOf, type DType, decode, type TypedArray } from "./dtype.js";
import type { Engine } from "./engine.js";
import { DisposedError, ShapeError } from "./errors.js";
import type { Storage } from "./memory.js";
import { denseStrides, isDense, type Shape, show, sizeOf } from "./shape.js";

let nextUid = 1;

/**
 * Numbers on the GPU: a shape, a dtype, and strides into a buffer that other tensors may share. Ops are methods too
 * (`x.softmax(-1)`), installed from the ops' modules.
 */
export class Tensor {
  /** Identity for gradients: aliases made by the tape share it. */
  readonly uid: number;
  /** Where `backward()` adds this leaf's gradient up, when an optimizer gave it a place in a flat buffer. */
  gradPlace: Tensor | undefined;
  /** True for leaves that want a gradient and for everything computed from them. */
  requiresGrad = false;
  /** The op that made it, for texts. */
  readonly op: string;
  /** Path of the module that was running, for texts. */
  readonly module: string;
  private live = true;
  private gradient: Tensor | undefined;

  private memory: Storage;
  private steps: readonly number[];
  private start: number;

  constructor(
    readonly engine: Engine,
    storage: Storage,
    readonly shape: Shape,
    strides: readonly number[],
    offset: number,
    readonly dtype: DType,
    op: string,
    uid?: number,
  ) {
    this.memory = storage;
    this.steps = strides;
    this.start = offset;
    this.uid = uid ?? nextUid++;
    this.op = op;
    this.module = engine.modulePath;
    engine.adopt(this);
  }

  /** Set on leaves by `backward()`; same shape and dtype as the tensor. */
  get grad(): Tensor | undefined {
    this.engine.trace?.leaf(this, this.gradient);
    return this.gradient;
  }
  set grad(t: Tensor | undefined) {
    this.engine.trace?.leaf(this, this.gradient);
    this.gradient = t;
  }

  get storage(): Storage {
    return this.memory;
  }
  /** In elements. */
  get strides(): readonly number[] {
    return this.steps;
  }
  /** In elements. */
  get offset(): number {
    return this.start;
  }
  get size(): number {
    return sizeOf(this.shape);
  }
  get rank(): number {
    return this.shape.length;
  }
  get bytes(): number {
    return this.size * bytesOf(this.dtype);
  }
  get isDisposed(): boolean {
    return !this.live;
  }
  /** Row-major without gaps, and starting where a binding may start. */
  get isContiguous(): boolean {
    return (
      isDense(this.shape, this.strides) && (this.offset * bytesOf(this.dtype)) % this.engine.bindingAlignment === 0
    );
  }

  /** Throws `DisposedError` when the memory was given back. */
  check(user: string): this {
    this.engine.checkAlive();
    if (!this.live)
      throw new DisposedError(
        `${user}: uses a tensor after it was freed: ${this.describe()}; return it from the scope that made it, or call keep().`,
      );
    return this;
  }

  /** A tensor over the same memory. Takes a reference of its own. */
  view(shape: Shape, strides: readonly number[], offset: number, op: string): Tensor {
    return new Tensor(this.engine, this.check(op).storage.retain(), shape, strides, offset, this.dtype, op);
  }

  /** Another handle on the same memory and gradient identity, for the tape. */
  alias(): Tensor {
    const t = new Tensor(
      this.engine,
      this.check("alias").storage.retain(),
      this.shape,
      this.strides,
      this.offset,
      this.dtype,
      this.op,
      this.uid,
    );
    return t;
  }

  /**
   * Lets this tensor show other memory, densely from element `offset` on; it stays the same object for everyone who
   * holds it. Views made before keep showing the old memory.
   */
  point(storage: Storage, offset: number): void {
    this.check("point");
    storage.retain();
    storage.shown++;
    this.memory.shown--;
    this.memory.release();
    this.memory = storage;
    this.steps = denseStrides(this.shape);
    this.start = offset;
  }

  /** Moves the values to element `offset` of another buffer and shows them there. */
  rehome(storage: Storage, offset: number): void {
    const { engine } = this.check("rehome");
    const dense = engine.noGrad(() => engine.dense(this));
    const size = bytesOf(this.dtype);
    const [from, at] = [dense.storage, dense.offset * size];
    const bytes = Math.ceil(dense.bytes / 4) * 4;
    if (bytes)
      engine.queue.copy(
        { storage: from, offset: at, size: bytes },
        { storage, offset: offset * size, size: bytes },
        bytes,
      );
    if (dense !== this) dense.dispose();
    this.point(storage, offset);
  }

  /** The same values, cut off from the tape. */
  detach(): Tensor {
    return this.view(this.shape, this.strides, this.offset, "detach");
  }

  /** Marks a leaf: `backward()` will leave its gradient in `grad`. */
  setRequiresGrad(on = true): this {
    this.requiresGrad = on;
    return this;
  }

  /** Takes the tensor out of every scope: it lives until `dispose()`. */
  keep(): this {
    this.engine.release(this);
    return this;
  }

  /** Gives the memory back. Later use is an error that names the op which made the tensor. */
  dispose(): void {
    if (!this.live) return;
    this.live = false;
    this.engine.release(this);
    this.engine.leakWatch?.freed(this);
    this.storage.release();
    this.grad?.dispose();
    this.grad = undefined;
  }
  [Symbol.dispose](): void {
    this.dispose();
  }

  /** Walks the tape back from this tensor, adding to `grad` of every leaf that wants one. */
  backward(gradient?: Tensor, options: { retainGraph?: boolean } = {}): void {
    this.engine.tape.backward(this, gradient, options.retainGraph ?? false);
  }

  /** The values on the host, in row-major order; f16 comes as Float32Array. Submits what was recorded. */
  async data(): Promise<TypedArray> {
    const { engine } = this.check("data");
    const dense = engine.noGrad(() => engine.dense(this));
    const bytes = await engine.read(dense).finally(() => {
      if (dense !== this) dense.dispose();
    });
    return decode(bytes, this.dtype, this.size);
  }

  /** The one value of a tensor with one element. */
  async item(): Promise<number> {
    if (this.size !== 1)
      throw new ShapeError(
        `item: needs a tensor with one element: got ${show(this.shape)}; use data() or reduce it first.`,
      );
    return (await this.data())[0];
  }

  /** `[2, 3] f32 from softmax in blocks.0.attn`. */
  describe(): string {
    return `${show(this.shape)} ${this.dtype} from ${this.op}${this.module ? ` in ${this.module}` : ""}`;
  }
  toString(): string {
    return `Tensor ${this.describe()}`;
  }
  [Symbol.for("nodejs.util.inspect.custom")](): string {
    return this.toString();
  }

  /** Shape, dtype and origin with the first values, min, mean, max and the number of NaN and infinite values. */
  async show(): Promise<string> {
    const data = await this.data();
    let [low, high, sum, bad] = [Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY, 0, 0];
    for (const v of data) {
      if (!Number.isFinite(v)) bad++;
      else [low, high, sum] = [Math.min(low, v), Math.max(high, v), sum + v];
    }
    const good = data.length - bad;
    const first = Array.from(data.slice(0, 8), (v) => Number(v.toPrecision(5))).join(", ");
    const stats = good
      ? `min ${low.toPrecision(5)} mean ${(sum / good).toPrecision(5)} max ${high.toPrecision(5)}`
      : "no finite value";
    return `${this.toString()}\n  [${first}${data.length > 8 ? ", …" : ""}]\n  ${stats} · not finite ${bad}`;
  }
}

/** A tensor that a kernel reads through strides of its own: the whole buffer is bound, the offset goes into the uniform. */
export interface Strided {
  strided: Tensor;
}
export const strided = (t: Tensor): Strided => ({ strided: t });
