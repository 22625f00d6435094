import source from "../../shaders/join.wgsl";
import { computeType, encode } from "../dtype.js";
import { ShapeError } from "../errors.js";
import { kernel } from "../kernel.js";
import { op, sameDType } from "../op.js";
import { axes, axis, collapse, denseStrides, show } from "../shape.js";
import { strided, type Tensor } from "../tensor.js";
import { launchElementwise } from "./elementwise.js";
import { squeeze, unsqueeze } from "./view.js";

/** Axes that a kernel walks: at most four, innermost last. */
const lead = (list: readonly number[], fill: number): number[] => [
  ...Array<number>(4 - list.length).fill(fill),
  ...list,
];
/** True when four neighbours along the last axis are one aligned load. */
const isFour = (size: number, strides: readonly number[], offset: number): boolean =>
  size % 4 === 0 && strides[3] === 1 && offset % 4 === 0 && strides.slice(0, 3).every((s) => s % 4 === 0);
const ceil = (a: number, b: number): number => Math.ceil(a / b);

const SOURCES = 6;

/** Copies tensors into the dense `y`: source k becomes the block that starts at `starts[k]` of axis `dim`. */
function launchPlace(y: Tensor, sources: readonly Tensor[], dim: number, starts: readonly number[]): void {
  const { engine } = y;
  const stridesY = denseStrides(y.shape);
  const blocks = sources.flatMap((source, k) => {
    if (source.size === 0) return [];
    let t = source;
    let walk = collapse(t.shape, [t.strides, stridesY]);
    if (walk.shape.length > 4) {
      t = engine.dense(t);
      walk = collapse(t.shape, [t.strides, stridesY]);
    }
    const [stride, strideY] = walk.strides.map((s) => lead(s, 0));
    const to = starts[k] * stridesY[dim];
    const shape = lead(walk.shape, 1);
    return [
      { t, to, shape, stride, strideY, four: isFour(shape[3], stride, t.offset) && isFour(shape[3], strideY, to) },
    ];
  });
  for (const four of [true, false]) {
    const alike = blocks.filter((b) => b.four === four);
    for (let i = 0; i < alike.length; i += SOURCES) {
      const some = alike.slice(i, i + SOURCES);
      const at = (k: number) => some[k < some.length ? k : 0];
      const list = (f: (b: (typeof some)[number]) => number) =>
        Array.from({ length: 8 }, (_, k) => (k < some.length ? f(some[k]) : 0));
      const rows = (f: (b: (typeof some)[number]) => number[]) =>
        Array.from({ length: SOURCES }, (_, k) => f(at(k))).flat();
      const names = ["a", "b", "c", "d", "e", "f"].map((n) => (four ? `${n}4` : n));
      const groups = ceil(Math.max(...some.map((b) => b.t.size)), four ? 256 : 64);
      const x = Math.min(groups, engine.limits.maxComputeWorkgroupsPerDimension);
      engine.launch(
        kernel("join", source, four ? "place4" : "place", { T: y.dtype, C: computeType(y.dtype) }),
        { ...Object.fromEntries(names.map((n, k) => [n, strided(at(k).t)])), [four ? "y4" : "y"]: strided(y) },
        {
          n: list((b) => b.t.size),
          first: list((b) => b.t.offset),
          to: list((b) => b.to),
          shape: rows((b) => b.shape),
          stride: rows((b) => b.stride),
          stride_y: rows((b) => b.strideY),
        },
        [x, ceil(groups, x), some.length],
      );
    }
  }
}

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
    if (!x.isContiguous) return launchPad(y, engine.dense(x), before, step, value);
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
    return launchPad(
      y,
      part,
      before.map((b, i) => (i === done ? 0 : b)),
      step.map((s, i) => (i === done ? 1 : s)),
      value,
    );
  }
  const [shape, stride] = [lead(walk.shape, 1), lead(walk.stride, 0)];
  const size = lead(walk.size, 1);
  const four = open && isFour(shape[3], stride, x.offset);
  const bits = new Uint32Array(encode([value], computeType(y.dtype)).slice().buffer)[0];
  engine.launch(
    kernel("join", source, four ? "pad4" : "pad", { T: y.dtype, C: computeType(y.dtype) }),
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
    ceil(y.size, four ? 256 : 64),
  );
}

/** Most tensors of one `cat` on the tape; longer lists are joined in groups first. */
const CAT = 32;
const catNames = Array.from({ length: CAT }, (_, i) => `x${i}`);

const catRun = op<string, { dim: number; starts: readonly number[]; size: number }>({
  name: "cat",
  doc: "y = the inputs one after another along an axis",
  inputs: catNames,
  optional: catNames.slice(1),
  strided: catNames,
  stridedGrad: true,
  infer: ({ x0 }, { dim, size }) => ({ shape: x0.shape.map((n, i) => (i === dim ? size : n)), dtype: x0.dtype }),
  forward: (c) =>
    launchPlace(
      c.out,
      catNames.filter((n) => c.in[n]).map((n) => c.in[n]),
      c.attrs.dim,
      c.attrs.starts,
    ),
  grad: Object.fromEntries(
    catNames.map((name, k) => [
      name,
      (c) => {
        const { dim, starts } = c.attrs;
        return slice(c.dy, dim, starts[k], starts[k] + c.spec[name].shape[dim]);
      },
    ]),
  ),
});

/**
 * The tensors one after another along axis `dim`; all other axes and the dtype must agree. The inputs may be views.
 * @throws ShapeError when the list is empty, or ranks or other axes differ; DTypeError when dtypes differ
 */
export function cat(tensors: readonly Tensor[], dim = 0): Tensor {
  if (tensors.length === 0) throw new ShapeError("cat: needs at least one tensor: got an empty list.");
  const [first] = tensors;
  if (first.rank === 0) throw new ShapeError("cat: numbers without axes cannot be joined: got []; use stack.");
  const at = axis("cat", first.shape, dim);
  sameDType("cat", ...tensors);
  for (const t of tensors)
    if (t.rank !== first.rank || t.shape.some((n, i) => i !== at && n !== first.shape[i]))
      throw new ShapeError(
        `cat: shapes differ beside axis ${dim}: ${tensors.map((x) => show(x.shape)).join(" · ")}; only the joined axis may differ.`,
      );
  if (tensors.length > CAT) {
    const groups = Array.from({ length: ceil(tensors.length, CAT) }, (_, k) =>
      cat(tensors.slice(k * CAT, (k + 1) * CAT), at),
    );
    return cat(groups, at);
  }
  const starts: number[] = [];
  let size = 0;
  for (const t of tensors) {
    starts.push(size);
    size += t.shape[at];
  }
  return catRun(Object.fromEntries(tensors.map((t, i) => [catNames[i], t])), { dim: at, starts, size })[0];
}

/** The tensors along a new axis `dim`; shapes and dtypes must agree. */
export function stack(tensors: readonly Tensor[], dim = 0): Tensor {
  if (tensors.length === 0) throw new ShapeError("stack: needs at least one tensor: got an empty list.");
  const [{ shape, rank }] = tensors;
  for (const t of tensors)
    if (show(t.shape) !== show(shape))
      throw new ShapeError(
        `stack: shapes differ: ${tensors.map((x) => show(x.shape)).join(" · ")}; they must be equal.`,
      );
  const at = dim < 0 ? dim + rank + 1 : dim;
  return cat(
    tensors.map((t) => unsqueeze(t, dim)),
    at,
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
    const size = Math.max(0, ceil(high - low, -step));
    if (size === 0) return sliceRun({ x }, { dim: at, start: 0, size: 0, step: 1 })[0];
    return flip(sliceRun({ x }, { dim: at, start: high + (size - 1) * step, size, step: -step })[0], at);
  }
  const from = resolve(start, n);
  const size = Math.max(0, ceil((end === undefined ? n : resolve(end, n)) - from, step));
  return sliceRun({ x }, { dim: at, start: from, size, step })[0];
}

const splitRun = op<"x", { dim: number; sizes: readonly number[] }>({
  name: "split",
  doc: "x cut into pieces along an axis; views",
  inputs: ["x"],
  stridedGrad: true,
  view: ({ x }, { dim, sizes }) => {
    let start = 0;
    return sizes.map((size) => {
      const piece = x.view(
        x.shape.map((n, i) => (i === dim ? size : n)),
        x.strides,
        x.offset + (size ? start * x.strides[dim] : 0),
        "split",
      );
      start += size;
      return piece;
    });
  },
  grad: {
    // One pass over dx, however many pieces flowed back.
    x: (c) => {
      const { dim, sizes } = c.attrs;
      const { shape, dtype } = c.spec.x;
      return cat(
        c.dys.map(
          (d, k) =>
            d ??
            c.engine.zeros(
              shape.map((n, i) => (i === dim ? sizes[k] : n)),
              dtype,
            ),
        ),
        dim,
      );
    },
  },
});

/** x cut along axis `dim` into pieces of the given sizes (a number: pieces of that size, the last may be smaller); views. */
export function split(x: Tensor, sizes: number | readonly number[], dim = 0): Tensor[] {
  const at = axis("split", x.shape, dim);
  const n = x.shape[at];
  if (typeof sizes === "number" && !(Number.isInteger(sizes) && sizes > 0))
    throw new ShapeError(`split: the size of a piece must be a positive whole number: got ${sizes}.`);
  const list =
    typeof sizes === "number"
      ? Array.from({ length: Math.max(1, ceil(n, sizes)) }, (_, i) => Math.min(sizes, n - i * sizes))
      : sizes;
  if (list.length === 0 || list.some((s) => !Number.isInteger(s) || s < 0) || list.reduce((a, b) => a + b, 0) !== n)
    throw new ShapeError(
      `split: pieces ${show(list)} do not add up to axis ${dim} of ${show(x.shape)}; their sum must be ${n}.`,
    );
  return splitRun({ x }, { dim: at, sizes: list });
}

/** x cut along axis `dim` into `n` equal pieces; views. Their gradients come back through one `cat`. */
export function chunk(x: Tensor, n: number, dim = 0): Tensor[] {
  const at = axis("chunk", x.shape, dim);
  const size = x.shape[at] / n;
  if (!Number.isInteger(n) || n < 1 || !Number.isInteger(size))
    throw new ShapeError(
      `chunk: axis ${dim} of ${show(x.shape)} does not divide into ${n} equal pieces; use split for unequal ones.`,
    );
  return splitRun({ x }, { dim: at, sizes: Array<number>(n).fill(size) });
}

/** The slices of axis `dim` as tensors without it; views. */
export function unbind(x: Tensor, dim = 0): Tensor[] {
  const at = axis("unbind", x.shape, dim);
  return chunk(x, x.shape[at], at).map((piece) => squeeze(piece, at));
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
