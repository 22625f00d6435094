import { type Engine, mean, square, type Tensor } from "../../engine/index.js";

/** What a training step knows of its batch. Latents are [B, C, T, H, W]. */
export interface Noised {
  x0: Tensor;
  /** Standard normal noise. */
  eps: Tensor;
  /** [B], in the objective's own units. */
  times: ArrayLike<number>;
}

/** A loss to walk back from, and its parts by sample for logs. */
export interface Loss {
  /** One number: the mean over the batch. */
  loss: Tensor;
  /** Each [B]. */
  parts: Record<string, Tensor>;
}

/** How clean latents become noisy ones, and what a model is asked for. */
export interface Objective {
  readonly kind: "iddpm" | "v" | "flow";
  /** Times [B] of uniform draws [B] in [0, 1). */
  times(draws: ArrayLike<number>): number[];
  /** What the model gets as its timestep, [B] on the 0 … 999 scale. */
  timesteps(times: ArrayLike<number>): number[];
  /** The noisy latent at those times. */
  noise(sample: Noised): Tensor;
  /** The loss of a model's output at the noisy latent. */
  loss(output: Tensor, sample: Noised): Loss;
}

/** Numbers by sample, [B, 1, …] f32 so that they broadcast over latents of that rank. */
export function column(engine: Engine, values: ArrayLike<number>, rank = 5): Tensor {
  return engine.tensor(Float32Array.from(values), [values.length, ...Array<number>(rank - 1).fill(1)]);
}

/** Mean over all axes but the first: [B]. */
export function perSample(x: Tensor): Tensor {
  return mean(
    x,
    Array.from({ length: x.rank - 1 }, (_, i) => i + 1),
  ); // [B]
}

/** The mean squared difference as a loss. */
export function squaredError(output: Tensor, target: Tensor): Loss {
  const mse = perSample(square(output.sub(target))); // [B]
  return { loss: mean(mse), parts: { mse } };
}
