import type { DType } from "../dtype.js";
import type { Engine } from "../engine.js";
import { launchMatmul, matmulClass, matmulId, type Plan, planMatmul, planOf, wayOf } from "../ops/gemm.js";
import { normal } from "../ops/random.js";
import type { Tensor } from "../tensor.js";
import type { Family, Prepared, Problem } from "./choice.js";

/** Products of a transformer's step: forward, gradient of the input and of the weight, for these widths and rows. */
const layers = (rows: number, width: number): (readonly [number, number, number])[] => [
  [rows, width, 3 * width],
  [rows, width, 4 * width],
  [rows, 4 * width, width],
  [rows, width, width],
];

function typical(engine: Engine): string[] {
  const software = engine.kind === "software";
  const dtypes: DType[] = engine.has("shader-f16") && !software ? ["f32", "f16"] : ["f32"];
  const keys = new Set<string>();
  const widths = software ? [64, 128] : [128, 384, 1152];
  for (const dtype of dtypes) {
    const add = (ways: "NN" | "NT" | "TN", batch: number, m: number, n: number, k: number) =>
      keys.add(matmulClass([ways[0] as "N" | "T", ways[1] as "N" | "T"], batch, m, n, k, dtype));
    for (const rows of software ? [256, 1024] : [1024, 4096])
      for (const width of widths)
        for (const [m, inputs, outputs] of layers(rows, width)) {
          add("NT", 1, m, outputs, inputs);
          add("NN", 1, m, inputs, outputs);
          add("TN", 1, outputs, inputs, m);
        }
    // Conditioning: a row for each clip.
    for (const width of widths) add("NT", 1, 4, 6 * width, width);
    add("NN", 1, 512, 512, 512);
    add("NN", 64, 64, 64, 64);
    add("NN", 256, 16, 16, 32);
  }
  return [...keys];
}

const FORM = /^([NTX])([NTX]) b(\d+) m(\d+) n(\d+) k(\d+) (f32|f16)$/;

/** A matrix for each item, contiguous along rows, along columns, or along neither. */
function operand(engine: Engine, count: number, rows: number, columns: number, axis: string, dtype: DType): Tensor {
  const wide = axis === "X" ? 2 : 1;
  const [r, c] = axis === "T" ? [columns, rows] : [rows, columns * wide];
  const base = engine.noGrad(() => normal(engine, engine.key(), [count, r, c], { dtype }));
  const strides = axis === "T" ? [r * c, 1, c] : [r * c, c, wide];
  const view = base.view([count, rows, columns], strides, 0, "tune").keep();
  base.dispose();
  return view;
}

/** Ways worth timing for a shape: each kernel that may be good at it, with k in one piece and in more. */
function candidates(engine: Engine, batch: number, m: number, n: number, k: number): string[] {
  const usual = planMatmul(engine, batch, m, n, k);
  const plans: Plan[] = [usual];
  const splits = new Set([1, usual.split, 2, 4, 2 * usual.split].filter((s) => s === 1 || k / s >= 128));
  const small = batch * m * n <= 1 << 16;
  const variants =
    engine.kind === "software" ? (["lanes", "registers"] as const) : (["tiled", "tiled32", "skinny"] as const);
  for (const variant of variants)
    for (const split of splits) if (split === 1 || small || split === usual.split) plans.push({ variant, split });
  if (m * n * k <= 1 << 15) plans.push({ variant: "naive", split: 1 });
  return [...new Set(plans.map(wayOf))].filter((way) => planOf(engine, way, m, k));
}

function problem(engine: Engine, key: string): Problem | undefined {
  const match = FORM.exec(key);
  if (!match) return undefined;
  const [axisA, axisB] = [match[1], match[2]];
  const [batch, m, n, k] = match.slice(3, 7).map(Number);
  const dtype = match[7] as DType;
  const most = Math.min(engine.limits.maxStorageBufferBindingSize, engine.limits.maxBufferSize) / 8;
  if (batch * Math.max(m * k, k * n, m * n) > most) return undefined;
  if (dtype === "f16" && !engine.has("shader-f16")) return undefined;
  const prepare = (small: boolean): Prepared => {
    const least = (size: number, most: number) => (small ? Math.min(size, most) : size);
    const [count, rows, columns, depth] = [least(batch, 3), least(m, 80), least(n, 80), least(k, 512)];
    const a = operand(engine, count, rows, depth, axisA, dtype);
    const b = operand(engine, count, depth, columns, axisB, dtype);
    const y = engine.empty([count, rows, columns], dtype, "tune").keep();
    return {
      launch: (way) => launchMatmul(y, a, b, { plan: planOf(engine, way, rows, depth) }),
      result: () => y.data(),
      dispose: () => {
        for (const t of [a, b, y]) t.dispose();
      },
    };
  };
  const items = batch > 1 ? `${batch} x ` : "";
  const shown = `${items}[${m},${k}]${axisA === "T" ? "ᵀ" : ""} · [${k},${n}]${axisB === "T" ? "ᵀ" : ""}${dtype === "f32" ? "" : ` ${dtype}`}`;
  return {
    shown,
    flops: 2 * batch * m * n * k,
    usual: wayOf(planMatmul(engine, batch, m, n, k)),
    ways: candidates(engine, batch, m, n, k),
    reference: "naive/1",
    tolerance: dtype === "f32" ? 2e-5 : 4e-3,
    prepare,
  };
}

/** Matrix products: kernels and the shares into which k is cut. */
export const matmulFamily: Family = { name: "matmul", id: matmulId, typical, problem };
