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
  type Tensor,
  where,
} from "../../engine/index.js";
import { type DiffusionTables, diffusionTables } from "../schedule.js";
import { column, type Loss, type Noised, type Objective, perSample } from "./objective.js";

/**
 * "mse+vb" trains noise and variances; "mse" noise alone; "vb" both by the variational bound of the whole chain in bits,
 * which one time's bound times the number of times estimates.
 */
export type IddpmLoss = "mse+vb" | "mse" | "vb";

const list = (shape: Shape) => `[${shape.join(", ")}]`;
const gather = (table: Float64Array, t: ArrayLike<number>, f: (x: number, t: number) => number = (x) => x) =>
  Array.from(t, (i) => f(table[i], i));

/** x_t = √ᾱ_t x_0 + √(1 - ᾱ_t) ε. */
export function qSample(tables: DiffusionTables, { x0, eps, times }: Noised): Tensor {
  const a = column(x0.engine, gather(tables.sqrtAlphasCumprod, times), x0.rank);
  const b = column(x0.engine, gather(tables.sqrtOneMinusAlphasCumprod, times), x0.rank);
  return addcmul(x0.mul(a), b, eps); // as x0
}

/** Mean and log variance of q(x_{t-1} | x_t, x_0); the log variance is [B, 1, …]. */
export function qPosterior(
  tables: DiffusionTables,
  x0: Tensor,
  xt: Tensor,
  t: ArrayLike<number>,
): { mean: Tensor; logVariance: Tensor } {
  const c1 = column(x0.engine, gather(tables.posteriorMeanCoef1, t), x0.rank);
  const c2 = column(x0.engine, gather(tables.posteriorMeanCoef2, t), x0.rank);
  const logVariance = column(x0.engine, gather(tables.posteriorLogVarianceClipped, t), x0.rank); // [B, 1, …]
  return { mean: addcmul(x0.mul(c1), c2, xt), logVariance }; // as x0
}

/**
 * ln of the model's variance over the true posterior's, w = f (ln β_t - ln β̃_t) with f = (v + 1) / 2: the model's
 * output v in [-1, 1] moves between the two bounds of the variance.
 */
export function logVarianceRatio(tables: DiffusionTables, v: Tensor, t: ArrayLike<number>): Tensor {
  const half = gather(tables.logBetas, t, (lb, i) => (lb - tables.posteriorLogVarianceClipped[i]) / 2);
  const b = column(v.engine, half, v.rank);
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
 */
export function variationalBound(
  tables: DiffusionTables,
  v: Tensor,
  error: Tensor,
  x0: Tensor,
  t: ArrayLike<number>,
): Tensor {
  const { engine } = v;
  const w = logVarianceRatio(tables, v, t); // as v
  const k = gather(
    tables.posteriorMeanCoef1,
    t,
    (c, i) => (c * tables.sqrtRecipm1AlphasCumprod[i]) ** 2 * Math.exp(-tables.posteriorLogVarianceClipped[i]),
  );
  const spread = square(error)
    .mul(column(engine, k, v.rank))
    .add(1); // 1 + (mean - mean')² / β̃
  const twice = addcmul(w, exp(w.mul(-1)), spread); // 2 KL + 1, as v
  const kl = perSample(twice)
    .sub(1)
    .mul(0.5 / Math.LN2); // [B]
  const times = Array.from(t);
  if (!times.includes(0)) return kl;
  // Rare (one time in a thousand), so taken sample by sample.
  const bits = times.map((ti, b) => {
    const row = (x: Tensor) => slice(x, 0, b, b + 1); // [1, C, T, H, W]
    if (ti !== 0) return row(kl);
    const inverse = exp(row(w).add(tables.posteriorLogVarianceClipped[0]).mul(-0.5)); // [1, C, T, H, W]
    const centred = row(error).mul(tables.sqrtRecipm1AlphasCumprod[0]); // [1, C, T, H, W]
    return perSample(binNll(row(x0), centred, inverse)).mul(1 / Math.LN2); // [1]
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
    return gather(Float64Array.from(this.tables.timestepMap), times);
  }

  noise(sample: Noised): Tensor {
    return qSample(this.tables, sample);
  }

  /** @throws ShapeError when the output does not hold noise, and variances where the loss needs them */
  loss(output: Tensor, { x0, eps, times }: Noised): Loss {
    const C = x0.shape[1];
    const wanted = this.terms === "mse" ? [C, 2 * C] : [2 * C];
    if (!wanted.includes(output.shape[1]))
      throw new ShapeError(
        `iddpm: loss "${this.terms}" needs ${wanted.join(" or ")} output channels for latents ${list(x0.shape)}: got ${list(output.shape)}.`,
      );
    const [predicted, v] = output.shape[1] === C ? [output] : split(output, [C, C], 1); // [B, C, T, H, W] each
    const error = sub(predicted, eps); // [B, C, T, H, W]
    if (this.terms === "vb") {
      const vb = variationalBound(this.tables, v, error, x0, times).mul(this.tables.steps); // [B]
      return { loss: mean(vb), parts: { vb } };
    }
    const mse = perSample(square(error)); // [B]
    if (this.terms === "mse") return { loss: mean(mse), parts: { mse } };
    const vb = variationalBound(this.tables, v, error.detach(), x0, times); // [B]
    return { loss: mean(add(mse, vb)), parts: { mse, vb } };
  }
}
