import type { Engine } from "../engine.js";
import { EspalierError } from "../errors.js";
import { isPlain } from "../plain.js";
import { Key } from "../random/key.js";
import { Tensor } from "../tensor.js";
import { flatten, replace } from "./arguments.js";
import { type Ends, Plan, spotOf } from "./plan.js";
import { Trace } from "./trace.js";

/** Plans that one function keeps; the oldest goes first. */
const PLANS = 16;

/** A compiled function: called like the one it was made of. */
export interface Compiled<A extends readonly unknown[], R> {
  (...args: A): R;
  readonly engine: Engine;
  /** The plans made so far, one for each kind of call. */
  readonly plans: readonly Plan[];
  /** Gives the plans' memory back; the next call traces anew. */
  dispose(): void;
}

/** A result with its tensors numbered, so that each call can put its own in their places. */
type Template = (tensors: readonly Tensor[]) => unknown;

interface Entry {
  plan: Plan;
  result: Template;
  /** What the keys of the arguments are in the call at hand. */
  keys: { now: Key }[];
}

function templateOf(value: unknown, outputs: Tensor[]): Template {
  if (value instanceof Tensor) {
    let i = outputs.indexOf(value);
    if (i < 0) i = outputs.push(value) - 1;
    return (tensors) => tensors[i];
  }
  if (Array.isArray(value)) {
    const items = value.map((v) => templateOf(v, outputs));
    return (tensors) => items.map((item) => item(tensors));
  }
  if (isPlain(value)) {
    const items = Object.entries(value).map(([k, v]) => [k, templateOf(v, outputs)] as const);
    return (tensors) => Object.fromEntries(items.map(([k, item]) => [k, item(tensors)]));
  }
  if (value instanceof Promise)
    throw new EspalierError(
      "compile: the function is asynchronous; it must record its work and return at once: read results after the call.",
    );
  return () => value;
}

function trace(engine: Engine, f: (...args: never[]) => unknown, args: readonly unknown[]): Entry {
  const recorder = new Trace(engine);
  const keys: Entry["keys"] = [];
  const made: Tensor[] = [];
  const given: Tensor[] = [];
  const { ends, result } = recorder.run(() => {
    const own = replace(
      args,
      (t) => {
        const known = given.indexOf(t);
        if (known >= 0) return made[known];
        const copy = engine.empty(t.shape, t.dtype, t.op).keep();
        given.push(t);
        made.push(copy);
        return copy;
      },
      (k) => {
        const slot = { now: k };
        keys.push(slot);
        return Key.traced(() => slot.now);
      },
    ) as never[];
    const outputs: Tensor[] = [];
    let result: Template = () => undefined;
    const mark = engine.tape.entries.length;
    const dense: Tensor[] = engine.scope(() => {
      result = templateOf(f(...own), outputs);
      return outputs.map((t) => engine.noGrad(() => engine.dense(t))) as never;
    });
    if (outputs.some((t) => t.requiresGrad && !engine.tape.isLeaf(t)))
      throw new EspalierError(
        "compile: the function returns a tensor that could still be differentiated; call backward() inside, or return it with detach().",
      );
    if (engine.tape.entries.length > mark) engine.tape.truncate(mark);
    const ends: Ends = { inputs: made.map(spotOf), outputs: dense.map(spotOf) };
    for (const t of [...made, ...dense]) t.dispose();
    return { ends, result };
  });
  return { plan: new Plan(engine, recorder, ends, engine.slots), result, keys };
}

/** See `Engine.compile`. */
export function compile<A extends readonly unknown[], R>(engine: Engine, f: (...args: A) => R): Compiled<A, R> {
  const entries = new Map<string, Entry[]>();
  const all = () => [...entries.values()].flat();
  const drop = (signature: string, entry: Entry) => {
    entry.plan.dispose();
    const rest = entries.get(signature)!.filter((e) => e !== entry);
    if (rest.length) entries.set(signature, rest);
    else entries.delete(signature);
  };
  const call = (...args: A): R => {
    engine.checkAlive();
    // Inside another traced function it becomes a part of that one; op by op it is easier to look at.
    if (engine.trace) return f(...args);
    if (engine.eager || engine.anomalyHook) return engine.scope(() => f(...args) as never);
    const { tensors, keys, signature } = flatten(args);
    let entry = entries.get(signature)?.find(({ plan }) => plan.isValid);
    if (!entry) {
      for (const old of entries.get(signature) ?? []) if (old.plan.isStale) drop(signature, old);
      if (all().length >= PLANS) {
        const [oldest] = entries;
        drop(oldest[0], oldest[1][0]);
      }
      entry = trace(engine, f as (...args: never[]) => unknown, args);
      entries.set(signature, [...(entries.get(signature) ?? []), entry]);
    }
    entry.keys.forEach((slot, i) => {
      slot.now = keys[i];
    });
    return entry.result(entry.plan.run([...new Set(tensors)])) as R;
  };
  const dispose = () => {
    for (const { plan } of all()) plan.dispose();
    entries.clear();
  };
  return Object.defineProperties(Object.assign(call, { engine, dispose }), {
    plans: { get: () => all().map(({ plan }) => plan) },
  }) as Compiled<A, R>;
}
