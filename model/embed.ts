import { cat, type DType, type Engine, ShapeError, slice, Tensor, to, where } from "../engine/index.js";
import { type Init, normal } from "./init.js";
import { Linear, Mlp } from "./layers.js";
import { Module, type ModuleOptions } from "./module.js";

/** Writes [sin(p ω_0) …, cos(p ω_0) …], ω_k = 10000^(-k / (width / 2)), into `out` at `at`. */
function writeSinCos(out: Float32Array, at: number, width: number, position: number): void {
  const half = width / 2;
  for (let k = 0; k < half; k++) {
    const angle = position * 10000 ** (-k / half);
    out[at + k] = Math.sin(angle);
    out[at + half + k] = Math.cos(angle);
  }
}

/**
 * Positions of a grid of patches, [rows * columns, width] row by row: the first half of a row encodes the column, the
 * second half the row, each divided by `scale`. Computed in float64.
 * @throws ShapeError when the width does not split into sines and cosines of both
 */
export function posTable2d(width: number, rows: number, columns: number, scale = 1): Float32Array {
  if (width % 4 !== 0)
    throw new ShapeError(
      `posTable2d: the width must be a multiple of 4: got ${width}; two halves of sines and cosines each.`,
    );
  const out = new Float32Array(rows * columns * width);
  for (let i = 0; i < rows; i++)
    for (let j = 0; j < columns; j++) {
      const at = (i * columns + j) * width;
      writeSinCos(out, at, width / 2, j / scale);
      writeSinCos(out, at + width / 2, width / 2, i / scale);
    }
  return out;
}

/** Positions of frames, [frames, width], each divided by `scale`. Computed in float64. */
export function posTable1d(width: number, frames: number, scale = 1): Float32Array {
  if (width % 2 !== 0)
    throw new ShapeError(`posTable1d: the width must be even: got ${width}; it holds sines and cosines.`);
  const out = new Float32Array(frames * width);
  for (let t = 0; t < frames; t++) writeSinCos(out, t * width, width, t / scale);
  return out;
}

/** Width of the sinusoidal timestep code. */
const CODE = 256;
const frequency = (k: number): number => Math.exp((-Math.log(10000) * k) / (CODE / 2));

/** What a model takes as its timestep: times [B], on the host (exact) or the GPU, or their codes [B, 256]. */
export type Times = ArrayLike<number> | Tensor;

/** [cos(t f_0) …, sin(t f_0) …] of each time, [times, 256] on the host, f_k = 10000^(-k / 128). Computed in float64. */
export function timestepCode(times: ArrayLike<number>): Float32Array {
  const half = CODE / 2;
  const out = new Float32Array(times.length * CODE);
  for (let i = 0; i < times.length; i++)
    for (let k = 0; k < half; k++) {
      const angle = times[i] * frequency(k);
      out[i * CODE + k] = Math.cos(angle);
      out[i * CODE + half + k] = Math.sin(angle);
    }
  return out;
}

/**
 * The same code for times on the GPU, [B] f32 to [B, 256]. Angles reach 1000 radians, where GPU sines are poor and f32
 * is coarse: turns are counted with frequencies split in two, so that the large part of the product is exact.
 */
export function timestepCodeOf(times: Tensor): Tensor {
  const { engine } = times;
  const half = CODE / 2;
  const high = new Float32Array(half);
  const low = new Float32Array(half);
  for (let k = 0; k < half; k++) {
    const turns = frequency(k) / (2 * Math.PI);
    // 12 bits: their product with a time of up to 12 bits is exact in f32.
    const unit = 2 ** (Math.floor(Math.log2(turns)) - 11);
    high[k] = Math.round(turns / unit) * unit;
    low[k] = turns - high[k];
  }
  return engine.noGrad(() => {
    const t = to(times, "f32").reshape([times.size, 1]); // [B, 1]
    const whole = t.mul(engine.tensor(high)); // [B, 128]
    const turns = whole.sub(whole.round()).addcmul(t, engine.tensor(low)); // [B, 128]
    const angle = turns.sub(turns.round()).mul(2 * Math.PI); // [B, 128] in [-π, π]
    return cat([angle.cos(), angle.sin()], 1); // [B, 256]
  });
}

/** The exact codes of times [B] on the GPU, [B, 256]: an input for functions that are compiled once for all times. */
export const timestepCodes = (engine: Engine, times: ArrayLike<number>): Tensor =>
  engine.tensor(timestepCode(times), [times.length, CODE]);

const isCode = (times: Tensor): boolean => times.rank === 2 && times.shape[1] === CODE;
const codeOf = (times: Tensor): Tensor => (isCode(times) ? times : timestepCodeOf(times)); // [B, 256]

export const countTimes = (times: Times): number =>
  times instanceof Tensor ? (isCode(times) ? times.shape[0] : times.size) : times.length;

/** A time of the 1000-step scale to a vector: sinusoidal code, Linear, SiLU, Linear. */
export class TimestepEmbedder extends Module {
  static override readonly names = { linear1: "mlp.0", linear2: "mlp.2" };
  readonly linear1: Linear;
  readonly linear2: Linear;

  constructor(engine: Engine, width: number, options: ModuleOptions = {}) {
    super(engine);
    const { key } = options;
    this.linear1 = new Linear(engine, CODE, width, { ...options, weightInit: normal(0.02), key: key?.fold(0) });
    this.linear2 = new Linear(engine, width, width, { ...options, weightInit: normal(0.02), key: key?.fold(1) });
  }

  /** To [B, C]. */
  forward(times: Times): Tensor {
    const code = times instanceof Tensor ? codeOf(times) : timestepCodes(this.engine, times); // [B, 256]
    const h = this.linear1.forward(to(code, this.linear1.bias!.dtype), "silu"); // [B, C]
    return this.linear2.forward(h); // [B, C]
  }
}

/** Options of a caption embedder. */
export interface CaptionOptions extends ModuleOptions {
  /** Default N(0, 0.02). */
  weightInit?: Init;
}

/**
 * Caption vectors to the model's width, and the null caption that stands for "no prompt": a fixed buffer that is never
 * trained. A dropped caption keeps its own mask, so it sees as many null rows as it had words.
 */
export class CaptionEmbedder extends Module {
  static override readonly names = { yProj: "y_proj", yEmbedding: "y_embedding" };
  readonly yProj: Mlp;
  /** [L, D] */
  readonly yEmbedding: Tensor;

  constructor(engine: Engine, channels: number, width: number, length: number, options: CaptionOptions = {}) {
    super(engine);
    const { weightInit = normal(0.02), key, dtype = "f32" } = options;
    this.yProj = new Mlp(engine, channels, width, width, { weightInit, dtype, key: key?.fold(0) });
    const shape = [length, channels];
    const std = 1 / Math.sqrt(channels);
    this.yEmbedding = this.buffer(
      key ? engine.noGrad(() => normal(std)(engine, shape, key.fold(1), dtype)) : engine.empty(shape, dtype, "buffer"),
    );
  }

  /**
   * [B, L, D] to [B, L, C].
   * @param drop [B], nonzero where the caption is replaced by the null caption; host numbers or u32
   * @param dtype to compute in, by default that of the weights
   */
  forward(y: Tensor, drop?: ArrayLike<number> | Tensor, dtype: DType = this.yEmbedding.dtype): Tensor {
    const given = to(y, this.yEmbedding.dtype); // [B, L, D]
    const kept = drop === undefined ? given : this.replace(given, drop); // [B, L, D]
    return this.yProj.forward(to(kept, dtype)); // [B, L, C]
  }

  private replace(y: Tensor, drop: ArrayLike<number> | Tensor): Tensor {
    const [B, L] = y.shape;
    const size = drop instanceof Tensor ? drop.size : drop.length;
    if (size !== B) throw new ShapeError(`drop: needs one value a caption: got ${size} for ${B}.`);
    if (!(drop instanceof Tensor) && !Array.from(drop).some((d) => d !== 0)) return y;
    const flags =
      drop instanceof Tensor ? to(drop, "u32") : this.engine.tensor(Uint32Array.from(drop, (d) => (d === 0 ? 0 : 1)));
    return where(flags.reshape([B, 1, 1]), this.rows(L).unsqueeze(0), y); // [B, L, D]
  }

  /** The null caption for a batch, [B, L, D]: a view. `length` rows of it, default all. */
  nullCaption(batch: number, length = this.yEmbedding.shape[0]): Tensor {
    return this.rows(length).unsqueeze(0).expand([batch, -1, -1]); // [B, L, D]
  }

  private rows(length: number): Tensor {
    const [most] = this.yEmbedding.shape;
    if (length > most)
      throw new ShapeError(`null caption: has ${most} rows: got captions of length ${length}; cut them to ${most}.`);
    return length === most ? this.yEmbedding : slice(this.yEmbedding, 0, 0, length); // [L, D]
  }
}
