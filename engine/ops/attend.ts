import naive from "../../shaders/attention.wgsl";
import lanes from "../../shaders/attention_lanes.wgsl";
import rowsSource from "../../shaders/attention_rows.wgsl";
import tiles from "../../shaders/attention_tiles.wgsl";
import { isFloat } from "../dtype.js";
import type { Engine } from "../engine.js";
import { FeatureError, ShapeError } from "../errors.js";
import { type Kernel, kernel, type Params, type Settings } from "../kernel.js";
import { collapse, expandStrides, type Shape, sizeOf } from "../shape.js";
import { type Strided, strided, type Tensor } from "../tensor.js";

/**
 * Ways to compute attention, all with the same result to rounding: `naive` as the definition says, `rows` for software
 * adapters (blocks of rows and keys in registers), `lanes` for those among them that run a subgroup as one wide vector
 * (shuffles in place of loads), `tiles` for GPUs (keys and values in workgroup memory).
 */
export type AttentionVariant = "naive" | "rows" | "lanes" | "tiles";
export const attentionVariants: readonly AttentionVariant[] = ["naive", "rows", "lanes", "tiles"];

/** The operands of one attention with axes [...lead, heads, rows, columns]; leading axes may repeat. */
export interface Attention {
  lead: Shape;
  q: Tensor;
  k: Tensor;
  v: Tensor;
  mask?: Tensor;
  causal: boolean;
  scale: number;
  variant?: AttentionVariant;
}

/** Names in a kernel's uniform, with the tensors they describe. */
type Operands = Partial<Record<"q" | "k" | "v" | "mask" | "y" | "dy" | "dq" | "dk" | "dv", Tensor>>;

interface Plan {
  engine: Engine;
  variant: AttentionVariant;
  settings: Settings;
  params: Params;
  /** Heads of q and of k over all leading axes. */
  heads: number;
  sharedHeads: number;
  n: number;
  l: number;
  d: number;
  e: number;
  lanes: number;
}

/** Columns / 4 that a workgroup of `lanes` or `rows` owns, of the narrow and of the wide kernels. */
const COLUMNS = [8, 32] as const;
/** Heads of k from which on `backward` is launched. */
const WHOLE_HEADS = { lanes: 16, rows: 32 } as const;
/** Columns that `tiles` keeps in registers at most. */
const TILE_COLUMNS = 128;
const TILE_ROWS = 64;
/** Multiply-adds of one head below which `rows`, seconds to compile on SwiftShader, is not worth it. */
const LITTLE = 1 << 12;
/** f32 of workgroup memory that `tiles` may fill: 16 KiB. */
const TILE_ELEMENTS = 4096;

/** True when four columns are one aligned load everywhere. */
const isFours = (t: Tensor): boolean =>
  t.shape.at(-1)! % 4 === 0 &&
  t.offset % 4 === 0 &&
  t.strides.every((s, i) => s % 4 === 0 || t.shape[i] === 1 || i === t.rank - 1);

function subgroup(engine: Engine): number | undefined {
  const sizes = engine.info.subgroupSizes;
  const isKnown = engine.has("subgroups") && sizes && sizes[0] === sizes[1] && sizes[0] >= 4 && sizes[0] <= 8;
  return isKnown ? sizes[0] : undefined;
}

/** True where a subgroup is one vector of eight, as lavapipe's are: `lanes` is then faster, and `rows` slow to compile. */
const isWide = (engine: Engine): boolean => engine.kind === "software" && subgroup(engine) === 8;

/** The variants worth comparing on an adapter: all that it can run, but for `rows` where it compiles for half a minute. */
export const attentionVariantsOf = (engine: Engine): AttentionVariant[] =>
  attentionVariants.filter((v) => (v === "lanes" ? subgroup(engine) !== undefined : v !== "rows" || !isWide(engine)));

function choose(engine: Engine, { q, k, v, variant }: Attention, operands: readonly Tensor[]): AttentionVariant {
  const [d, e] = [q.shape.at(-1)!, v.shape.at(-1)!];
  const fours = e > 0 && operands.every(isFours);
  const fits: Record<AttentionVariant, boolean> = {
    naive: true,
    rows: fours,
    lanes: fours && subgroup(engine) !== undefined,
    tiles: fours && d <= TILE_COLUMNS && e <= TILE_COLUMNS,
  };
  if (variant) {
    if (variant === "lanes" && subgroup(engine) === undefined)
      throw new FeatureError(
        `scaledDotProductAttention: the variant "lanes" needs subgroups of one known size, 4 to 8: ${engine.info.name} has ${engine.info.subgroupSizes?.join(" to ") ?? "none"}; leave the variant out.`,
      );
    if (!fits[variant])
      throw new ShapeError(
        `scaledDotProductAttention: the variant "${variant}" needs columns, strides and offsets that divide by 4${variant === "tiles" ? `, and at most ${TILE_COLUMNS} columns` : ""}: got ${d} and ${e} columns; leave the variant out.`,
      );
    return variant;
  }
  // Where there is little to do, the kernels that are long to compile would never earn it back. How many heads there are
  // must not decide: a batch and its parts get equal bits.
  const work = q.shape.at(-2)! * k.shape.at(-2)! * (d + e);
  if (engine.kind === "software" && !isWide(engine) && work < LITTLE) return "naive";
  // Tiles would compile for minutes on a software adapter. Vectors of 4, SwiftShader's, are too narrow for lanes.
  const best = engine.kind !== "software" ? "tiles" : isWide(engine) ? "lanes" : "rows";
  return fits[best] ? best : "naive";
}

const pad3 = (list: readonly number[], fill: number): number[] => [
  ...Array<number>(3 - list.length).fill(fill),
  ...list,
];

/** The kernels' view of the operands, or undefined when the leading axes cannot be merged into three. */
function plan(a: Attention, operands: Operands): Plan | undefined {
  const { q, k, v, mask } = a;
  const names = Object.keys(operands) as (keyof Operands)[];
  const walk = collapse(
    a.lead,
    names.map((name) => {
      const t = operands[name]!;
      return expandStrides(t.shape.slice(0, -3), t.strides.slice(0, -3), a.lead);
    }),
  );
  if (walk.shape.length > 3) return undefined;
  const params: Params = {};
  for (const name of ["q", "k", "v", "mask", "y", "dy", "dq", "dk", "dv"] as const)
    params[name] = [0, 0, 0, 0, 0, 0, 0, 0];
  names.forEach((name, i) => {
    const t = operands[name]!;
    // Along axes that repeat the stride is 0.
    const [h, r, c] = [-3, -2, -1].map((axis) => (t.shape.at(axis) === 1 ? 0 : t.strides.at(axis)!));
    params[name] = [...pad3(walk.strides[i], 0), h, t.offset, r, c, 0];
  });
  const [heads, n, d] = q.shape.slice(-3);
  const [shared, l] = k.shape.slice(-3);
  const e = v.shape.at(-1)!;
  const { engine } = q;
  const variant = choose(
    engine,
    a,
    names.filter((name) => name !== "mask").map((name) => operands[name]!),
  );
  const batch = sizeOf(a.lead);
  const byRow = mask !== undefined && mask.shape.at(-2) !== 1;
  return {
    engine,
    variant,
    n,
    l,
    d,
    e,
    heads: batch * heads,
    sharedHeads: batch * shared,
    lanes: subgroup(engine) ?? 0,
    settings: {
      T: q.dtype,
      ...(mask && { M: mask.dtype, MASK: byRow ? 2 : 1, ADDS: `${isFloat(mask.dtype)}` }),
    },
    params: {
      ...params,
      rows: n,
      keys: l,
      depth: d,
      width: e,
      group: heads / shared,
      causal: a.causal ? 1 : 0,
      scale: a.scale,
      lead: [...pad3(walk.shape, 1), heads],
    },
  };
}

/** Operands that do not fit the kernels are copied: columns that are not dense, more leading axes than three. */
function fit(a: Attention, make: (a: Attention) => Operands): [Attention, Operands, Plan] {
  const { engine } = a.q;
  const columns = <X extends Tensor | undefined>(t: X): X =>
    t && t.shape.at(-1)! > 1 && t.strides.at(-1) !== 1 ? (engine.copy(t) as X) : t;
  const neat = { ...a, q: columns(a.q), k: columns(a.k), v: columns(a.v) };
  let operands = make(neat);
  if (operands.dy) operands = { ...operands, dy: columns(operands.dy) };
  const first = plan(neat, operands);
  if (first) return [neat, operands, first];
  const whole = (t: Tensor): Tensor => {
    const shape = [...a.lead, ...t.shape.slice(-3)];
    return engine.copy(t.view(shape, expandStrides(t.shape, t.strides, shape), t.offset, "expand"));
  };
  const flat = { ...neat, q: whole(neat.q), k: whole(neat.k), v: whole(neat.v), mask: neat.mask && whole(neat.mask) };
  const again = { ...make(flat), ...(operands.dy && { dy: whole(operands.dy) }) };
  return [flat, again, plan(flat, again)!];
}

/**
 * True where one launch gives all gradients: with heads enough to occupy the adapter, since a workgroup (or invocation of
 * `rows`) owns one. It adds to dq in place, once for each block of keys, which f16 would round each time.
 */
function isWhole(p: Plan): boolean {
  const { lanes, rows } = WHOLE_HEADS;
  const [heads, block] = p.variant === "lanes" ? [lanes, 2 * p.lanes] : [rows, 8];
  const isSoftware = p.variant === "lanes" || p.variant === "rows";
  if (!isSoftware || p.sharedHeads < heads || Math.max(p.d, p.e) > 4 * COLUMNS[1]) return false;
  return p.settings.T === "f32" || p.l <= block;
}

/** Workgroups folded so that no count passes the limit; kernels index by `wg.y * groups.x + wg.x`. */
function fold(engine: Engine, count: number, z: number): [number, number, number] {
  const x = Math.max(1, Math.min(count, engine.limits.maxComputeWorkgroupsPerDimension));
  return [x, Math.ceil(count / x), z];
}

type Entry = "forward" | "backward_query" | "backward_key" | "backward";

function launch(p: Plan, entry: Entry, tensors: Record<string, Tensor | Strided>): void {
  const { engine, variant, n, l, d, e } = p;
  const byKey = entry === "backward_key" || entry === "backward";
  const count = byKey ? p.sharedHeads : p.heads;
  const items = byKey ? l : n;
  const go = (k: Kernel, blocks: number, groups: [number, number, number]) =>
    engine.launch(k, tensors, { ...p.params, count, blocks }, groups);
  if (variant === "naive") {
    const blocks = Math.ceil((byKey ? Math.max(d, e) : entry === "forward" ? e : d) / 4);
    go(
      kernel("attention", naive, entry, p.settings),
      blocks,
      fold(engine, Math.ceil((count * items * blocks) / 64), 1),
    );
  } else if (variant === "lanes" || variant === "rows") {
    // Few sizes of each: every one is a kernel to compile.
    const whole = entry === "backward";
    const columns =
      { forward: e, backward_query: d, backward_key: Math.max(d, e), backward: Math.max(d, e) }[entry] / 4;
    const C4 = columns <= COLUMNS[0] ? COLUMNS[0] : COLUMNS[1];
    const z = Math.ceil(columns / C4);
    if (variant === "rows") {
      const blocks = whole ? 1 : Math.ceil(items / 8);
      const WG = p.lanes || 8;
      const k = kernel("attention_rows", rowsSource, entry, { ...p.settings, C4, WG });
      go(k, blocks, fold(engine, Math.ceil((count * blocks) / WG), z));
      return;
    }
    const along = (count: number) => (count > p.lanes ? 2 : 1);
    const [R, G] = [along(items), along(byKey ? n : l)];
    const blocks = whole ? 1 : Math.ceil(items / (R * p.lanes));
    const k = kernel("attention_lanes", lanes, entry, { ...p.settings, LANES: p.lanes, R, G, C4 });
    go(k, blocks, fold(engine, count * blocks, z));
  } else {
    // Heads with few rows share a workgroup.
    const most = (rows: number) => TILE_ELEMENTS / ((TILE_ROWS / rows) * (d + e + 2));
    const rows = items <= 16 && most(16) >= 4 ? 16 : TILE_ROWS;
    const tile = [32, 16, 8, 4].find((t) => t <= most(rows))!;
    const blocks = Math.ceil(items / rows);
    const packs = Math.ceil(count / (TILE_ROWS / rows));
    go(
      kernel("attention", tiles, entry, { ...p.settings, D4: d / 4, E4: e / 4, ROWS: rows, TILE: tile }),
      blocks,
      fold(engine, packs * blocks, 1),
    );
  }
}

/** The tensors by the names of a variant's bindings: all but `naive` read four columns at once. */
function bind(p: Plan, tensors: Record<string, Tensor>): Record<string, Strided | Tensor> {
  const four = p.variant !== "naive";
  return Object.fromEntries(
    Object.entries(tensors).map(([name, t]) => [
      four && name !== "mask" && name !== "stats" && name !== "known" ? `${name}4` : name,
      strided(t),
    ]),
  );
}

/** Records y = softmax(scale · q kᵀ + mask) v. `stats` [...lead, heads, rows, 2] f32 is left for backward. */
export function launchAttention(attention: Attention, y: Tensor, stats: Tensor): void {
  const [a, operands, p] = fit(attention, ({ q, k, v, mask }) => ({ q, k, v, ...(mask && { mask }), y }));
  launch(p, "forward", bind(p, { q: a.q, k: a.k, v: a.v, mask: operands.mask ?? a.q, y, stats }));
}

/** Where gradients go: views of one buffer. */
export interface Gradients {
  dq: Tensor;
  dk: Tensor;
  dv: Tensor;
}

/**
 * Records the gradients of q and, with `keys`, those of k and v. `stats` has its deltas afterwards, which
 * `launchMaskGradient` reads.
 */
export function launchGradients(
  attention: Attention,
  y: Tensor,
  dy: Tensor,
  stats: Tensor,
  { dq, dk, dv }: Gradients,
  keys: boolean,
): void {
  const [a, o, p] = fit(attention, ({ q, k, v, mask }) => ({ q, k, v, ...(mask && { mask }), y, dy, dq, dk, dv }));
  const reads = { q: a.q, k: a.k, v: a.v, mask: o.mask ?? a.q, dy: o.dy! };
  if (keys && isWhole(p)) {
    launch(p, "backward", bind(p, { ...reads, stats, out: y, d: dk }));
    return;
  }
  launch(p, "backward_query", bind(p, { ...reads, stats, out: y, dq }));
  if (keys) launch(p, "backward_key", bind(p, { ...reads, known: stats, dkv: dk }));
}

/** Records the gradient of an added mask for each row and key: `dmask` [...lead, heads, rows, keys] f32, dense. */
export function launchMaskGradient(attention: Attention, dy: Tensor, stats: Tensor, dmask: Tensor): void {
  const [a, o, p] = fit({ ...attention, variant: "naive" }, ({ q, k, v, mask }) => ({ q, k, v, mask, dy }));
  const k = kernel("attention", naive, "backward_mask", p.settings);
  p.engine.launch(
    k,
    bind(p, { q: a.q, k: a.k, v: a.v, mask: o.mask!, dy: o.dy!, known: stats, dmask }),
    { ...p.params, count: p.heads, blocks: 1 },
    fold(p.engine, Math.ceil(dmask.size / 64), 1),
  );
}
