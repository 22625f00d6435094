import { Key } from "../engine/index.js";
import { Batches } from "./batch.js";
import { WorldDataset } from "./data/stream.js";
import { languageReader, type Setup } from "./setup.js";
import type { Source } from "./source.js";
import { evalStep, uploadBatch } from "./step.js";

/** Clips whose mean loss is taken, where nothing else is said. */
const CLIPS = 96;
/** Most clips of a forward pass. */
const BATCH = 16;
/** Of clips, times and noise: the same for every model and every moment, so that losses can be compared. */
const SEED = 0x48454c44;

/**
 * Mean loss on composed clips of combinations that are never trained, all with their captions.
 * @param clips how many; beyond 16, full batches of 16
 */
export async function heldOutLoss(setup: Setup, { composed }: Source, clips = CLIPS): Promise<number> {
  const { world, sprites } = composed!;
  const { engine } = setup.model;
  const dataset = new WorldDataset(world, sprites, { seed: SEED, part: "heldOut" });
  const batchSize = Math.min(BATCH, clips);
  const count = Math.ceil(clips / batchSize);
  const options = { batchSize, conditionDropout: 0, languageDropout: 0, seed: SEED };
  const batches = new Batches(dataset, setup.text, options, languageReader(setup));
  await setup.codec.open?.();
  const step = evalStep(setup);
  try {
    let sum = 0;
    for (let n = 0; n < count; n++) {
      const batch = await batches.get(n);
      const loss = engine.scope(() => step(uploadBatch(setup, batch), Key.from(SEED).fold(n)));
      sum += await loss.item().finally(() => loss.dispose());
    }
    return sum / count;
  } finally {
    step.dispose();
  }
}
