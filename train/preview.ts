import { writeFile } from "node:fs/promises";
import { sample } from "../model/pipeline.js";
import { captionOf, combinations } from "./data/world.js";
import { clipsOf, requestOf } from "./evaluate.js";
import { contactSheet, writeAnimatedWebp } from "./media.js";
import type { RunFolder } from "./run.js";
import type { Source } from "./source.js";
import type { TrainState } from "./state.js";
import type { EventLog } from "./tfevents.js";

/** Captions to watch while a model learns: unseen combinations, or the first captions of a recorded set. */
async function watched(source: Source, count: number): Promise<string[]> {
  if (source.composed) {
    const specs = combinations(source.composed.world, "heldOut");
    return Array.from({ length: Math.min(count, specs.length) }, (_, i) => captionOf(specs[i]));
  }
  const samples = Array.from({ length: Math.min(count, source.dataset.size) }, (_, i) => source.dataset.sample(i));
  return (await Promise.all(samples)).map((s) => s.caption);
}

/** Samples the watched captions with the averaged weights: a sheet of frames and the clips, in `samples/`. */
export async function sampleSheet(
  state: TrainState,
  source: Source,
  folder: RunFolder,
  events: EventLog,
): Promise<void> {
  const { setup, ema, step, config } = state;
  const prompts = await watched(source, Math.min(4, config.sample.count));
  const { data } = config;
  const size = { frames: data.frames, height: data.size, width: data.size };
  const { video, shape } = await ema.use(() =>
    sample(setup, { ...requestOf(config, prompts, config.run.seed, setup.model), ...size }),
  );
  const clips = clipsOf(video, shape);
  const name = `step-${String(step).padStart(6, "0")}`;
  const sheet = await contactSheet(clips);
  await writeFile(folder.file("samples", `${name}.png`), sheet);
  await Promise.all(clips.map((clip, i) => writeAnimatedWebp(folder.file("samples", `${name}-${i}.webp`), clip)));
  const png = new DataView(sheet.buffer, sheet.byteOffset);
  events.image(step, "samples", sheet, png.getUint32(16), png.getUint32(20));
}
