import { ConfigError, checkOptions, lerp, ShapeError, sub, type Tensor } from "../../engine/index.js";
import { shiftTime } from "../schedule.js";
import { column, type Loss, type Noised, type Objective, squaredError } from "./objective.js";

/**
 * Rectified flow: x_u = (1 - u) x_0 + u ε on straight lines, and the model is asked for their direction ε - x_0
 * (Liu et al., https://arxiv.org/abs/2209.03003). A shift above 1 moves times towards noise, where layout and motion
 * are decided (Esser et al., https://arxiv.org/abs/2403.03206). The model's timestep is 1000 u.
 */
export class Flow implements Objective {
  readonly kind = "flow";
  readonly shift: number;

  /** @throws ConfigError for a shift that is not above 0 */
  constructor(options: { shift?: number } = {}) {
    checkOptions("flow", options, ["shift"]);
    this.shift = options.shift ?? 4;
    if (!(this.shift > 0 && Number.isFinite(this.shift)))
      throw new ConfigError(`flow: the shift must be a number above 0: got ${this.shift}; 1 shifts nothing.`);
  }

  times(draws: ArrayLike<number>): number[] {
    return Array.from(draws, (u) => shiftTime(u, this.shift));
  }

  timesteps(times: ArrayLike<number>): number[] {
    return Array.from(times, (u) => 1000 * u);
  }

  noise({ x0, eps, times }: Noised): Tensor {
    return lerp(x0, eps, column(x0.engine, times, x0.rank)); // as x0
  }

  loss(output: Tensor, { x0, eps }: Noised): Loss {
    if (`${output.shape}` !== `${x0.shape}`)
      throw new ShapeError(
        `flow: the output must have the latent's shape [${x0.shape.join(", ")}]: got [${output.shape.join(", ")}]; build the model without learned variances.`,
      );
    return squaredError(output, sub(eps, x0));
  }
}
