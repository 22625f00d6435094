import type { DType } from "../dtype.js";
import type { Engine } from "../engine.js";
import {
  isQuantizedPlan,
  linearQuantized,
  planQuantized,
  quantizedClass,
  quantizedId,
  quantizeWeight,
} from "../ops/quantized.js";
import { normal } from "../ops/random.js";
import type { Tensor } from "../tensor.js";
import type { Family, Prepared, Problem } from "./choice.js";

function typical(engine: Engine): string[] {
  const software = engine.kind === "software";
  const dtype = engine.has("shader-f16") && !software ? "f16" : "f32";
  return ([8, 4] as const).flatMap((bits) =>
    (software ? [1, 4, 16] : [1, 8, 16, 32]).map((rows) =>
      quantizedClass(rows, software ? 1024 : 4096, software ? 512 : 4096, { bits, group: 0 }, dtype),
    ),
  );
}

const FORM = /^([48]) bits m(\d+) n(\d+) k(\d+) (f32|f16)$/;

function problem(engine: Engine, key: string): Problem | undefined {
  const match = FORM.exec(key);
  if (!match) return undefined;
  const [bits, m, n, k] = match.slice(1, 5).map(Number) as [8 | 4, number, number, number];
  const dtype = match[5] as DType & ("f32" | "f16");
  const most = Math.min(engine.limits.maxStorageBufferBindingSize, engine.limits.maxBufferSize) / 8;
  if (Math.max(m * k, n * k, m * n) > most || (dtype === "f16" && !engine.has("shader-f16"))) return undefined;
  const prepare = (small: boolean): Prepared => {
    const outputs = small ? Math.min(n, 96) : n;
    const form = { bits, group: 0 };
    const [x, weight] = engine.noGrad(() => [
      normal(engine, engine.key(), [m, k], { dtype }).keep(),
      normal(engine, engine.key(), [outputs, k]).keep(),
    ]);
    const { codes, scale } = engine.noGrad(() => quantizeWeight(weight, form));
    for (const t of [codes, scale]) t.keep();
    weight.dispose();
    let last: Tensor | undefined;
    return {
      launch: (way) => {
        last?.dispose();
        const plan = isQuantizedPlan(way) ? way : undefined;
        last = engine.noGrad(() => linearQuantized(x, codes, scale, { ...form, plan })).keep();
      },
      result: () => last!.data(),
      dispose: () => {
        for (const t of [x, codes, scale, last]) t?.dispose();
      },
    };
  };
  return {
    shown: `[${m},${k}] · [${n},${k}]ᵀ of ${bits} bits${dtype === "f32" ? "" : ` ${dtype}`}`,
    flops: 2 * m * n * k,
    usual: planQuantized(engine, m),
    ways: m <= 64 ? ["columns", "shared", "bands"] : ["bands"],
    reference: "naive",
    tolerance: dtype === "f32" ? 2e-5 : 4e-3,
    prepare,
  };
}

/** Linear layers with weights of 8 or 4 bits: codes unpacked where they are used, or ahead. */
export const quantizedFamily: Family = { name: "linearQuantized", id: quantizedId, typical, problem };
