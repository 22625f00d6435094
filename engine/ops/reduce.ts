import source from "../../shaders/reduce.wgsl";
import { computeType } from "../dtype.js";
import { ShapeError } from "../errors.js";
import { kernel } from "../kernel.js";
import { needFloat, op } from "../op.js";
import { axes, axis, type Shape, show, sizeOf } from "../shape.js";
import type { Tensor } from "../tensor.js";
import { launchElementwise } from "./elementwise.js";
import { expand, reshape } from "./view.js";

type Merge = "sum" | "max" | "min";
/** Entry points that give the same result; tests force each. */
export type ReduceVariant = "columns" | "rows" | "scalar" | "group";

const INFINITY = 0x7f800000;
/** Bits of the value that merging leaves alone. */
const start: Record<Merge, Record<"f32" | "i32" | "u32", number>> = {
  sum: { f32: 0, i32: 0, u32: 0 },
  max: { f32: (INFINITY | 0x80000000) >>> 0, i32: 0x80000000, u32: 0 },
  min: { f32: INFINITY, i32: 0x7fffffff, u32: 0xffffffff },
};
// A NaN wins: WGSL leaves min and max of a NaN open.
const merging: Record<Merge, string> = {
  sum: "return a + b;",
  max: "return select(a, b, b > a || unordered(b));",
  min: "return select(a, b, b < a || unordered(b));",
};

interface Sizes {
  outer: number;
  reduced: number;
  inner: number;
}

/** Rough times of an adapter class in µs: a launch that waits for another, one step of a loop; invocations at once. */
const costs = { software: { launch: 50, step: 0.025, wide: 32 }, gpu: { launch: 5, step: 0.2, wide: 16384 } };
const GROUP = 256;

/** How one launch cuts its work: the entry point, and into how many shares each reduction goes. */
function plan(x: Tensor, { outer, reduced, inner }: Sizes, forced?: ReduceVariant): { entry: ReduceVariant; split: number } {
  const isSoftware = x.engine.kind === "software";
  const isRow = inner === 1;
  const fits: Record<ReduceVariant, boolean> = { rows: isRow && reduced % 4 === 0, columns: inner % 4 === 0, group: isRow, scalar: true };
  let entry: ReduceVariant = fits.rows ? "rows" : fits.columns ? "columns" : "scalar";
  // Neighbouring invocations of a GPU should read neighbouring values: a row goes to a workgroup.
  if (!isSoftware && isRow && reduced >= GROUP) entry = "group";
  if (forced && fits[forced]) entry = forced;
  const { launch, step, wide } = isSoftware ? costs.software : costs.gpu;
  const owners = entry === "columns" ? (outer * inner) / 4 : entry === "group" ? outer * GROUP : outer * inner;
  const steps = entry === "rows" ? reduced / 4 : entry === "group" ? reduced / GROUP : reduced;
  const time = (split: number) => (steps / split) * Math.ceil((owners * split) / wide) * step + (split > 1 ? launch + split * step : 0);
  let split = 1;
  for (let s = 2; s <= 1024 && s * 8 <= steps; s *= 2) if (time(s) < time(split)) split = s;
  return { entry, split };
}

/**
 * Records y[o, i] = scale · merge over r of x[o, r, i] for a contiguous x; y is f32, i32, u32 or x's own type.
 * @param variant the entry point to take where the sizes allow it, and
 * @param shares the number of shares, for tests: both follow from sizes and adapter otherwise
 */
export function launchReduce(
  x: Tensor, y: Tensor, sizes: Sizes, merge: Merge, scale = 1, variant?: ReduceVariant, shares?: number,
): void {
  const { engine } = x;
  const { outer, reduced, inner } = sizes;
  const planned = plan(x, sizes, variant);
  const { entry } = planned;
  const split = Math.max(1, Math.min(shares ?? planned.split, reduced));
  const c = computeType(x.dtype);
  // Shares stay in the compute type: half storage would round, or overflow, in between.
  const to = split > 1 ? engine.empty([outer, split, inner], c, "reduce") : y;
  const last = split === 1;
  const settings = {
    T: x.dtype, TY: to.dtype, C: c,
    merge: merging[merge],
    unordered: c === "f32" ? "return is_nan(v);" : "return false;",
    finish: last && scale !== 1 ? "return v * p.scale;" : "return v;",
  };
  const four: Record<string, Tensor> = entry === "columns" ? { x4: x, y4: to } : entry === "rows" ? { x4: x, y: to } : { x, y: to };
  const owned = entry === "columns" ? (outer * split * inner) / 4 : outer * split * inner;
  const wg = engine.kind === "software" ? 16 : 64;
  engine.launch(
    kernel("reduce", source, entry, { ...settings, WG: wg }), four,
    { outer, reduced, inner, split, chunk: Math.ceil(reduced / split), start: start[merge][c], scale: last ? scale : 1 },
    entry === "group" ? owned : Math.ceil(owned / wg),
  );
  if (last) return;
  launchReduce(to, y, { outer, reduced: split, inner }, merge, scale, inner === 1 || inner % 4 ? "scalar" : "columns", 1);
  to.dispose();
}

/** Reduces a contiguous x over sorted `dims` into y, which keeps them with size 1: one launch per run of neighbours. */
export function reduceInto(x: Tensor, y: Tensor, dims: readonly number[], merge: Merge, scale = 1): void {
  if (dims.length === 0) {
    launchReduce(x, y, { outer: x.size, reduced: 1, inner: 1 }, merge, scale);
    return;
  }
  let from = x;
  let shape = [...x.shape];
  const left = [...dims];
  while (left.length) {
    const end = left.pop()!;
    let first = end;
    while (left.at(-1) === first - 1) first = left.pop()!;
    const sizes = { outer: sizeOf(shape.slice(0, first)), reduced: sizeOf(shape.slice(first, end + 1)), inner: sizeOf(shape.slice(end + 1)) };
    shape = shape.map((n, i) => (i >= first && i <= end ? 1 : n));
    const last = left.length === 0;
    const to = last ? y : x.engine.empty(shape, computeType(x.dtype), "reduce");
    launchReduce(from, to, sizes, merge, last ? scale : 1);
    if (from !== x) from.dispose();
    from = to;
  }
}

const keptShape = (shape: Shape, dims: readonly number[]): number[] => shape.map((n, i) => (dims.includes(i) ? 1 : n));
const countOf = (shape: Shape, dims: readonly number[]): number => dims.reduce((n, d) => n * shape[d], 1);

/** Drops the reduced axes, or keeps them with size 1. */
const finish = (y: Tensor, dims: readonly number[], keepdim: boolean): Tensor =>
  keepdim ? y : reshape(y, y.shape.filter((_, i) => !dims.includes(i)));

interface Over {
  dims: readonly number[];
}

const sumRun = op<"x", Over>({
  name: "sum",
  doc: "y = Σ x over the given axes",
  inputs: ["x"],
  infer: ({ x }, { dims }) => ({ shape: keptShape(x.shape, dims), dtype: x.dtype }),
  forward: (c) => reduceInto(c.in.x, c.out, c.attrs.dims, "sum"),
  stridedGrad: true,
  grad: { x: (c) => expand(c.dy, c.spec.x.shape) },
});

const meanRun = op<"x", Over>({
  name: "mean",
  doc: "y = Σ x / n over the given axes",
  inputs: ["x"],
  infer: ({ x }, { dims }) => {
    needFloat("mean", x);
    return { shape: keptShape(x.shape, dims), dtype: x.dtype };
  },
  forward: (c) => reduceInto(c.in.x, c.out, c.attrs.dims, "sum", 1 / countOf(c.in.x.shape, c.attrs.dims)),
  stridedGrad: true,
  grad: {
    x: (c) => {
      const scaled = c.engine.empty(c.dy.shape, c.dy.dtype, "mean backward");
      launchElementwise(scaled, "dy * K0", ["dy"], [c.dy], [1 / countOf(c.spec.x.shape, c.attrs.dims)]);
      return expand(scaled, c.spec.x.shape);
    },
  },
});

const extreme = (name: "max" | "min") =>
  op<"x", Over>({
    name,
    doc: `y = ${name === "max" ? "largest" : "smallest"} x over the given axes; equal values share the gradient; a NaN wins`,
    inputs: ["x"],
    infer: ({ x }, { dims }) => {
      if (countOf(x.shape, dims) === 0) throw new ShapeError(`${name}: ${show(x.shape)} has no values along axes ${show(dims)}; it needs at least one.`);
      return { shape: keptShape(x.shape, dims), dtype: x.dtype };
    },
    forward: (c) => reduceInto(c.in.x, c.out, c.attrs.dims, name),
    stridedGrad: true,
    saves: ["x", "out"],
    grad: {
      x: (c) => {
        const { x } = c.in;
        const hit = c.engine.empty(x.shape, "f32", `${name} backward`);
        launchElementwise(hit, "select(0.0, 1.0, x == y)", ["x", "y"], [x, c.out]);
        const count = c.engine.empty(c.out.shape, "f32", `${name} backward`);
        reduceInto(hit, count, c.attrs.dims, "sum");
        const dx = c.engine.empty(x.shape, c.dy.dtype, `${name} backward`);
        launchElementwise(dx, "dy * h / n", ["dy", "h", "n"], [c.dy, hit, count]);
        return dx;
      },
    },
  });
const maxRun = extreme("max");
const minRun = extreme("min");

const varianceRun = op<"x", Over & { correction: number }>({
  name: "variance",
  doc: "y = Σ (x - mean)² / (n - correction) over the given axes",
  inputs: ["x"],
  strided: ["x"],
  infer: ({ x }, { dims, correction }) => {
    needFloat("variance", x);
    const n = countOf(x.shape, dims);
    if (n - correction <= 0)
      throw new ShapeError(`variance: ${n} value${n === 1 ? "" : "s"} along axes ${show(dims)} of ${show(x.shape)} with correction ${correction} leave nothing to divide by; lower the correction.`);
    return { shape: keptShape(x.shape, dims), dtype: x.dtype };
  },
  forward: (c) => {
    const { engine, attrs } = c;
    const x = engine.dense(c.in.x);
    const mean = engine.empty(c.out.shape, "f32", "variance");
    const n = countOf(x.shape, attrs.dims);
    reduceInto(x, mean, attrs.dims, "sum", 1 / n);
    const squares = engine.empty(x.shape, "f32", "variance");
    launchElementwise(squares, "(x - m) * (x - m)", ["x", "m"], [x, mean]);
    reduceInto(squares, c.out, attrs.dims, "sum", 1 / (n - attrs.correction));
    if (c.recording) c.save("mean", mean);
  },
  stridedGrad: true,
  saves: ["x"],
  grad: {
    x: (c) => {
      const dx = c.engine.empty(c.spec.x.shape, c.dy.dtype, "variance backward");
      const scale = 2 / (countOf(c.spec.x.shape, c.attrs.dims) - c.attrs.correction);
      launchElementwise(dx, "dy * K0 * (x - m)", ["dy", "x", "m"], [c.dy, c.in.x, c.saved.mean], [scale]);
      return dx;
    },
  },
});

const argmaxRun = op<"x", { dim: number }>({
  name: "argmax",
  doc: "y = index of the largest x along an axis, the first of equals; a NaN counts as largest",
  inputs: ["x"],
  infer: ({ x }, { dim }) => {
    if (x.shape[dim] === 0) throw new ShapeError(`argmax: ${show(x.shape)} has no values along axis ${dim}; it needs at least one.`);
    return { shape: keptShape(x.shape, [dim]), dtype: "i32" };
  },
  forward: (c) => {
    const { x } = c.in;
    const { dim } = c.attrs;
    const [outer, reduced, inner] = [sizeOf(x.shape.slice(0, dim)), x.shape[dim], sizeOf(x.shape.slice(dim + 1))];
    const type = computeType(x.dtype);
    const settings = { T: x.dtype, C: type, TY: type, unordered: type === "f32" ? "return is_nan(v);" : "return false;" };
    c.engine.launch(kernel("reduce", source, "argmax", settings), { x, index: c.out }, { outer, reduced, inner, split: 1, chunk: reduced, start: 0, scale: 1 }, Math.ceil((outer * inner) / 64));
  },
});

type Dims = number | readonly number[];

const over = (name: string, run: (inputs: { x: Tensor }, attrs: Over) => Tensor[]) => (x: Tensor, dims: Dims | undefined, keepdim: boolean): Tensor => {
  const list = axes(name, x.shape, dims);
  return finish(run({ x }, { dims: list })[0], list, keepdim);
};
const [overSum, overMean, overMax, overMin] = [over("sum", sumRun), over("mean", meanRun), over("max", maxRun), over("min", minRun)];

/** Sum over axes (all when left out); integers wrap around. */
export function sum(x: Tensor, dims?: Dims, keepdim = false): Tensor {
  return overSum(x, dims, keepdim);
}

/** Mean over axes (all when left out). Floats only. */
export function mean(x: Tensor, dims?: Dims, keepdim = false): Tensor {
  return overMean(x, dims, keepdim);
}

/** Largest value over axes (all when left out), PyTorch's amax: equal values share the gradient evenly. */
export function max(x: Tensor, dims?: Dims, keepdim = false): Tensor {
  return overMax(x, dims, keepdim);
}

/** Smallest value over axes (all when left out), PyTorch's amin: equal values share the gradient evenly. */
export function min(x: Tensor, dims?: Dims, keepdim = false): Tensor {
  return overMin(x, dims, keepdim);
}

/** Variance over axes (all when left out): Σ (x - mean)² / (n - correction). `correction` 0 is the biased one. */
export function variance(x: Tensor, dims?: Dims, keepdim = false, correction = 1): Tensor {
  const list = axes("variance", x.shape, dims);
  return finish(varianceRun({ x }, { dims: list, correction })[0], list, keepdim);
}

/** Index (i32) of the largest value along an axis, or in the flattened tensor when it is left out. */
export function argmax(x: Tensor, dim?: number, keepdim = false): Tensor {
  if (dim === undefined) {
    const y = argmaxRun({ x: reshape(x, [x.size]) }, { dim: 0 })[0];
    return reshape(y, keepdim ? x.shape.map(() => 1) : []);
  }
  const at = axis("argmax", x.shape, dim);
  if (x.rank === 0) return argmax(x, undefined, keepdim);
  return finish(argmaxRun({ x }, { dim: at })[0], [at], keepdim);
}

/** Undoes broadcasting: sums over the axes along which `shape` was repeated. */
export function sumTo(x: Tensor, shape: Shape): Tensor {
  const lead = x.rank - shape.length;
  const dims = x.shape.flatMap((n, i) => (i < lead || (shape[i - lead] === 1 && n !== 1) ? [i] : []));
  return reshape(dims.length ? sum(x, dims, true) : x, shape);
}
