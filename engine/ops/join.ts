import source from "../../shaders/join.wgsl";
import { ShapeError } from "../errors.js";
import { kernel } from "../kernel.js";
import { op, sameDType } from "../op.js";
import { axis, collapse, denseStrides, type Shape, show } from "../shape.js";
import { strided, type Tensor } from "../tensor.js";
import { isFour, lead, slice } from "./slice.js";
import { permute, squeeze, unsqueeze } from "./view.js";

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
        kernel("join", source, four ? "place4" : "place", { T: y.dtype }),
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
/** The axes from the largest stride to the smallest: the order in which memory holds them. */
function memoryOrder(strides: readonly number[]): number[] {
  return strides.map((_, i) => i).sort((a, b) => strides[b] - strides[a] || a - b);
}

/** The tensor of which `pieces` are the pieces along an axis, when they lie in one buffer like that: then it is a view. */
function wholeOf(
  pieces: readonly (Tensor | undefined)[],
  shape: Shape,
  dim: number,
  sizes: readonly number[],
): Tensor | undefined {
  const first = pieces[0];
  const second = pieces[1];
  if (!first || !second || sizes[0] === 0) return undefined;
  const step = (second.offset - first.offset) / sizes[0];
  if (step <= 0 || !Number.isInteger(step)) return undefined;
  const strides = first.strides.map((s, i) => (i === dim ? step : s));
  let start = 0;
  for (const [k, t] of pieces.entries()) {
    if (!t || t.storage !== first.storage || t.offset !== first.offset + start * step) return undefined;
    if (t.strides.some((s, i) => t.shape[i] > 1 && s !== strides[i])) return undefined;
    start += sizes[k];
  }
  return first.view(shape, strides, first.offset, "split backward");
}

const splitRun = op<"x", { dim: number; sizes: readonly number[]; order: readonly number[] }>({
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
    // One pass over dx, however many pieces flowed back, written in x's memory order: undoing the permutes that led to
    // x then moves no memory either.
    x: (c) => {
      const { dim, sizes, order } = c.attrs;
      const { shape, dtype } = c.spec.x;
      const whole = wholeOf(c.dys, shape, dim, sizes);
      if (whole) return whole;
      const pieces = c.dys.map(
        (d, k) =>
          d ??
          c.engine.zeros(
            shape.map((n, i) => (i === dim ? sizes[k] : n)),
            dtype,
          ),
      );
      const joined = cat(
        pieces.map((d) => permute(d, order)),
        order.indexOf(dim),
      );
      return permute(
        joined,
        order.map((_, i) => order.indexOf(i)),
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
  return splitRun({ x }, { dim: at, sizes: list, order: memoryOrder(x.strides) });
}

/** x cut along axis `dim` into `n` equal pieces; views. Their gradients come back through one `cat`. */
export function chunk(x: Tensor, n: number, dim = 0): Tensor[] {
  const at = axis("chunk", x.shape, dim);
  const size = x.shape[at] / n;
  if (!Number.isInteger(n) || n < 1 || !Number.isInteger(size))
    throw new ShapeError(
      `chunk: axis ${dim} of ${show(x.shape)} does not divide into ${n} equal pieces; use split for unequal ones.`,
    );
  return split(x, Array<number>(n).fill(size), at);
}

/** The slices of axis `dim` as tensors without it; views. */
export function unbind(x: Tensor, dim = 0): Tensor[] {
  const at = axis("unbind", x.shape, dim);
  return chunk(x, x.shape[at], at).map((piece) => squeeze(piece, at));
}
