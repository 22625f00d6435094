import source from "../../shaders/reduce.wgsl";
import { computeType } from "../dtype.js";
import { ShapeError } from "../errors.js";
import { kernel } from "../kernel.js";
import { needFloat, op } from "../op.js";
import { axes, axis, type Shape, show, sizeOf } from "../shape.js";
import type { Tensor } from "../tensor.js";
import { reduceInto } from "./reduction.js";
import { expand, reshape } from "./view.js";
import { launchElementwise } from "./walk.js";

const keptShape = (shape: Shape, dims: readonly number[]): number[] => shape.map((n, i) => (dims.includes(i) ? 1 : n));
const countOf = (shape: Shape, dims: readonly number[]): number => dims.reduce((n, d) => n * shape[d], 1);

/** Drops the reduced axes, or keeps them with size 1. */
const finish = (y: Tensor, dims: readonly number[], keepdim: boolean): Tensor =>
  keepdim
    ? y
    : reshape(
        y,
        y.shape.filter((_, i) => !dims.includes(i)),
      );

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
      if (countOf(x.shape, dims) === 0)
        throw new ShapeError(
          `${name}: ${show(x.shape)} has no values along axes ${show(dims)}; it needs at least one.`,
        );
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
      throw new ShapeError(
        `variance: ${n} value${n === 1 ? "" : "s"} along axes ${show(dims)} of ${show(x.shape)} with correction ${correction} leave nothing to divide by; lower the correction.`,
      );
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
    if (x.shape[dim] === 0)
      throw new ShapeError(`argmax: ${show(x.shape)} has no values along axis ${dim}; it needs at least one.`);
    return { shape: keptShape(x.shape, [dim]), dtype: "i32" };
  },
  forward: (c) => {
    const { x } = c.in;
    const { dim } = c.attrs;
    const [outer, reduced, inner] = [sizeOf(x.shape.slice(0, dim)), x.shape[dim], sizeOf(x.shape.slice(dim + 1))];
    const type = computeType(x.dtype);
    const settings = {
      T: x.dtype,
      C: type,
      TY: type,
      unordered: type === "f32" ? "return is_nan(v);" : "return false;",
    };
    c.engine.launch(
      kernel("reduce", source, "argmax", settings),
      { x, index: c.out },
      { outer, reduced, inner, split: 1, chunk: reduced, start: 0, scale: 1 },
      Math.ceil((outer * inner) / 64),
    );
  },
});

type Dims = number | readonly number[];

const over =
  (name: string, run: (inputs: { x: Tensor }, attrs: Over) => Tensor[]) =>
  (x: Tensor, dims: Dims | undefined, keepdim: boolean): Tensor => {
    const list = axes(name, x.shape, dims);
    return finish(run({ x }, { dims: list })[0], list, keepdim);
  };
const [overSum, overMean, overMax, overMin] = [
  over("sum", sumRun),
  over("mean", meanRun),
  over("max", maxRun),
  over("min", minRun),
];

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
