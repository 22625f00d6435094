import source from "../../shaders/matmul.wgsl";
import lanesSource from "../../shaders/matmul_lanes.wgsl";
import { nothingFollows } from "../compile/anchor.js";
import type { Rows } from "../compile/meaning.js";
import type { DType } from "../dtype.js";
import type { Engine } from "../engine.js";
import { EspalierError, nearest, ShapeError } from "../errors.js";
import { type Kernel, kernel, type Params, type Settings } from "../kernel.js";
import { collapse, expandStrides, show, sizeOf } from "../shape.js";
import { type Strided, strided, type Tensor } from "../tensor.js";
import { bucket, revisionOf } from "../tune/choice.js";

/** What may follow a matrix product within its launch. */
export type Activation = "none" | "geluTanh" | "silu";
export const activationNames: readonly Activation[] = ["none", "geluTanh", "silu"];

/** Throws for a name that is no activation, with the nearest that is. */
export function checkActivation(subject: string, activation: string): void {
  if ((activationNames as string[]).includes(activation)) return;
  const guess = nearest(activation, activationNames);
  throw new EspalierError(
    `${subject}: unknown activation "${activation}"${guess ? `; did you mean "${guess}"?` : ";"} (${activationNames.join(", ")})`,
  );
}

/** Entry points of matmul.wgsl and matmul_lanes.wgsl that compute products; `tiled32` is `tiled` with smaller tiles. */
export type Variant = "naive" | "registers" | "lanes" | "tiled" | "tiled32" | "skinny";

/** How a product is launched. */
export interface Plan {
  variant: Variant;
  /** Shares into which k is cut; more than one needs a second launch that adds them up. */
  split: number;
}

/** Options of one product. */
export interface Epilogue {
  /** Contiguous, one value per column of y, or per row with `biasOf: "rows"`. */
  bias?: Tensor;
  biasOf?: "columns" | "rows";
  activation?: Activation;
  /** [m], of y's dtype: receives Σ_k a[i, k] where the kernel can write it at no cost; `launchMatmul` tells whether it did. */
  rowSums?: Tensor;
  /** Overrides the choice of `planMatmul`; tests compare all variants this way. */
  plan?: Plan;
}

/** Lanes of a subgroup that `lanes` is written for: lavapipe's on processors with 256-bit vectors. */
export const LANES = 8;
export function hasLanes(engine: Engine): boolean {
  const [low, high] = engine.info.subgroupSizes ?? [0, 0];
  return engine.has("subgroups") && low === LANES && high === LANES;
}

/** Names a plan for the tuner: "lanes/2" is `lanes` with k in two shares. */
export const wayOf = ({ variant, split }: Plan): string => `${variant}/${split}`;

/** The plan of that name; undefined when it cannot be taken for this shape on this adapter. */
export function planOf(engine: Engine, way: string, m: number, k: number): Plan | undefined {
  const [variant, shares] = way.split("/") as [Variant, string];
  const split = Number(shares);
  if (!Number.isInteger(split) || split < 1 || split > Math.max(1, k / 16)) return undefined;
  switch (variant) {
    case "naive":
      return split === 1 ? { variant, split } : undefined;
    case "skinny":
      return m <= 8 ? { variant, split } : undefined;
    case "lanes":
      return hasLanes(engine) ? { variant, split } : undefined;
    case "registers":
    case "tiled":
    case "tiled32":
      return { variant, split };
    default:
      return undefined;
  }
}

/** What the tuner knows these kernels by. */
export const matmulId = `matmul@${revisionOf(source, lanesSource)}`;

/** Operands' contiguous axes as BLAS has them: N along rows, T along columns, X neither. */
type Orientation = "N" | "T" | "X";

/** The shape class of a product; sizes of one class differ by less than a factor of 2. */
export function matmulClass(
  orientations: readonly [Orientation, Orientation],
  count: number,
  m: number,
  n: number,
  k: number,
  dtype: DType,
): string {
  // Up to 8 rows have a kernel of their own.
  const rows = m <= 8 ? 2 ** Math.ceil(Math.log2(m)) : Math.max(16, bucket(m));
  return `${orientations.join("")} b${bucket(count)} m${rows} n${bucket(n)} k${bucket(k)} ${dtype}`;
}

/** What each class of adapters takes where nothing was timed: a tile's rows and columns, and when k is shared out. */
interface Usual {
  variant: Variant;
  tile: readonly [number, number];
  /** Workgroups that occupy the adapter. */
  wanted: number;
  /** The shortest share of k. */
  shortest: number;
}
const usual = {
  /** Software adapters with subgroups of 8 lanes, such as lavapipe. */
  lanes: { variant: "lanes", tile: [16, 32], wanted: 8, shortest: 256 },
  /** Other software adapters, such as SwiftShader. */
  software: { variant: "registers", tile: [16, 32], wanted: 8, shortest: 256 },
  integrated: { variant: "tiled32", tile: [32, 32], wanted: 48, shortest: 128 },
  discrete: { variant: "tiled32", tile: [32, 32], wanted: 192, shortest: 128 },
} as const satisfies Record<string, Usual>;

/**
 * The usual kernel for `batch` products [m, k] · [k, n] by the adapter's class and the shape: what is taken where the tuner
 * has timed nothing.
 *
 * k is shared out where y has too few tiles to occupy the adapter: the shares cost one more pass over y.
 */
export function planMatmul(engine: Engine, batch: number, m: number, n: number, k: number): Plan {
  const tiles = ([down, across]: readonly [number, number]) => batch * Math.ceil(m / down) * Math.ceil(n / across);
  const shares = (workgroups: number, wanted: number, shortest: number) =>
    Math.max(1, Math.min(32, Math.ceil(wanted / workgroups), Math.floor(k / shortest)));
  if (engine.kind === "software") {
    const { variant, tile, wanted, shortest } = hasLanes(engine) ? usual.lanes : usual.software;
    // A tile takes the time that `naive` needs for a twelfth of its elements.
    if (batch > 1 && batch * m * n * 12 < tiles(tile) * tile[0] * tile[1]) return { variant: "naive", split: 1 };
    return { variant, split: shares(tiles(tile), wanted, shortest) };
  }
  const { variant, tile, wanted, shortest } = engine.kind === "integrated" ? usual.integrated : usual.discrete;
  if (m <= 8) return { variant: "skinny", split: shares(tiles([8, 16]), wanted, 256) };
  if (tiles([64, 64]) >= wanted) return { variant: "tiled", split: 1 };
  return { variant, split: shares(tiles(tile), wanted, shortest) };
}

/** A tensor's matrices as kernels see them. */
interface Layout {
  offset: number;
  row: number;
  column: number;
  batch: readonly number[];
}

/** The axis along which `unit` neighbouring elements can be loaded as one vector. */
function contiguous({ offset, row, column, batch }: Layout, unit: number): "row" | "column" | "none" {
  const divides = (step: number) => offset % unit === 0 && step % unit === 0 && batch.every((s) => s % unit === 0);
  if (column === 1 && divides(row)) return "row";
  return row === 1 && divides(column) ? "column" : "none";
}

const orientation = (layout: Layout): Orientation =>
  (({ row: "N", column: "T", none: "X" }) as const)[contiguous(layout, 1)];

/** A kernel with the rows and columns of y that one of its workgroups owns. */
interface Tiled {
  kernel: Kernel;
  down: number;
  across: number;
}
const chosen = new Map<string, Tiled>();

/** The kernel of a variant for operands of these layouts and types; few distinct ones, since each is compiled. */
function kernelFor(
  engine: Engine,
  variant: Variant,
  a: Layout,
  b: Layout,
  k: number,
  t: DType,
  ty: DType,
  isSumming: boolean,
): Tiled {
  let ways: [string, string];
  if (variant === "lanes") {
    const wayB = contiguous(b, 4) === "row" ? "row" : contiguous(b, 2) === "column" ? "column" : "none";
    ways = [wayB === "column" && contiguous(a, 2) === "row" ? "row" : "none", wayB];
  } else if (variant === "registers") ways = ["none", "none"];
  else ways = [contiguous(a, 1), contiguous(b, 1)];
  // One subgroup a workgroup, and 8 invocations at most.
  const lane = variant === "registers" ? Math.max(4, Math.min(8, engine.info.subgroupSizes?.[0] ?? 4)) : 0;
  const key = `${variant} ${lane} ${ways} ${variant === "registers" && k % 2 !== 0} ${t} ${ty} ${isSumming}`;
  let found = chosen.get(key);
  if (!found) {
    found = specialized(variant, ways, lane, k % 2 !== 0, { T: t, TY: ty }, isSumming);
    chosen.set(key, found);
  }
  return found;
}

function specialized(
  variant: Variant,
  [wayA, wayB]: [string, string],
  lane: number,
  tail: boolean,
  types: Settings,
  isSumming: boolean,
): Tiled {
  const settings = { ...types };
  const each = (text: (c: string) => string) => ["x", "y", "z", "w"].map(text).join(", ");
  if (variant === "lanes") {
    // Its columns cost more to load where k is contiguous: more rows share them.
    const down = wayB === "column" ? 24 : 16;
    Object.assign(settings, { LANES, ROWS: down });
    if (wayA === "row") settings.a_pair = "return vec2<f32>(a2[at / 2u]);";
    if (wayB === "column")
      settings.b_block = `return transpose(mat4x2<f32>(${each((c) => `vec2<f32>(b2[at.${c} / 2u])`)}));`;
    else if (wayB === "none")
      settings.b_block = `return mat2x4<f32>(${each((c) => `f32(b[at.${c}])`)}, ${each((c) => `f32(b[at.${c} + step])`)});`;
    const entry = isSumming ? "lanes_summing" : "lanes";
    return { kernel: kernel("matmul_lanes", lanesSource, entry, settings), down, across: 4 * LANES };
  }
  if (variant === "registers") {
    Object.assign(settings, { TAIL: `${tail}`, LANE: lane });
    return { kernel: kernel("matmul", source, "registers", settings), down: 16, across: 8 * lane };
  }
  if (variant === "skinny") {
    const across = wayB === "column" ? 4 : 16;
    Object.assign(settings, { B_BY_K: `${wayB === "column"}`, COLUMNS: across });
    return { kernel: kernel("matmul", source, "skinny", settings), down: 8, across };
  }
  if (variant === "naive") return { kernel: kernel("matmul", source, "naive", settings), down: 1, across: 1 };
  const side = variant === "tiled" ? 64 : 32;
  Object.assign(settings, { A_BY_K: `${wayA !== "column"}`, B_BY_K: `${wayB === "column"}` });
  Object.assign(settings, { TILE: side, SIDE: side / 4, TILED: (side / 4) ** 2 });
  return { kernel: kernel("matmul", source, "tiled", settings), down: side, across: side };
}

/** What a launch over one whole matrix hands on, for variants in which what follows can be computed. */
function followed(y: Tensor, variant: Variant, m: number, n: number): Rows | undefined {
  const lanes = variant === "lanes" ? 4 : 1;
  if (!y.engine.queue.trace || (lanes === 1 && variant !== "tiled" && variant !== "tiled32")) return undefined;
  if (n % lanes || y.offset % lanes) return undefined;
  const place = { storage: y.storage, offset: y.offset, strides: [n, 1], dtype: y.dtype };
  return { kind: "rows", operands: [], shape: [m, n], y: place, keep: "keep", lanes, op: y.op };
}

const four = (list: readonly number[], fill: number) => [...Array<number>(4 - list.length).fill(fill), ...list];

/**
 * Records y = act(a · b + bias) into `y` [..., m, n] from a [..., m, k] and b [..., k, n], both with any strides; leading
 * axes broadcast. Neither is copied. y may be a view whose columns are contiguous and whose matrices are evenly spaced.
 * @returns whether `rowSums`, if given, was written
 * @throws ShapeError when the batch has more than four axes that cannot be merged
 */
export function launchMatmul(y: Tensor, a: Tensor, b: Tensor, options: Epilogue = {}): boolean {
  const { engine } = y;
  const { bias, biasOf = "columns", activation = "none", rowSums } = options;
  if (y.size === 0) return false;
  let [m, n, k] = [a.shape.at(-2)!, b.shape.at(-1)!, a.shape.at(-1)!];
  const lead = y.shape.slice(0, -2);
  const strides = (t: Tensor) => expandStrides(t.shape.slice(0, -2), t.strides.slice(0, -2), lead);
  const matrices = collapse(lead, [y.strides.slice(0, -2)]);
  if ((n > 1 && y.strides.at(-1) !== 1) || matrices.shape.length > 1)
    throw new EspalierError(
      `matmul: cannot write into ${show(y.shape)} with strides ${show(y.strides)}; make it dense.`,
    );
  const step = matrices.strides[0][0] ?? 0;
  let {
    shape: batch,
    strides: [batchA, batchB],
  } = collapse(lead, [strides(a), strides(b)]);
  // The stride of an axis of size 1 says nothing.
  let rowA = m > 1 ? a.strides.at(-2)! : 0;
  let rowY = y.strides.at(-2)!;
  const last = batch.length - 1;
  // One b for neighbouring matrices of a: their rows become the rows of one matrix where the strides allow it.
  if (
    last >= 0 &&
    batchB[last] === 0 &&
    biasOf === "columns" &&
    (m === 1 || (batchA[last] === m * rowA && step === m * rowY))
  ) {
    if (m === 1) [rowA, rowY] = [batchA[last], step];
    m *= batch[last];
    [batch, batchA, batchB] = [batch.slice(0, last), batchA.slice(0, last), batchB.slice(0, last)];
  }
  if (batch.length > 4)
    throw new ShapeError(
      `matmul: ${show(lead)} has more than 4 batch axes that cannot be merged; reshape it to fewer.`,
    );
  const count = sizeOf(batch);
  const la: Layout = { offset: a.offset, row: rowA, column: k > 1 ? a.strides.at(-1)! : 1, batch: batchA };
  const lb: Layout = {
    offset: b.offset,
    row: k > 1 ? b.strides.at(-2)! : 0,
    column: n > 1 ? b.strides.at(-1)! : 1,
    batch: batchB,
  };
  let plan = options.plan;
  if (!plan && !engine.tuning.idle) {
    const key = matmulClass([orientation(la), orientation(lb)], count, m, n, k, a.dtype);
    const way = engine.tuning.winner(matmulId, key);
    plan = way === undefined ? undefined : planOf(engine, way, m, k);
  }
  const { variant, split } = plan ?? planMatmul(engine, count, m, n, k);
  if (variant === "skinny" && m > 8)
    throw new EspalierError(`matmul: the skinny kernel keeps at most 8 rows: got ${m}; leave the plan out.`);
  const shares = split > 1 ? engine.empty([count, split, m, n], "f32", "matmul") : undefined;
  const isSumming = rowSums !== undefined && variant === "lanes" && split === 1 && count === 1;
  const type = shares ? "f32" : y.dtype;
  const { kernel: main, down, across } = kernelFor(engine, variant, la, lb, k, a.dtype, type, isSumming);
  const tiles = Math.ceil(m / down) * Math.ceil(n / across);
  const whole = [y.offset, rowY, batch.length ? (m === a.shape.at(-2) ? step : m * rowY) : 0, 0];
  const params: Params = {
    m,
    n,
    k,
    tiles,
    split,
    size: count * m * n,
    across: Math.ceil(n / across),
    first: 0,
    // Shares start at multiples of 16, so that vectors and pairs of k never straddle two of them.
    chunk: split > 1 ? Math.ceil(k / split / 16) * 16 : k,
    has_bias: bias ? (biasOf === "rows" ? 2 : 1) : 0,
    activation: activationNames.indexOf(activation),
    batch: four(batch, 1),
    a: [la.offset, la.row, la.column, 0],
    b: [lb.offset, lb.row, lb.column, 0],
    a_batch: four(batchA, 0),
    b_batch: four(batchB, 0),
    to: whole,
    ...nothingFollows,
  };
  const spread = bias ?? strided(a);
  const tensors: Record<string, Tensor | Strided> = {};
  for (const { name, type } of main.bindings)
    if (type !== "uniform")
      tensors[name] =
        name === "bias"
          ? spread
          : name === "row_sums"
            ? (rowSums as Tensor)
            : strided(name[0] === "a" ? a : name[0] === "b" ? b : (shares ?? y));
  if (variant === "naive") {
    engine.launch(main, tensors, params, Math.ceil(y.size / 64));
    return false;
  }
  const partial = shares ? { ...params, has_bias: 0, activation: 0, to: [0, n, m * n, 0] } : params;
  const most = engine.limits.maxComputeWorkgroupsPerDimension;
  const wide = Math.min(tiles, most);
  const meaning = count * split === 1 && !isSumming && rowY === n ? followed(y, variant, m, n) : undefined;
  for (let first = 0; first < count * split; first += most)
    engine.launch(
      main,
      tensors,
      { ...partial, first },
      [wide, Math.ceil(tiles / wide), Math.min(most, count * split - first)],
      meaning,
    );
  if (!shares) return isSumming;
  const merge = kernel("matmul", source, "merge", { T: a.dtype, TY: y.dtype });
  engine.launch(merge, { shares, bias: spread, y: strided(y) }, params, Math.ceil(y.size / 64));
  shares.dispose();
  return false;
}
