import { checkOptions, ShapeError, type Tensor } from "../../engine/index.js";
import { flowTimes } from "../schedule.js";
import { scaledSum } from "./steps.js";
import { type Predict, type Step, Walk } from "./walk.js";

/** Options of the samplers of rectified flow. */
export interface FlowOptions {
  /** Default 16. */
  steps?: number;
  /** The shift that the model was trained with; default 4. */
  shift?: number;
  /** Stops the sampler before its next step. */
  signal?: AbortSignal;
}

function times(name: string, options: FlowOptions): Float64Array {
  checkOptions(name, options, ["steps", "shift", "signal"]);
  return flowTimes(options.steps ?? 16, options.shift ?? 4);
}

/** The model's direction dx/du = ε - x_0 at time u. */
function direction(predict: Predict, x: Tensor, u: number): Tensor {
  const v = predict(x, 1000 * u); // [B, C, T, H, W]
  if (`${v.shape}` !== `${x.shape}`)
    throw new ShapeError(
      `flow sampler: the output must have the latent's shape [${x.shape.join(", ")}]: got [${v.shape.join(", ")}]; flow models learn no variances.`,
    );
  return v;
}

/**
 * Euler's method on rectified flow, from noise at u ≈ 1 to data at u = 0 over the shifted grid.
 * @param noise [B, C, T, H, W], standard normal; stays the caller's
 * @throws AbortedError through `signal`
 */
export async function* euler(predict: Predict, noise: Tensor, options: FlowOptions = {}): AsyncGenerator<Step, void> {
  const u = times("euler", options);
  const walk = new Walk("euler", noise, u.length - 1, options.signal);
  try {
    for (let i = 0; i + 1 < u.length; i++)
      yield await walk.step(1000 * u[i], (x) => {
        const v = direction(predict, x, u[i]); // [B, C, T, H, W]
        const x0 = scaledSum(x, 1, v, -u[i]); // [B, C, T, H, W]
        const eps = scaledSum(x, 1, v, 1 - u[i]); // [B, C, T, H, W]
        return { x: scaledSum(x, 1, v, u[i + 1] - u[i]), x0, eps }; // [B, C, T, H, W]
      });
  } finally {
    walk.end();
  }
}

/**
 * Heun's method on rectified flow: a trial Euler step, then a step along the mean of the directions at both ends; second
 * order for two evaluations. The last step, to u = 0, is Euler's: the model never saw u = 0 in training.
 * @param noise [B, C, T, H, W], standard normal; stays the caller's
 * @throws AbortedError through `signal`
 */
export async function* heun(predict: Predict, noise: Tensor, options: FlowOptions = {}): AsyncGenerator<Step, void> {
  const u = times("heun", options);
  const walk = new Walk("heun", noise, u.length - 1, options.signal);
  try {
    for (let i = 0; i + 1 < u.length; i++)
      yield await walk.step(1000 * u[i], (x) => {
        const du = u[i + 1] - u[i];
        const v = direction(predict, x, u[i]); // [B, C, T, H, W]
        const x0 = scaledSum(x, 1, v, -u[i]); // [B, C, T, H, W]
        const eps = scaledSum(x, 1, v, 1 - u[i]); // [B, C, T, H, W]
        const trial = scaledSum(x, 1, v, du); // [B, C, T, H, W]
        if (u[i + 1] === 0) return { x: trial, x0, eps };
        const w = direction(predict, trial, u[i + 1]); // [B, C, T, H, W]
        return { x: scaledSum(scaledSum(x, 1, v, du / 2), 1, w, du / 2), x0, eps }; // [B, C, T, H, W]
      });
  } finally {
    walk.end();
  }
}
