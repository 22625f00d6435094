import { addcmul, exp, type Key, normal, type Tensor } from "../../engine/index.js";
import type { DiffusionTables } from "../schedule.js";
import { BELIEFS, beliefs, believe, needKey, type ScheduleOptions, scaledSum, scheduleTables } from "./steps.js";
import { type Factor, type Predict, type Step, Walk } from "./walk.js";

/** Step i's numbers for `pMeanVariance`. */
export function ddpmNumbers(
  tables: DiffusionTables,
  i: number,
  options: Pick<ScheduleOptions, "predicts"> = {},
): number[] {
  const bound = tables.posteriorLogVarianceClipped[i];
  return [
    ...beliefs(tables, i, options),
    tables.posteriorMeanCoef1[i],
    tables.posteriorMeanCoef2[i],
    bound,
    (tables.logBetas[i] - bound) / 2,
  ];
}

/**
 * Mean and log variance of the model's step to x_{i-1}, and the data it believes in. Without learned variances the
 * true posterior's is used.
 */
export function pMeanVariance(
  numbers: readonly Factor[],
  x: Tensor,
  output: Tensor,
  options: Pick<ScheduleOptions, "clip"> = {},
): { mean: Tensor; logVariance: Tensor; x0: Tensor; eps: Tensor } {
  const { x0, eps, v } = believe(numbers, x, output, options);
  const [a, b, bound, half] = numbers.slice(BELIEFS);
  const mean = scaledSum(x0, a, x, b); // as x
  // The output v in [-1, 1] moves between the two bounds of the variance: ½ (v + 1) ln (β / β̃).
  const logVariance = v
    ? v.mul(half).add(half).add(bound) // as x
    : typeof bound === "number"
      ? x.engine.tensor([bound]) // [1]
      : bound;
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
  const walk = new Walk("ddpm", noise, tables.steps, options.signal, predict);
  const move = walk.formula((c, x: Tensor, output: Tensor, z: Tensor | undefined) => {
    const { mean, logVariance, x0, eps } = pMeanVariance(c, x, output, options); // [B, C, T, H, W]
    return { x: z ? addcmul(mean, exp(logVariance.mul(0.5)), z) : mean, x0, eps }; // [B, C, T, H, W]
  });
  try {
    for (let i = tables.steps - 1; i >= 0; i--) {
      const t = tables.timestepMap[i];
      yield await walk.step(t, (x) => {
        const z = i > 0 ? normal(x.engine, key.fold(i), x.shape) : undefined; // [B, C, T, H, W]
        return move(ddpmNumbers(tables, i, options), x, predict(x, t), z);
      });
    }
  } finally {
    walk.end();
  }
}
