import source from "../../shaders/conv.wgsl";
import { bytesOf } from "../dtype.js";
import type { Engine } from "../engine.js";
import { checkOptions, ShapeError } from "../errors.js";
import { kernel } from "../kernel.js";
import { type Backward, needFloat, op, sameDType } from "../op.js";
import { type Shape, show, sizeOf } from "../shape.js";
import { strided, type Tensor } from "../tensor.js";
import { launchDirect } from "./direct.js";
import { add, to } from "./elementwise.js";
import { hasLanes, launchMatmul } from "./gemm.js";
import { sum } from "./reduce.js";
import { flip, pad } from "./slice.js";
import { permute, reshape } from "./view.js";

/** A value for every spatial axis, or one per axis. */
type PerAxis<V> = V | readonly V[];
/** Options of `conv2d` and `conv3d`. */
export interface ConvOptions {
  stride?: PerAxis<number>;
  /** Zeros on both sides of an axis, or [before, after] per axis. */
  padding?: number | readonly (number | readonly [number, number])[];
}

interface Attrs {
  subject: string;
  stride: readonly number[];
  before: readonly number[];
  after: readonly number[];
}
type Name = "x" | "weight" | "bias";

const spatial = (shape: Shape): readonly number[] => shape.slice(2);
/** Three spatial axes, leading ones of size `fill` where there are fewer. */
const three = (list: readonly number[], fill: number): number[] => [
  ...Array<number>(3 - list.length).fill(fill),
  ...list,
];

/** Everything that kernels and products need to know about one convolution. */
class Geometry {
  readonly items: number;
  readonly channels: number;
  readonly size: number[];
  readonly taps: number[];
  readonly stride: number[];
  readonly before: number[];
  readonly out: number[];
  /** Rows of the matrix of columns: channels · taps. */
  readonly depth: number;
  /** Output positions. */
  readonly positions: number;
  /** A product over x itself: every position sees one value per channel. */
  readonly isPointwise: boolean;

  constructor(x: Shape, weight: Shape, y: Shape, attrs: Attrs) {
    [this.items, this.channels] = x;
    this.size = three(spatial(x), 1);
    this.taps = three(spatial(weight), 1);
    this.stride = three(attrs.stride, 1);
    this.before = three(attrs.before, 0);
    this.out = three(spatial(y), 1);
    this.depth = this.channels * sizeOf(this.taps);
    this.positions = sizeOf(this.out);
    this.isPointwise =
      [...this.taps, ...this.stride].every((n) => n === 1) && [...attrs.before, ...attrs.after].every((n) => n === 0);
  }

  /**
   * Parts whose columns fit `limit` elements: several whole items, or a band of one item's output rows. It bounds the
   * memory of a convolution over large images.
   */
  *parts(limit: number): Generator<{ item: number; items: number; row: number; rows: number }> {
    const all = this.out[0] * this.out[1];
    const whole = Math.floor(limit / (this.depth * this.positions));
    if (whole >= 1 || this.isPointwise) {
      const step = Math.max(1, this.isPointwise ? this.items : whole);
      for (let item = 0; item < this.items; item += step)
        yield { item, items: Math.min(step, this.items - item), row: 0, rows: all };
      return;
    }
    const band = Math.max(1, Math.floor(limit / (this.depth * this.out[2])));
    for (let item = 0; item < this.items; item++)
      for (let row = 0; row < all; row += band) yield { item, items: 1, row, rows: Math.min(band, all - row) };
  }
}
type Part = ReturnType<Geometry["parts"]> extends Generator<infer P> ? P : never;

/** Elements of the largest matrix of columns: what a processor's cache still holds part of, or 64 MB on a GPU. */
const limitOf = (t: Tensor): number => (t.engine.kind === "software" ? 1 << 22 : 1 << 24);

/** A part of a dense [items, channels, positions]: channels are rows, positions columns. */
function cut(t: Tensor, channels: number, g: Geometry, part: Part): Tensor {
  const width = g.out[2];
  return t.view(
    [part.items, channels, part.rows * width],
    [channels * g.positions, g.positions, 1],
    t.offset + part.item * channels * g.positions + part.row * width,
    "conv",
  );
}

/** Uniforms of both kernels for a part whose x (or dx) starts at the tensor's own offset. */
function params(t: Tensor, g: Geometry, part: Part, n: number, fresh: boolean) {
  const four = (list: readonly number[]) => [...list, 0];
  return {
    n,
    channels: g.channels,
    first: part.row,
    rows: part.rows,
    fresh: fresh ? 1 : 0,
    offset: t.offset + part.item * g.channels * sizeOf(g.size),
    size: four(g.size),
    taps: four(g.taps),
    stride: four(g.stride),
    before: four(g.before),
    out: four(g.out),
  };
}

/** The matrices of columns of a part, [items, channels · taps, positions]. */
function unfold(x: Tensor, g: Geometry, part: Part): Tensor {
  if (g.isPointwise) return cut(x, g.channels, g, part);
  const columns = x.engine.empty([part.items, g.depth, part.rows * g.out[2]], x.dtype, "conv");
  const n = part.items * g.depth * part.rows * Math.ceil(g.out[2] / 4);
  const k = kernel("conv", source, "unfold", { T: x.dtype });
  x.engine.launch(k, { x: strided(x), columns }, params(x, g, part, n, true), Math.ceil(n / 64));
  return columns;
}

/** Columns that take longer to write and read than a further kernel, once, to compile, over some hundred runs. */
const MANY = 1 << 18;

/** Whether to do without a matrix of columns: where the adapter has a kernel for it, and the matrix would be large. */
const isDirect = (engine: Engine, g: Geometry): boolean =>
  hasLanes(engine) && !g.isPointwise && g.items * g.depth * g.positions >= MANY;

/**
 * The convolution without a matrix of columns; false where the operands do not allow it. x is copied when it is padded,
 * which costs a ninth of the columns of a 3 x 3 kernel.
 */
function direct(
  y: Tensor,
  x: Tensor,
  weight: Tensor,
  bias: Tensor | undefined,
  attrs: Omit<Attrs, "subject">,
): boolean {
  const { engine } = x;
  const { before, after, stride } = attrs;
  if ([...before, ...after].some((n) => n < 0)) return false;
  const isPadded = [...before, ...after].some((n) => n > 0);
  const sizes = spatial(x.shape).map((n, i) => n + before[i] + after[i]);
  const bytes = x.shape[0] * x.shape[1] * sizeOf(sizes) * bytesOf(x.dtype);
  if (isPadded && bytes > engine.limits.maxStorageBufferBindingSize) return false;
  engine.scope(() => {
    const amounts = before.map((n, i) => [n, after[i]] as const);
    const wide = isPadded ? engine.noGrad(() => pad(x, [[0, 0], [0, 0], ...amounts])) : x;
    launchDirect(y, wide, weight, bias, {
      size: three(sizes, 1),
      taps: three(spatial(weight.shape), 1),
      stride: three(stride, 1),
      out: three(spatial(y.shape), 1),
    });
  });
  return true;
}

/** dx as a convolution of dy with the taps turned round, for a stride of 1; false where there is no kernel for it. */
function directBackward(dx: Tensor, dy: Tensor, weight: Tensor, { before, after, stride }: Attrs): boolean {
  if (stride.some((n) => n !== 1)) return false;
  const taps = spatial(weight.shape);
  const axes = taps.map((_, i) => i + 2);
  const turned = dy.engine.dense(permute(flip(weight, axes), [1, 0, ...axes]));
  const rest = (list: readonly number[]) => taps.map((n, i) => n - 1 - list[i]);
  return direct(dx, dy, turned, undefined, { stride, before: rest(before), after: rest(after) });
}

const matrix = (weight: Tensor, g: Geometry): Tensor => reshape(weight, [weight.shape[0], g.depth]);
const geometry = (c: Backward<Name, Attrs>): Geometry =>
  new Geometry(c.spec.x.shape, c.spec.weight.shape, c.dy.shape, c.attrs);

const run = op<Name, Attrs>({
  name: "conv",
  doc: "y[o, p] = Σ over channels and taps of weight · x at p · stride + tap - padding, + bias[o]",
  inputs: ["x", "weight", "bias"],
  optional: ["bias"],
  infer: ({ x, weight, bias }, { subject, stride, before, after }) => {
    const dtype = sameDType(subject, x, weight, bias);
    needFloat(subject, x);
    if (x.shape[1] !== weight.shape[1])
      throw new ShapeError(
        `${subject}: channels differ: x ${show(x.shape)} has ${x.shape[1]}, weight ${show(weight.shape)} takes ${weight.shape[1]}; the second axes must be equal.`,
      );
    if (bias && (bias.rank !== 1 || bias.shape[0] !== weight.shape[0]))
      throw new ShapeError(
        `${subject}: bias does not fit: ${show(bias.shape)} for weight ${show(weight.shape)}; it must be [${weight.shape[0]}].`,
      );
    const out = spatial(x.shape).map(
      (n, i) => Math.floor((n + before[i] + after[i] - weight.shape[2 + i]) / stride[i]) + 1,
    );
    if (out.some((n) => n < 1))
      throw new ShapeError(
        `${subject}: the kernel ${show(spatial(weight.shape))} is larger than the padded input: ${show(x.shape)}, padding ${show(before)} before and ${show(after)} after; pad more or use a smaller kernel.`,
      );
    return { shape: [x.shape[0], weight.shape[0], ...out], dtype };
  },
  forward: (c) => {
    const { x, weight, bias } = c.in;
    const g = new Geometry(x.shape, weight.shape, c.out.shape, c.attrs);
    if (isDirect(c.engine, g) && direct(c.out, x, weight, bias, c.attrs)) return;
    const w = matrix(weight, g);
    for (const part of g.parts(limitOf(x)))
      c.engine.scope(() =>
        launchMatmul(cut(c.out, weight.shape[0], g, part), w, unfold(x, g, part), { bias, biasOf: "rows" }),
      );
  },
  saves: (needs) => [...(needs.weight ? (["x"] as const) : []), ...(needs.x ? (["weight"] as const) : [])],
  grad: {
    x: (c) => {
      const { dy, engine } = c;
      const g = geometry(c);
      const outputs = dy.shape[1];
      const w = matrix(c.in.weight, g);
      const across = w.view([g.depth, outputs], [1, g.depth], w.offset, "transpose");
      const dx = engine.empty(c.spec.x.shape, dy.dtype, "conv backward");
      if (isDirect(engine, g) && directBackward(dx, dy, c.in.weight, c.attrs)) return dx;
      for (const part of g.parts(limitOf(dy)))
        engine.scope(() => {
          const given = cut(dy, outputs, g, part);
          if (g.isPointwise) {
            launchMatmul(cut(dx, g.channels, g, part), across, given);
            return;
          }
          const columns = engine.empty([part.items, g.depth, part.rows * g.out[2]], "f32", "conv backward");
          launchMatmul(columns, across, given);
          const n = part.items * g.channels * sizeOf(g.size);
          const k = kernel("conv", source, "fold", { T: dy.dtype });
          engine.launch(
            k,
            { dcolumns: columns, dx: strided(dx) },
            params(dx, g, part, n, part.row === 0),
            Math.ceil(n / 64),
          );
        });
      return dx;
    },
    weight: (c) => {
      const { dy, engine } = c;
      const g = geometry(c);
      const outputs = dy.shape[1];
      let total: Tensor | undefined;
      for (const part of g.parts(limitOf(dy)))
        total = engine.scope(() => {
          const columns = unfold(c.in.x, g, part);
          const [depth, count] = columns.shape.slice(1);
          const rows = columns.view(
            [part.items, count, depth],
            [columns.strides[0], 1, columns.strides[1]],
            columns.offset,
            "transpose",
          );
          const each = engine.empty([part.items, outputs, g.depth], "f32", "conv backward");
          launchMatmul(each, cut(dy, outputs, g, part), rows);
          const own = sum(each, 0);
          return total ? add(total, own) : own;
        });
      return to(reshape(total!, c.spec.weight.shape), dy.dtype);
    },
    bias: (c) => sum(c.dy, [0, ...c.dy.shape.slice(2).map((_, i) => i + 2)]),
  },
});

function convolve(
  subject: string,
  axes: number,
  x: Tensor,
  weight: Tensor,
  bias: Tensor | undefined,
  options: ConvOptions,
): Tensor {
  checkOptions(subject, options, ["stride", "padding"]);
  for (const [name, t] of [
    ["x", x],
    ["weight", weight],
  ] as const)
    if (t.rank !== axes + 2)
      throw new ShapeError(
        `${subject}: ${name} is ${show(t.shape)}; it needs ${axes + 2} axes: ${name === "x" ? "items, channels" : "outputs, channels"} and ${axes} of space.`,
      );
  const { stride = 1, padding = 0 } = options;
  const perAxis = <V>(value: PerAxis<V>): readonly V[] =>
    Array.isArray(value) ? (value as V[]) : Array<V>(axes).fill(value as V);
  const strides = perAxis(stride);
  const pads = perAxis<number | readonly [number, number]>(padding).map((v) => (typeof v === "number" ? [v, v] : v));
  if (strides.length !== axes || strides.some((n) => !Number.isInteger(n) || n < 1))
    throw new ShapeError(
      `${subject}: stride must be a whole number from 1, or ${axes} of them: got ${JSON.stringify(stride)}.`,
    );
  if (pads.length !== axes || pads.some((v) => v.length !== 2 || v.some((n) => !Number.isInteger(n) || n < 0)))
    throw new ShapeError(
      `${subject}: padding must be a whole number from 0, or one or [before, after] for each of ${axes} axes: got ${JSON.stringify(padding)}.`,
    );
  return run(
    { x, weight, bias },
    { subject, stride: strides, before: pads.map((v) => v[0]), after: pads.map((v) => v[1]) },
  )[0];
}

/**
 * Convolution of x [B, C, H, W] with weight [O, C, kh, kw] and bias [O]: [B, O, H', W'] with
 * H' = floor((H + padding - kh) / stride) + 1. As in PyTorch, the kernel is not flipped.
 * @throws ShapeError when channels differ or the kernel does not fit
 */
export function conv2d(x: Tensor, weight: Tensor, bias?: Tensor, options: ConvOptions = {}): Tensor {
  return convolve("conv2d", 2, x, weight, bias, options);
}

/**
 * Convolution of x [B, C, T, H, W] with weight [O, C, kt, kh, kw] and bias [O]: [B, O, T', H', W']. With a stride equal to
 * the kernel it cuts a video into patches and embeds each.
 * @throws ShapeError when channels differ or the kernel does not fit
 */
export function conv3d(x: Tensor, weight: Tensor, bias?: Tensor, options: ConvOptions = {}): Tensor {
  return convolve("conv3d", 3, x, weight, bias, options);
}
