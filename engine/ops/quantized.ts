import source from "../../shaders/quantized.wgsl";
import { bytesOf, type DType } from "../dtype.js";
import type { Engine } from "../engine.js";
import { ConfigError, checkOptions, DTypeError, ShapeError } from "../errors.js";
import { kernel, type Params, type Settings } from "../kernel.js";
import { needFloat, op, sameDType } from "../op.js";
import { type Shape, show, sizeOf } from "../shape.js";
import { strided, type Tensor } from "../tensor.js";
import { bucket, revisionOf } from "../tune/choice.js";
import { geluTanh, silu } from "./elementwise.js";
import { type Activation, activationNames, checkActivation, launchMatmul } from "./gemm.js";
import { sum } from "./reduce.js";
import { reshape } from "./view.js";

/** How the numbers of a quantised weight are stored. */
export interface QuantizedForm {
  /** Bits of a code: 8 holds -127 … 127, 4 holds -8 … 7. */
  bits: 8 | 4;
  /** Neighbouring inputs that share a scale, a multiple of 32; 0 for one scale for each output. */
  group: number;
}

/** Rows of codes are padded to so many values, so that four words can be loaded at once and never hold two groups. */
const BLOCK = 32;
const blocks = (inputs: number) => Math.ceil(inputs / BLOCK) * BLOCK;
const groupOf = (inputs: number, { group }: QuantizedForm) => group || blocks(inputs);

/** Throws ConfigError unless the form is one that the kernels know. */
export function checkQuantizedForm(subject: string, { bits, group }: QuantizedForm): void {
  if (bits !== 8 && bits !== 4) throw new ConfigError(`${subject}: bits must be 8 or 4: got ${bits}.`);
  if (!Number.isInteger(group) || group < 0 || group % BLOCK)
    throw new ConfigError(
      `${subject}: group must be a multiple of ${BLOCK}, or 0 for one scale for each output: got ${group}.`,
    );
}

/** Shapes in which a weight [outputs, inputs] is stored: codes as u32, and scales. */
export function quantizedShapes(outputs: number, inputs: number, form: QuantizedForm): { codes: Shape; scale: Shape } {
  const words = (blocks(inputs) * form.bits) / 32;
  return { codes: [outputs, words], scale: [outputs, Math.ceil(inputs / groupOf(inputs, form))] };
}

/**
 * How a product is computed. `columns` and `shared` unpack codes where they are used: by one invocation for each column,
 * or with a column's k shared out. `bands` unpacks a part of the weight at a time and takes ordinary products.
 */
export type QuantizedPlan = "naive" | "columns" | "shared" | "bands";

/** Bytes that the unpacked part of a weight may take at a time. */
const BAND = 32 << 20;
/** Bands end at multiples of this, so that a part of a bias can be bound. */
const STEP = 128;

interface Attrs {
  form: QuantizedForm;
  activation: Activation;
  plan?: QuantizedPlan;
}

const rowsOf = (t: Tensor): Tensor => (t.rank === 2 ? t : reshape(t, [sizeOf(t.shape.slice(0, -1)), t.shape.at(-1)!]));

/** What the tuner knows these kernels by. */
export const quantizedId = `linearQuantized@${revisionOf(source)}`;

/** The shape class of a product; sizes of one class differ by less than a factor of 2. */
export const quantizedClass = (m: number, n: number, k: number, { bits }: QuantizedForm, dtype: DType): string =>
  `${bits} bits m${bucket(m)} n${bucket(n)} k${bucket(k)} ${dtype}`;

const plans: readonly string[] = ["naive", "columns", "shared", "bands"] satisfies QuantizedPlan[];
export const isQuantizedPlan = (way: string): way is QuantizedPlan => plans.includes(way);

/**
 * What is taken where the tuner has timed nothing. For few rows codes are unpacked where they are used, else once for all
 * rows. On lavapipe unpacking costs as much as a product of some ten rows, but invocations that share loads are slow, and
 * code for many rows takes seconds to compile.
 */
export function planQuantized(engine: Engine, rows: number): QuantizedPlan {
  if (engine.kind === "software") return rows <= 4 ? "columns" : "bands";
  return rows <= 16 ? "shared" : "bands";
}

/** What the tuner found, where it was asked to. */
function tunedPlan(engine: Engine, key: () => string): QuantizedPlan | undefined {
  const way = engine.tuning.idle ? undefined : engine.tuning.winner(quantizedId, key());
  return way !== undefined && isQuantizedPlan(way) ? way : undefined;
}

function paramsOf(m: number, n: number, k: number, codes: Tensor, scale: Tensor, form: QuantizedForm): Params {
  const [words, groups] = [codes.shape[1], scale.shape[1]];
  const rest = { count: 0, row: 0, begin: 0, pitch: n, has_bias: 0, activation: 0 };
  return { m, n, k, words, groups, group: groupOf(k, form), ...rest };
}

/** Rows [row, row + rows) and inputs [from, from + width) of the weight as numbers, [rows, width rounded up to 32]. */
function unpack(
  codes: Tensor,
  scale: Tensor,
  form: QuantizedForm,
  dtype: DType,
  part: { row: number; rows: number; from: number; width: number; inputs: number },
): Tensor {
  const { engine } = codes;
  const { row, rows, from, width, inputs } = part;
  const pitch = blocks(width);
  const w4 = engine.empty([rows, pitch], dtype, "linearQuantized");
  const k = kernel("quantized", source, "unpack", { T: dtype, TS: scale.dtype, BITS: form.bits });
  const count = (rows * pitch) / BLOCK;
  const params = { ...paramsOf(0, 0, inputs, codes, scale, form), count, row, begin: from, pitch };
  engine.launch(k, { codes4: codes, scale, w4 }, params, Math.ceil(count / 64));
  return w4;
}

/** The kernel for few rows, with the rows and columns that a workgroup owns. */
function fewKernel(m: number, k: number, plan: QuantizedPlan, types: Settings) {
  const most = plan === "columns" ? 2 : 8;
  const rows = [1, 2, 4].find((n) => n >= Math.min(m, most)) ?? most;
  const columns = plan === "columns" ? 8 : 4;
  const one = (i: number) => `x_one(row, k + ${i}u)`;
  const settings: Settings = { ...types, ROWS: rows, COLUMNS: columns, WG: plan === "columns" ? 8 : 64 };
  if (k % 4) settings.x_at = `return vec4<f32>(${[0, 1, 2, 3].map(one).join(", ")});`;
  else if (k % BLOCK)
    settings.x_at = "return select(vec4<f32>(), vec4<f32>(x4[(row * p.k + min(k, p.k - 4u)) / 4u]), k < p.k);";
  return { kernel: kernel("quantized", source, "few", settings), rows, columns };
}

/** Records y = act(x · weightᵀ + bias) into the dense y [m, n] from a dense x [m, k]. */
function forward(y: Tensor, x: Tensor, codes: Tensor, scale: Tensor, bias: Tensor | undefined, attrs: Attrs): void {
  const { engine } = y;
  const { form, activation } = attrs;
  const [m, k] = x.shape;
  const n = codes.shape[0];
  const plan =
    attrs.plan ?? tunedPlan(engine, () => quantizedClass(m, n, k, form, x.dtype)) ?? planQuantized(engine, m);
  if (plan === "bands") {
    const rows = Math.max(STEP, Math.floor(BAND / (blocks(k) * bytesOf(x.dtype)) / STEP) * STEP);
    for (let row = 0; row < n; row += rows) {
      const count = Math.min(rows, n - row);
      // A scope: each band's numbers make room for the next one's.
      engine.scope(() => {
        const w = unpack(codes, scale, form, x.dtype, { row, rows: count, from: 0, width: k, inputs: k });
        const part = bias?.view([count], [1], bias.offset + row, "linearQuantized");
        const to = y.view([m, count], [n, 1], y.offset + row, "linearQuantized");
        launchMatmul(to, x, w.view([k, count], [1, w.shape[1]], 0, "linearQuantized"), { bias: part, activation });
      });
    }
    return;
  }
  const types = { T: x.dtype, TS: scale.dtype, BITS: form.bits };
  const params = {
    ...paramsOf(m, n, k, codes, scale, form),
    has_bias: bias ? 1 : 0,
    activation: activationNames.indexOf(activation),
  };
  const spread = bias ?? strided(x);
  if (plan === "naive") {
    const naive = kernel("quantized", source, "naive", types);
    engine.launch(naive, { x, codes, scale, bias: spread, y }, { ...params, count: y.size }, Math.ceil(y.size / 64));
    return;
  }
  const {
    kernel: few,
    rows,
    columns,
  } = fewKernel(m, k, plan, {
    ...types,
    ONE_GROUP: `${scale.shape[1] === 1}`,
  });
  const tensors: Record<string, Tensor | ReturnType<typeof strided>> = { codes, scale, bias: spread, y };
  for (const { name } of few.bindings) if (name === "x" || name === "x4") tensors[name] = x;
  const count = Math.ceil(n / columns);
  const most = engine.limits.maxComputeWorkgroupsPerDimension;
  const wide = Math.min(count, most);
  engine.launch(few, tensors, { ...params, count }, [wide, Math.ceil(count / wide), Math.ceil(m / rows)]);
}

/** dx = dy · weight, [..., k]: as one product for each band of k. */
function backward(dy: Tensor, codes: Tensor, scale: Tensor, form: QuantizedForm, shape: Shape): Tensor {
  const { engine } = dy;
  const k = shape.at(-1)!;
  const n = codes.shape[0];
  const rows = rowsOf(dy); // [m, n]
  const dx = engine.empty([rows.shape[0], k], dy.dtype, "linearQuantized backward");
  const width = Math.max(STEP, Math.floor(BAND / (n * bytesOf(dy.dtype)) / STEP) * STEP);
  for (let from = 0; from < k; from += width) {
    const count = Math.min(width, k - from);
    engine.scope(() => {
      const w = unpack(codes, scale, form, dy.dtype, { row: 0, rows: n, from, width: count, inputs: k });
      const to = dx.view([rows.shape[0], count], [k, 1], from, "linearQuantized backward");
      launchMatmul(to, rows, w.view([n, count], [w.shape[1], 1], 0, "linearQuantized backward"));
    });
  }
  return reshape(dx, shape);
}

const run = op<"x" | "codes" | "scale" | "bias", Attrs>({
  name: "linearQuantized",
  doc: "y = act(x · (scale · codes)ᵀ + bias) with weights of 8 or 4 bits; they get no gradient",
  link: "https://arxiv.org/abs/2208.07339",
  inputs: ["x", "codes", "scale", "bias"],
  optional: ["bias"],
  infer: ({ x, codes, scale, bias }, { form }) => {
    const subject = "linearQuantized";
    checkQuantizedForm(subject, form);
    needFloat(subject, x);
    needFloat(subject, scale);
    const dtype = sameDType(subject, x, bias);
    if (codes.dtype !== "u32") throw new DTypeError(`${subject}: codes must be u32: got ${codes.dtype}.`);
    const k = x.shape.at(-1);
    if (k === undefined || codes.rank !== 2)
      throw new ShapeError(
        `${subject}: needs x [..., in] and codes [out, words]: got ${show(x.shape)} and ${show(codes.shape)}.`,
      );
    const [n] = codes.shape;
    const want = quantizedShapes(n, k, form);
    if (show(codes.shape) !== show(want.codes) || show(scale.shape) !== show(want.scale))
      throw new ShapeError(
        `${subject}: codes ${show(codes.shape)} and scale ${show(scale.shape)} do not fit x ${show(x.shape)}: ${form.bits} bits in groups of ${form.group || "a whole row"} need ${show(want.codes)} and ${show(want.scale)}.`,
      );
    if (bias && (bias.rank !== 1 || bias.shape[0] !== n))
      throw new ShapeError(`${subject}: bias does not fit: ${show(bias.shape)} for ${n} outputs; it must be [${n}].`);
    return { shape: [...x.shape.slice(0, -1), n], dtype };
  },
  forward: (c) => {
    const { x, codes, scale, bias } = c.in;
    forward(rowsOf(c.out), rowsOf(x), codes, scale, bias, c.attrs);
  },
  saves: (needs) => (needs.x ? ["codes", "scale"] : []),
  grad: {
    x: (c) => backward(c.dy, c.in.codes, c.in.scale, c.attrs.form, c.spec.x.shape),
    bias: (c) => sum(rowsOf(c.dy), 0),
  },
});

/** Options of `linearQuantized`. */
export interface LinearQuantizedOptions extends QuantizedForm {
  /** [out]. */
  bias?: Tensor;
  /** Applied in the same launch; while gradients are recorded, as an op of its own. */
  activation?: Activation;
  /** Overrides the choice of kernel; tests compare them this way. */
  plan?: QuantizedPlan;
}

/**
 * act(x · weightᵀ + bias) for x [..., in] with the weight [out, in] as `quantizeWeight` stores it: [..., out]. Gradients
 * flow to x and to the bias; weights are frozen.
 * @param codes u32 [out, words], words as in `quantizedShapes`
 * @param scale [out, groups], f32 or f16 whatever x is
 * @throws ShapeError when sizes do not fit the form
 */
export function linearQuantized(x: Tensor, codes: Tensor, scale: Tensor, options: LinearQuantizedOptions): Tensor {
  checkOptions("linearQuantized", options, ["bits", "group", "bias", "activation", "plan"]);
  const { bits, group, bias, activation = "none", plan } = options;
  checkActivation("linearQuantized", activation);
  const form = { bits, group };
  if (activation === "none" || !x.engine.recording)
    return run({ x, codes, scale, bias }, { form, activation, plan })[0];
  const y = run({ x, codes, scale, bias }, { form, activation: "none", plan })[0];
  return activation === "silu" ? silu(y) : geluTanh(y);
}

/**
 * Records the codes and scales of the dense `weight` [rows, in] into rows [row, row + rows) of `codes` and `scale`.
 * @throws ShapeError when they are not of the shapes of `quantizedShapes`
 */
export function launchQuantize(codes: Tensor, scale: Tensor, weight: Tensor, form: QuantizedForm, row = 0): void {
  const subject = "quantizeWeight";
  checkQuantizedForm(subject, form);
  needFloat(subject, weight);
  needFloat(subject, scale);
  if (weight.rank !== 2) throw new ShapeError(`${subject}: the weight must be [out, in]: got ${show(weight.shape)}.`);
  const [rows, inputs] = weight.shape;
  const want = quantizedShapes(codes.shape[0], inputs, form);
  if (row + rows > codes.shape[0] || show(codes.shape) !== show(want.codes) || show(scale.shape) !== show(want.scale))
    throw new ShapeError(
      `${subject}: rows ${row} to ${row + rows} of ${inputs} inputs do not fit codes ${show(codes.shape)} and scale ${show(scale.shape)}.`,
    );
  if (weight.size === 0) return;
  const { engine } = codes;
  const settings = { T: weight.dtype, TS: scale.dtype, BITS: form.bits };
  const params = { ...paramsOf(rows, rows, inputs, codes, scale, form), row };
  const full = engine.noGrad(() => engine.dense(weight));
  const groups = rows * scale.shape[1];
  const scales = kernel("quantized", source, "scales", settings);
  engine.launch(scales, { full, scale_out: scale }, { ...params, count: groups }, Math.ceil(groups / 64));
  const words = rows * codes.shape[1];
  const pack = kernel("quantized", source, "pack", settings);
  engine.launch(pack, { full, scale, codes_out: codes }, { ...params, count: words }, Math.ceil(words / 64));
  if (full !== weight) full.dispose();
}

/** A weight as whole numbers and scales; see `QuantizedForm`. */
export interface QuantizedWeight {
  /** u32 [out, words]. */
  codes: Tensor;
  /** [out, groups]. */
  scale: Tensor;
}

/**
 * Rounds a weight [out, in] to 8 or 4 bits, symmetrically: value = scale · code. With 8 bits a group's largest magnitude
 * becomes 127; with 4 bits the scale is the best of nine in the least-squares sense.
 */
export function quantizeWeight(weight: Tensor, form: QuantizedForm & { scale?: "f32" | "f16" }): QuantizedWeight {
  checkOptions("quantizeWeight", form, ["bits", "group", "scale"]);
  checkQuantizedForm("quantizeWeight", form);
  if (weight.rank !== 2)
    throw new ShapeError(`quantizeWeight: the weight must be [out, in]: got ${show(weight.shape)}.`);
  const { engine } = weight;
  return engine.atomically(() => {
    const shapes = quantizedShapes(weight.shape[0], weight.shape[1], form);
    const codes = engine.empty(shapes.codes, "u32", "quantizeWeight");
    const scale = engine.empty(shapes.scale, form.scale ?? "f32", "quantizeWeight");
    launchQuantize(codes, scale, weight, form);
    return { codes, scale };
  });
}

/** The numbers that a quantised weight stands for, [out, inputs]. */
export function dequantizeWeight(
  { codes, scale }: QuantizedWeight,
  inputs: number,
  form: QuantizedForm,
  dtype: "f32" | "f16" = "f32",
): Tensor {
  checkQuantizedForm("dequantizeWeight", form);
  const want = quantizedShapes(codes.shape[0], inputs, form);
  if (show(codes.shape) !== show(want.codes) || show(scale.shape) !== show(want.scale))
    throw new ShapeError(
      `dequantizeWeight: codes ${show(codes.shape)} and scale ${show(scale.shape)} are not those of ${inputs} inputs: they must be ${show(want.codes)} and ${show(want.scale)}.`,
    );
  const { engine } = codes;
  return engine.atomically(() => {
    const rows = codes.shape[0];
    if (rows * inputs === 0) return engine.empty([rows, inputs], dtype, "dequantizeWeight");
    const w = unpack(codes, scale, form, dtype, { row: 0, rows, from: 0, width: inputs, inputs });
    return engine.dense(w.view([rows, inputs], [w.shape[1], 1], 0, "dequantizeWeight"));
  });
}
