import type { Tensor } from "../../engine/index.js";
import { BELIEFS, beliefs, believe, type ScheduleOptions, scaledSum, scheduleTables } from "./steps.js";
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
  const walk = new Walk("dpmSolver", noise, tables.steps, options.signal, predict);
  const move = walk.formula((c, x: Tensor, output: Tensor, isLast: boolean, before: Tensor | undefined) => {
    const { x0, eps } = believe(c, x, output, options); // [B, C, T, H, W] each
    if (isLast) return { x: x0.mul(1), x0, eps }; // [B, C, T, H, W]
    const [a, b, now, then] = c.slice(BELIEFS);
    const D = before ? scaledSum(x0, now, before, then) : x0; // [B, C, T, H, W]
    return { x: scaledSum(x, a, D, b), x0, eps }; // [B, C, T, H, W]
  });
  try {
    for (let i = tables.steps - 1; i >= 0; i--) {
      const t = tables.timestepMap[i];
      yield await walk.step(t, (x, before) => {
        const output = predict(x, t); // [B, C or 2C, T, H, W]
        const known = beliefs(tables, i, options);
        if (i === 0) return move(known, x, output, true, undefined);
        const h = lambda(i - 1) - lambda(i);
        const numbers = [...known, sigma(i - 1) / sigma(i), -alpha(i - 1) * Math.expm1(-h)];
        if (!before || i === 1) return move(numbers, x, output, false, undefined);
        const r = (lambda(i) - lambda(i + 1)) / h;
        return move([...numbers, 1 + 1 / (2 * r), -1 / (2 * r)], x, output, false, before.x0);
      });
    }
  } finally {
    walk.end();
  }
}
