import type { DType } from "./dtype.js";
import type { Engine } from "./engine.js";
import { DTypeError, EspalierError } from "./errors.js";
import { type Shape, sizeOf } from "./shape.js";
import type { Tensor } from "./tensor.js";

/** Shape and dtype of an output, decided before any GPU work. */
export interface Spec {
  shape: Shape;
  dtype: DType;
}

/** What a contract's `forward` works with. */
export interface Call<I extends string, A> {
  readonly engine: Engine;
  /** Inputs by name; optional ones may be absent. */
  readonly in: Readonly<Record<I, Tensor>>;
  readonly attrs: A;
  /** The first output, and all of them. */
  readonly out: Tensor;
  readonly outs: readonly Tensor[];
  /** True when the tape records this call: only then is `save` worth its memory. */
  readonly recording: boolean;
  /** Keeps a tensor for backward under a name of its own (a row's mean, a mask). */
  save(name: string, t: Tensor): void;
}

/** What a gradient thunk works with. `in` and `out` hold only what the contract `saves`. */
export interface Backward<I extends string, A> {
  readonly engine: Engine;
  readonly in: Readonly<Record<I, Tensor>>;
  readonly attrs: A;
  readonly out: Tensor;
  readonly saved: Readonly<Record<string, Tensor>>;
  /** Shapes and dtypes of all inputs, saved or not. */
  readonly spec: Readonly<Record<I, Spec>>;
  readonly needs: Readonly<Record<I, boolean>>;
  /** Gradient of the first output; `dys` has one per output, undefined where nothing flowed back. */
  readonly dy: Tensor;
  readonly dys: readonly (Tensor | undefined)[];
  /** Computes a value shared by several thunks once. */
  once<T>(key: string, f: () => T): T;
}

/** An op: everything that methods, the tape, traces, the op table and the tests know about it. */
export interface Contract<I extends string = string, A = any> {
  name: string;
  /** One line with the formula. */
  doc: string;
  /** Paper or reference. */
  link?: string;
  inputs: readonly I[];
  /** Inputs that may be left out. */
  optional?: readonly I[];
  /** Inputs that the kernels read through strides; the others are made dense first. */
  strided?: readonly I[];
  /** True when `dy` may come with strides; else it is made dense first. */
  stridedGrad?: boolean;
  /** Output shapes; shape and dtype errors are thrown here. */
  infer?(inputs: Readonly<Record<I, Tensor>>, attrs: A): Spec | Spec[];
  forward?(c: Call<I, A>): void;
  /** Instead of infer and forward: outputs over the input's own memory. */
  view?(inputs: Readonly<Record<I, Tensor>>, attrs: A): Tensor | Tensor[];
  /** What backward reads: names of inputs, or "out". */
  saves?: readonly (I | "out")[] | ((needs: Readonly<Record<I, boolean>>, attrs: A) => readonly (I | "out")[]);
  /** One thunk per differentiable input; its result may have the broadcast shape (the tape sums it back). */
  grad?: Partial<Record<I, (c: Backward<I, A>) => Tensor>>;
}

/** All ops by name, in the order of definition. */
export const registry = new Map<string, Contract>();

/** Registers a contract and returns the function that runs it: `run({ x }, attrs)` gives all outputs. */
export function op<I extends string, A = Record<string, never>>(
  contract: Contract<I, A>,
): (inputs: Partial<Record<I, Tensor>>, attrs: A) => Tensor[] {
  if (registry.has(contract.name)) throw new EspalierError(`op ${contract.name}: defined twice; names must be unique.`);
  registry.set(contract.name, contract as unknown as Contract);
  return (inputs, attrs) => run(contract, inputs as Record<I, Tensor>, attrs);
}

function run<I extends string, A>(contract: Contract<I, A>, given: Record<I, Tensor>, attrs: A): Tensor[] {
  const { name } = contract;
  const names = contract.inputs.filter((k) => given[k] !== undefined);
  // Sources (random draws) have no inputs: their attributes name the engine.
  const engine = contract.inputs.length ? given[names[0]]?.engine : (attrs as { engine?: Engine }).engine;
  if (!engine) throw new EspalierError(`${name}: needs a tensor as its first input.`);
  for (const k of contract.inputs) {
    const t = given[k];
    if (t === undefined) {
      if (!contract.optional?.includes(k)) throw new EspalierError(`${name}: input "${k}" is missing.`);
      continue;
    }
    t.check(name);
    if (t.engine !== engine)
      throw new EspalierError(`${name}: "${k}" belongs to another engine; make it with the same engine.`);
  }
  // Needs are decided on what the user gave, before dense copies are made.
  const differentiable = (k: I) => given[k]?.requiresGrad === true && contract.grad?.[k] !== undefined;
  const recording = engine.recording && names.some(differentiable);
  return engine.atomically(() => {
    const inputs = {} as Record<I, Tensor>;
    let outs: Tensor[];
    const extra: Record<string, Tensor> = {};
    if (contract.view) {
      outs = [contract.view(given, attrs)].flat();
      Object.assign(inputs, given);
    } else {
      const specs = [contract.infer!(given, attrs)].flat();
      for (const k of names)
        inputs[k] = contract.strided?.includes(k) ? given[k] : engine.noGrad(() => engine.dense(given[k]));
      outs = specs.map((s) => engine.empty(s.shape, s.dtype, name));
      const call: Call<I, A> = {
        engine,
        in: inputs,
        attrs,
        out: outs[0],
        outs,
        recording,
        save: (key, t) => {
          extra[key] = t;
        },
      };
      if (outs.some((o) => sizeOf(o.shape) > 0)) engine.noGrad(() => contract.forward!(call));
    }
    if (recording) record(engine, contract, given, inputs, outs, extra, attrs);
    engine.anomalyCheck(outs, name);
    return outs;
  });
}

function record<I extends string, A>(
  engine: Engine,
  contract: Contract<I, A>,
  given: Record<I, Tensor>,
  inputs: Record<I, Tensor>,
  outs: Tensor[],
  extra: Record<string, Tensor>,
  attrs: A,
): void {
  const { name } = contract;
  const names = contract.inputs.filter((k) => given[k] !== undefined);
  const needs = {} as Record<I, boolean>;
  const spec = {} as Record<I, Spec>;
  for (const k of names) {
    needs[k] = given[k].requiresGrad && contract.grad?.[k] !== undefined;
    spec[k] = { shape: given[k].shape, dtype: given[k].dtype };
  }
  const wanted = typeof contract.saves === "function" ? contract.saves(needs, attrs) : (contract.saves ?? []);
  const saved = {} as Record<I, Tensor>;
  let out: Tensor | undefined;
  const held: Tensor[] = [];
  const hold = (t: Tensor) => {
    const a = t.alias().keep();
    if (a.storage.owned.owner === "activations") a.storage.owned.owner = "saved";
    held.push(a);
    return a;
  };
  for (const k of wanted) {
    if (k === "out") out = hold(outs[0]);
    else if (inputs[k as I]) saved[k as I] = hold(inputs[k as I]);
  }
  const kept: Record<string, Tensor> = {};
  for (const [k, t] of Object.entries(extra)) kept[k] = hold(t);
  for (const o of outs) o.requiresGrad = true;
  const module = engine.modulePath;
  engine.tape.record({
    op: name,
    module,
    attrs,
    inputs: names.map((k) => ({
      name: k,
      uid: given[k].uid,
      shape: given[k].shape,
      needs: needs[k],
      leaf: needs[k] && engine.tape.isLeaf(given[k]) ? given[k] : undefined,
    })),
    outputs: outs.map((o) => ({ uid: o.uid, shape: o.shape })),
    savedBytes: held.reduce((n, t) => n + t.bytes, 0),
    release: () => {
      for (const t of held) t.dispose();
    },
    backward: (dys) => {
      const cache = new Map<string, unknown>();
      const flowing = dys.map((d) => (d && !contract.stridedGrad ? engine.dense(d) : d));
      const c: Backward<I, A> = {
        engine,
        attrs,
        needs,
        spec,
        dys: flowing,
        saved: kept,
        get dy() {
          if (!flowing[0]) throw new EspalierError(`${name} backward: nothing flowed back into its first output.`);
          return flowing[0];
        },
        get out() {
          if (!out) throw new EspalierError(`${name} backward: reads its output, which the contract does not save.`);
          return out;
        },
        in: new Proxy(saved, {
          get: (target, key) => {
            const t = target[key as I];
            if (!t && spec[key as I])
              throw new EspalierError(`${name} backward: reads "${String(key)}", which the contract does not save.`);
            return t;
          },
        }),
        once: <T>(key: string, f: () => T): T => {
          if (!cache.has(key)) cache.set(key, f());
          return cache.get(key) as T;
        },
      };
      return names.map((k) => (needs[k] ? contract.grad![k]!(c) : undefined));
    },
  });
}

/** The one dtype of several operands; throws naming both when they differ. */
export function sameDType(subject: string, ...tensors: (Tensor | undefined)[]): DType {
  const list = tensors.filter((t): t is Tensor => t !== undefined);
  for (const t of list)
    if (t.dtype !== list[0].dtype)
      throw new DTypeError(
        `${subject}: dtypes differ: ${list.map((x) => x.dtype).join(" · ")}; convert one with to("${list[0].dtype}").`,
      );
  return list[0].dtype;
}

/** Throws unless the tensor holds floating-point numbers. */
export function needFloat(subject: string, t: Tensor): void {
  if (t.dtype !== "f32" && t.dtype !== "f16")
    throw new DTypeError(`${subject}: needs f32 or f16: got ${t.dtype}; convert it with to("f32").`);
}
