import source from "../../shaders/reduce.wgsl";
import type { Sum } from "../compile/meaning.js";
import { computeType } from "../dtype.js";
import { kernel } from "../kernel.js";
import { sizeOf } from "../shape.js";
import type { Tensor } from "../tensor.js";

export type Merge = "sum" | "max" | "min";
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
function plan(
  x: Tensor,
  { outer, reduced, inner }: Sizes,
  forced?: ReduceVariant,
): { entry: ReduceVariant; split: number } {
  const isSoftware = x.engine.kind === "software";
  const isRow = inner === 1;
  const fits: Record<ReduceVariant, boolean> = {
    rows: isRow && reduced % 4 === 0,
    columns: inner % 4 === 0,
    group: isRow,
    scalar: true,
  };
  let entry: ReduceVariant = fits.rows ? "rows" : fits.columns ? "columns" : "scalar";
  // Neighbouring invocations of a GPU should read neighbouring values: a row goes to a workgroup.
  if (!isSoftware && isRow && reduced >= GROUP) entry = "group";
  if (forced && fits[forced]) entry = forced;
  const { launch, step, wide } = isSoftware ? costs.software : costs.gpu;
  const owners = entry === "columns" ? (outer * inner) / 4 : entry === "group" ? outer * GROUP : outer * inner;
  const steps = entry === "rows" ? reduced / 4 : entry === "group" ? reduced / GROUP : reduced;
  const time = (split: number) =>
    (steps / split) * Math.ceil((owners * split) / wide) * step + (split > 1 ? launch + split * step : 0);
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
  x: Tensor,
  y: Tensor,
  sizes: Sizes,
  merge: Merge,
  scale = 1,
  variant?: ReduceVariant,
  shares?: number,
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
    T: x.dtype,
    TY: to.dtype,
    C: c,
    merge: merging[merge],
    unordered: c === "f32" ? "return is_nan(v);" : "return false;",
    finish: last && scale !== 1 ? "return v * p.scale;" : "return v;",
  };
  const four: Record<string, Tensor> =
    entry === "columns" ? { x4: x, y4: to } : entry === "rows" ? { x4: x, y: to } : { x, y: to };
  const owned = entry === "columns" ? (outer * split * inner) / 4 : outer * split * inner;
  const wg = engine.kind === "software" ? 16 : 64;
  const chunk = Math.ceil(reduced / split);
  const meaning: Sum | undefined =
    engine.queue.trace && entry === "columns" && merge === "sum" && c === "f32"
      ? {
          kind: "sum",
          operands: [{ storage: x.storage, offset: x.offset, strides: [reduced * inner, inner, 1], dtype: x.dtype }],
          shape: [outer, reduced, inner],
          y: { storage: to.storage, offset: to.offset, strides: [split * inner, inner, 1], dtype: to.dtype },
          split,
          chunk,
          scale: last ? scale : 1,
          op: y.op,
        }
      : undefined;
  engine.launch(
    kernel("reduce", source, entry, { ...settings, WG: wg }),
    four,
    {
      outer,
      reduced,
      inner,
      split,
      chunk,
      start: start[merge][c],
      scale: last ? scale : 1,
    },
    entry === "group" ? owned : Math.ceil(owned / wg),
    meaning,
  );
  if (last) return;
  launchReduce(
    to,
    y,
    { outer, reduced: split, inner },
    merge,
    scale,
    inner === 1 || inner % 4 ? "scalar" : "columns",
    1,
  );
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
    const sizes = {
      outer: sizeOf(shape.slice(0, first)),
      reduced: sizeOf(shape.slice(first, end + 1)),
      inner: sizeOf(shape.slice(end + 1)),
    };
    shape = shape.map((n, i) => (i >= first && i <= end ? 1 : n));
    const last = left.length === 0;
    const to = last ? y : x.engine.empty(shape, computeType(x.dtype), "reduce");
    launchReduce(from, to, sizes, merge, last ? scale : 1);
    if (from !== x) from.dispose();
    from = to;
  }
}
