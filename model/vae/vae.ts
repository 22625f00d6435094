import {
  add,
  cat,
  chunk,
  clamp,
  type DType,
  type Engine,
  EspalierError,
  exp,
  type Key,
  mul,
  normal,
  OutOfMemoryError,
  type Shape,
  ShapeError,
  type Tensor,
  to,
} from "../../engine/index.js";
import type { Conv2d } from "../layers.js";
import { Module, type ModuleOptions } from "../module.js";
import type { LoadOptions, LoadReport, StateSource } from "../state.js";
import { StateView, viewOf } from "../view.js";
import { conv } from "./blocks.js";
import { VaeDecoder, VaeEncoder } from "./coders.js";
import { type VaeConfig, vaeConfig } from "./config.js";
import { checkTiles, inTiles, type TileSizes } from "./tiles.js";

/** A normal distribution for each number of a latent, f32, not scaled yet. */
export interface Moments {
  /** [N, latentChannels, h, w] */
  mean: Tensor;
  /** Logarithm of the variance, within [-30, 20]: [N, latentChannels, h, w]. */
  logvar: Tensor;
}

/** How many pictures run at once, and in what tiles. */
export interface VaeParts {
  /** Pictures that run at once. Default: as many as keep the largest tensor within 128 MiB. */
  framesAtOnce?: number;
  /** Side of a tile in pixels; larger pictures are cut. Default: never cut. */
  tile?: number;
  /** Pixels that neighbouring tiles share, where one fades into the other. Default a quarter of a tile. */
  overlap?: number;
}

/** Bytes of the largest tensor that a default number of pictures may have. */
const AT_ONCE = 128 << 20;

/** Old names of the attention's four linear layers, before diffusers 0.15. */
const OLD_NAMES: Readonly<Record<string, string>> = {
  query: "to_q",
  key: "to_k",
  value: "to_v",
  proj_attn: "to_out.0",
};

/**
 * The autoencoder of latent diffusion (https://arxiv.org/abs/2112.10752): pictures [N, 3, H, W] in [-1, 1] to latents
 * that are smaller by 2^(levels - 1), and back. Names are those of diffusers' AutoencoderKL.
 */
export class AutoencoderKL extends Module {
  static override readonly names = { quantConv: "quant_conv", postQuantConv: "post_quant_conv" };
  readonly config: VaeConfig;
  readonly encoder: VaeEncoder;
  readonly decoder: VaeDecoder;
  readonly quantConv?: Conv2d;
  readonly postQuantConv?: Conv2d;

  /** @throws ConfigError for a configuration that cannot be */
  constructor(engine: Engine, config: Partial<VaeConfig> = {}, { key, dtype }: ModuleOptions = {}) {
    super(engine);
    this.config = vaeConfig(config);
    const { latentChannels: c, quantConv, postQuantConv } = this.config;
    const own = (n: number) => ({ key: key?.fold(n), dtype });
    this.encoder = new VaeEncoder(engine, this.config, own(0));
    this.decoder = new VaeDecoder(engine, this.config, own(1));
    if (quantConv) this.quantConv = conv(engine, 2 * c, 2 * c, 1, own(2));
    if (postQuantConv) this.postQuantConv = conv(engine, c, c, 1, own(3));
  }

  /** Pixels along a side of a latent's cell. */
  get factor(): number {
    return factorOf(this.config);
  }
  private get dtype(): DType {
    return this.encoder.convIn.weight.dtype;
  }

  /** Bytes of the largest tensor of a picture's run. */
  private largest(height: number, width: number): number {
    const { channels } = this.config;
    // The decoder doubles the size before it takes channels away.
    const each = channels.map((c, i) => Math.max(c, channels[i + 1] ?? 0) * (height >> i) * (width >> i));
    return Math.max(...each) * (this.dtype === "f16" ? 2 : 4);
  }

  /** Runs `f` on so many items of the first axis at once; the results are joined. */
  private inParts(x: Tensor, atOnce: number, f: (x: Tensor) => Tensor): Tensor {
    const N = x.shape[0];
    if (N <= atOnce) return f(x);
    const { engine } = this;
    return engine.scope(() =>
      cat(
        Array.from({ length: Math.ceil(N / atOnce) }, (_, i) =>
          engine.scope(() => f(x.slice(0, i * atOnce, Math.min(N, (i + 1) * atOnce)))),
        ),
      ),
    );
  }

  /** What `parts` says, checked, for pictures of a size. */
  private plan(parts: VaeParts, height: number, width: number): { atOnce: number; tiles: TileSizes | undefined } {
    const { tile, overlap, framesAtOnce } = parts;
    const { factor } = this;
    if (framesAtOnce !== undefined && !(Number.isInteger(framesAtOnce) && framesAtOnce >= 1))
      throw new EspalierError(`vae: framesAtOnce must be a whole number from 1: got ${framesAtOnce}.`);
    if (overlap !== undefined && tile === undefined)
      throw new EspalierError(`vae: an overlap of ${overlap} needs tiles; give tile, the side of one in pixels, too.`);
    const tiles =
      tile === undefined
        ? undefined
        : { tile: tile / factor, overlap: overlap === undefined ? Math.floor(tile / factor / 4) : overlap / factor };
    if (tiles) checkTiles(tiles, factor);
    const side = (n: number) => Math.min(n, tile ?? n);
    const bytes = this.largest(side(height), side(width));
    const most = this.engine.limits.maxStorageBufferBindingSize;
    if (bytes > most)
      throw new OutOfMemoryError(
        `vae: pictures of ${side(height)} x ${side(width)} are too large to run whole: one tensor takes ${Math.ceil(bytes / 1e6)} MB and this adapter binds ${Math.floor(most / 1e6)}; give a smaller tile, such as ${this.config.sampleSize}.`,
      );
    return { atOnce: framesAtOnce ?? Math.max(1, Math.floor(Math.min(AT_ONCE, most) / bytes)), tiles };
  }

  /**
   * Pictures to the distributions of their latents.
   * @param x [N, inChannels, H, W]; H and W are multiples of `factor`
   * @throws ShapeError for pictures of another shape, ConfigError for tiles that cannot be
   */
  encode(x: Tensor, parts: VaeParts = {}): Moments {
    const { engine, factor } = this;
    const { inChannels } = this.config;
    if (x.rank !== 4 || x.shape[1] !== inChannels || x.shape.includes(0))
      throw new ShapeError(`vae: pictures must be [N, ${inChannels}, H, W], not empty: got [${x.shape.join(", ")}].`);
    const [, , H, W] = x.shape;
    checkSize(this.config, H, W);
    const { atOnce, tiles } = this.plan(parts, H, W);
    const whole = (t: Tensor): Tensor =>
      engine.scope(() => {
        const y = this.encoder.forward(to(t, this.dtype)); // [n, 2 · latent, h, w]
        return to(this.quantConv ? this.quantConv.forward(y) : y, "f32"); // [n, 2 · latent, h, w]
      });
    return engine.scope(() => {
      const moments = this.inParts(x, atOnce, (t) => (tiles ? inTiles(engine, t, tiles, factor, 1, whole) : whole(t))); // [N, 2 · latent, h, w]
      const [mean, logvar] = chunk(moments, 2, 1); // [N, latent, h, w] each
      return { mean, logvar: clamp(logvar, -30, 20) };
    });
  }

  /**
   * A scaled latent of each distribution: (mean + exp(logvar / 2) · eps - shift) · scaling factor; without `eps` the mean
   * (its mode) takes the place of a sample.
   * @param eps normal numbers of the moments' shape
   */
  latent({ mean, logvar }: Moments, eps?: Tensor): Tensor {
    const { scalingFactor, shiftFactor } = this.config;
    return this.engine.scope(() => {
      const z = eps ? add(mean, mul(exp(mul(logvar, 0.5)), eps)) : mean; // [N, latent, h, w]
      return mul(shiftFactor ? add(z, -shiftFactor) : z, scalingFactor); // [N, latent, h, w]
    });
  }

  /**
   * Scaled latents to pictures, f32, not limited to [-1, 1].
   * @param z [N, latentChannels, h, w]
   * @throws ShapeError for latents of another shape, ConfigError for tiles that cannot be
   */
  decode(z: Tensor, parts: VaeParts = {}): Tensor {
    const { engine, factor } = this;
    const { latentChannels, scalingFactor, shiftFactor } = this.config;
    if (z.rank !== 4 || z.shape[1] !== latentChannels || z.shape.includes(0))
      throw new ShapeError(
        `vae: a latent must be [N, ${latentChannels}, h, w], not empty: got [${z.shape.join(", ")}].`,
      );
    const { atOnce, tiles } = this.plan(parts, z.shape[2] * factor, z.shape[3] * factor);
    const whole = (t: Tensor): Tensor =>
      engine.scope(() => {
        const plain = mul(t, 1 / scalingFactor); // [n, latent, h, w]
        const x = to(shiftFactor ? add(plain, shiftFactor) : plain, this.dtype); // [n, latent, h, w]
        return to(this.decoder.forward(this.postQuantConv ? this.postQuantConv.forward(x) : x), "f32"); // [n, out, H, W]
      });
    return this.inParts(z, atOnce, (t) => (tiles ? inTiles(engine, t, tiles, 1, factor, whole) : whole(t)));
  }

  /**
   * Like `decode`, tile by tile: memory follows the tile, not the picture. Norms and the attention see a tile where they
   * would see the whole picture, so that values differ a little everywhere.
   * @param sizes tile: its side in pixels; overlap: pixels that neighbours share, default a quarter of it
   */
  decodeTiled(z: Tensor, sizes: { tile?: number; overlap?: number; framesAtOnce?: number } = {}): Tensor {
    return this.decode(z, { tile: this.config.sampleSize, ...sizes });
  }

  /** Like `encode`, tile by tile; see `decodeTiled`. */
  encodeTiled(x: Tensor, sizes: { tile?: number; overlap?: number; framesAtOnce?: number } = {}): Moments {
    return this.encode(x, { tile: this.config.sampleSize, ...sizes });
  }

  /**
   * There and back, for training: the pictures again, and the distributions in between.
   * @param key draws a sample of each latent; without it the mode is taken
   */
  forward(x: Tensor, key?: Key): Moments & { again: Tensor } {
    const moments = this.encode(x);
    const eps = key && normal(this.engine, key, moments.mean.shape);
    return { ...moments, again: this.decode(this.latent(moments, eps)) };
  }

  /** Loads a checkpoint by diffusers' names, those of its attention before version 0.15 too. */
  override loadStateDict(source: StateSource, options: LoadOptions = {}): Promise<LoadReport> {
    const { name, parts } = viewOf(source);
    const renamed = Array.from(parts, ([old, part]) => [newName(old), part] as const);
    return super.loadStateDict(new StateView(name, new Map(renamed)), options);
  }
}

/** Today's name of a checkpoint's tensor. */
export function newName(name: string): string {
  return name.replace(
    /(\.attentions\.\d+\.)(query|key|value|proj_attn)(?=\.)/,
    (_, before: string, old: string) => before + OLD_NAMES[old],
  );
}

/** Kullback-Leibler divergence from N(0, 1), averaged over all numbers of a latent: []. */
export function klDivergence({ mean, logvar }: Moments): Tensor {
  const each = mul(add(add(mul(mean, mean), exp(logvar)), add(mul(logvar, -1), -1)), 0.5); // [N, latent, h, w]
  return each.mean(); // []
}

/** Pixels to a latent position, each way. */
const factorOf = ({ channels }: VaeConfig): number => 2 ** (channels.length - 1);

function checkSize(config: VaeConfig, height: number, width: number): void {
  const factor = factorOf(config);
  if (height % factor || width % factor)
    throw new ShapeError(
      `vae: height and width must be multiples of ${factor}: got ${height} x ${width}; take ${Math.ceil(height / factor) * factor} x ${Math.ceil(width / factor) * factor}.`,
    );
}

/**
 * Shape of a latent of a video's shape, [B, 3, T, H, W].
 * @throws ShapeError for another number of axes or colours, or a height or width that is no multiple of the factor
 */
export function latentShapeOf(config: VaeConfig, video: Shape): [number, number, number, number, number] {
  if (video.length !== 5 || video[1] !== 3)
    throw new ShapeError(`vae codec: a video must be [B, 3, T, H, W]: got [${video.join(", ")}].`);
  const [B, , T, H, W] = video;
  checkSize(config, H, W);
  const factor = factorOf(config);
  return [B, config.latentChannels, T, H / factor, W / factor];
}
