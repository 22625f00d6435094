import { add, addcmul, exp, type Key, normal, type Tensor } from "../../engine/index.js";
import type { DiffusionTables } from "../schedule.js";
import { logVarianceRatio } from "./iddpm.js";
import { believe, needKey, type ScheduleOptions, scaledSum, scheduleTables } from "./steps.js";
import { type Predict, type Step, Walk } from "./walk.js";

/**
 * Mean and log variance of the model's step to x_{i-1}, and the data it believes in. Without learned variances the
 * true posterior's is used.
 */
export function pMeanVariance(
  tables: DiffusionTables,
  i: number,
  x: Tensor,
  output: Tensor,
  options: Pick<ScheduleOptions, "predicts" | "clip"> = {},
): { mean: Tensor; logVariance: Tensor; x0: Tensor; eps: Tensor } {
  const { x0, eps, v } = believe(tables, i, x, output, options);
  const mean = scaledSum(x0, tables.posteriorMeanCoef1[i], x, tables.posteriorMeanCoef2[i]); // as x
  const bound = tables.posteriorLogVarianceClipped[i];
  const logVariance = v
    ? add(logVarianceRatio(tables, v, Array<number>(v.shape[0]).fill(i)), bound) // as x
    : x.engine.tensor([bound]); // [1]
  return { mean, logVariance, x0, eps };
}

/**
 * Ancestral sampling: x_{i-1} = mean + √variance · noise, with no noise in the last step (Ho et al.,
 * https://arxiv.org/abs/2006.11239; learned variances: https://arxiv.org/abs/2102.09672).
 * @param noise [B, C, T, H, W], standard normal; stays the caller's
 * @param options `key` decides the noise that is added; `steps` default 100
 * @throws AbortedError through `signal`
 */
export async function* ddpm(
  predict: Predict,
  noise: Tensor,
  options: ScheduleOptions & { key?: Key } = {},
): AsyncGenerator<Step, void> {
  const tables = scheduleTables("ddpm", options, 100, ["key"]);
  const key = needKey("ddpm", options.key, "every step adds noise");
  const walk = new Walk("ddpm", noise, tables.steps, options.signal);
  try {
    for (let i = tables.steps - 1; i >= 0; i--) {
      const t = tables.timestepMap[i];
      yield await walk.step(t, (x) => {
        const { mean, logVariance, x0, eps } = pMeanVariance(tables, i, x, predict(x, t), options); // [B, C, T, H, W]
        if (i === 0) return { x: mean, x0, eps };
        const z = normal(x.engine, key.fold(i), x.shape); // [B, C, T, H, W]
        return { x: addcmul(mean, exp(logVariance.mul(0.5)), z), x0, eps }; // [B, C, T, H, W]
      });
    }
  } finally {
    walk.end();
  }
}
