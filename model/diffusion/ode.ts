import { checkOptions, ShapeError, type Tensor } from "../../engine/index.js";
import { flowTimes } from "../schedule.js";
import { scaledSum } from "./steps.js";
import { type Factor, type Predict, type Step, Walk } from "./walk.js";

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

/** Numbers for `line` from time u to time `to`. */
const along = (u: number, to: number): number[] => [to - u, -u, 1 - u];

/** From x along its direction v: by a step, and to both ends of the line, which are data and noise. */
const line = ([step, back, on]: readonly Factor[], x: Tensor, v: Tensor) => ({
  x: scaledSum(x, 1, v, step), // [B, C, T, H, W]
  x0: scaledSum(x, 1, v, back), // [B, C, T, H, W]
  eps: scaledSum(x, 1, v, on), // [B, C, T, H, W]
});

/**
 * Euler's method on rectified flow, from noise at u ≈ 1 to data at u = 0 over the shifted grid.
 * @param noise [B, C, T, H, W], standard normal; stays the caller's
 * @throws AbortedError through `signal`
 */
export async function* euler(predict: Predict, noise: Tensor, options: FlowOptions = {}): AsyncGenerator<Step, void> {
  const u = times("euler", options);
  const walk = new Walk("euler", noise, u.length - 1, options.signal, predict);
  const move = walk.formula(line);
  try {
    for (let i = 0; i + 1 < u.length; i++)
      yield await walk.step(1000 * u[i], (x) => move(along(u[i], u[i + 1]), x, direction(predict, x, u[i])));
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
  const walk = new Walk("heun", noise, u.length - 1, options.signal, predict);
  const move = walk.formula(line);
  const mean = walk.formula(([half], x: Tensor, v: Tensor, w: Tensor) => ({
    x: scaledSum(scaledSum(x, 1, v, half), 1, w, half), // [B, C, T, H, W]
  }));
  try {
    for (let i = 0; i + 1 < u.length; i++)
      yield await walk.step(1000 * u[i], (x) => {
        const v = direction(predict, x, u[i]); // [B, C, T, H, W]
        const trial = move(along(u[i], u[i + 1]), x, v);
        if (u[i + 1] === 0) return trial;
        const w = direction(predict, trial.x, u[i + 1]); // [B, C, T, H, W]
        return { ...trial, ...mean([(u[i + 1] - u[i]) / 2], x, v, w) };
      });
  } finally {
    walk.end();
  }
}
