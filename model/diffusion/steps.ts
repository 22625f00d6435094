import { add, ConfigError, checkOptions, clamp, type Key, ShapeError, split, type Tensor } from "../../engine/index.js";
import { type DiffusionTables, diffusionTables, linearBetas, type Respacing } from "../schedule.js";
import type { Factor } from "./walk.js";

/** Options that the samplers of the 1000-step schedule share. */
export interface ScheduleOptions {
  /** How many steps, or which; see `spacedTimesteps`. */
  steps?: Respacing;
  /** What the model predicts: noise or velocity. Default "eps". */
  predicts?: "eps" | "v";
  /** Limits the believed data to [-1, 1], for models of pixels. */
  clip?: boolean;
  /** Stops the sampler before its next step. */
  signal?: AbortSignal;
}

/** Checks what every sampler takes and makes the tables of its steps. */
export function scheduleTables(
  name: string,
  options: ScheduleOptions & Record<string, any>,
  standard: number,
  more: readonly string[] = [],
): DiffusionTables {
  checkOptions(name, options, ["steps", "predicts", "clip", "signal", ...more]);
  const { steps = standard, predicts = "eps" } = options;
  if (predicts !== "eps" && predicts !== "v")
    throw new ConfigError(`${name}: predicts must be "eps" or "v": got ${JSON.stringify(predicts)}.`);
  return diffusionTables(linearBetas(), steps);
}

/** @throws ConfigError where a sampler that draws noise was given no key */
export function needKey(name: string, key: Key | undefined, reason: string): Key {
  if (!key) throw new ConfigError(`${name}: needs a key: ${reason}; take engine.key() or Key.from(seed).`);
  return key;
}

/** How many numbers `beliefs` gives. */
export const BELIEFS = 4;

/** Step i's numbers for `believe`: x_0 is the first · x + the second · output, ε the third · x + the fourth · x_0. */
export function beliefs(
  tables: DiffusionTables,
  i: number,
  { predicts = "eps" }: Pick<ScheduleOptions, "predicts"> = {},
): number[] {
  const k = tables.sqrtRecipm1AlphasCumprod[i];
  return [
    ...(predicts === "eps"
      ? [tables.sqrtRecipAlphasCumprod[i], -k]
      : [tables.sqrtAlphasCumprod[i], -tables.sqrtOneMinusAlphasCumprod[i]]),
    tables.sqrtRecipAlphasCumprod[i] / k,
    -1 / k,
  ];
}

/** Data and noise that a model's output stands for, by a step's `beliefs`, and the variance output where there is one. */
export function believe(
  [a, b, c, d]: readonly Factor[],
  x: Tensor,
  output: Tensor,
  { clip = false }: Pick<ScheduleOptions, "clip"> = {},
): { x0: Tensor; eps: Tensor; v: Tensor | undefined } {
  const C = x.shape[1];
  const learned = output.shape[1] === 2 * C;
  if (output.shape[1] !== C && !learned)
    throw new ShapeError(
      `sampler: the output must have ${C} or ${2 * C} channels for latents of ${C}: got [${output.shape.join(", ")}].`,
    );
  const [given, v] = learned ? split(output, [C, C], 1) : [output, undefined]; // [B, C, T, H, W] each
  let x0 = scaledSum(x, a, given, b); // as x
  if (clip) x0 = clamp(x0, -1, 1);
  // Noise is taken from the data that is used, so that x stays a mixture of the two.
  return { x0, eps: scaledSum(x, c, x0, d), v }; // as x
}

/** a · x + b · y. */
export function scaledSum(x: Tensor, a: Factor, y: Tensor, b: Factor): Tensor {
  return add(a === 1 ? x : x.mul(a), b === 1 ? y : y.mul(b));
}
