import { ConfigError } from "../engine/errors.js";

/**
 * Every number that a diffusion on n kept steps needs, in float64 (Nichol & Dhariwal, "Improved DDPM",
 * https://arxiv.org/abs/2102.09672). Arrays have n entries; abar is `alphasCumprod`.
 */
export interface DiffusionTables {
  /** Number of kept steps. */
  readonly steps: number;
  /** The original step of each kept one: what the model gets as its timestep. */
  readonly timestepMap: Int32Array;
  readonly betas: Float64Array;
  readonly logBetas: Float64Array;
  readonly alphasCumprod: Float64Array;
  /** abar one kept step earlier; 1 before the first. */
  readonly alphasCumprodPrev: Float64Array;
  /** abar one kept step later; 0 after the last. */
  readonly alphasCumprodNext: Float64Array;
  readonly sqrtAlphasCumprod: Float64Array;
  readonly sqrtOneMinusAlphasCumprod: Float64Array;
  /** sqrt(1 / abar) */
  readonly sqrtRecipAlphasCumprod: Float64Array;
  /** sqrt(1 / abar - 1) */
  readonly sqrtRecipm1AlphasCumprod: Float64Array;
  /** Variance of q(x_{t-1} | x_t, x_0); 0 at the first step. */
  readonly posteriorVariance: Float64Array;
  /** Its logarithm, with the first entry (log 0) replaced by the second. */
  readonly posteriorLogVarianceClipped: Float64Array;
  /** Factor of x_0 in the mean of q(x_{t-1} | x_t, x_0). */
  readonly posteriorMeanCoef1: Float64Array;
  /** Factor of x_t in that mean. */
  readonly posteriorMeanCoef2: Float64Array;
}

/** Which steps to keep: a number, `"ddimN"`, `"10,15,20"`, or counts for equal sections of the schedule. */
export type Respacing = number | string | readonly number[];

/** Rounds to the nearest integer, halves to the even one, as Python's `round` and C's `rint` do. */
export function roundHalfEven(x: number): number {
  const floor = Math.floor(x);
  const rest = x - floor;
  if (rest !== 0.5) return rest < 0.5 ? floor : floor + 1;
  return floor % 2 === 0 ? floor : floor + 1;
}

/** `n` evenly spaced numbers from `start` to `stop`, both included; of one, `start`. */
function linspace(start: number, stop: number, n: number): Float64Array {
  if (n === 1) return Float64Array.of(start);
  const step = (stop - start) / (n - 1);
  return Float64Array.from({ length: n }, (_, i) => (i === n - 1 ? stop : i * step + start));
}

/** Linear betas, 1e-4 to 0.02 at 1000 steps and scaled by 1000 / steps else (Ho et al., https://arxiv.org/abs/2006.11239). */
export function linearBetas(steps = 1000): Float64Array {
  if (!(Number.isInteger(steps) && steps >= 1))
    throw new ConfigError(`linearBetas: bad step count: ${steps}; give an integer of at least 1`);
  const scale = 1000 / steps;
  const betas = linspace(scale * 1e-4, scale * 0.02, steps);
  if (betas.some((beta) => beta >= 1))
    throw new ConfigError(`linearBetas: too few steps: ${steps} make a beta of 1 or more; give at least 21`);
  return betas;
}

function tablesOf(betas: Float64Array, timestepMap: Int32Array): DiffusionTables {
  const n = betas.length;
  const alphasCumprod = new Float64Array(n);
  let product = 1;
  for (let t = 0; t < n; t++) {
    product *= 1 - betas[t];
    alphasCumprod[t] = product;
  }
  const alphasCumprodPrev = Float64Array.from(alphasCumprod, (_, t) => (t === 0 ? 1 : alphasCumprod[t - 1]));
  const alphasCumprodNext = Float64Array.from(alphasCumprod, (_, t) => (t === n - 1 ? 0 : alphasCumprod[t + 1]));
  const posteriorVariance = betas.map((beta, t) => (beta * (1 - alphasCumprodPrev[t])) / (1 - alphasCumprod[t]));
  return {
    steps: n,
    timestepMap,
    betas,
    logBetas: betas.map(Math.log),
    alphasCumprod,
    alphasCumprodPrev,
    alphasCumprodNext,
    sqrtAlphasCumprod: alphasCumprod.map(Math.sqrt),
    sqrtOneMinusAlphasCumprod: alphasCumprod.map((a) => Math.sqrt(1 - a)),
    sqrtRecipAlphasCumprod: alphasCumprod.map((a) => Math.sqrt(1 / a)),
    sqrtRecipm1AlphasCumprod: alphasCumprod.map((a) => Math.sqrt(1 / a - 1)),
    posteriorVariance,
    // A single kept step has no second entry; its variance is never used, and beta keeps the number finite.
    posteriorLogVarianceClipped: posteriorVariance.map((v, t) =>
      Math.log(t > 0 ? v : n > 1 ? posteriorVariance[1] : betas[0]),
    ),
    posteriorMeanCoef1: betas.map((beta, t) => (beta * Math.sqrt(alphasCumprodPrev[t])) / (1 - alphasCumprod[t])),
    posteriorMeanCoef2: betas.map(
      (beta, t) => ((1 - alphasCumprodPrev[t]) * Math.sqrt(1 - beta)) / (1 - alphasCumprod[t]),
    ),
  };
}

/** The steps that a respacing keeps of a schedule of `steps`, ascending. Throws ConfigError for one that cannot be had. */
export function spacedTimesteps(steps: number, respacing: Respacing): Int32Array {
  if (typeof respacing === "string" && respacing.startsWith("ddim")) {
    const wanted = Number(respacing.slice(4));
    for (let stride = 1; stride < steps; stride++)
      if (Math.ceil(steps / stride) === wanted) return Int32Array.from({ length: wanted }, (_, i) => i * stride);
    throw new ConfigError(
      `respacing: no integer stride: "${respacing}" of ${steps} steps; give a plain count, or ddimN with N = ceil(${steps} / stride)`,
    );
  }
  const counts =
    typeof respacing === "string"
      ? respacing.split(",").map(Number)
      : typeof respacing === "number"
        ? [respacing]
        : respacing;
  if (counts.length === 0 || !counts.every((n) => Number.isInteger(n) && n >= 1))
    throw new ConfigError(
      `respacing: bad counts: ${JSON.stringify(respacing)}; give "ddimN", or one integer of at least 1 for each section`,
    );
  const kept = new Set<number>();
  let start = 0;
  for (const [i, count] of counts.entries()) {
    const size = Math.floor(steps / counts.length) + (i < steps % counts.length ? 1 : 0);
    if (count > size) throw new ConfigError(`respacing: section too short: ${count} steps asked of ${size}; ask fewer`);
    const stride = count <= 1 ? 1 : (size - 1) / (count - 1);
    // Summed, not multiplied: the reference accumulates, and its rounding decides ties.
    let at = 0;
    for (let k = 0; k < count; k++) {
      kept.add(start + roundHalfEven(at));
      at += stride;
    }
    start += size;
  }
  return Int32Array.from(kept).sort();
}

/**
 * Tables for a schedule of `betas`, whole or respaced: a kept step's beta spans the steps left out before it,
 * 1 - abar / abar of the kept step before.
 */
export function diffusionTables(betas: Float64Array = linearBetas(), respacing?: Respacing): DiffusionTables {
  const full = tablesOf(
    betas,
    Int32Array.from(betas, (_, t) => t),
  );
  if (respacing === undefined) return full;
  const map = spacedTimesteps(betas.length, respacing);
  let last = 1;
  const spaced = Float64Array.from(map, (t) => {
    const beta = 1 - full.alphasCumprod[t] / last;
    last = full.alphasCumprod[t];
    return beta;
  });
  return tablesOf(spaced, map);
}

/** Time shift of rectified flow: maps u in [0, 1] to shift * u / (1 + (shift - 1) * u) (https://arxiv.org/abs/2403.03206, 5.3.2). */
export function shiftTime(u: number, shift: number): number {
  return (shift * u) / (1 + (shift - 1) * u);
}

/**
 * The times that a flow sampler visits: `steps` + 1 values, from almost 1 (noise) down to 0 (data). They are the
 * midpoints (t + 0.5) / 1000 of `steps` evenly spread steps t = 999 … 0, shifted; the last goes to exactly 0.
 */
export function flowTimes(steps: number, shift = 4): Float64Array {
  if (!(Number.isInteger(steps) && steps >= 1 && steps <= 1000))
    throw new ConfigError(`flowTimes: bad step count: ${steps}; give an integer from 1 to 1000`);
  if (!(shift > 0)) throw new ConfigError(`flowTimes: bad shift: ${shift}; give a number above 0 (1 shifts nothing)`);
  const grid = linspace(999, 0, steps);
  const times = new Float64Array(steps + 1);
  for (let i = 0; i < steps; i++) times[i] = shiftTime((roundHalfEven(grid[i]) + 0.5) / 1000, shift);
  return times;
}
