import { ConfigError } from "../../engine/errors.js";
import type { Dataset, Sample } from "./dataset.js";

/**
 * Two sets in one stream, so that a model that learns new clips goes on seeing old ones. A share of the samples, evenly
 * spread, comes from the second set: of 16 in a row with a share of 1/4, exactly 4. Sample i depends on i alone.
 */
export class MixedDataset implements Dataset {
  /** Of the first set. */
  readonly size: number;
  readonly frames: number;
  readonly height: number;
  readonly width: number;

  /**
   * @param fraction share of samples of `replayed`, above 0 and below 1
   * @throws ConfigError when the share is none or clips differ in size
   */
  constructor(
    private readonly fresh: Dataset,
    private readonly replayed: Dataset,
    private readonly fraction: number,
  ) {
    if (!(fraction > 0 && fraction < 1))
      throw new ConfigError(`replay: the share must lie above 0 and below 1: ${fraction}; 0.25 is usual`);
    const size = (d: Dataset) => `${d.frames} x ${d.height} x ${d.width}`;
    if (size(fresh) !== size(replayed))
      throw new ConfigError(
        `replay: clips must be of one size: ${size(fresh)} and ${size(replayed)}; give both the same frames and size`,
      );
    this.size = fresh.size;
    this.frames = fresh.frames;
    this.height = fresh.height;
    this.width = fresh.width;
  }

  sample(index: number): Sample | Promise<Sample> {
    const before = Math.floor(index * this.fraction);
    const isReplayed = Math.floor((index + 1) * this.fraction) > before;
    return isReplayed ? this.replayed.sample(before) : this.fresh.sample(index - before);
  }
}
