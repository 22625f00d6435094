import {
  ConfigError,
  checkOptions,
  clamp,
  EspalierError,
  Key,
  normal,
  type Shape,
  ShapeError,
  stack,
  type Tensor,
} from "../../engine/index.js";
import type { Codec } from "../codec.js";
import type { LoadReport } from "../state.js";
import { encodeVaeConfig, type VaeConfig } from "./config.js";
import { type AutoencoderKL, latentShapeOf, type VaeParts } from "./vae.js";

/** Options of a codec over an autoencoder. */
export interface VaeCodecOptions extends VaeParts {
  /** Take the mode of each distribution instead of a sample. Default false. */
  mode?: boolean;
  /** Decides the samples where `encode` is given no keys. Default 0. */
  seed?: number;
  /** Write all weights into model files. Default: when they are at most 4 MB. */
  embed?: boolean;
  /** Tells the weights apart from others of the same sizes; needed where they are not embedded. */
  fingerprint?: string;
}

const OPTIONS = ["mode", "seed", "embed", "fingerprint", "framesAtOnce", "tile", "overlap"];

/** Bytes of weights that travel in every model file without being asked for. */
const EMBEDDED = 4_000_000;

const list = (shape: Shape) => `[${shape.join(", ")}]`;

/** @throws ConfigError for an autoencoder of other than colour pictures */
export function checkColours({ inChannels, outChannels }: VaeConfig): void {
  if (inChannels !== 3 || outChannels !== 3)
    throw new ConfigError(
      `vae codec: a codec of videos needs an autoencoder of 3 colours: its pictures have ${inChannels} channels and come back with ${outChannels}.`,
    );
}

/**
 * Videos by an autoencoder of pictures: each frame on its own. The autoencoder is not trained any more and belongs to
 * the codec.
 */
export class VAECodec implements Codec {
  readonly channels: number;
  readonly fingerprint: string | undefined;
  /** What was found in the files that it was opened from. */
  report: LoadReport | undefined;
  private readonly options: VaeCodecOptions;
  private readonly embed: boolean;

  /** @throws ConfigError for an option that cannot be */
  constructor(
    readonly vae: AutoencoderKL,
    options: VaeCodecOptions = {},
  ) {
    checkOptions("vae codec", options, OPTIONS);
    checkColours(vae.config);
    this.channels = vae.config.latentChannels;
    this.options = options;
    this.fingerprint = options.fingerprint;
    this.embed = options.embed ?? vae.parameters().reduce((n, p) => n + p.bytes, 0) <= EMBEDDED;
    if (!this.embed && !options.fingerprint)
      throw new ConfigError(
        "vae codec: weights that are not written into model files need a fingerprint; open them with openVae, or give embed: true.",
      );
    // A seed that cannot be must not wait for the first batch.
    Key.from(options.seed ?? 0);
    vae.setRequiresGrad(false);
  }

  latentShape(video: Shape): [number, number, number, number, number] {
    return latentShapeOf(this.vae.config, video);
  }

  private get parts(): VaeParts {
    const { framesAtOnce, tile, overlap } = this.options;
    return { framesAtOnce, tile, overlap };
  }

  /**
   * [B, 3, T, H, W] in [-1, 1] to a scaled latent [B, C, T, h, w], f32.
   * @param keys one for each clip: the same clip under the same key has the same latent, whatever else is in the batch.
   *   Default: by the codec's seed and the clip's place in the batch. The mode needs none.
   */
  encode(video: Tensor, keys?: readonly Key[]): Tensor {
    const shape = this.latentShape(video.shape);
    const [B, C, T, h, w] = shape;
    const [, , , H, W] = video.shape;
    const { vae, options } = this;
    const { engine } = vae;
    if (keys && keys.length !== B)
      throw new EspalierError(`vae codec: needs one key for each of ${B} clips: got ${keys.length}.`);
    return engine.scope(() => {
      const frames = video.permute([0, 2, 1, 3, 4]).reshape([B * T, 3, H, W]); // [B·T, 3, H, W]
      const moments = vae.encode(frames, this.parts); // [B·T, C, h, w] each
      let eps: Tensor | undefined;
      if (!options.mode) {
        const seed = Key.from(options.seed ?? 0);
        const own = Array.from({ length: B }, (_, i) => normal(engine, keys?.[i] ?? seed.fold(i), [T, C, h, w]));
        eps = stack(own).reshape([B * T, C, h, w]); // [B·T, C, h, w]
      }
      const z = vae.latent(moments, eps).reshape([B, T, C, h, w]); // [B, T, C, h, w]
      return z.permute([0, 2, 1, 3, 4]).contiguous(); // [B, C, T, h, w]
    });
  }

  /** [B, C, T, h, w] to [B, 3, T, H, W] in [-1, 1]. */
  decode(latent: Tensor): Tensor {
    if (latent.rank !== 5 || latent.shape[1] !== this.channels)
      throw new ShapeError(`vae codec: a latent must be [B, ${this.channels}, T, h, w]: got ${list(latent.shape)}.`);
    const [B, C, T, h, w] = latent.shape;
    const { vae } = this;
    const { factor } = vae;
    return vae.engine.scope(() => {
      const frames = latent.permute([0, 2, 1, 3, 4]).reshape([B * T, C, h, w]); // [B·T, C, h, w]
      const x = clamp(vae.decode(frames, this.parts), -1, 1).reshape([B, T, 3, h * factor, w * factor]); // [B, T, 3, H, W]
      return x.permute([0, 2, 1, 3, 4]).contiguous(); // [B, 3, T, H, W]
    });
  }

  /** Weights where they are embedded; otherwise what tells which autoencoder it was. */
  state(): ReturnType<Codec["state"]> {
    const { mode = false, seed = 0 } = this.options;
    return {
      tensors: this.embed ? this.vae.stateDict() : {},
      info: {
        type: "vae",
        embedded: this.embed,
        ...(this.fingerprint !== undefined && { fingerprint: this.fingerprint }),
        mode,
        seed,
        config: encodeVaeConfig(this.vae.config),
      },
    };
  }

  dispose(): void {
    this.vae.dispose();
  }
}
