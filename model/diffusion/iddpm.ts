import {
  add,
  addcmul,
  ConfigError,
  cat,
  checkOptions,
  exp,
  log,
  mean,
  type Shape,
  ShapeError,
  sigmoid,
  slice,
  split,
  square,
  sub,
  Tensor,
  where,
} from "../../engine/index.js";
import { type DiffusionTables, diffusionTables } from "../schedule.js";
import { type Loss, type Noised, type Objective, perSample, stepColumn } from "./objective.js";

/**
 * "mse+vb" trains noise and variances; "mse" noise alone; "vb" both by the variational bound of the whole chain in bits,
 * which one time's bound times the number of times estimates.
 */
export type IddpmLoss = "mse+vb" | "mse" | "vb";

const list = (shape: Shape) => `[${shape.join(", ")}]`;
type Steps = Noised["times"];

/** x_t = √ᾱ_t x_0 + √(1 - ᾱ_t) ε. */
export function qSample(tables: DiffusionTables, { x0, eps, times }: Noised): Tensor {
  const pick = (table: Float64Array) => stepColumn(x0.engine, tables.steps, times, (t) => table[t], x0.rank);
  const [a, b] = [pick(tables.sqrtAlphasCumprod), pick(tables.sqrtOneMinusAlphasCumprod)]; // [B, 1, …] each
  return addcmul(x0.mul(a), b, eps); // as x0
}

/** Mean and log variance of q(x_{t-1} | x_t, x_0); the log variance is [B, 1, …]. */
export function qPosterior(
  tables: DiffusionTables,
  x0: Tensor,
  xt: Tensor,
  t: Steps,
): { mean: Tensor; logVariance: Tensor } {
  const pick = (table: Float64Array) => stepColumn(x0.engine, tables.steps, t, (i) => table[i], x0.rank);
  const [c1, c2] = [pick(tables.posteriorMeanCoef1), pick(tables.posteriorMeanCoef2)]; // [B, 1, …] each
  const logVariance = pick(tables.posteriorLogVarianceClipped); // [B, 1, …]
  return { mean: addcmul(x0.mul(c1), c2, xt), logVariance }; // as x0
}

/**
 * ln of the model's variance over the true posterior's, w = f (ln β_t - ln β̃_t) with f = (v + 1) / 2: the model's
 * output v in [-1, 1] moves between the two bounds of the variance.
 */
export function logVarianceRatio(tables: DiffusionTables, v: Tensor, t: Steps): Tensor {
  const { logBetas, posteriorLogVarianceClipped: least } = tables;
  const b = stepColumn(v.engine, tables.steps, t, (i) => (logBetas[i] - least[i]) / 2, v.rank); // [B, 1, …]
  return addcmul(b, v, b); // as v
}

/** CDF of the standard normal in its tanh form, 0.5 (1 + tanh u) written as sigmoid(2u), which keeps its digits in the tail. */
function normalCdf(z: Tensor): Tensor {
  const c = 2 * Math.sqrt(2 / Math.PI);
  return sigmoid(
    z.mul(
      square(z)
        .mul(c * 0.044715)
        .add(c),
    ),
  );
}

/**
 * -ln of the probability that a Gaussian gives to the bin of x (width 2/255; the outer bins are open), elementwise.
 * With a = ∓(x - mean) chosen so that both CDFs are taken in the lower tail, their difference never cancels.
 * @param centred x - mean
 * @param deviation standard deviation's inverse
 */
function binNll(x: Tensor, centred: Tensor, inverse: Tensor): Tensor {
  const { engine } = x;
  const bin = 1 / 255;
  const [flip, inner] = engine.noGrad(() => {
    const left = x.less(-0.999);
    const right = x.greater(0.999);
    const [one, minus, zero] = [1, -1, 0].map((n) => engine.tensor([n]));
    const towards = where(centred.greater(0), minus, one);
    return [where(left, one, where(right, minus, towards)), where(left.logicalOr(right), zero, one)];
  });
  const a = centred.mul(flip);
  const upper = normalCdf(a.add(bin).mul(inverse));
  const lower = normalCdf(a.sub(bin).mul(inverse));
  return log(upper.sub(lower.mul(inner)).maximum(1e-12)).mul(-1);
}

/**
 * The variational bound of each sample in bits a value, [B]: for t > 0 the KL divergence of the model's step from the
 * true posterior, for t = 0 the likelihood of the data. Both depend on the noise through `error` alone, since
 * x_0 - x̂_0 = √(1/ᾱ - 1) (ε̂ - ε): written so, nothing large is subtracted from anything large.
 * @param v variance output in [-1, 1]
 * @param error ε̂ - ε; detach it to keep the bound from training the noise prediction
 * @param zeros of times on the GPU: whether any may be 0
 */
export function variationalBound(
  tables: DiffusionTables,
  v: Tensor,
  error: Tensor,
  x0: Tensor,
  t: Steps,
  zeros = true,
): Tensor {
  const { posteriorMeanCoef1: c, sqrtRecipm1AlphasCumprod: r, posteriorLogVarianceClipped: least } = tables;
  const w = logVarianceRatio(tables, v, t); // as v
  const k = stepColumn(v.engine, tables.steps, t, (i) => (c[i] * r[i]) ** 2 * Math.exp(-least[i]), v.rank);
  const spread = square(error).mul(k).add(1); // 1 + (mean - mean')² / β̃
  const twice = addcmul(w, exp(w.mul(-1)), spread); // 2 KL + 1, as v
  const kl = perSample(twice)
    .sub(1)
    .mul(0.5 / Math.LN2); // [B]
  const likelihood = (x0: Tensor, error: Tensor, w: Tensor) => {
    const inverse = exp(w.add(least[0]).mul(-0.5)); // as x0
    return perSample(binNll(x0, error.mul(r[0]), inverse)).mul(1 / Math.LN2); // [rows of x0]
  };
  if (t instanceof Tensor) return zeros ? where(t.equal(0), likelihood(x0, error, w), kl) : kl; // [B]
  const times = Array.from(t);
  if (!times.includes(0)) return kl; // [B]
  // Rare (one time in a thousand), so taken sample by sample.
  const bits = times.map((ti, b) => {
    const row = (x: Tensor) => slice(x, 0, b, b + 1); // [1, …]
    return ti === 0 ? likelihood(row(x0), row(error), row(w)) : row(kl); // [1]
  });
  return cat(bits, 0); // [B]
}

/**
 * Diffusion with noise prediction and learned variances (Nichol and Dhariwal, "Improved denoising diffusion
 * probabilistic models", https://arxiv.org/abs/2102.09672). The loss is mse + vb, unweighted; the bound trains the
 * variances only, the squared error the noise only.
 */
export class Iddpm implements Objective {
  readonly kind = "iddpm";
  readonly tables: DiffusionTables;
  readonly terms: IddpmLoss;

  /** @throws ConfigError for an unknown option or loss */
  constructor(options: { tables?: DiffusionTables; loss?: IddpmLoss } = {}) {
    checkOptions("iddpm", options, ["tables", "loss"]);
    this.tables = options.tables ?? diffusionTables();
    this.terms = options.loss ?? "mse+vb";
    if (!["mse+vb", "mse", "vb"].includes(this.terms))
      throw new ConfigError(`iddpm: unknown loss "${this.terms}"; take "mse+vb", "mse" or "vb".`);
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

  /** @throws ShapeError when the output does not hold noise, and variances where the loss needs them */
  loss(output: Tensor, { x0, eps, times, zeros }: Noised): Loss {
    const C = x0.shape[1];
    const wanted = this.terms === "mse" ? [C, 2 * C] : [2 * C];
    if (!wanted.includes(output.shape[1]))
      throw new ShapeError(
        `iddpm: loss "${this.terms}" needs ${wanted.join(" or ")} output channels for latents ${list(x0.shape)}: got ${list(output.shape)}.`,
      );
    const [predicted, v] = output.shape[1] === C ? [output] : split(output, [C, C], 1); // [B, C, T, H, W] each
    const error = sub(predicted, eps); // [B, C, T, H, W]
    if (this.terms === "vb") {
      const vb = variationalBound(this.tables, v, error, x0, times, zeros).mul(this.tables.steps); // [B]
      return { loss: mean(vb), parts: { vb } };
    }
    const mse = perSample(square(error)); // [B]
    if (this.terms === "mse") return { loss: mean(mse), parts: { mse } };
    const vb = variationalBound(this.tables, v, error.detach(), x0, times, zeros); // [B]
    return { loss: mean(add(mse, vb)), parts: { mse, vb } };
  }
}
