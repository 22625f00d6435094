import { type Engine, embedding, mean, square, Tensor } from "../../engine/index.js";

/** What a training step knows of its batch. Latents are [B, C, T, H, W]. */
export interface Noised {
  x0: Tensor;
  /** Standard normal noise. */
  eps: Tensor;
  /** [B], in the objective's own units; on the GPU as `uploadTimes` makes them, for functions compiled for all times. */
  times: ArrayLike<number> | Tensor;
  /** Of times on the GPU: whether any may be 0, where losses are others. Default true. */
  zeros?: boolean;
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

/** Times on the GPU, [B]: f32 for flow, else the number of the step, i32. */
export const uploadTimes = (engine: Engine, { kind }: Objective, times: ArrayLike<number>): Tensor =>
  engine.tensor(kind === "flow" ? Float32Array.from(times) : Int32Array.from(times), [times.length]);

/** Numbers by sample, [B, 1, …] f32 so that they broadcast over latents of that rank. */
export function column(engine: Engine, values: ArrayLike<number> | Tensor, rank = 5): Tensor {
  const ones = Array<number>(rank - 1).fill(1);
  if (values instanceof Tensor) return values.reshape([values.size, ...ones]); // [B, 1, …]
  return engine.tensor(Float32Array.from(values), [values.length, ...ones]); // [B, 1, …]
}

/** f(t) of each step number by sample, as a column; numbers on the GPU look it up in a table of all `steps`. */
export function stepColumn(
  engine: Engine,
  steps: number,
  times: ArrayLike<number> | Tensor,
  f: (t: number) => number,
  rank = 5,
): Tensor {
  if (!(times instanceof Tensor)) return column(engine, Array.from(times, f), rank); // [B, 1, …]
  const table = engine.tensor(
    Float32Array.from({ length: steps }, (_, t) => f(t)),
    [steps, 1],
  ); // [steps, 1]
  return column(engine, embedding(table, times), rank); // [B, 1, …]
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
