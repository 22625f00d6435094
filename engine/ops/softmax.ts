import source from "../../shaders/softmax.wgsl";
import { isFloat } from "../dtype.js";
import { ShapeError } from "../errors.js";
import { kernel } from "../kernel.js";
import { type Backward, needFloat, op, sameDType } from "../op.js";
import { axis, broadcast, collapse, expandStrides, sameShape, show, sizeOf } from "../shape.js";
import { strided, type Tensor } from "../tensor.js";
import { contiguous } from "./elementwise.js";
import { expand } from "./view.js";

interface Along {
  dim: number;
}

/** Entry points that give the same result; tests force each. */
export type SoftmaxVariant = "rows" | "scalar" | "group";

function entryFor(x: Tensor, n: number, inner: number, forced?: SoftmaxVariant): SoftmaxVariant {
  const fits = inner === 1 && n % 4 === 0;
  if (forced) return forced === "rows" && !fits ? "scalar" : forced;
  if (x.engine.kind !== "software" && inner === 1 && n >= 32) return "group";
  return fits ? "rows" : "scalar";
}

/** The axis, resolved: softmax needs one. */
function along(name: string, x: Tensor, dim: number): Along {
  if (x.rank === 0)
    throw new ShapeError(`${name}: a single number has no axis: got ${show(x.shape)}; give it one with unsqueeze(0).`);
  return { dim: axis(name, x.shape, dim) };
}

const around = (x: Tensor, dim: number) => ({
  n: x.shape[dim],
  inner: sizeOf(x.shape.slice(dim + 1)),
  rows: x.shape[dim] ? x.size / x.shape[dim] : 0,
});

const workgroups = (x: Tensor, entry: SoftmaxVariant, rows: number): { WG: number; groups: number } => {
  const WG = x.engine.kind === "software" ? 16 : 64;
  return { WG, groups: entry === "group" ? rows : Math.ceil(rows / WG) };
};

/** Strides that walk a mask along x's other axes, row by row; a mask with too many of them is made dense. */
function maskWalk(
  mask: Tensor,
  x: Tensor,
  dim: number,
): { mask: Tensor; offset: number; step: number; shape: number[]; stride: number[] } {
  const strides = expandStrides(mask.shape, mask.strides, x.shape);
  const others = <V>(list: readonly V[]) => list.filter((_, i) => i !== dim);
  const walk = collapse(others(x.shape), [others(strides)]);
  if (walk.shape.length > 4) return maskWalk(contiguous(expand(mask, x.shape)), x, dim);
  const pad = (list: readonly number[], fill: number) => [...Array<number>(4 - list.length).fill(fill), ...list];
  return { mask, offset: mask.offset, step: strides[dim], shape: pad(walk.shape, 1), stride: pad(walk.strides[0], 0) };
}

/** Records y = softmax(x) along axis `dim` of a contiguous x; `mask` broadcasts to x. */
export function launchSoftmax(
  x: Tensor,
  y: Tensor,
  dim: number,
  log: boolean,
  mask?: Tensor,
  variant?: SoftmaxVariant,
): void {
  const { n, inner, rows } = around(x, dim);
  const entry = entryFor(x, n, inner, variant);
  const { WG, groups } = workgroups(x, entry, rows);
  const walk = mask
    ? maskWalk(mask, x, dim)
    : { mask: x, offset: 0, step: 0, shape: [1, 1, 1, 1], stride: [0, 0, 0, 0] };
  const settings = {
    T: x.dtype,
    M: walk.mask.dtype,
    LOG: log ? 1 : 0,
    MASK: mask ? (isFloat(mask.dtype) ? 2 : 1) : 0,
    WG,
  };
  x.engine.launch(
    kernel("softmax", source, entry, settings),
    entry === "rows" ? { x4: x, mask: strided(walk.mask), y4: y } : { x, mask: strided(walk.mask), y },
    {
      rows,
      n,
      inner,
      hidden: Number.NEGATIVE_INFINITY,
      mask_offset: walk.offset,
      mask_step: walk.step,
      mask_shape: walk.shape,
      mask_stride: walk.stride,
    },
    groups,
  );
}

/** Records dx from y and dy, all contiguous. */
export function launchSoftmaxBackward(
  y: Tensor,
  dy: Tensor,
  dx: Tensor,
  dim: number,
  log: boolean,
  variant?: SoftmaxVariant,
): void {
  const { n, inner, rows } = around(y, dim);
  const entry = entryFor(y, n, inner, variant);
  const { WG, groups } = workgroups(y, entry, rows);
  y.engine.launch(
    kernel("softmax", source, `${entry}_dx`, { T: y.dtype, LOG: log ? 1 : 0, WG }),
    entry === "rows" ? { out4: y, dy4: dy, dx4: dx } : { out: y, dy, dx },
    { rows, n, inner, hidden: 0, mask_offset: 0, mask_step: 0, mask_shape: [1, 1, 1, 1], mask_stride: [0, 0, 0, 0] },
    groups,
  );
}

const backward = (c: Backward<"x" | "mask", Along>, log: boolean): Tensor =>
  c.once("dx", () => {
    const dx = c.engine.empty(c.out.shape, c.out.dtype, "softmax backward");
    launchSoftmaxBackward(c.out, c.dy, dx, c.attrs.dim, log);
    return dx;
  });

const plain = (name: string, doc: string, log: boolean) =>
  op<"x", Along>({
    name,
    doc,
    inputs: ["x"],
    infer: ({ x }) => {
      needFloat(name, x);
      return { shape: x.shape, dtype: x.dtype };
    },
    forward: (c) => launchSoftmax(c.in.x, c.out, c.attrs.dim, log),
    saves: ["out"],
    grad: { x: (c) => backward(c as Backward<"x" | "mask", Along>, log) },
  });
const softmaxRun = plain("softmax", "y = e^x / Σ e^x along an axis", false);
const logSoftmaxRun = plain("logSoftmax", "y = x - ln Σ e^x along an axis", true);

const maskedRun = op<"x" | "mask", Along>({
  name: "maskedSoftmax",
  doc: "y = softmax of x where the mask allows it, or of x + mask; a row without anything is 0",
  inputs: ["x", "mask"],
  strided: ["mask"],
  infer: ({ x, mask }) => {
    needFloat("maskedSoftmax", x);
    if (isFloat(mask.dtype)) sameDType("maskedSoftmax", x, mask);
    if (!sameShape(broadcast("maskedSoftmax", x.shape, mask.shape), x.shape))
      throw new ShapeError(
        `maskedSoftmax: the mask ${show(mask.shape)} is larger than x ${show(x.shape)}; it must broadcast to x.`,
      );
    return { shape: x.shape, dtype: x.dtype };
  },
  forward: (c) => launchSoftmax(c.in.x, c.out, c.attrs.dim, false, c.in.mask),
  saves: ["out"],
  grad: {
    x: (c) => backward(c, false),
    mask: (c) => backward(c, false),
  },
});

/** e^x / Σ e^x along an axis, shifted by the largest value so that nothing overflows. A row of -infinity gives NaN. */
export function softmax(x: Tensor, dim = -1): Tensor {
  return softmaxRun({ x }, along("softmax", x, dim))[0];
}

/** x - ln Σ e^x along an axis. */
export function logSoftmax(x: Tensor, dim = -1): Tensor {
  return logSoftmaxRun({ x }, along("logSoftmax", x, dim))[0];
}

/**
 * Softmax under a mask that broadcasts to x. An integer mask keeps the values where it is not zero; a floating-point
 * mask is added to x and may have a gradient. A row that is masked as a whole gives 0, where plain softmax gives NaN.
 */
export function maskedSoftmax(x: Tensor, mask: Tensor, dim = -1): Tensor {
  return maskedRun({ x, mask }, along("maskedSoftmax", x, dim))[0];
}
