import { checkDType, computeType, type DType, isFloat } from "../dtype.js";
import { DTypeError, EspalierError } from "../errors.js";
import { type Call, op, sameDType } from "../op.js";
import { broadcast } from "../shape.js";
import type { Tensor } from "../tensor.js";
import { binaryTable, type Row, ternaryTable, unaryTable } from "./formulas.js";
import { launchElementwise } from "./walk.js";

/** Integers take whole constants of their own range: rounding one silently would change the result. */
function checkConstants(name: string, values: readonly number[], dtype: DType): void {
  const [low, high] = dtype === "u32" ? [0, 2 ** 32 - 1] : [-(2 ** 31), 2 ** 31 - 1];
  for (const v of values)
    if (!Number.isInteger(v) || v < low || v > high)
      throw new DTypeError(
        `${name}: ${v} is no ${dtype} number; use a whole number from ${low} to ${high}, or convert the tensor with to("f32").`,
      );
}

const uses = (expression: string, name: string) => new RegExp(`\\b${name}\\b`).test(expression);

/** Defines the op of one row: forward from `y`, one gradient thunk per derivative given. */
function elementwise(
  name: string,
  row: Row,
  inputs: readonly string[],
): (tensors: readonly Tensor[], values?: readonly number[]) => Tensor {
  const wantedBy = (input: string) => row.grad?.[input] ?? "";
  const run = op<string, { values: readonly number[] }>({
    name,
    doc: row.doc,
    link: row.link,
    inputs,
    strided: inputs,
    stridedGrad: true,
    infer: (given, attrs) => {
      const tensors = inputs.map((i) => given[i]);
      const typed = row.mixed ? tensors.slice(1) : tensors;
      const dtype = sameDType(name, ...typed);
      if (!isFloat(dtype) && row.types !== "any" && !(row.types === "signed" && dtype === "i32"))
        throw new DTypeError(
          `${name}: needs f32${row.types === "signed" ? ", f16 or i32" : " or f16"}: got ${dtype}; convert it with to("f32").`,
        );
      if (row.mixed && isFloat(given[inputs[0]].dtype))
        throw new DTypeError(
          `${name}: the condition must be u32 or i32: got ${given[inputs[0]].dtype}; compare it first, as in x.greater(0).`,
        );
      if (!isFloat(dtype)) checkConstants(name, attrs.values, dtype);
      return { shape: broadcast(name, ...tensors.map((t) => t.shape)), dtype: row.result ?? dtype };
    },
    forward: (c) =>
      launchElementwise(
        c.out,
        row.y,
        inputs,
        inputs.map((i) => c.in[i]),
        c.attrs.values,
      ),
    saves: (needs) =>
      [...inputs, "out"].filter((v) =>
        inputs.some((i) => needs[i] && uses(wantedBy(i), v === "out" ? "y" : v)),
      ) as string[],
    grad: Object.fromEntries(
      inputs
        .filter((i) => row.grad?.[i] !== undefined)
        .map((i) => [
          i,
          (c) => {
            const expression = wantedBy(i);
            if (expression === "dy") return c.dy;
            const names = ["dy", ...inputs.filter((v) => uses(expression, v)), ...(uses(expression, "y") ? ["y"] : [])];
            const operands = names.map((v) => (v === "dy" ? c.dy : v === "y" ? c.out : c.in[v]));
            const dx = c.engine.empty(broadcast(name, ...operands.map((t) => t.shape)), c.dy.dtype, `${name} backward`);
            launchElementwise(dx, expression, names, operands, c.attrs.values);
            return dx;
          },
        ]),
    ),
  });
  return (tensors, values = []) => run(Object.fromEntries(inputs.map((i, k) => [i, tensors[k]])), { values })[0];
}

type Unary = { [K in keyof typeof unaryTable]: (x: Tensor, ...constants: number[]) => Tensor };
type Binary = { [K in keyof typeof binaryTable]: (a: Tensor, b: Tensor) => Tensor };
type Ternary = { [K in keyof typeof ternaryTable]: (x: Tensor, a: Tensor, b: Tensor) => Tensor };

const define = <F>(
  table: Record<string, Row>,
  inputs: readonly string[],
  wrap: (run: (t: readonly Tensor[], v?: readonly number[]) => Tensor) => F,
) => Object.fromEntries(Object.entries(table).map(([name, row]) => [name, wrap(elementwise(name, row, inputs))]));

const unary = define(
  unaryTable,
  ["x"],
  (run) =>
    (x: Tensor, ...k: number[]) =>
      run([x], k),
) as unknown as Unary;
const binary = define(binaryTable, ["a", "b"], (run) => (a: Tensor, b: Tensor) => run([a, b])) as unknown as Binary;
const ternary = define(
  ternaryTable,
  ["x", "a", "b"],
  (run) => (x: Tensor, a: Tensor, b: Tensor) => run([x, a, b]),
) as unknown as Ternary;

export { binary, ternary, unary };

/** A dense copy (PyTorch's clone of a view). The gradient passes through. */
const contiguousRun = op<"x">({
  name: "contiguous",
  doc: "y = x, dense in memory",
  inputs: ["x"],
  strided: ["x"],
  stridedGrad: true,
  infer: ({ x }) => ({ shape: x.shape, dtype: x.dtype }),
  forward: (c) => launchElementwise(c.out, "x", ["x"], [c.in.x]),
  grad: { x: (c) => c.dy },
});
export const contiguous = (x: Tensor): Tensor => contiguousRun({ x }, {})[0];

const cast = {
  inputs: ["x"] as const,
  strided: ["x"] as const,
  infer: ({ x }: { x: Tensor }, { dtype }: { dtype: DType }) => ({ shape: x.shape, dtype }),
  forward: (c: Call<"x", { dtype: DType }>) =>
    launchElementwise(c.out, `${computeType(c.attrs.dtype)}(x)`, ["x"], [c.in.x]),
};
const toFloat = op<"x", { dtype: DType }>({
  ...cast,
  name: "to",
  doc: "y = x converted to f32 or f16",
  stridedGrad: true,
  grad: { x: (c) => to(c.dy, c.spec.x.dtype) },
});
const toInteger = op<"x", { dtype: DType }>({
  ...cast,
  name: "toInteger",
  doc: "y = x truncated to i32 or u32; no gradient",
});

/** The values as another dtype; the tensor itself when it has it already. Towards integers they are truncated. */
export function to(x: Tensor, dtype: DType): Tensor {
  checkDType("to", dtype);
  return x.dtype === dtype ? x : (isFloat(dtype) ? toFloat : toInteger)({ x }, { dtype })[0];
}

/** A tensor or a plain number as the second operand. */
export type Operand = Tensor | number;

const withNumber =
  (tensorOp: (a: Tensor, b: Tensor) => Tensor, numberOp: (a: Tensor, k: number) => Tensor) =>
  (a: Tensor, b: Operand): Tensor =>
    typeof b === "number" ? numberOp(a, b) : tensorOp(a, b);

export const add = withNumber(binary.add, unary.addScalar);
export const sub = withNumber(binary.sub, unary.subScalar);
export const mul = withNumber(binary.mul, unary.mulScalar);
export const div = withNumber(binary.div, unary.divScalar);
export const pow = withNumber(binary.pow, unary.powScalar);
export const maximum = withNumber(binary.maximum, unary.maximumScalar);
export const minimum = withNumber(binary.minimum, unary.minimumScalar);
export const equal = withNumber(binary.equal, unary.equalScalar);
export const less = withNumber(binary.less, unary.lessScalar);
export const greater = withNumber(binary.greater, unary.greaterScalar);
export const lessEqual = withNumber(binary.lessEqual, unary.lessEqualScalar);
export const greaterEqual = withNumber(binary.greaterEqual, unary.greaterEqualScalar);

export const {
  neg,
  abs,
  exp,
  log,
  sqrt,
  rsqrt,
  square,
  reciprocal,
  sin,
  cos,
  tanh,
  sigmoid,
  silu,
  relu,
  geluTanh,
  geluErf,
  erf,
  softplus,
  floor,
  ceil,
  round,
  sign,
} = unary as Record<string, (x: Tensor) => Tensor> & Unary;
/** gelu(x, "tanh" | "none"), PyTorch's `approximate`; the tanh form is the transformer's. */
export function gelu(x: Tensor, approximate: "tanh" | "none" = "tanh"): Tensor {
  if (approximate !== "tanh" && approximate !== "none")
    throw new EspalierError(`gelu: unknown approximation "${approximate}"; use "tanh" or "none".`);
  return approximate === "tanh" ? unary.geluTanh(x) : unary.geluErf(x);
}
/** Limits values to [low, high]; the gradient is zero outside. */
export function clamp(x: Tensor, low: number, high: number): Tensor {
  if (!(low <= high))
    throw new EspalierError(`clamp: the bounds are no range: ${low} to ${high}; give the lower one first.`);
  return unary.clamp(x, low, high);
}
/** 2-operand logic on u32 masks. */
export const { logicalAnd, logicalOr } = binary;
export const logicalNot = (x: Tensor): Tensor => unary.logicalNot(x);
/** condition ? a : b, elementwise; the condition is u32 or i32, zero means false. */
export const where = (condition: Tensor, a: Tensor, b: Tensor): Tensor => ternary.where(condition, a, b);
/** x + a * b with broadcasting: a gated residual, or a shift and scale, in one launch. */
export const addcmul = (x: Tensor, a: Tensor, b: Tensor): Tensor => ternary.addcmul(x, a, b);
/** x + weight * (end - x). */
export const lerp = (x: Tensor, end: Tensor, weight: Tensor): Tensor => ternary.lerp(x, end, weight);
