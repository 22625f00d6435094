import { EspalierError } from "../errors.js";
import { isPlain } from "../plain.js";
import { Key } from "../random/key.js";
import { show } from "../shape.js";
import { Tensor } from "../tensor.js";

/** The tensors and keys in a call's arguments, and what else tells one kind of call from another. */
export interface Flat {
  tensors: Tensor[];
  keys: Key[];
  /** Equal for calls that one plan can serve. */
  signature: string;
}

const names = new WeakMap<object, number>();
let named = 0;
const nameOf = (value: object): number => {
  const known = names.get(value);
  if (known !== undefined) return known;
  names.set(value, named);
  return named++;
};

/** Parameters are told apart by what they are, other tensors by shape, type and whether one is given twice. */
function tensorSignature(t: Tensor, tensors: readonly Tensor[]): string {
  t.check("compile");
  if (!t.requiresGrad) return `${t.dtype}${show(t.shape)} ${tensors.indexOf(t)}`;
  if (!t.engine.tape.isLeaf(t))
    throw new EspalierError(
      `compile: an argument depends on what requires a gradient, which cannot flow through a compiled function: ${t.describe()}; give it with detach(), or compile what made it as well.`,
    );
  return `leaf ${t.uid}`;
}

/** Takes arguments apart: arrays and plain records are walked, other objects count by identity. */
export function flatten(args: readonly unknown[]): Flat {
  const tensors: Tensor[] = [];
  const keys: Key[] = [];
  const walk = (value: unknown): string => {
    if (value instanceof Tensor) {
      if (!value.requiresGrad) tensors.push(value);
      return tensorSignature(value, tensors);
    }
    if (value instanceof Key) {
      keys.push(value);
      return "key";
    }
    if (ArrayBuffer.isView(value))
      throw new EspalierError(
        "compile: an argument is an array of numbers, which would be fixed at the first call; make it a tensor first: engine.tensor(data).",
      );
    if (Array.isArray(value)) return `[${value.map(walk).join()}]`;
    if (typeof value === "function") return `object ${nameOf(value)}`;
    if (typeof value !== "object" || value === null) return `${typeof value} ${String(value)}`;
    if (!isPlain(value)) return `object ${nameOf(value)}`;
    return `{${Object.entries(value)
      .map(([k, v]) => `${JSON.stringify(k)}:${walk(v)}`)
      .join()}}`;
  };
  return { tensors, keys, signature: args.map(walk).join(" · ") };
}

/** The same arguments with other tensors and keys in their places. */
export function replace(value: unknown, tensor: (t: Tensor) => Tensor, key: (k: Key) => Key): unknown {
  if (value instanceof Tensor) return value.requiresGrad ? value : tensor(value);
  if (value instanceof Key) return key(value);
  if (Array.isArray(value)) return value.map((v) => replace(v, tensor, key));
  if (!isPlain(value)) return value;
  return Object.fromEntries(Object.entries(value).map(([k, v]) => [k, replace(v, tensor, key)]));
}
