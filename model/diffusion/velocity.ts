import { addcmul, ShapeError, type Tensor } from "../../engine/index.js";
import { type DiffusionTables, diffusionTables } from "../schedule.js";
import { qSample } from "./iddpm.js";
import { type Loss, type Noised, type Objective, squaredError, stepColumn } from "./objective.js";

/**
 * The 1000-step schedule with velocity prediction: the model is asked for √ᾱ ε - √(1 - ᾱ) x_0
 * (Salimans and Ho, "Progressive distillation", https://arxiv.org/abs/2202.00512).
 */
export class Velocity implements Objective {
  readonly kind = "v";
  readonly tables: DiffusionTables;

  constructor(tables: DiffusionTables = diffusionTables()) {
    this.tables = tables;
  }

  times(draws: ArrayLike<number>): number[] {
    return Array.from(draws, (u) => Math.min(this.tables.steps - 1, Math.floor(u * this.tables.steps)));
  }

  timesteps(times: ArrayLike<number>): number[] {
    return Array.from(times, (t) => this.tables.timestepMap[t]);
  }

  noise(sample: Noised): Tensor {
    return qSample(this.tables, sample);
  }

  /** √ᾱ ε - √(1 - ᾱ) x_0, as x_0. */
  target({ x0, eps, times }: Noised): Tensor {
    const pick = (table: Float64Array, sign: number) =>
      stepColumn(x0.engine, this.tables.steps, times, (t) => sign * table[t], x0.rank);
    const scaled = eps.mul(pick(this.tables.sqrtAlphasCumprod, 1)); // as x0
    return addcmul(scaled, pick(this.tables.sqrtOneMinusAlphasCumprod, -1), x0); // as x0
  }

  loss(output: Tensor, sample: Noised): Loss {
    if (`${output.shape}` !== `${sample.x0.shape}`)
      throw new ShapeError(
        `v-prediction: the output must have the latent's shape [${sample.x0.shape.join(", ")}]: got [${output.shape.join(", ")}]; build the model without learned variances.`,
      );
    return squaredError(output, this.target(sample));
  }
}
