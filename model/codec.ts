import {
  ConfigError,
  clamp,
  type Engine,
  type Key,
  linear,
  type Shape,
  ShapeError,
  type Tensor,
} from "../engine/index.js";
import type { HostTensor } from "./state.js";

/** Turns videos into latents and back. Its numbers travel in the model's checkpoint. */
export interface Codec {
  /** Reads the weights of a codec that lies elsewhere; must have ended before the first `encode` or `decode`. */
  open?(): Promise<void>;
  /** Channels of a latent. */
  readonly channels: number;
  /**
   * The latent's shape of a video's shape [B, 3, T, H, W].
   * @throws ShapeError when the codec cannot encode such a video
   */
  latentShape(video: Shape): [batch: number, channels: number, frames: number, rows: number, columns: number];
  /**
   * [B, 3, T, H, W] in [-1, 1] to a latent, f32.
   * @param keys one for each clip, for codecs whose latents are samples; others take no notice
   */
  encode(video: Tensor, keys?: readonly Key[]): Tensor;
  /** A latent to [B, 3, T, H, W] in [-1, 1]. */
  decode(latent: Tensor): Tensor;
  /** Numbers by name, and what they mean, as checkpoints hold them. */
  state(): { tensors: Record<string, HostTensor | Tensor>; info: Record<string, unknown> };
  dispose(): void;
}

const list = (shape: Shape) => `[${shape.join(", ")}]`;

function checkVideo(name: string, shape: Shape): void {
  if (shape.length !== 5 || shape[1] !== 3)
    throw new ShapeError(`${name}: a video must be [B, 3, T, H, W]: got ${list(shape)}.`);
}

/** The video itself as its latent, for models of pixels. */
export class PixelCodec implements Codec {
  readonly channels = 3;

  latentShape(video: Shape): [number, number, number, number, number] {
    checkVideo("pixels", video);
    const [B, , T, H, W] = video;
    return [B, 3, T, H, W];
  }
  encode(video: Tensor): Tensor {
    checkVideo("pixels", video.shape);
    return video; // [B, 3, T, H, W]
  }
  decode(latent: Tensor): Tensor {
    checkVideo("pixels", latent.shape);
    return clamp(latent, -1, 1); // [B, 3, T, H, W]
  }
  state(): ReturnType<Codec["state"]> {
    return { tensors: {}, info: { type: "pixels" } };
  }
  dispose(): void {}
}

/** The numbers of a linear patch codec: z_j = basis_j · (patch - mean) / scale_j. */
export interface PatchBasis {
  /** Side of a patch in pixels; a patch is a vector in the order row, column, channel. */
  patch: number;
  channels: number;
  /** [patch · patch · 3] */
  mean: Float32Array;
  /** [patch · patch · 3, channels] row-major; columns are orthonormal. */
  basis: Float32Array;
  /** [channels] */
  scale: Float32Array;
}

/**
 * Principal components of square patches of each frame: a video [B, 3, T, H, W] becomes [B, k, T, H/p, W/p] by one
 * product each way. Nothing is trained; mean, basis and scale must stay those that the model was trained with.
 */
export class PCACodec implements Codec {
  readonly channels: number;
  readonly patch: number;
  private readonly encoder: { weight: Tensor; bias: Tensor };
  private readonly decoder: { weight: Tensor; bias: Tensor };

  /** @throws ConfigError when sizes of the numbers disagree */
  constructor(
    engine: Engine,
    readonly numbers: PatchBasis,
  ) {
    const { patch, channels: k, mean, basis, scale } = numbers;
    const n = patch * patch * 3;
    if (!(Number.isInteger(patch) && patch >= 1) || mean.length !== n || scale.length !== k || basis.length !== n * k)
      throw new ConfigError(
        `pca codec: sizes disagree: patch ${patch} and ${k} channels need mean [${n}], basis [${n}, ${k}] and scale [${k}]: got ${mean.length}, ${basis.length} and ${scale.length} numbers.`,
      );
    this.channels = k;
    this.patch = patch;
    const into = new Float64Array(k * n);
    const from = new Float64Array(n * k);
    const shift = new Float64Array(k);
    for (let i = 0; i < n; i++)
      for (let j = 0; j < k; j++) {
        into[j * n + i] = basis[i * k + j] / scale[j];
        from[i * k + j] = basis[i * k + j] * scale[j];
        shift[j] -= mean[i] * into[j * n + i];
      }
    const hold = (data: ArrayLike<number>, shape: Shape) => {
      const t = engine.tensor(data, shape).keep();
      t.storage.owned.owner = "buffers";
      return t;
    };
    this.encoder = { weight: hold(into, [k, n]), bias: hold(shift, [k]) };
    this.decoder = { weight: hold(from, [n, k]), bias: hold(mean, [n]) };
  }

  latentShape(video: Shape): [number, number, number, number, number] {
    checkVideo("pca codec", video);
    const { patch } = this;
    const [B, , T, H, W] = video;
    if (H % patch || W % patch)
      throw new ShapeError(
        `pca codec: height and width must be multiples of the patch: got ${H} x ${W} with patch ${patch}; take ${Math.ceil(H / patch) * patch} x ${Math.ceil(W / patch) * patch}.`,
      );
    return [B, this.channels, T, H / patch, W / patch];
  }

  encode(video: Tensor): Tensor {
    const [B, k, T, h, w] = this.latentShape(video.shape);
    const p = this.patch;
    const cut = video.reshape([B, 3, T, h, p, w, p]).permute([0, 2, 3, 5, 4, 6, 1]); // [B, T, h, w, p, p, 3]
    const rows = cut.reshape([B, T, h, w, p * p * 3]); // [B, T, h, w, p·p·3]
    const z = linear(rows, this.encoder.weight, this.encoder.bias); // [B, T, h, w, k]
    return z.permute([0, 4, 1, 2, 3]).contiguous().reshape([B, k, T, h, w]); // [B, k, T, h, w]
  }

  decode(latent: Tensor): Tensor {
    if (latent.rank !== 5 || latent.shape[1] !== this.channels)
      throw new ShapeError(`pca codec: a latent must be [B, ${this.channels}, T, h, w]: got ${list(latent.shape)}.`);
    const [B, , T, h, w] = latent.shape;
    const p = this.patch;
    const rows = linear(latent.permute([0, 2, 3, 4, 1]), this.decoder.weight, this.decoder.bias); // [B, T, h, w, p·p·3]
    const cut = clamp(rows, -1, 1).reshape([B, T, h, w, p, p, 3]); // [B, T, h, w, p, p, 3]
    return cut.permute([0, 6, 1, 2, 4, 3, 5]).reshape([B, 3, T, h * p, w * p]); // [B, 3, T, H, W]
  }

  state(): ReturnType<Codec["state"]> {
    const { patch, channels: k, mean, basis, scale } = this.numbers;
    const n = patch * patch * 3;
    return {
      tensors: {
        mean: { shape: [n], data: mean },
        basis: { shape: [n, k], data: basis },
        scale: { shape: [k], data: scale },
      },
      info: {
        type: "pca",
        patch,
        order: `row, column, channel within a ${patch}x${patch} RGB patch`,
        encode: "(patch - mean) @ basis / scale",
        decode: "(z * scale) @ basis^T + mean, clamped to [-1,1]",
      },
    };
  }

  dispose(): void {
    for (const { weight, bias } of [this.encoder, this.decoder]) {
      weight.dispose();
      bias.dispose();
    }
  }
}
