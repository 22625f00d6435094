import type { Config } from "./config.js";
import type { Sprites } from "./data/compose.js";
import type { Dataset } from "./data/dataset.js";
import { FolderDataset } from "./data/folder.js";
import { MixedDataset } from "./data/mixed.js";
import type { Skips } from "./data/rows.js";
import { loadSprites } from "./data/sprites.js";
import { WorldDataset } from "./data/stream.js";
import { type World, world } from "./data/world.js";

/** Where the clips of a run come from. */
export interface Source {
  dataset: Dataset;
  /** For composed clips: what they are composed of. Judges and captions of unseen combinations need it. */
  composed?: { world: World; sprites: Sprites };
  /** For recorded clips: what was left out so far. */
  skips?: Skips;
  /** Earlier clips that are mixed in. */
  replayed?: Source;
}

/** The world that a configuration names, at the configuration's size and number of frames. */
export function worldOf(config: Config): World {
  return world(config.data.world, { size: config.data.size, frames: config.data.frames });
}

/**
 * Opens the data of a configuration.
 * @throws DataError for an empty or unreadable set, ConfigError for an option that cannot be
 */
export async function openSource(config: Config): Promise<Source> {
  const { replay, data } = config;
  const source = await openData(config);
  if (replay.fraction === 0) return source;
  const kind = replay.clips ? "world" : /\.csv$/i.test(replay.folder!) ? "csv" : "folder";
  const old = await openData({
    ...config,
    data: { ...data, kind, world: replay.clips ?? data.world, path: replay.folder },
  });
  return {
    ...source,
    dataset: new MixedDataset(source.dataset, old.dataset, replay.fraction),
    replayed: old,
  };
}

async function openData(config: Config): Promise<Source> {
  const { data, run } = config;
  if (data.kind === "world") {
    const of = worldOf(config);
    const sprites = await loadSprites(of.classes);
    return {
      dataset: new WorldDataset(of, sprites, { seed: run.seed, imageFraction: data.imageFraction }),
      composed: { world: of, sprites },
    };
  }
  const dataset = await FolderDataset.open(data.path as string, {
    frames: data.frames,
    height: data.size,
    width: data.size,
    frameInterval: data.frameInterval,
    flip: data.flip,
    imageFraction: data.imageFraction,
    variants: data.variants,
    seed: run.seed,
  });
  return { dataset, skips: dataset.skips };
}
