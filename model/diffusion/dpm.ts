import type { Tensor } from "../../engine/index.js";
import { believe, type ScheduleOptions, scaledSum, scheduleTables } from "./steps.js";
import { type Predict, type Step, Walk } from "./walk.js";

/**
 * DPM-Solver++(2M): the data prediction is extrapolated from the last two steps along λ = ln(α / σ), second order with
 * one evaluation a step (Lu et al., https://arxiv.org/abs/2211.01095). The first step has no history, and the last two
 * leap over a long stretch of λ (the very last to σ = 0): these are of first order.
 * @param noise [B, C, T, H, W], standard normal; stays the caller's
 * @param options `steps` default 20
 * @throws AbortedError through `signal`
 */
export async function* dpmSolver(
  predict: Predict,
  noise: Tensor,
  options: ScheduleOptions = {},
): AsyncGenerator<Step, void> {
  const tables = scheduleTables("dpmSolver", options, 20);
  const alpha = (i: number) => tables.sqrtAlphasCumprod[i];
  const sigma = (i: number) => tables.sqrtOneMinusAlphasCumprod[i];
  const lambda = (i: number) => Math.log(alpha(i) / sigma(i));
  const walk = new Walk("dpmSolver", noise, tables.steps, options.signal);
  try {
    for (let i = tables.steps - 1; i >= 0; i--) {
      const t = tables.timestepMap[i];
      yield await walk.step(t, (x, before) => {
        const { x0, eps } = believe(tables, i, x, predict(x, t), options); // [B, C, T, H, W] each
        if (i === 0) return { x: x0.mul(1), x0, eps }; // [B, C, T, H, W]
        const h = lambda(i - 1) - lambda(i);
        let D = x0; // [B, C, T, H, W]
        if (before && i > 1) {
          const r = (lambda(i) - lambda(i + 1)) / h;
          D = scaledSum(x0, 1 + 1 / (2 * r), before.x0, -1 / (2 * r)); // [B, C, T, H, W]
        }
        return { x: scaledSum(x, sigma(i - 1) / sigma(i), D, -alpha(i - 1) * Math.expm1(-h)), x0, eps }; // [B, C, T, H, W]
      });
    }
  } finally {
    walk.end();
  }
}
