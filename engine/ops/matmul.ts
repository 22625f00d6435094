import { checkOptions, ShapeError } from "../errors.js";
import { type Backward, needFloat, op, sameDType } from "../op.js";
import { broadcast, type Shape, show, sizeOf } from "../shape.js";
import type { Tensor } from "../tensor.js";
import { unaryTable } from "./formulas.js";
import { type Activation, checkActivation, launchMatmul } from "./gemm.js";
import { sum } from "./reduce.js";
import { reshape } from "./view.js";
import { launchElementwise } from "./walk.js";

export type { Activation } from "./gemm.js";

/** The last two axes swapped: a view. */
function swapped(t: Tensor): Tensor {
  const swap = (list: readonly number[]) => [...list.slice(0, -2), list.at(-1)!, list.at(-2)!];
  return t.view(swap(t.shape), swap(t.strides), t.offset, "transpose");
}
const maybe = (t: Tensor, swap: boolean): Tensor => (swap ? swapped(t) : t);
/** All axes but the last merged into rows. */
const flat = (t: Tensor): Tensor => (t.rank === 2 ? t : reshape(t, [sizeOf(t.shape.slice(0, -1)), t.shape.at(-1)!]));

/** Sums over the columns of a product's first operand, when its kernel wrote them. */
interface RowSums {
  of?: Tensor;
}

/** a · w under the batch's broadcasting, as a new tensor. */
function product(a: Tensor, w: Tensor, name: string, sums?: RowSums): Tensor {
  const lead = broadcast(name, a.shape.slice(0, -2), w.shape.slice(0, -2));
  const y = a.engine.empty([...lead, a.shape.at(-2)!, w.shape.at(-1)!], a.dtype, name);
  if (!sums) {
    launchMatmul(y, a, w);
    return y;
  }
  const rowSums = a.engine.empty([a.shape.at(-2)!], a.dtype, name);
  if (launchMatmul(y, a, w, { rowSums })) sums.of = rowSums;
  else rowSums.dispose();
  return y;
}

interface Attrs {
  transposeA: boolean;
  transposeB: boolean;
  activation: Activation;
}
type Name = "a" | "b" | "bias";

const hasBatch = (shape: Shape): boolean => sizeOf(shape.slice(0, -2)) !== 1;

/** Gradient of the value before the activation. It is recomputed from the operands, which are saved anyway. */
const inner = (c: Backward<Name, Attrs>): Tensor =>
  c.once("inner", () => {
    const { activation, transposeA, transposeB } = c.attrs;
    if (activation === "none") return c.dy;
    const z = c.engine.empty(c.dy.shape, c.dy.dtype, "matmul backward");
    launchMatmul(z, maybe(c.in.a, transposeA), maybe(c.in.b, transposeB), { bias: c.spec.bias && c.in.bias });
    const dz = c.engine.empty(c.dy.shape, c.dy.dtype, "matmul backward");
    launchElementwise(dz, unaryTable[activation].grad.x, ["dy", "x"], [c.dy, z]);
    return dz;
  });

/** The bias's gradient, where the weight's has it: it sums what that product reads anyway. */
const biasSums = (c: Backward<Name, Attrs>): RowSums => c.once("sums", () => ({}));

const run = op<Name, Attrs>({
  name: "matmul",
  doc: "y = act(a · b + bias) over the last two axes; leading axes broadcast",
  inputs: ["a", "b", "bias"],
  optional: ["bias"],
  strided: ["a", "b"],
  infer: ({ a, b, bias }, { transposeA, transposeB }) => {
    const dtype = sameDType("matmul", a, b, bias);
    needFloat("matmul", a);
    const [m, k] = transposeA ? [a.shape.at(-1)!, a.shape.at(-2)!] : [a.shape.at(-2)!, a.shape.at(-1)!];
    const [kb, n] = transposeB ? [b.shape.at(-1)!, b.shape.at(-2)!] : [b.shape.at(-2)!, b.shape.at(-1)!];
    if (k !== kb) {
      const axisOf = (name: string, last: boolean, size: number) =>
        `${name}'s ${last ? "last" : "second to last"} (${size})`;
      throw new ShapeError(
        `matmul: inner dimensions differ: a ${show(a.shape)}${transposeA ? "ᵀ" : ""} · b ${show(b.shape)}${transposeB ? "ᵀ" : ""}; ${axisOf("a", !transposeA, k)} must equal ${axisOf("b", transposeB, kb)}.`,
      );
    }
    if (bias && (bias.rank !== 1 || bias.shape[0] !== n))
      throw new ShapeError(`matmul: bias does not fit: ${show(bias.shape)} for ${n} columns; it must be [${n}].`);
    return { shape: [...broadcast("matmul", a.shape.slice(0, -2), b.shape.slice(0, -2)), m, n], dtype };
  },
  forward: (c) =>
    launchMatmul(c.out, maybe(c.in.a, c.attrs.transposeA), maybe(c.in.b, c.attrs.transposeB), {
      bias: c.in.bias,
      activation: c.attrs.activation,
    }),
  saves: (needs, { activation }) =>
    activation === "none"
      ? [...(needs.b ? (["a"] as const) : []), ...(needs.a ? (["b"] as const) : [])]
      : ["a", "b", "bias"],
  grad: {
    a: (c) => {
      const w = maybe(c.in.b, c.attrs.transposeB);
      const dz = inner(c);
      return c.attrs.transposeA
        ? product(w, swapped(dz), "matmul backward")
        : product(dz, swapped(w), "matmul backward");
    },
    b: (c) => {
      let a = maybe(c.in.a, c.attrs.transposeA);
      let dz = inner(c);
      // One b for the whole batch: its gradient is one product over all rows.
      if (!hasBatch(c.spec.b.shape) && hasBatch(a.shape)) [a, dz] = [flat(a), flat(dz)];
      const sums = c.needs.bias && !hasBatch(a.shape) && !hasBatch(dz.shape) ? biasSums(c) : undefined;
      const db = c.attrs.transposeB
        ? product(swapped(dz), a, "matmul backward", sums)
        : product(swapped(a), dz, "matmul backward");
      return db.rank < c.spec.b.shape.length ? reshape(db, c.spec.b.shape) : db;
    },
    bias: (c) => biasSums(c).of ?? sum(flat(inner(c)), 0),
  },
});

/** Options of `matmul`. */
export interface MatmulOptions {
  /** Reads a with its last two axes swapped. */
  transposeA?: boolean;
  transposeB?: boolean;
  /** [columns], added to every row. */
  bias?: Tensor;
  activation?: Activation;
}

/**
 * act(a · b + bias) for a [..., m, k] and b [..., k, n]: [..., m, n]. Leading axes broadcast. A vector a is a row, a vector
 * b a column, and that axis is dropped from the result, as in PyTorch. Views with swapped axes are read in place.
 *
 * With an activation, backward computes the value before it a second time instead of keeping it: less memory for one
 * more product. `geluTanh(matmul(a, b))` makes the other choice.
 * @throws ShapeError when the inner sizes differ or the batch does not broadcast
 */
export function matmul(a: Tensor, b: Tensor, options: MatmulOptions = {}): Tensor {
  checkOptions("matmul", options, ["transposeA", "transposeB", "bias", "activation"]);
  const { transposeA = false, transposeB = false, bias, activation = "none" } = options;
  checkActivation("matmul", activation);
  for (const [name, t, transpose] of [
    ["a", a, transposeA],
    ["b", b, transposeB],
  ] as const)
    if (t.rank === 0 || (t.rank === 1 && transpose))
      throw new ShapeError(
        `matmul: ${name} is ${show(t.shape)}; it needs ${transpose ? "two axes to be transposed" : "at least one axis"}.`,
      );
  const y = run(
    {
      a: a.rank === 1 ? reshape(a, [1, a.size]) : a,
      b: b.rank === 1 ? reshape(b, [b.size, 1]) : b,
      bias,
    },
    { transposeA, transposeB, activation },
  )[0];
  if (a.rank > 1 && b.rank > 1) return y;
  return reshape(y, [
    ...y.shape.slice(0, -2),
    ...(a.rank > 1 ? [y.shape.at(-2)!] : []),
    ...(b.rank > 1 ? [y.shape.at(-1)!] : []),
  ]);
}

/**
 * act(x · weightᵀ + bias) for x [..., in], weight [out, in], bias [out]: [..., out].
 * @throws ShapeError when the sizes do not fit
 */
export function linear(x: Tensor, weight: Tensor, bias?: Tensor, activation: Activation = "none"): Tensor {
  checkActivation("linear", activation);
  if (weight.rank !== 2 || x.rank === 0 || x.shape.at(-1) !== weight.shape[1])
    throw new ShapeError(
      `linear: sizes differ: x ${show(x.shape)} · weight ${show(weight.shape)}; weight must be [out, in] with in = x's last axis (${x.shape.at(-1)}).`,
    );
  if (bias && (bias.rank !== 1 || bias.shape[0] !== weight.shape[0]))
    throw new ShapeError(
      `linear: bias does not fit: ${show(bias.shape)} for weight ${show(weight.shape)}; it must be [${weight.shape[0]}].`,
    );
  return matmul(x, weight, { transposeB: true, bias, activation });
}
