import source from "../../shaders/slice.wgsl";
import { computeType, encode } from "../dtype.js";
import { ShapeError } from "../errors.js";
import { kernel } from "../kernel.js";
import { op } from "../op.js";
import { axes, axis, show } from "../shape.js";
import { strided, type Tensor } from "../tensor.js";
import { launchElementwise } from "./walk.js";

/** Axes that a kernel walks: at most four, innermost last. */
export const lead = (list: readonly number[], fill: number): number[] => [
  ...Array<number>(4 - list.length).fill(fill),
  ...list,
];
/** True when four neighbours along the last axis are one aligned load. */
export const isFour = (size: number, strides: readonly number[], offset: number): boolean =>
  size % 4 === 0 && strides[3] === 1 && offset % 4 === 0 && strides.slice(0, 3).every((s) => s % 4 === 0);

/** y[i] = x[(i - before) / step] where that is an element of x, else `value`; all lists have one entry an axis. */
function launchPad(y: Tensor, x: Tensor, before: readonly number[], step: readonly number[], value: number): void {
  const { engine } = y;
  if (y.size === 0) return;
  // Neighbours of which neither is padded walk as one, if x's strides let them.
  const walk = {
    shape: [] as number[],
    size: [] as number[],
    before: [] as number[],
    step: [] as number[],
    stride: [] as number[],
  };
  let open = false;
  y.shape.forEach((n, i) => {
    const plain = n === x.shape[i];
    if (n === 1 && plain) return;
    const last = walk.shape.length - 1;
    if (plain && open && walk.stride[last] === x.strides[i] * n) {
      walk.shape[last] *= n;
      walk.size[last] *= n;
      walk.stride[last] = x.strides[i];
    } else {
      walk.shape.push(n);
      walk.size.push(x.shape[i]);
      walk.before.push(before[i]);
      walk.step.push(step[i]);
      walk.stride.push(x.strides[i]);
    }
    open = plain;
  });
  if (walk.shape.length > 4) {
    if (!x.isContiguous) {
      launchPad(y, engine.dense(x), before, step, value);
      return;
    }
    // Padded one axis at a time, never more than three runs of axes are left.
    const done = y.shape.findIndex((n, i) => n !== x.shape[i]);
    const between = x.shape.map((n, i) => (i === done ? y.shape[i] : n));
    const part = engine.empty(between, y.dtype, y.op);
    launchPad(
      part,
      x,
      before.map((b, i) => (i === done ? b : 0)),
      step.map((s, i) => (i === done ? s : 1)),
      value,
    );
    launchPad(
      y,
      part,
      before.map((b, i) => (i === done ? 0 : b)),
      step.map((s, i) => (i === done ? 1 : s)),
      value,
    );
    return;
  }
  const [shape, stride] = [lead(walk.shape, 1), lead(walk.stride, 0)];
  const size = lead(walk.size, 1);
  const four = open && isFour(shape[3], stride, x.offset);
  const bits = new Uint32Array(encode([value], computeType(y.dtype)).slice().buffer)[0];
  engine.launch(
    kernel("slice", source, four ? "pad4" : "pad", { T: y.dtype, C: computeType(y.dtype) }),
    four ? { x4: strided(x), y4: y } : { x: strided(x), y },
    {
      n: y.size,
      offset: x.offset,
      value: bits,
      shape,
      size,
      before: lead(walk.before, 0),
      step: lead(walk.step, 1),
      stride,
    },
    Math.ceil(y.size / (four ? 256 : 64)),
  );
}
const sliceRun = op<"x", { dim: number; start: number; size: number; step: number }>({
  name: "slice",
  doc: "y[…, i, …] = x[…, start + i · step, …]; a view",
  inputs: ["x"],
  stridedGrad: true,
  view: ({ x }, { dim, start, size, step }) =>
    x.view(
      x.shape.map((n, i) => (i === dim ? size : n)),
      x.strides.map((s, i) => (i === dim ? s * step : s)),
      x.offset + (size ? start * x.strides[dim] : 0),
      "slice",
    ),
  grad: {
    x: (c) => {
      const { dim, start, step } = c.attrs;
      const dx = c.engine.empty(c.spec.x.shape, c.dy.dtype, "slice backward");
      launchPad(
        dx,
        c.dy,
        dx.shape.map((_, i) => (i === dim ? start : 0)),
        dx.shape.map((_, i) => (i === dim ? step : 1)),
        0,
      );
      return dx;
    },
  },
});

/**
 * Elements start, start + step, … before `end` of axis `dim`, without moving memory. Positions may count from the end.
 * A negative step walks down from `start` to just above `end` (left out: to the first) and makes a copy.
 * @throws ShapeError when a position lies outside the axis: unlike Python's, slices are not cut short silently
 */
export function slice(x: Tensor, dim: number, start: number, end?: number, step = 1): Tensor {
  const at = axis("slice", x.shape, dim);
  const n = x.shape[at];
  const resolve = (v: number, most: number): number => {
    const p = v < 0 ? v + n : v;
    if (!Number.isInteger(v) || p < 0 || p > most)
      throw new ShapeError(`slice: ${v} lies outside axis ${dim} of ${show(x.shape)}; use ${-n} to ${most}.`);
    return p;
  };
  if (!Number.isInteger(step) || step === 0)
    throw new ShapeError(`slice: the step must be a whole number that is not 0: got ${step}.`);
  if (step < 0) {
    const high = resolve(start, n - 1);
    const low = end === undefined ? -1 : resolve(end, n - 1);
    const size = Math.max(0, Math.ceil((high - low) / -step));
    if (size === 0) return sliceRun({ x }, { dim: at, start: 0, size: 0, step: 1 })[0];
    return flip(sliceRun({ x }, { dim: at, start: high + (size - 1) * step, size, step: -step })[0], at);
  }
  const from = resolve(start, n);
  const size = Math.max(0, Math.ceil(((end === undefined ? n : resolve(end, n)) - from) / step));
  return sliceRun({ x }, { dim: at, start: from, size, step })[0];
}
const padRun = op<"x", { before: readonly number[]; after: readonly number[]; value: number }>({
  name: "pad",
  doc: "y = x with `value` around it",
  inputs: ["x"],
  strided: ["x"],
  stridedGrad: true,
  infer: ({ x }, { before, after }) => ({ shape: x.shape.map((n, i) => before[i] + n + after[i]), dtype: x.dtype }),
  forward: (c) =>
    launchPad(
      c.out,
      c.in.x,
      c.attrs.before,
      c.in.x.shape.map(() => 1),
      c.attrs.value,
    ),
  grad: {
    x: (c) =>
      c.spec.x.shape.reduce(
        (dx, n, i) => (dx.shape[i] === n ? dx : slice(dx, i, c.attrs.before[i], c.attrs.before[i] + n)),
        c.dy,
      ),
  },
});

/** x with `value` around it: `amounts[i]` = [elements before, elements after] along axis i. */
export function pad(x: Tensor, amounts: readonly (readonly [number, number])[], value = 0): Tensor {
  if (amounts.length !== x.rank || amounts.flat().some((n) => !Number.isInteger(n) || n < 0))
    throw new ShapeError(
      `pad: needs [before, after] in whole numbers from 0 for each axis of ${show(x.shape)}: got ${JSON.stringify(amounts)}.`,
    );
  return padRun({ x }, { before: amounts.map((a) => a[0]), after: amounts.map((a) => a[1]), value })[0];
}

const flipRun = op<"x", { dims: readonly number[] }>({
  name: "flip",
  doc: "y = x with the order along the given axes reversed",
  inputs: ["x"],
  strided: ["x"],
  stridedGrad: true,
  infer: ({ x }) => ({ shape: x.shape, dtype: x.dtype }),
  forward: (c) => {
    const { x } = c.in;
    const { dims } = c.attrs;
    // Negative strides wrap in the kernel's u32 arithmetic, and the sums come out right.
    const strides = x.strides.map((s, i) => (dims.includes(i) ? -s : s));
    const offset = dims.reduce((o, d) => o + (x.shape[d] - 1) * x.strides[d], x.offset);
    launchElementwise(c.out, "x", ["x"], [x.view(x.shape, strides, offset, "flip")]);
  },
  grad: { x: (c) => flip(c.dy, c.attrs.dims) },
});

/** x with the order along the given axes reversed; a copy. */
export const flip = (x: Tensor, dims: number | readonly number[]): Tensor =>
  flipRun({ x }, { dims: axes("flip", x.shape, dims) })[0];
