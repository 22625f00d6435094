import { ConfigError } from "../engine/index.js";

/** The optimizer's rate at a step, counted from 0. */
export type Rate = (step: number) => number;

/** The course of a rate over a run. */
export interface RateOptions {
  /** "constant" is lr throughout; the others begin with a linear warm-up. "warmup" then stays at lr. */
  schedule: "constant" | "warmup" | "cosine" | "linear-decay";
  /** The highest rate. */
  lr: number;
  /** Steps of the whole run. */
  steps: number;
  /** Steps of warm-up: step s runs at lr · (s + 1) / warmupSteps. Default 0. */
  warmupSteps?: number;
  /** Last share of the steps in which "linear-decay" falls. Default 0.3. */
  decayFraction?: number;
  /** Share of lr that is left in the last step of "cosine" and "linear-decay". Default 0. */
  finalFraction?: number;
}

/** The always same rate. */
export const constant =
  (lr: number): Rate =>
  () =>
    lr;

/** Rises in a straight line over the first `steps` steps, of which the last runs at full `rate`. */
export const warmup =
  (rate: Rate, steps: number): Rate =>
  (step) =>
    rate(step) * Math.min(1, (step + 1) / Math.max(1, steps));

/** Half a cosine from `lr` in step `from` to lr · final in the last of `steps` steps (https://arxiv.org/abs/1608.03983). */
export const cosine =
  (lr: number, steps: number, from = 0, final = 0): Rate =>
  (step) =>
    lr * (final + (1 - final) * 0.5 * (1 + Math.cos(Math.PI * progress(step, from, steps))));

/** `lr`, then a straight line to lr · final over the last `fraction` of the steps. */
export const linearDecay =
  (lr: number, steps: number, fraction = 0.3, final = 0): Rate =>
  (step) =>
    lr * (1 - (1 - final) * progress(step, Math.round(steps * (1 - fraction)) - 1, steps));

/** 0 up to step `from`, 1 in the last step. */
const progress = (step: number, from: number, steps: number): number =>
  Math.min(1, Math.max(0, step - from) / Math.max(1, steps - 1 - from));

/** The rate that a configuration describes. */
export function rateOf(options: RateOptions): Rate {
  const { schedule, lr, steps, warmupSteps = 0, decayFraction = 0.3, finalFraction = 0 } = options;
  switch (schedule) {
    case "constant":
      return constant(lr);
    case "warmup":
      return warmup(constant(lr), warmupSteps);
    case "cosine":
      return warmup(cosine(lr, steps, Math.max(0, warmupSteps - 1), finalFraction), warmupSteps);
    case "linear-decay":
      return warmup(linearDecay(lr, steps, decayFraction, finalFraction), warmupSteps);
    default:
      throw new ConfigError(`rate: unknown schedule "${schedule}" ("constant", "warmup", "cosine", "linear-decay")`);
  }
}
