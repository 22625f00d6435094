import type { DType, Engine, Shape, Tensor } from "../engine/index.js";
import { decodeFloat32, Safetensors } from "./safetensors.js";
import type { HostTensor } from "./state.js";

/** An open file, or tensors by name. */
export type PlainSource = Safetensors | Readonly<Record<string, Tensor | HostTensor>>;

/** Where one tensor of a view comes from: another source, zeros, or a function that draws it when it is loaded. */
export type StatePart =
  | { readonly from: PlainSource; readonly name: string }
  | { readonly shape: Shape; readonly make: "zeros" | ((engine: Engine, shape: Shape, dtype: DType) => Tensor) };

/** Other names for what lies in other sources: renamed, repeated, zeroed or drawn. Nothing is read before it is loaded. */
export class StateView {
  /** @param name what errors call it */
  constructor(
    readonly name: string,
    readonly parts: ReadonlyMap<string, StatePart>,
  ) {}
}

/** Any source as a view of itself. */
export function viewOf(source: PlainSource | StateView): StateView {
  if (source instanceof StateView) return source;
  const [label, names] =
    source instanceof Safetensors
      ? [source.name, [...source.tensors.keys()]]
      : ["the given tensors", Object.keys(source)];
  return new StateView(label, new Map(names.map((name) => [name, { from: source, name }])));
}

export function shapeOf(part: StatePart): Shape {
  if ("make" in part) return part.shape;
  return part.from instanceof Safetensors ? part.from.info(part.name).shape : part.from[part.name].shape;
}

/** Whether a part holds floats, as opposed to integers. */
export function isFloatPart(part: StatePart): boolean {
  if ("make" in part) return true;
  if (part.from instanceof Safetensors) return /^B?F/.test(part.from.info(part.name).dtype);
  const t = part.from[part.name];
  if ("dtype" in t) return t.dtype === "f32" || t.dtype === "f16";
  return !(t.data instanceof Int32Array || t.data instanceof Uint32Array);
}

const HOST_CHUNK = 4 << 20;

/** Whether all numbers of a part are 0, read until one is not. A part that is yet to be drawn is not. */
export async function isZero(part: StatePart): Promise<boolean> {
  if ("make" in part) return part.make === "zeros";
  const { from, name } = part;
  if (from instanceof Safetensors) {
    const { dtype } = from.info(name);
    for await (const { data } of from.readInto(name, HOST_CHUNK))
      if (decodeFloat32(data, dtype).some((v) => v !== 0)) return false;
    return true;
  }
  const t = from[name];
  const values = typeof t.data === "function" ? await t.data() : t.data;
  return Array.prototype.every.call(values, (v: number) => v === 0);
}
