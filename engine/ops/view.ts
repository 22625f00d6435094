import { ShapeError } from "../errors.js";
import { op } from "../op.js";
import { axis, collapse, denseStrides, expandStrides, isDense, type Shape, show, sizeOf } from "../shape.js";
import type { Tensor } from "../tensor.js";
import { contiguous } from "./elementwise.js";

/** Strides that show the same memory under another shape, or undefined when only a copy can. */
function reshapeStrides(shape: Shape, strides: readonly number[], to: Shape): number[] | undefined {
  if (isDense(shape, strides)) return denseStrides(to);
  const from = collapse(shape, [strides]);
  const out = new Array<number>(to.length).fill(0);
  let group = from.shape.length - 1;
  let left = group >= 0 ? from.shape[group] : 1;
  let step = group >= 0 ? from.strides[0][group] : 1;
  for (let i = to.length - 1; i >= 0; i--) {
    if (to[i] === 1) {
      out[i] = step;
      continue;
    }
    if (left === 1 && group > 0) {
      group--;
      left = from.shape[group];
      step = from.strides[0][group];
    }
    if (left % to[i] !== 0) return undefined;
    out[i] = step;
    step *= to[i];
    left /= to[i];
  }
  return out;
}

const viewRun = op<"x", { shape: Shape; strides: readonly number[] }>({
  name: "reshape",
  doc: "the same elements under another shape",
  inputs: ["x"],
  stridedGrad: true,
  view: ({ x }, { shape, strides }) => x.view(shape, strides, x.offset, "reshape"),
  grad: { x: (c) => reshape(c.dy, c.spec.x.shape) },
});

/** Another shape for the same elements; one size may be -1. Copies only when the strides leave no other way. */
export function reshape(x: Tensor, shape: Shape): Tensor {
  const holes = shape.filter((n) => n === -1).length;
  const known = sizeOf(shape.filter((n) => n !== -1));
  const to = holes === 1 && known > 0 ? shape.map((n) => (n === -1 ? x.size / known : n)) : shape;
  if (holes > 1 || sizeOf(to) !== x.size || to.some((n) => !Number.isInteger(n) || n < 0))
    throw new ShapeError(
      `reshape: ${show(x.shape)} (${x.size} elements) does not fit ${show(shape)}; sizes must multiply to the same number, at most one may be -1.`,
    );
  const strides = reshapeStrides(x.shape, x.strides, to);
  if (strides) return viewRun({ x }, { shape: to, strides })[0];
  return viewRun({ x: contiguous(x) }, { shape: to, strides: denseStrides(to) })[0];
}

/** All axes from `start` to `end` merged into one. */
export function flatten(x: Tensor, start = 0, end = -1): Tensor {
  const [a, b] = [axis("flatten", x.shape, start), axis("flatten", x.shape, end)];
  return reshape(x, [...x.shape.slice(0, a), sizeOf(x.shape.slice(a, b + 1)), ...x.shape.slice(b + 1)]);
}

const permuteRun = op<"x", { dims: readonly number[] }>({
  name: "permute",
  doc: "y's axis i is x's axis dims[i]; a view",
  inputs: ["x"],
  stridedGrad: true,
  view: ({ x }, { dims }) =>
    x.view(
      dims.map((d) => x.shape[d]),
      dims.map((d) => x.strides[d]),
      x.offset,
      "permute",
    ),
  grad: {
    x: (c) => {
      const inverse = c.attrs.dims.map((_, i) => c.attrs.dims.indexOf(i));
      return permute(c.dy, inverse);
    },
  },
});

/** Reorders the axes without moving memory. */
export function permute(x: Tensor, dims: readonly number[]): Tensor {
  const resolved = dims.map((d) => axis("permute", x.shape, d));
  if (resolved.length !== x.rank || new Set(resolved).size !== x.rank)
    throw new ShapeError(`permute: ${show(dims)} is no order of the axes of ${show(x.shape)}; name each axis once.`);
  return permuteRun({ x }, { dims: resolved })[0];
}

/** Swaps two axes without moving memory. */
export function transpose(x: Tensor, a: number, b: number): Tensor {
  const [i, j] = [axis("transpose", x.shape, a), axis("transpose", x.shape, b)];
  const dims = x.shape.map((_, k) => (k === i ? j : k === j ? i : k));
  return permuteRun({ x }, { dims })[0];
}

const expandRun = op<"x", { shape: Shape }>({
  name: "expand",
  doc: "repeats axes of size 1, and new leading axes, without moving memory",
  inputs: ["x"],
  stridedGrad: true,
  view: ({ x }, { shape }) => x.view(shape, expandStrides(x.shape, x.strides, shape), x.offset, "expand"),
  grad: { x: (c) => c.dy },
});

/** Repeats axes of size 1 to the sizes of `shape` (-1 keeps a size); a view. */
export function expand(x: Tensor, shape: Shape): Tensor {
  const lead = shape.length - x.rank;
  const to = shape.map((n, i) => (n === -1 && i >= lead ? x.shape[i - lead] : n));
  if (lead < 0 || to.some((n, i) => n < 0 || (i >= lead && x.shape[i - lead] !== n && x.shape[i - lead] !== 1)))
    throw new ShapeError(
      `expand: ${show(x.shape)} cannot be repeated to ${show(shape)}; only axes of size 1 and new leading axes repeat.`,
    );
  return expandRun({ x }, { shape: to })[0];
}

/** Adds an axis of size 1. */
export function unsqueeze(x: Tensor, dim: number): Tensor {
  const at = dim < 0 ? dim + x.rank + 1 : dim;
  if (!Number.isInteger(at) || at < 0 || at > x.rank)
    throw new ShapeError(
      `unsqueeze: axis ${dim} is out of range for ${show(x.shape)}; use ${-x.rank - 1} to ${x.rank}.`,
    );
  return reshape(x, [...x.shape.slice(0, at), 1, ...x.shape.slice(at)]);
}

/** Drops an axis of size 1. */
export function squeeze(x: Tensor, dim: number): Tensor {
  const at = axis("squeeze", x.shape, dim);
  if (x.shape[at] !== 1)
    throw new ShapeError(
      `squeeze: axis ${dim} of ${show(x.shape)} has size ${x.shape[at]}; only axes of size 1 can be dropped.`,
    );
  return reshape(x, [...x.shape.slice(0, at), ...x.shape.slice(at + 1)]);
}
