import { ConfigError, type Engine, EspalierError, type Key, type Shape, type Tensor } from "../../engine/index.js";
import type { Codec } from "../codec.js";
import { FileError } from "../files/source.js";
import { checkColours, type VAECodec } from "./codec.js";
import { encodeVaeConfig, type VaeConfig } from "./config.js";
import { identifyVae, openVae } from "./open.js";
import { latentShapeOf } from "./vae.js";

/** How an autoencoder that lies elsewhere encodes. */
export interface ExternalVaeOptions {
  /** Take the mode of each distribution instead of a sample. Default false. */
  mode?: boolean;
  /** Decides the samples where `encode` is given no keys. Default 0. */
  seed?: number;
}

/**
 * An autoencoder that lies elsewhere, of which model files say where and which. Its sizes are known at once; its weights
 * are read by `open`, so that what has all latents already never reads them.
 */
export class ExternalVae implements Codec {
  readonly channels: number;
  private reading: Promise<void> | undefined;
  private codec: VAECodec | undefined;

  private constructor(
    private readonly engine: Engine,
    /** Where it was found, as it was given. */
    readonly location: string,
    readonly config: VaeConfig,
    readonly fingerprint: string,
    private readonly options: ExternalVaeOptions,
  ) {
    this.channels = config.latentChannels;
  }

  /**
   * Finds an autoencoder; headers and a few values of each tensor are read.
   * @param location what `openVae` takes: a folder as diffusers writes it, a pipeline's, or a file
   * @throws what `openVae` does, save for weights that do not fit the configuration
   */
  static async find(engine: Engine, location: string, options: ExternalVaeOptions = {}): Promise<ExternalVae> {
    const { config, fingerprint } = await identifyVae(location);
    checkColours(config);
    return new ExternalVae(engine, location, config, fingerprint, options);
  }

  /** Whether its weights were read. */
  get isOpened(): boolean {
    return this.codec !== undefined;
  }

  open(): Promise<void> {
    const { engine, location, fingerprint, options } = this;
    this.reading ??= openVae(engine, location, { ...options, embed: false }).then((codec) => {
      this.codec = codec;
      if (codec.fingerprint !== fingerprint)
        throw new EspalierError(`vae codec: ${location} changed since it was found; begin again.`);
    });
    return this.reading;
  }

  latentShape(video: Shape): [number, number, number, number, number] {
    return latentShapeOf(this.config, video);
  }

  /** [B, 3, T, H, W] in [-1, 1] to a scaled latent [B, C, T, h, w], f32; see `VAECodec.encode`. */
  encode(video: Tensor, keys?: readonly Key[]): Tensor {
    return this.need().encode(video, keys);
  }

  /** [B, C, T, h, w] to [B, 3, T, H, W] in [-1, 1]. */
  decode(latent: Tensor): Tensor {
    return this.need().decode(latent);
  }

  private need(): VAECodec {
    if (this.codec) return this.codec;
    throw new EspalierError(`vae codec: ${this.location} is not open; await its open() first.`);
  }

  /** Where it lies and what tells it apart. */
  state(): ReturnType<Codec["state"]> {
    const { location, fingerprint, config } = this;
    const { mode = false, seed = 0 } = this.options;
    const info = { type: "vae", embedded: false, location, fingerprint, mode, seed, config: encodeVaeConfig(config) };
    return { tensors: {}, info };
  }

  dispose(): void {
    this.codec?.dispose();
    this.codec = undefined;
    this.reading = undefined;
  }
}

/** Whether what a model file says of its codec is an autoencoder that lies elsewhere. */
export const isExternal = (info: Readonly<Record<string, unknown>> | undefined): boolean =>
  info?.type === "vae" && !info.embedded;

/**
 * The autoencoder that a model file refers to.
 * @param info what the file says of its codec; undefined where it says nothing
 * @param where takes the place of what the file says, such as a folder that lies elsewhere here
 * @returns undefined where neither says where it lies
 * @throws ConfigError when it is not there, or is another than the model was trained with
 */
export async function externalVaeOf(
  engine: Engine,
  info: Readonly<Record<string, unknown>> | undefined,
  where?: string,
): Promise<ExternalVae | undefined> {
  const location = where ?? (isExternal(info) ? info!.location : undefined);
  if (typeof location !== "string") return undefined;
  const { mode, seed, fingerprint } = (info ?? {}) as ExternalVaeOptions & { fingerprint?: string };
  const found = await ExternalVae.find(engine, location, { mode, seed }).catch((cause: Error) => {
    if (where !== undefined || !(cause instanceof FileError)) throw cause;
    throw new ConfigError(
      `codec: the autoencoder that the model's file names is not here: ${cause.message}; say where it lies (--codec).`,
      { cause },
    );
  });
  if (fingerprint !== undefined && fingerprint !== found.fingerprint)
    throw new ConfigError(
      `codec: the model was trained with the autoencoder ${fingerprint}: ${location} is ${found.fingerprint}; give the one that it was trained with (--codec).`,
    );
  return found;
}
