import { add, ConfigError, type Key, normal, type Tensor } from "../../engine/index.js";
import type { DiffusionTables } from "../schedule.js";
import { BELIEFS, beliefs, believe, needKey, type ScheduleOptions, scaledSum, scheduleTables } from "./steps.js";
import { type Factor, type Predict, type Step, Walk } from "./walk.js";

/** Step i's numbers for `ddimStep`: factors of data, believed noise and new noise. The last is 0 for η = 0 and for i = 0. */
export function ddimNumbers(tables: DiffusionTables, i: number, eta = 0): [number, number, number] {
  const [abar, prev] = [tables.alphasCumprod[i], tables.alphasCumprodPrev[i]];
  const sigma = eta * Math.sqrt((1 - prev) / (1 - abar)) * Math.sqrt(1 - abar / prev);
  return [Math.sqrt(prev), Math.sqrt(Math.max(0, 1 - prev - sigma ** 2)), i > 0 ? sigma : 0];
}

/** x_{i-1} from believed data and noise; deterministic without new noise `z`. */
export function ddimStep([a, b, sigma]: readonly Factor[], x0: Tensor, eps: Tensor, z?: Tensor): Tensor {
  const mean = scaledSum(x0, a, eps, b); // as x0
  return z ? add(mean, z.mul(sigma)) : mean;
}

/** The same for the deterministic step backwards to x_{i+1}, from data to noise. */
export function ddimReverseNumbers(tables: DiffusionTables, i: number): [number, number] {
  const next = tables.alphasCumprodNext[i];
  return [Math.sqrt(next), Math.sqrt(1 - next)];
}

/**
 * Denoising diffusion implicit models: a deterministic path for η = 0, up to ancestral-like noise for η = 1
 * (Song et al., https://arxiv.org/abs/2010.02502).
 * @param noise [B, C, T, H, W], standard normal; stays the caller's
 * @param options `steps` default 50; `key` is needed for `eta` above 0
 * @throws AbortedError through `signal`
 */
export async function* ddim(
  predict: Predict,
  noise: Tensor,
  options: ScheduleOptions & { eta?: number; key?: Key } = {},
): AsyncGenerator<Step, void> {
  const tables = scheduleTables("ddim", options, 50, ["eta", "key"]);
  const { eta = 0 } = options;
  if (!(eta >= 0 && eta <= 1)) throw new ConfigError(`ddim: eta must lie in [0, 1]: got ${eta}.`);
  const key = eta > 0 ? needKey("ddim", options.key, "eta above 0 adds noise in every step") : undefined;
  const walk = new Walk("ddim", noise, tables.steps, options.signal, predict);
  const move = walk.formula((c, x: Tensor, output: Tensor, z: Tensor | undefined) => {
    const { x0, eps } = believe(c, x, output, options); // [B, C, T, H, W] each
    return { x: ddimStep(c.slice(BELIEFS), x0, eps, z), x0, eps }; // [B, C, T, H, W]
  });
  try {
    for (let i = tables.steps - 1; i >= 0; i--) {
      const t = tables.timestepMap[i];
      yield await walk.step(t, (x) => {
        const z = key && i > 0 ? normal(x.engine, key.fold(i), x.shape) : undefined; // [B, C, T, H, W]
        return move([...beliefs(tables, i, options), ...ddimNumbers(tables, i, eta)], x, predict(x, t), z);
      });
    }
  } finally {
    walk.end();
  }
}

/**
 * DDIM run from data to noise: the latent from which `ddim` with the same steps comes back close to `data`.
 * @param data [B, C, T, H, W]; stays the caller's
 */
export async function* ddimReverse(
  predict: Predict,
  data: Tensor,
  options: ScheduleOptions = {},
): AsyncGenerator<Step, void> {
  const tables = scheduleTables("ddimReverse", options, 50);
  // From the last step the way leads to ᾱ = 0, pure noise, where the deterministic path ends.
  const walk = new Walk("ddimReverse", data, tables.steps - 1, options.signal, predict);
  const move = walk.formula((c, x: Tensor, output: Tensor) => {
    const { x0, eps } = believe(c, x, output, options); // [B, C, T, H, W] each
    return { x: ddimStep(c.slice(BELIEFS), x0, eps), x0, eps }; // [B, C, T, H, W]
  });
  try {
    for (let i = 0; i < tables.steps - 1; i++) {
      const t = tables.timestepMap[i];
      yield await walk.step(t, (x) =>
        move([...beliefs(tables, i, options), ...ddimReverseNumbers(tables, i)], x, predict(x, t)),
      );
    }
  } finally {
    walk.end();
  }
}
