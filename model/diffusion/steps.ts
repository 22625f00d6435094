import { add, ConfigError, checkOptions, clamp, type Key, ShapeError, split, type Tensor } from "../../engine/index.js";
import { type DiffusionTables, diffusionTables, linearBetas, type Respacing } from "../schedule.js";

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

/** Data and noise that a model's output stands for at step i, and the variance output where there is one. */
export function believe(
  tables: DiffusionTables,
  i: number,
  x: Tensor,
  output: Tensor,
  { predicts = "eps", clip = false }: Pick<ScheduleOptions, "predicts" | "clip"> = {},
): { x0: Tensor; eps: Tensor; v: Tensor | undefined } {
  const C = x.shape[1];
  const learned = output.shape[1] === 2 * C;
  if (output.shape[1] !== C && !learned)
    throw new ShapeError(
      `sampler: the output must have ${C} or ${2 * C} channels for latents of ${C}: got [${output.shape.join(", ")}].`,
    );
  const [given, v] = learned ? split(output, [C, C], 1) : [output, undefined]; // [B, C, T, H, W] each
  let x0 =
    predicts === "eps"
      ? scaledSum(x, tables.sqrtRecipAlphasCumprod[i], given, -tables.sqrtRecipm1AlphasCumprod[i])
      : scaledSum(x, tables.sqrtAlphasCumprod[i], given, -tables.sqrtOneMinusAlphasCumprod[i]); // as x
  if (clip) x0 = clamp(x0, -1, 1);
  // Noise is taken from the data that is used, so that x stays a mixture of the two.
  const eps = scaledSum(
    x,
    tables.sqrtRecipAlphasCumprod[i] / tables.sqrtRecipm1AlphasCumprod[i],
    x0,
    -1 / tables.sqrtRecipm1AlphasCumprod[i],
  ); // as x
  return { x0, eps, v };
}

/** a · x + b · y, with the factors in the launches: an uploaded factor would cut the batch of launches in two. */
export function scaledSum(x: Tensor, a: number, y: Tensor, b: number): Tensor {
  return add(a === 1 ? x : x.mul(a), b === 1 ? y : y.mul(b));
}
