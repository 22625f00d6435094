import source from "../../shaders/norm.wgsl";
import lanesSource from "../../shaders/norm_lanes.wgsl";
import { nothingFollows } from "../compile/anchor.js";
import type { Rows } from "../compile/meaning.js";
import { checkOptions, EspalierError, ShapeError } from "../errors.js";
import { kernel } from "../kernel.js";
import { type Backward, needFloat, op, sameDType } from "../op.js";
import { type Shape, sameShape, show, sizeOf } from "../shape.js";
import type { Tensor } from "../tensor.js";
import { hasLanes, LANES } from "./gemm.js";
import { launchReduce } from "./reduction.js";

/**
 * A way to the result: one launch with an invocation, a subgroup or a workgroup a row, or `split` invocations a row in
 * several.
 */
export interface NormWay {
  variant: "rows" | "lanes" | "group" | "shares";
  split: number;
}

/** How x falls into rows and channels: `per` channels a row, `inner` places a channel. */
interface Layout {
  rows: number;
  n: number;
  groups: number;
  per: number;
  inner: number;
}

/** Shorter rows are read faster by an invocation each. */
const LANE_WIDTH = 256;
/** Rows that a subgroup takes one after the other, so that workgroups are few. */
const LANE_ROWS = 8;

function wayFor(x: Tensor, { rows, n, groups, inner }: Layout): NormWay {
  const fits = n % 4 === 0;
  if (fits && n >= LANE_WIDTH && groups === 1 && inner === 1 && hasLanes(x.engine))
    return { variant: "lanes", split: 1 };
  const isSoftware = x.engine.kind === "software";
  // Enough invocations for all cores, enough work for each to pay for two more launches.
  const split = Math.max(
    1,
    Math.min(Math.floor(n / (isSoftware ? 256 : 64)), Math.ceil((isSoftware ? 64 : 16384) / rows)),
  );
  if (isSoftware)
    return fits && (rows >= 32 || split === 1) ? { variant: "rows", split: 1 } : { variant: "shares", split };
  if (n <= 64 && fits) return { variant: "rows", split: 1 };
  return rows < 256 && n >= 8192 ? { variant: "shares", split } : { variant: "group", split: 1 };
}

interface Setting {
  center: boolean;
  weight?: Tensor;
  bias?: Tensor;
}

function launcher(x: Tensor, layout: Layout, { center, weight, bias }: Setting) {
  const WG = x.engine.kind === "software" ? 16 : 64;
  const { n, per, inner } = layout;
  const pattern = inner === 1 && per === n && layout.groups === 1 ? 0 : inner % 4 === 0 ? 1 : 2;
  const settings = {
    T: x.dtype,
    CENTER: center ? 1 : 0,
    AFFINE: (weight ? 1 : 0) + (bias ? 2 : 0),
    PATTERN: n % 4 ? 2 : pattern,
    WG,
  };
  return (
    entry: string,
    tensors: Record<string, Tensor>,
    invocations: number,
    more: { split?: number; chunk?: number; eps?: number; meaning?: Rows } = {},
  ) => {
    x.engine.launch(
      kernel("norm", source, entry, settings),
      tensors,
      {
        ...layout,
        batch: layout.rows / layout.groups,
        split: more.split ?? 1,
        chunk: more.chunk ?? 0,
        eps: more.eps ?? 0,
        ...nothingFollows,
      },
      entry.startsWith("group") ? invocations : Math.ceil(invocations / WG),
      more.meaning,
    );
  };
}

/** What a launch with an invocation a row hands on, where what follows can be computed in it. */
const rowsOf = (y: Tensor, { rows, n }: Layout, keep: string): Rows | undefined =>
  y.engine.queue.trace && {
    kind: "rows",
    operands: [],
    shape: [rows, n],
    y: { storage: y.storage, offset: y.offset, strides: [n, 1], dtype: y.dtype },
    keep,
    lanes: 4,
    op: y.op,
  };

/** A launch of norm_lanes.wgsl. */
function launchLanes(
  entry: "rows" | "rows_dx",
  tensors: Record<string, Tensor>,
  layout: Layout,
  { center, weight, bias }: Setting,
  eps: number,
): void {
  const { rows, n } = layout;
  const { x4: x, y4: y, dx4: dx } = tensors;
  const affine = (weight ? 1 : 0) + (bias ? 2 : 0);
  const settings = { T: x.dtype, CENTER: center ? 1 : 0, AFFINE: affine, LANES, ROWS: LANE_ROWS };
  const meaning = entry === "rows" ? rowsOf(y, layout, "keep") : rowsOf(dx, layout, "keep_dx");
  const k = kernel("norm_lanes", lanesSource, entry, settings);
  x.engine.launch(k, tensors, { rows, n, eps, ...nothingFollows }, Math.ceil(rows / LANE_ROWS), meaning);
}

/** Records y, and each row's mean and rstd into stats [rows, 2]. */
function launchForward(
  x: Tensor,
  y: Tensor,
  stats: Tensor,
  layout: Layout,
  setting: Setting,
  eps: number,
  { variant, split }: NormWay,
): void {
  const { rows, n } = layout;
  const launch = launcher(x, layout, setting);
  const [weight, bias] = [setting.weight ?? x, setting.bias ?? x];
  if (variant === "rows") {
    const meaning = rowsOf(y, layout, "keep");
    launch("rows", { x4: x, weight, bias, y4: y, stats }, rows, { eps, meaning });
  } else if (variant === "lanes") launchLanes("rows", { x4: x, weight, bias, y4: y, stats }, layout, setting, eps);
  else if (variant === "group") launch("group", { x, weight, bias, y, stats }, rows, { eps });
  else {
    const shares = x.engine.empty([rows, split, 2], "f32", "norm");
    const four = n % 4 === 0;
    const buffers: Record<string, Tensor> = four ? { x4: x, y4: y } : { x, y };
    launch(four ? "moments4" : "moments", four ? { x4: x, shares } : { x, shares }, rows * split, { split });
    launch("settle", { x, stats, gathered: shares }, rows, { split, eps });
    launch(four ? "apply4" : "apply", { ...buffers, weight, bias, known: stats }, rows * split, { split });
    shares.dispose();
  }
}

function launchBackward(
  x: Tensor,
  dy: Tensor,
  dx: Tensor,
  known: Tensor,
  layout: Layout,
  setting: Setting,
  { variant, split }: NormWay,
): void {
  const { rows } = layout;
  const launch = launcher(x, layout, { ...setting, bias: undefined });
  const weight = setting.weight ?? x;
  if (variant === "rows") {
    const meaning = rowsOf(dx, layout, "keep_dx");
    launch("rows_dx", { x4: x, weight, dy4: dy, dx4: dx, known }, rows, { meaning });
  } else if (variant === "lanes")
    launchLanes("rows_dx", { x4: x, weight, dy4: dy, dx4: dx, known }, layout, { ...setting, bias: undefined }, 0);
  else if (variant === "group") launch("group_dx", { x, weight, dy, dx, known }, rows);
  else {
    const shares = x.engine.empty([rows, split, 2], "f32", "norm backward");
    const means = x.engine.empty([rows, 2], "f32", "norm backward");
    launch("moments_dx", { x, weight, dy, known, shares }, rows * split, { split });
    launch("settle_dx", { gathered: shares, means }, rows, { split });
    launch("apply_dx", { x, weight, dy, dx, known, mean_of: means }, rows * split, { split });
    shares.dispose();
    means.dispose();
  }
}

/** The gradients of weight and bias. */
function launchAffine(
  x: Tensor,
  dy: Tensor,
  stats: Tensor,
  layout: Layout,
  center: boolean,
): { weight: Tensor; bias: Tensor } {
  const { engine } = x;
  const count = layout.groups * layout.per;
  const batch = layout.rows / layout.groups;
  const four = layout.inner === 1 && layout.groups === 1 && count % 4 === 0;
  const owners = four ? count / 4 : count;
  const wanted = engine.kind === "software" ? 64 : 4096;
  const split = Math.max(1, Math.min(Math.ceil(wanted / owners), Math.floor(batch / 16)));
  const parts = {
    weight: engine.empty([split, count], "f32", "norm backward"),
    bias: engine.empty([split, count], "f32", "norm backward"),
  };
  const launch = launcher(x, layout, { center });
  const more = { split, chunk: Math.ceil(batch / split) };
  if (four)
    launch(
      "channels4",
      { x4: x, dy4: dy, known: stats, dweight4: parts.weight, dbias4: parts.bias },
      owners * split,
      more,
    );
  else launch("channels", { x, dy, known: stats, dweight: parts.weight, dbias: parts.bias }, owners * split, more);
  const finish = (part: Tensor): Tensor => {
    const d = engine.empty([count], x.dtype, "norm backward");
    launchReduce(part, d, { outer: 1, reduced: split, inner: count }, "sum");
    part.dispose();
    return d;
  };
  return { weight: finish(parts.weight), bias: finish(parts.bias) };
}

type Names = "x" | "weight" | "bias";
interface Attrs {
  eps: number;
  groups: number;
  /** The way to take; tests compare them. Default: by sizes and adapter. */
  way?: NormWay;
}

/** A contract: `layout` says how x falls into rows. */
function norm(
  name: string,
  doc: string,
  link: string,
  center: boolean,
  layout: (shape: Shape, groups: number) => Layout,
) {
  const affine = (c: Backward<Names, Attrs>) =>
    c.once("affine", () => launchAffine(c.in.x, c.dy, c.saved.stats, layout(c.in.x.shape, c.attrs.groups), center));
  return op<Names, Attrs>({
    name,
    doc,
    link,
    inputs: ["x", "weight", "bias"],
    optional: ["weight", "bias"],
    infer: ({ x, weight, bias }, { groups }) => {
      needFloat(name, x);
      sameDType(name, x, weight, bias);
      const { per } = layout(x.shape, groups);
      for (const [what, t] of [
        ["weight", weight],
        ["bias", bias],
      ] as const)
        if (t && !sameShape(t.shape, [per * groups]))
          throw new ShapeError(
            `${name}: the ${what} must be ${show([per * groups])} for x ${show(x.shape)}: got ${show(t.shape)}.`,
          );
      return { shape: x.shape, dtype: x.dtype };
    },
    forward: (c) => {
      const { x, weight, bias } = c.in;
      const sizes = layout(x.shape, c.attrs.groups);
      const stats = c.engine.empty([sizes.rows, 2], "f32", name);
      launchForward(x, c.out, stats, sizes, { center, weight, bias }, c.attrs.eps, c.attrs.way ?? wayFor(x, sizes));
      if (c.recording) c.save("stats", stats);
    },
    saves: (needs) => (needs.x ? ["x", "weight"] : ["x"]),
    grad: {
      x: (c) => {
        const { x, weight } = c.in;
        const sizes = layout(x.shape, c.attrs.groups);
        const dx = c.engine.empty(x.shape, x.dtype, `${name} backward`);
        launchBackward(x, c.dy, dx, c.saved.stats, sizes, { center, weight }, c.attrs.way ?? wayFor(x, sizes));
        return dx;
      },
      weight: (c) => affine(c).weight,
      bias: (c) => affine(c).bias,
    },
  });
}

const lastAxis = (shape: Shape): Layout => {
  const n = shape.at(-1)!;
  return { rows: n ? sizeOf(shape) / n : 0, n, groups: 1, per: n, inner: 1 };
};

const layerNormRun = norm(
  "layerNorm",
  "y = (x - mean) / √(variance + eps) · weight + bias over the last axis",
  "https://arxiv.org/abs/1607.06450",
  true,
  lastAxis,
);
const rmsNormRun = norm(
  "rmsNorm",
  "y = x / √(mean(x²) + eps) · weight over the last axis",
  "https://arxiv.org/abs/1910.07467",
  false,
  lastAxis,
);
const groupNormRun = norm(
  "groupNorm",
  "y = (x - mean) / √(variance + eps) · weight + bias over each group of channels",
  "https://arxiv.org/abs/1803.08494",
  true,
  (shape, groups) => {
    const [per, inner] = [shape[1] / groups, sizeOf(shape.slice(2))];
    return { rows: shape[0] * groups, n: per * inner, groups, per, inner };
  },
);

/** The ops as they run, for tests that choose the way. */
export const norms = { layerNorm: layerNormRun, rmsNorm: rmsNormRun, groupNorm: groupNormRun };

/** Options of the norms: `weight` and `bias` hold one value per channel. */
export interface NormOptions {
  weight?: Tensor;
  bias?: Tensor;
  /** Added to the variance. Default 1e-5. */
  eps?: number;
}

function checked(name: string, x: Tensor, options: NormOptions, known: readonly string[]): number {
  checkOptions(name, options, known);
  if (x.rank === 0) throw new ShapeError(`${name}: a single number has no axis to normalize: got ${show(x.shape)}.`);
  const { eps = 1e-5 } = options;
  if (!(eps >= 0)) throw new EspalierError(`${name}: eps must not be negative: got ${eps}.`);
  return eps;
}

/** Layer norm over the last axis; weight and bias, both optional, have its size. */
export function layerNorm(x: Tensor, options: NormOptions = {}): Tensor {
  const eps = checked("layerNorm", x, options, ["weight", "bias", "eps"]);
  return layerNormRun({ x, weight: options.weight, bias: options.bias }, { eps, groups: 1 })[0];
}

/** Root-mean-square norm over the last axis: no mean is taken off. */
export function rmsNorm(x: Tensor, options: Omit<NormOptions, "bias"> = {}): Tensor {
  const eps = checked("rmsNorm", x, options, ["weight", "eps"]);
  return rmsNormRun({ x, weight: options.weight }, { eps, groups: 1 })[0];
}

/** Group norm of x [B, C, …]: the C channels fall into `groups` of neighbours; weight and bias are [C]. */
export function groupNorm(x: Tensor, groups: number, options: NormOptions = {}): Tensor {
  const eps = checked("groupNorm", x, options, ["weight", "bias", "eps"]);
  if (x.rank < 2 || !Number.isInteger(groups) || groups < 1 || x.shape[1] % groups !== 0)
    throw new ShapeError(
      `groupNorm: ${groups} groups do not divide the channels of ${show(x.shape)}; x is [B, C, …] and C a multiple of groups.`,
    );
  return groupNormRun({ x, weight: options.weight, bias: options.bias }, { eps, groups })[0];
}
