import { ConfigError } from "../../engine/errors.js";
import { compose, type Sprites } from "./compose.js";
import type { Dataset, Sample } from "./dataset.js";
import { drawsOf } from "./draws.js";
import { captionOf, combinations, type Spec, type World } from "./world.js";

// Streams of the counter-based generator: a number each, so that no two uses share draws.
const PICK = 0x57504943;

export interface WorldDatasetOptions {
  seed?: number;
  /** Which combinations to draw from; default "trained", which leaves out the held-out ones. */
  part?: "all" | "trained" | "heldOut";
  /** Share of samples that are images: one frame held for the whole clip, its caption without the motion. Default 0. */
  imageFraction?: number;
}

/** The share of image samples, checked. */
export function imageShare(subject: string, fraction: number): number {
  if (!(fraction >= 0 && fraction <= 1))
    throw new ConfigError(`${subject}: imageFraction must lie in 0..1: ${fraction}; 0 means clips only, 1 images only`);
  return fraction;
}

/** Makes every frame of a [3, T, H, W] clip equal to frame `t`, in place. */
export function holdFrame(video: Float32Array, t: number, frames: number): void {
  const area = video.length / 3 / frames;
  for (let c = 0; c < 3; c++) {
    const kept = video.slice((c * frames + t) * area, (c * frames + t + 1) * area);
    for (let other = 0; other < frames; other++) video.set(kept, (c * frames + other) * area);
  }
}

/** An endless stream of composed clips of a world. Sample i depends on (seed, i) alone. */
export class WorldDataset implements Dataset {
  readonly size = Number.POSITIVE_INFINITY;
  readonly frames: number;
  readonly height: number;
  readonly width: number;
  /** The combinations that samples are drawn from. */
  readonly specs: readonly Spec[];
  private readonly seed: number;
  private readonly imageFraction: number;

  /** @throws ConfigError when no combination is left or imageFraction is no share */
  constructor(
    readonly world: World,
    private readonly sprites: Sprites,
    options: WorldDatasetOptions = {},
  ) {
    const { seed = 0, part = "trained", imageFraction = 0 } = options;
    this.seed = seed;
    this.imageFraction = imageShare("world", imageFraction);
    this.specs = combinations(world, part);
    if (this.specs.length === 0)
      throw new ConfigError(
        `world: no combination is left: part "${part}" of ${world.name} is empty; add classes or colours`,
      );
    this.frames = world.frames;
    this.height = world.size;
    this.width = world.size;
  }

  sample(index: number): Sample {
    const draws = drawsOf(this.seed, index, PICK);
    const isImage = draws.next() < this.imageFraction;
    const held = draws.below(this.frames);
    const chosen = this.specs[draws.below(this.specs.length)];
    const video = compose(chosen, this.world, this.sprites, draws);
    const { motion, ...rest } = chosen;
    const spec: Spec = isImage ? rest : { ...rest, motion };
    if (isImage) holdFrame(video, held, this.frames);
    const { frames, height, width } = this;
    return { video, caption: captionOf(spec), frames, height, width, spec };
  }
}
