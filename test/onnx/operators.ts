import {
  add,
  argmax,
  cat,
  clamp,
  contiguous,
  conv2d,
  type DType,
  div,
  type Engine,
  embedding,
  equal,
  expand,
  gather,
  geluErf,
  greater,
  greaterEqual,
  layerNorm,
  less,
  lessEqual,
  logicalAnd,
  logicalNot,
  logicalOr,
  logSoftmax,
  matmul,
  max,
  maximum,
  mean,
  min,
  minimum,
  mul,
  pad,
  permute,
  pow,
  reshape,
  rsqrt,
  scatterAdd,
  slice,
  softmax,
  split,
  sqrt,
  square,
  sub,
  sum,
  type Tensor,
  to,
  unary,
  upsampleNearest,
  where,
} from "../../engine/index.js";
import type { OnnxNode, OnnxTensor } from "./protobuf.js";

/** Why a case is outside what Espalier covers. */
export class NotCovered extends Error {}

/** A value of a graph: on the GPU, with its ONNX element type; `host` where the numbers are known beforehand. */
export interface Value {
  tensor: Tensor;
  type: number;
  host?: number[];
}

/** What an operator's translation works with. */
export interface Node {
  engine: Engine;
  opset: number;
  node: OnnxNode;
  inputs: (Value | undefined)[];
}

type Operator = (n: Node) => Value[];

type Widened<T> = T extends number ? number : T extends string ? string : T;
const attr = <T>(n: Node, name: string, fallback: T): Widened<T> =>
  ((n.node.attributes[name] as T | undefined) ?? fallback) as Widened<T>;
const float = (n: Node, i = 0): Value => {
  const v = n.inputs[i];
  if (!v) throw new NotCovered(`input ${i} left out`);
  if (v.type !== 1 && v.type !== 10) throw new NotCovered(`${n.node.op} on element type ${v.type}`);
  return v;
};
const any = (n: Node, i = 0): Value => {
  const v = n.inputs[i];
  if (!v) throw new NotCovered(`input ${i} left out`);
  return v;
};
const ints = (n: Node, i: number): number[] | undefined => {
  const v = n.inputs[i];
  if (!v) return undefined;
  if (!v.host) throw new NotCovered("a shape that is computed on the GPU");
  return v.host;
};
const same = (v: Value, tensor: Tensor): Value[] => [{ tensor, type: v.type }];
const one =
  (f: (x: Tensor) => Tensor): Operator =>
  (n) =>
    same(float(n), f(float(n).tensor));
const two =
  (f: (a: Tensor, b: Tensor) => Tensor): Operator =>
  (n) => {
    const [a, b] = [any(n, 0), any(n, 1)];
    if (a.type !== b.type) throw new NotCovered(`mixed element types ${a.type} and ${b.type}`);
    return same(a, f(a.tensor, b.tensor));
  };
const compare =
  (f: (a: Tensor, b: Tensor) => Tensor): Operator =>
  (n) => [{ tensor: f(any(n, 0).tensor, any(n, 1).tensor), type: 9 }];
const many =
  (f: (a: Tensor, b: Tensor) => Tensor): Operator =>
  (n) => {
    const all = n.inputs.map((_, i) => any(n, i));
    return same(
      all[0],
      all.map((v) => v.tensor).reduce((a, b) => f(a, b)),
    );
  };

/** axes from an attribute (older opsets) or an input; all when absent. */
function reduction(f: (x: Tensor, dims: number[] | undefined, keep: boolean) => Tensor): Operator {
  return (n) => {
    const x = float(n);
    let dims = (n.node.attributes.axes as number[] | undefined) ?? ints(n, 1);
    if (dims?.length === 0) {
      if (attr(n, "noop_with_empty_axes", 0)) return same(x, x.tensor);
      dims = undefined;
    }
    return same(x, f(x.tensor, dims, attr(n, "keepdims", 1) === 1));
  };
}

const axisOf = (n: Node, rank: number, fallback: number) => {
  const a = attr(n, "axis", fallback);
  return a < 0 ? a + rank : a;
};

/** Softmax before opset 13 works on the flattened trailing axes. */
const soft =
  (f: (x: Tensor, dim: number) => Tensor): Operator =>
  (n) => {
    const x = float(n);
    const axis = axisOf(n, x.tensor.rank, n.opset < 13 ? 1 : -1);
    if (n.opset >= 13) return same(x, f(x.tensor, axis));
    const outer = x.tensor.shape.slice(0, axis).reduce((a, b) => a * b, 1);
    return same(x, reshape(f(reshape(x.tensor, [outer, -1]), -1), x.tensor.shape));
  };

/** log Σ e^x with the maximum taken out. */
function logSumExp(x: Tensor, dims: number[] | undefined, keep: boolean): Tensor {
  const top = max(x, dims, true);
  const total = add(unary.log(sum(unary.exp(sub(x, expand(top, x.shape))), dims, true)), top);
  return keep ? total : reshape(total, sum(x, dims, false).shape);
}

const casts: Record<number, DType> = { 1: "f32", 6: "i32", 7: "i32", 9: "u32", 10: "f16", 12: "u32" };
function cast(v: Value, type: number): Value[] {
  const dtype = casts[type];
  if (!dtype) throw new NotCovered(`cast to element type ${type}`);
  if (type === 9) return [{ tensor: where(equal(to(v.tensor, "f32"), 0), zeros(v), onesLike(v)), type }];
  return [{ tensor: to(v.tensor, dtype), type, host: v.host }];
}
const zeros = (v: Value) => v.tensor.engine.full(v.tensor.shape, 0, "u32");
const onesLike = (v: Value) => v.tensor.engine.full(v.tensor.shape, 1, "u32");

function conv(n: Node): Value[] {
  const [x, w] = [float(n, 0), float(n, 1)];
  if (x.tensor.rank !== 4) throw new NotCovered(`Conv over ${x.tensor.rank - 2} axes`);
  if (attr(n, "group", 1) !== 1) throw new NotCovered("Conv with groups");
  if (attr(n, "dilations", [1, 1]).some((d) => d !== 1)) throw new NotCovered("Conv with dilations");
  const [sh, sw] = attr(n, "strides", [1, 1]);
  if (sh !== sw) throw new NotCovered("Conv with unequal strides");
  const kernel = w.tensor.shape.slice(2);
  let pads = attr(n, "pads", [0, 0, 0, 0]);
  const auto = attr(n, "auto_pad", "NOTSET");
  if (auto === "SAME_LOWER" || auto === "SAME_UPPER") {
    const total = kernel.map((k, i) =>
      Math.max(0, (Math.ceil(x.tensor.shape[2 + i] / sh) - 1) * sh + k - x.tensor.shape[2 + i]),
    );
    const low = total.map((t) => (auto === "SAME_LOWER" ? Math.ceil(t / 2) : Math.floor(t / 2)));
    pads = [low[0], low[1], total[0] - low[0], total[1] - low[1]];
  }
  const padded = pad(
    x.tensor,
    [
      [0, 0],
      [0, 0],
      [pads[0], pads[2]],
      [pads[1], pads[3]],
    ],
    0,
  );
  return same(x, conv2d(padded, w.tensor, n.inputs[2]?.tensor, { stride: sh }));
}

function gemm(n: Node): Value[] {
  const [a, b] = [float(n, 0), float(n, 1)];
  let y = matmul(a.tensor, b.tensor, {
    transposeA: attr(n, "transA", 0) === 1,
    transposeB: attr(n, "transB", 0) === 1,
  });
  y = mul(y, attr(n, "alpha", 1));
  const c = n.inputs[2]?.tensor;
  return same(a, c ? add(y, mul(c, attr(n, "beta", 1))) : y);
}

function gatherRows(n: Node): Value[] {
  const [x, index] = [any(n, 0), any(n, 1)];
  const axis = axisOf(n, x.tensor.rank, 0);
  const at = wrap(index.tensor, x.tensor.shape[axis]);
  const order = [axis, ...x.tensor.shape.map((_, i) => i).filter((i) => i !== axis)];
  const rest = order.slice(1).map((i) => x.tensor.shape[i]);
  const rows = reshape(contiguous(permute(x.tensor, order)), [x.tensor.shape[axis], -1]);
  const picked = reshape(embedding(rows, at), [...at.shape, ...rest]);
  const r = at.rank;
  const back = [
    ...Array.from({ length: axis }, (_, i) => r + i),
    ...at.shape.map((_, i) => i),
    ...Array.from({ length: x.tensor.rank - 1 - axis }, (_, i) => r + axis + i),
  ];
  return same(x, permute(picked, back));
}

/** Negative indices count from the end. */
function wrap(index: Tensor, n: number): Tensor {
  return where(less(index, 0), add(index, n), index);
}

function sliceNode(n: Node): Value[] {
  const x = any(n);
  const starts = ints(n, 1) ?? attr<number[]>(n, "starts", []);
  const ends = ints(n, 2) ?? attr<number[]>(n, "ends", []);
  const axes =
    ints(n, 3) ??
    attr<number[]>(
      n,
      "axes",
      starts.map((_, i) => i),
    );
  const steps = ints(n, 4) ?? starts.map(() => 1);
  let y = x.tensor;
  axes.forEach((axis, i) => {
    const dim = axis < 0 ? axis + y.rank : axis;
    const size = y.shape[dim];
    if (steps[i] < 0) throw new NotCovered("Slice with a negative step");
    const clip = (v: number) => Math.min(Math.max(v < 0 ? v + size : v, 0), size);
    y = slice(y, dim, clip(starts[i]), Math.max(clip(starts[i]), clip(ends[i])), steps[i]);
  });
  return same(x, y);
}

function reshapeNode(n: Node): Value[] {
  const x = any(n);
  const to = ints(n, 1)!;
  const zero = attr(n, "allowzero", 0) === 1;
  return same(
    x,
    reshape(
      x.tensor,
      to.map((d, i) => (d === 0 && !zero ? x.tensor.shape[i] : d)),
    ),
  );
}

function padNode(n: Node): Value[] {
  const x = any(n);
  if (attr(n, "mode", "constant") !== "constant") throw new NotCovered(`Pad with mode ${attr(n, "mode", "")}`);
  const pads = ints(n, 1) ?? attr<number[]>(n, "pads", []);
  const r = x.tensor.rank;
  const value = n.inputs[2] ? ints(n, 2)![0] : attr(n, "value", 0);
  return same(
    x,
    pad(
      x.tensor,
      x.tensor.shape.map((_, i) => [pads[i], pads[i + r]] as [number, number]),
      value,
    ),
  );
}

/** LayerNormalization from any axis: the trailing axes are merged, the affine part is applied in their shape. */
function layerNormNode(n: Node): Value[] {
  const [x, scale, bias] = [float(n, 0), float(n, 1), n.inputs[2]];
  const axis = axisOf(n, x.tensor.rank, -1);
  const eps = attr(n, "epsilon", 1e-5);
  const outer = x.tensor.shape.slice(0, axis);
  const flat = reshape(x.tensor, [outer.reduce((a, b) => a * b, 1), -1]);
  const weight = reshape(scale.tensor, [-1]);
  const y = reshape(layerNorm(flat, { weight, bias: bias && reshape(bias.tensor, [-1]), eps }), x.tensor.shape);
  const shape = [...outer, ...x.tensor.shape.slice(axis).map(() => 1)];
  const m = mean(flat, -1, true);
  const spread = mean(square(sub(flat, expand(m, flat.shape))), -1, true);
  return [
    { tensor: y, type: 1 },
    { tensor: reshape(m, shape), type: 1 },
    { tensor: reshape(rsqrt(add(spread, eps)), shape), type: 1 },
  ];
}

function batchNorm(n: Node): Value[] {
  if (attr(n, "training_mode", 0)) throw new NotCovered("BatchNormalization in training mode");
  const x = float(n);
  const channel = (i: number) => reshape(float(n, i).tensor, [1, -1, ...x.tensor.shape.slice(2).map(() => 1)]);
  const scale = mul(channel(1), rsqrt(add(channel(4), attr(n, "epsilon", 1e-5))));
  return same(x, add(mul(sub(x.tensor, channel(3)), scale), channel(2)));
}

function splitNode(n: Node): Value[] {
  const x = any(n);
  const axis = axisOf(n, x.tensor.rank, 0);
  const parts = ints(n, 1) ?? (n.node.attributes.split as number[] | undefined);
  const count = n.node.outputs.length;
  const sizes = parts ?? Array<number>(count).fill(x.tensor.shape[axis] / count);
  if (sizes.some((s) => s === 0)) throw new NotCovered("Split into empty parts");
  return split(x.tensor, sizes, axis).map((tensor) => ({ tensor, type: x.type }));
}

function resize(n: Node): Value[] {
  const x = float(n);
  const scales = n.opset < 11 ? ints(n, 1) : n.inputs[2]?.host;
  const integer =
    scales?.length === 4 &&
    scales[0] === 1 &&
    scales[1] === 1 &&
    scales[2] === scales[3] &&
    Number.isInteger(scales[2]);
  if (attr(n, "mode", "nearest") !== "nearest" || !integer)
    throw new NotCovered("Resize other than nearest by a whole factor");
  const rule = attr(n, "coordinate_transformation_mode", "half_pixel");
  if (rule !== "half_pixel" && rule !== "asymmetric") throw new NotCovered(`Resize with coordinates ${rule}`);
  return same(x, upsampleNearest(x.tensor, scales![2]));
}

function constant(n: Node): Value[] {
  const t = n.node.attributes.value as OnnxTensor | undefined;
  if (t) return [upload(n.engine, t)];
  for (const [name, type] of [
    ["value_float", 1],
    ["value_int", 7],
    ["value_floats", 1],
    ["value_ints", 7],
  ] as const) {
    const v = n.node.attributes[name] as number | number[] | undefined;
    if (v !== undefined)
      return [upload(n.engine, { name, dims: Array.isArray(v) ? [v.length] : [], type, values: [v].flat() })];
  }
  throw new NotCovered("Constant of another kind");
}

/** Element types as tensors hold them: 64-bit integers as i32 when every value fits, booleans as u32. */
export function upload(engine: Engine, t: OnnxTensor): Value {
  const dtype = casts[t.type];
  if (!dtype) throw new NotCovered(`element type ${t.type}`);
  if (dtype === "f16" && !engine.has("shader-f16")) throw new NotCovered("f16, which this adapter lacks");
  if (t.values.length !== t.dims.reduce((a, b) => a * b, 1)) throw new NotCovered("a sequence instead of a tensor");
  const values = t.type === 7 ? t.values.map((v) => Math.max(-(2 ** 31), Math.min(2 ** 31 - 1, v))) : t.values;
  return { tensor: engine.tensor(Float64Array.from(values), t.dims, dtype), type: t.type, host: t.values };
}

const tan = (x: Tensor) => div(unary.sin(x), unary.cos(x));
const sinh = (x: Tensor) => mul(sub(unary.exp(x), unary.exp(unary.neg(x))), 0.5);
const cosh = (x: Tensor) => mul(add(unary.exp(x), unary.exp(unary.neg(x))), 0.5);
const leaky = (x: Tensor, slope: number) => add(maximum(x, 0), mul(minimum(x, 0), slope));

/** ONNX operators in Espalier's ops. */
export const operators: Record<string, Operator> = {
  Abs: one(unary.abs),
  Neg: one(unary.neg),
  Exp: one(unary.exp),
  Log: one(unary.log),
  Sqrt: one(sqrt),
  Sin: one(unary.sin),
  Cos: one(unary.cos),
  Tan: one(tan),
  Sinh: one(sinh),
  Cosh: one(cosh),
  Tanh: one(unary.tanh),
  Sigmoid: one(unary.sigmoid),
  Relu: one(unary.relu),
  Erf: one(unary.erf),
  Floor: one(unary.floor),
  Ceil: one(unary.ceil),
  Round: one(unary.round),
  Sign: one(unary.sign),
  Reciprocal: one(unary.reciprocal),
  Softplus: one(unary.softplus),
  Softsign: one((x) => div(x, add(unary.abs(x), 1))),
  Gelu: one(geluErf),
  Identity: (n) => [any(n)],
  Add: two(add),
  Sub: two(sub),
  Mul: two(mul),
  Div: two(div),
  Pow: (n) => {
    float(n);
    return two(pow)(n);
  },
  Max: many(maximum),
  Min: many(minimum),
  Sum: many(add),
  Mean: (n) => same(float(n), div(many(add)(n)[0].tensor, n.inputs.length)),
  Equal: compare(equal),
  Less: compare(less),
  Greater: compare(greater),
  LessOrEqual: compare(lessEqual),
  GreaterOrEqual: compare(greaterEqual),
  And: compare(logicalAnd),
  Or: compare(logicalOr),
  Not: (n) => [{ tensor: logicalNot(any(n).tensor), type: 9 }],
  Xor: (n) => [{ tensor: logicalNot(equal(any(n, 0).tensor, any(n, 1).tensor)), type: 9 }],
  Where: (n) => same(any(n, 1), where(any(n, 0).tensor, any(n, 1).tensor, any(n, 2).tensor)),
  Clip: (n) => {
    const [low, high] = [
      n.inputs[1] ? ints(n, 1)![0] : attr(n, "min", -3.4e38),
      n.inputs[2] ? ints(n, 2)![0] : attr(n, "max", 3.4e38),
    ];
    return same(float(n), clamp(float(n).tensor, low, high));
  },
  LeakyRelu: (n) => same(float(n), leaky(float(n).tensor, attr(n, "alpha", 0.01))),
  PRelu: (n) => same(float(n), add(maximum(float(n).tensor, 0), mul(minimum(float(n).tensor, 0), float(n, 1).tensor))),
  ThresholdedRelu: (n) =>
    same(float(n), mul(float(n).tensor, to(greater(float(n).tensor, attr(n, "alpha", 1)), "f32"))),
  HardSigmoid: (n) =>
    same(float(n), clamp(add(mul(float(n).tensor, attr(n, "alpha", 0.2)), attr(n, "beta", 0.5)), 0, 1)),
  HardSwish: one((x) => mul(x, clamp(add(div(x, 6), 0.5), 0, 1))),
  Elu: (n) =>
    same(
      float(n),
      add(
        maximum(float(n).tensor, 0),
        mul(sub(unary.exp(minimum(float(n).tensor, 0)), n.engine.ones([])), attr(n, "alpha", 1)),
      ),
    ),
  Selu: (n) => {
    const [x, alpha, gamma] = [float(n).tensor, attr(n, "alpha", 1.6732632), attr(n, "gamma", 1.050701)];
    return same(float(n), mul(add(maximum(x, 0), mul(add(unary.exp(minimum(x, 0)), -1), alpha)), gamma));
  },
  ReduceSum: reduction(sum),
  ReduceMean: reduction(mean),
  ReduceMax: reduction(max),
  ReduceMin: reduction(min),
  ReduceL1: reduction((x, d, k) => sum(unary.abs(x), d, k)),
  ReduceL2: reduction((x, d, k) => sqrt(sum(square(x), d, k))),
  ReduceSumSquare: reduction((x, d, k) => sum(square(x), d, k)),
  ReduceLogSum: reduction((x, d, k) => unary.log(sum(x, d, k))),
  ReduceLogSumExp: reduction(logSumExp),
  ArgMax: (n) => {
    if (attr(n, "select_last_index", 0)) throw new NotCovered("ArgMax of the last of equal values");
    return [{ tensor: argmax(float(n).tensor, attr(n, "axis", 0), attr(n, "keepdims", 1) === 1), type: 7 }];
  },
  ArgMin: (n) => {
    if (attr(n, "select_last_index", 0)) throw new NotCovered("ArgMin of the last of equal values");
    return [{ tensor: argmax(unary.neg(float(n).tensor), attr(n, "axis", 0), attr(n, "keepdims", 1) === 1), type: 7 }];
  },
  Softmax: soft(softmax),
  LogSoftmax: soft(logSoftmax),
  LayerNormalization: layerNormNode,
  BatchNormalization: batchNorm,
  MatMul: two((a, b) => matmul(a, b)),
  Gemm: gemm,
  Conv: conv,
  Reshape: reshapeNode,
  Flatten: (n) => {
    const x = any(n);
    const axis = axisOf(n, x.tensor.rank, 1);
    return same(
      x,
      reshape(x.tensor, [
        x.tensor.shape.slice(0, axis).reduce((a, b) => a * b, 1),
        x.tensor.shape.slice(axis).reduce((a, b) => a * b, 1),
      ]),
    );
  },
  Transpose: (n) =>
    same(
      any(n),
      permute(
        any(n).tensor,
        attr(
          n,
          "perm",
          any(n).tensor.shape.map((_, i) => any(n).tensor.rank - 1 - i),
        ),
      ),
    ),
  Unsqueeze: (n) => {
    const x = any(n);
    const axes = ints(n, 1) ?? attr<number[]>(n, "axes", []);
    const rank = x.tensor.rank + axes.length;
    const at = axes.map((a) => (a < 0 ? a + rank : a));
    const rest = [...x.tensor.shape];
    return same(
      x,
      reshape(
        x.tensor,
        Array.from({ length: rank }, (_, i) => (at.includes(i) ? 1 : rest.shift()!)),
      ),
    );
  },
  Squeeze: (n) => {
    const x = any(n);
    const axes =
      ints(n, 1) ??
      (n.node.attributes.axes as number[] | undefined) ??
      x.tensor.shape.flatMap((s, i) => (s === 1 ? [i] : []));
    const at = axes.map((a) => (a < 0 ? a + x.tensor.rank : a));
    return same(
      x,
      reshape(
        x.tensor,
        x.tensor.shape.filter((_, i) => !at.includes(i)),
      ),
    );
  },
  Expand: (n) => {
    const x = any(n);
    const target = ints(n, 1)!;
    const rank = Math.max(target.length, x.tensor.rank);
    const wanted = [...Array<number>(rank - target.length).fill(1), ...target];
    const shape = wanted.map((d, i) => Math.max(d, x.tensor.shape[i - rank + x.tensor.rank] ?? 1));
    return same(x, expand(x.tensor, shape));
  },
  Concat: (n) =>
    same(
      any(n),
      cat(
        n.inputs.map((_, i) => any(n, i).tensor),
        attr(n, "axis", 0),
      ),
    ),
  Split: splitNode,
  Slice: sliceNode,
  Pad: padNode,
  Gather: gatherRows,
  Resize: resize,
  Upsample: resize,
  Constant: constant,
  GatherElements: (n) => {
    const axis = axisOf(n, any(n).tensor.rank, 0);
    return same(any(n), gather(any(n).tensor, axis, wrap(any(n, 1).tensor, any(n).tensor.shape[axis])));
  },
  ScatterElements: (n) => {
    if (attr(n, "reduction", "none") !== "add") throw new NotCovered("ScatterElements that replaces");
    const axis = axisOf(n, any(n).tensor.rank, 0);
    return same(
      any(n),
      scatterAdd(any(n).tensor, axis, wrap(any(n, 1).tensor, any(n).tensor.shape[axis]), any(n, 2).tensor),
    );
  },
  Cast: (n) => cast(any(n), attr(n, "to", 0)),
  CastLike: (n) => cast(any(n), any(n, 1).type),
  Shape: (n) => {
    const { shape, rank } = any(n).tensor;
    const clip = (v: number) => Math.min(Math.max(v < 0 ? v + rank : v, 0), rank);
    const part = shape.slice(clip(attr(n, "start", 0)), clip(attr(n, "end", rank)));
    return [upload(n.engine, { name: "shape", dims: [part.length], type: 7, values: [...part] })];
  },
  Size: (n) => [upload(n.engine, { name: "size", dims: [], type: 7, values: [any(n).tensor.size] })],
  ConstantOfShape: (n) => {
    const shape = ints(n, 0)!;
    const t = n.node.attributes.value as OnnxTensor | undefined;
    const v = t ?? { name: "", dims: [1], type: 1, values: [0] };
    const dtype = casts[v.type];
    if (!dtype) throw new NotCovered(`element type ${v.type}`);
    const count = shape.reduce((a, b) => a * b, 1);
    return [
      {
        tensor: n.engine.tensor(
          Float64Array.from({ length: count }, () => v.values[0]),
          shape,
          dtype,
        ),
        type: v.type,
        host: Array<number>(count).fill(v.values[0]),
      },
    ];
  },
  Range: (n) => {
    const [start, limit, delta] = [0, 1, 2].map((i) => ints(n, i)![0]);
    const values = Array.from({ length: Math.max(0, Math.ceil((limit - start) / delta)) }, (_, i) => start + i * delta);
    return [upload(n.engine, { name: "range", dims: [values.length], type: any(n).type, values })];
  },
  GlobalAveragePool: (n) =>
    same(
      float(n),
      mean(
        float(n).tensor,
        float(n)
          .tensor.shape.map((_, i) => i)
          .slice(2),
        true,
      ),
    ),
  GlobalMaxPool: (n) =>
    same(
      float(n),
      max(
        float(n).tensor,
        float(n)
          .tensor.shape.map((_, i) => i)
          .slice(2),
        true,
      ),
    ),
};
