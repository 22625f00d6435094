import { createHash } from "node:crypto";
import { AbortedError, ConfigError, type Engine, Key, Tensor } from "../../engine/index.js";
import type { Codec } from "../../model/codec.js";
import { encodeFloat32 } from "../../model/safetensors.js";
import type { Dataset, Sample } from "../data/dataset.js";
import type { FolderDataset, Take } from "../data/folder.js";
import { CacheStore, keyOf, type StoreOptions } from "./store.js";

/**
 * What tells a codec apart from others: its kind and its numbers, or the fingerprint of an autoencoder. The same codec
 * in another file has the same.
 */
export async function codecFingerprint(codec: Codec): Promise<string> {
  const { tensors, info } = codec.state();
  // Where the weights lie says nothing of what they are.
  const { embedded: _, location: __, ...said } = info as Record<string, unknown>;
  const hash = createHash("sha256").update(JSON.stringify(said));
  if (said.fingerprint === undefined)
    for (const name of Object.keys(tensors).sort()) {
      const t = tensors[name];
      const numbers = t instanceof Tensor ? await t.data() : t.data;
      hash.update(`${name} ${t.shape} `).update(encodeFloat32(Float32Array.from(numbers as ArrayLike<number>), "F32"));
    }
  return `${said.type} ${hash.digest("hex").slice(0, 16)}`;
}

/**
 * Recorded clips as latents: each variant of each clip is encoded once and then read from a cache, without decoding the
 * video. Sample i is the latent of the set's sample i. A set needs `variants`: endless cuts could not be kept.
 */
export class LatentDataset implements Dataset {
  readonly frames: number;
  readonly height: number;
  readonly width: number;
  /** Latents that had to be encoded so far. */
  encoded = 0;
  private working: Promise<unknown> = Promise.resolve();

  private constructor(
    private readonly clips: FolderDataset,
    private readonly store: CacheStore,
    private readonly engine: Engine,
    private readonly codec: Codec,
    readonly latentShape: readonly [number, number, number, number],
  ) {
    this.frames = clips.frames;
    this.height = clips.height;
    this.width = clips.width;
  }

  /**
   * @param root the cache's folder
   * @throws ConfigError for a set without variants, ShapeError for clips that the codec cannot encode
   */
  static async open(
    root: string,
    clips: FolderDataset,
    engine: Engine,
    codec: Codec,
    options: StoreOptions = {},
  ): Promise<LatentDataset> {
    if (clips.variants === 0)
      throw new ConfigError(
        "cache: latents of clips that are cut anew each time cannot be kept: variants is 0; give the set variants from 1",
      );
    const [, ...shape] = codec.latentShape([1, 3, clips.frames, clips.height, clips.width]);
    const fingerprint = await codecFingerprint(codec);
    const store = await CacheStore.open(root, { kind: "latents", fingerprint }, options);
    store.describe({});
    return new LatentDataset(clips, store, engine, codec, shape as [number, number, number, number]);
  }

  get size(): number {
    return this.clips.size;
  }

  /** Where latents are kept. */
  get folder(): string {
    return this.store.folder;
  }

  /** The clip's caption and, in place of its video, its latent [C, T, h, w]. */
  sample(index: number): Promise<Sample> {
    return this.clips.take(index, async (take) => {
      const key = keyOf(await this.clips.identity(take));
      const latent = (await this.kept(key)) ?? (await this.add(key, take));
      const { frames, height, width } = this;
      return { video: latent, caption: take.row.caption, frames, height, width };
    });
  }

  /**
   * Encodes every variant of every clip that is not kept yet.
   * @param onDone is told how many of all are done
   * @throws AbortedError where the signal says so; what was encoded is kept
   */
  async fill(onDone: (done: number, all: number) => void = () => {}, signal?: AbortSignal): Promise<void> {
    const all = this.clips.listed * this.clips.variants;
    for (let i = 0; i < all; i++) {
      if (signal?.aborted) {
        await this.store.flush();
        throw new AbortedError(`encode: stopped after ${i} of ${all} clips; the same command goes on after them`);
      }
      await this.clips.take(i, async (take) => {
        const key = keyOf(await this.clips.identity(take));
        if (!this.store.has(key)) await this.add(key, take);
      });
      onDone(i + 1, all);
    }
    await this.store.flush();
  }

  /** Keeps other processes from encoding the same until `close`. Throws ConfigError when one does. */
  hold(): Promise<void> {
    return this.store.hold();
  }

  /** Writes new latents; the codec belongs to whoever opened it. */
  close(): Promise<void> {
    return this.store.close();
  }

  private async kept(key: string): Promise<Float32Array | undefined> {
    const entry = this.store.has(key) ? await this.store.get(key) : undefined;
    return entry?.tensors.latent.data;
  }

  /** Encodes a clip and keeps its latent, one at a time. Read back: as rounded as it will be the next time. */
  private add(key: string, take: Take): Promise<Float32Array> {
    const work = this.working
      .catch(() => {})
      .then(async () => {
        const there = await this.kept(key);
        if (there) return there;
        const { video, frames, height, width } = await take.cut();
        const data = await this.encode(video, [1, 3, frames, height, width], key);
        this.encoded++;
        await this.store.put(key, { tensors: { latent: { shape: [...this.latentShape], data } } });
        return (await this.kept(key))!;
      });
    this.working = work;
    return work;
  }

  private async encode(video: Float32Array, shape: number[], key: string): Promise<Float32Array> {
    const { engine, codec } = this;
    await codec.open?.();
    const latent = engine.noGrad(() =>
      engine.scope(() => {
        const x = engine.tensor(video, shape); // [1, 3, T, H, W]
        // A distribution is sampled by the clip's own key, so that each variant has a draw of its own.
        return codec.encode(x, [Key.parse(key.slice(0, 16))]); // [1, C, T, h, w]
      }),
    );
    return (await latent.data().finally(() => latent.dispose())) as Float32Array;
  }
}
