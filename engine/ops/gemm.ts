import source from "../../shaders/matmul.wgsl";
import lanesSource from "../../shaders/matmul_lanes.wgsl";
import type { DType } from "../dtype.js";
import type { Engine } from "../engine.js";
import { ShapeError } from "../errors.js";
import { kernel, type Params, type Settings } from "../kernel.js";
import { collapse, expandStrides, show } from "../shape.js";
import { strided, type Tensor } from "../tensor.js";

/** What may follow a matrix product within its launch. */
export type Activation = "none" | "geluTanh" | "silu";
export const activationNames: readonly Activation[] = ["none", "geluTanh", "silu"];

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
  /** [n], contiguous. */
  bias?: Tensor;
  activation?: Activation;
  /** Overrides the choice of `planMatmul`; tests compare all variants this way. */
  plan?: Plan;
}

/** Rows and columns of y that one workgroup owns. */
function tileOf(variant: Variant, lanes: number, rows: number, byK: boolean): [number, number] {
  if (variant === "lanes") return [rows, 4 * lanes];
  if (variant === "registers") return [8, 32];
  if (variant === "skinny") return [8, byK ? 4 : 16];
  return variant === "tiled" ? [64, 64] : [32, 32];
}

/** Lanes of every subgroup where kernels may rely on it, else 0. */
function lanesOf(engine: Engine): number {
  const [low, high] = engine.info.subgroupSizes ?? [0, 0];
  return engine.has("subgroups") && low === high && (low === 8 || low === 16) ? low : 0;
}

/**
 * Chooses the kernel for `batch` products [m, k] · [k, n] by the adapter's class and the shape.
 *
 * k is shared out where y has too few tiles to occupy the adapter: the shares cost one more pass over y.
 */
export function planMatmul(engine: Engine, batch: number, m: number, n: number, k: number): Plan {
  const software = engine.kind === "software";
  const tiles = (side: [number, number]) => batch * Math.ceil(m / side[0]) * Math.ceil(n / side[1]);
  const shares = (groups: number, wanted: number, shortest: number) =>
    Math.max(1, Math.min(32, Math.ceil(wanted / groups), Math.floor(k / shortest)));
  if (software) {
    const lanes = lanesOf(engine);
    const side: [number, number] = lanes ? [16, 4 * lanes] : [8, 32];
    // A tile takes the time of about a dozenth of its elements done one by one.
    if (m * n * batch * 12 < tiles(side) * side[0] * side[1] && batch > 1) return { variant: "naive", split: 1 };
    return { variant: lanes ? "lanes" : "registers", split: shares(tiles(side), 8, 256) };
  }
  const wanted = engine.kind === "integrated" ? 48 : 192;
  if (m <= 8) return { variant: "skinny", split: shares(tiles([8, 16]), wanted, 256) };
  const large = tiles([64, 64]);
  if (large >= wanted) return { variant: "tiled", split: 1 };
  return { variant: "tiled32", split: shares(tiles([32, 32]), wanted, 128) };
}

/** A tensor's last two axes as kernels see them, and what its addresses allow. */
interface Layout {
  /** Offset, row stride, column stride. */
  at: [number, number, number, number];
  batch: readonly number[];
  /** True when every row (of length > 1), column or matrix starts at a multiple of `unit` elements. */
  divides(unit: number, across: "rows" | "columns"): boolean;
}

function layoutOf(offset: number, row: number, column: number, batch: readonly number[]): Layout {
  return {
    at: [offset, row, column, 0],
    batch,
    divides: (unit, across) => [offset, across === "rows" ? row : column, ...batch].every((s) => s % unit === 0),
  };
}

const scalars = (name: string, count: number) =>
  Array.from({ length: count }, (_, i) => `f32(${name}[at${i ? ` + ${i === 1 ? "" : `${i}u * `}step` : ""}])`).join(
    ", ",
  );

/** Settings of matmul_lanes.wgsl for b's layout. */
function laneSettings(b: Layout): Settings {
  if (b.at[2] === 1 && b.divides(4, "rows")) return {};
  const columns = ["x", "y", "z", "w"];
  return {
    b_block:
      b.at[1] === 1 && b.divides(2, "columns")
        ? `return transpose(mat4x2<f32>(${columns.map((c) => `vec2<f32>(b2[at.${c} / 2u])`).join(", ")}));`
        : `return mat2x4<f32>(${["", " + step"].flatMap((s) => columns.map((c) => `f32(b[at.${c}${s}])`)).join(", ")});`,
  };
}

/** Settings of `registers`: whole vectors along the contiguous axis, or any strides. */
function registerSettings(a: Layout, b: Layout): Settings {
  const settings: Settings = {};
  const aByK = a.at[2] === 1 && a.divides(4, "rows");
  const aByM = a.at[1] === 1 && a.divides(4, "columns");
  const bByN = b.at[2] === 1 && b.divides(4, "rows");
  const bByK = b.at[1] === 1 && b.divides(4, "columns");
  if (!aByK && !aByM) settings.a_at = `return vec4<f32>(${scalars("a", 4)});`;
  if (!bByK && !bByN) settings.b_at = `return vec4<f32>(${scalars("b", 4)});`;
  return { ...settings, A_BY_K: `${aByK || !aByM}`, B_BY_K: `${bByK || !bByN}` };
}

/**
 * Records y = act(a · b + bias) into the dense tensor `y` [..., m, n] from a [..., m, k] and b [..., k, n], both with any
 * strides; leading axes broadcast. Neither is copied.
 * @throws ShapeError when the batch has more than four axes that cannot be merged
 */
export function launchMatmul(
  y: Tensor,
  a: Tensor,
  b: Tensor,
  { bias, activation = "none", plan }: Epilogue = {},
): void {
  const { engine } = y;
  if (y.size === 0) return;
  let [m, n, k] = [a.shape.at(-2)!, b.shape.at(-1)!, a.shape.at(-1)!];
  let lead = y.shape.slice(0, -2);
  const strides = (t: Tensor) => expandStrides(t.shape.slice(0, -2), t.strides.slice(0, -2), lead);
  let walk = collapse(lead, [strides(a), strides(b)]);
  // One b for all matrices of a: their rows become the rows of one matrix where the strides allow it.
  let rowStride = a.strides.at(-2)!;
  const last = walk.shape.length - 1;
  if (last >= 0 && walk.strides[1][last] === 0 && (m === 1 || walk.strides[0][last] === m * rowStride)) {
    if (m === 1) rowStride = walk.strides[0][last];
    m *= walk.shape[last];
    lead = walk.shape.slice(0, last);
    walk = { shape: lead, strides: walk.strides.map((s) => s.slice(0, last)) };
  }
  if (walk.shape.length > 4)
    throw new ShapeError(
      `matmul: ${show(y.shape.slice(0, -2))} has more than 4 batch axes that cannot be merged; reshape it to fewer.`,
    );
  const batch = lead.reduce((x, z) => x * z, 1);
  const { variant, split } = plan ?? planMatmul(engine, batch, m, n, k);
  // The stride of an axis of size 1 says nothing.
  const la = layoutOf(a.offset, m > 1 ? rowStride : 0, k > 1 ? a.strides.at(-1)! : 1, walk.strides[0]);
  const lb = layoutOf(b.offset, k > 1 ? b.strides.at(-2)! : 0, n > 1 ? b.strides.at(-1)! : 1, walk.strides[1]);

  const pad = (list: readonly number[], fill: number) => [...Array<number>(4 - list.length).fill(fill), ...list];
  const chunk = split > 1 ? Math.ceil(k / split / 16) * 16 : k;
  const params: Params = {
    m,
    n,
    k,
    size: y.size,
    tiles: 0,
    across: 0,
    split,
    chunk,
    first: 0,
    has_bias: 0,
    activation: 0,
    batch: pad(walk.shape, 1),
    a: la.at,
    b: lb.at,
    a_batch: pad(la.batch, 0),
    b_batch: pad(lb.batch, 0),
  };
  const epilogue: Params = { has_bias: bias ? 1 : 0, activation: activationNames.indexOf(activation) };
  const operands = (kernelBindings: readonly { name: string; type: string }[], to: Tensor) =>
    Object.fromEntries(
      kernelBindings
        .filter((x) => x.type !== "uniform")
        .map(({ name }) => [
          name,
          name === "bias" ? (bias ?? strided(a)) : name[0] === "a" ? strided(a) : name[0] === "b" ? strided(b) : to,
        ]),
    );
  const types = (to: DType): Settings => ({ T: a.dtype, TY: to });

  if (variant === "naive") {
    const naive = kernel("matmul", source, "naive", types(y.dtype));
    engine.launch(naive, operands(naive.bindings, y), { ...params, ...epilogue }, Math.ceil(y.size / 64));
    return;
  }
  const lanes = lanesOf(engine);
  // Fewer rows would only save a little work, and cost another compilation.
  const rows = 16;
  const byK = lb.at[1] === 1 && lb.at[2] !== 1;
  const [down, across] = tileOf(variant, lanes, rows, byK);
  const tiles = Math.ceil(m / down) * Math.ceil(n / across);
  const to = split > 1 ? engine.empty([batch, split, m, n], "f32", "matmul") : y;
  const settings = types(to.dtype);
  if (variant === "lanes") Object.assign(settings, laneSettings(lb), { LANES: lanes });
  else if (variant === "registers") Object.assign(settings, registerSettings(la, lb), { TAIL: `${k % 4 !== 0}` });
  else if (variant === "skinny") Object.assign(settings, { B_BY_K: `${byK}`, COLUMNS: across });
  else
    Object.assign(settings, {
      A_BY_K: `${la.at[2] === 1}`,
      B_BY_K: `${byK}`,
      TILE: down,
      SIDE: down / 4,
      TILED: (down / 4) ** 2,
    });
  const main =
    variant === "lanes"
      ? kernel("matmul_lanes", lanesSource, "lanes", settings)
      : kernel("matmul", source, variant === "tiled32" ? "tiled" : variant, settings);
  const most = engine.limits.maxComputeWorkgroupsPerDimension;
  const wide = Math.min(tiles, most);
  for (let first = 0; first < batch * split; first += most)
    engine.launch(
      main,
      operands(main.bindings, to),
      {
        ...params,
        ...(split > 1 ? {} : epilogue),
        tiles,
        across: Math.ceil(n / across),
        first,
      },
      [wide, Math.ceil(tiles / wide), Math.min(most, batch * split - first)],
    );
  if (split > 1) {
    const merge = kernel("matmul", source, "merge", types(y.dtype));
    engine.launch(
      merge,
      { shares: to, bias: bias ?? strided(a), y },
      { ...params, ...epilogue },
      Math.ceil(y.size / 64),
    );
    to.dispose();
  }
}
