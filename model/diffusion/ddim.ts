import { add, ConfigError, type Key, normal, type Tensor } from "../../engine/index.js";
import type { DiffusionTables } from "../schedule.js";
import { believe, needKey, type ScheduleOptions, scaledSum, scheduleTables } from "./steps.js";
import { type Predict, type Step, Walk } from "./walk.js";

/** x_{i-1} from believed data and noise: deterministic for η = 0; `z` is needed for η > 0 unless i = 0. */
export function ddimStep(tables: DiffusionTables, i: number, x0: Tensor, eps: Tensor, eta = 0, z?: Tensor): Tensor {
  const [abar, prev] = [tables.alphasCumprod[i], tables.alphasCumprodPrev[i]];
  const sigma = eta * Math.sqrt((1 - prev) / (1 - abar)) * Math.sqrt(1 - abar / prev);
  const mean = scaledSum(x0, Math.sqrt(prev), eps, Math.sqrt(Math.max(0, 1 - prev - sigma ** 2))); // as x0
  return z && i > 0 && sigma > 0 ? add(mean, z.mul(sigma)) : mean;
}

/** x_{i+1} from believed data and noise: the deterministic step backwards, from data to noise. */
export function ddimReverseStep(tables: DiffusionTables, i: number, x0: Tensor, eps: Tensor): Tensor {
  const next = tables.alphasCumprodNext[i];
  return scaledSum(x0, Math.sqrt(next), eps, Math.sqrt(1 - next)); // as x0
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
  const walk = new Walk("ddim", noise, tables.steps, options.signal);
  try {
    for (let i = tables.steps - 1; i >= 0; i--) {
      const t = tables.timestepMap[i];
      yield await walk.step(t, (x) => {
        const { x0, eps } = believe(tables, i, x, predict(x, t), options); // [B, C, T, H, W] each
        const z = key && i > 0 ? normal(x.engine, key.fold(i), x.shape) : undefined; // [B, C, T, H, W]
        return { x: ddimStep(tables, i, x0, eps, eta, z), x0, eps }; // [B, C, T, H, W]
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
  const walk = new Walk("ddimReverse", data, tables.steps - 1, options.signal);
  try {
    for (let i = 0; i < tables.steps - 1; i++) {
      const t = tables.timestepMap[i];
      yield await walk.step(t, (x) => {
        const { x0, eps } = believe(tables, i, x, predict(x, t), options); // [B, C, T, H, W] each
        return { x: ddimReverseStep(tables, i, x0, eps), x0, eps }; // [B, C, T, H, W]
      });
    }
  } finally {
    walk.end();
  }
}
