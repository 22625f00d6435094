/** The public surface of training, for Node: data, optimizer, the loop, judges and reports. */
export { type Batch, Batches, type BatchOptions } from "./batch.js";
export { cachedEncoder } from "./cache/encoder.js";
export { codecFingerprint, LatentDataset } from "./cache/latents.js";
export { CachedTextEncoder } from "./cache/text.js";
export { type Checkpoint, CheckpointFolder, openCheckpoint } from "./checkpoint.js";
export { type Config, type ConfigInput, describe, parseConfig } from "./config.js";
export { continuedSetup, openSetup } from "./continued.js";
export { embeddedDir, encoderAssets, languageModel, t5Model, wordEncoder, wordTable } from "./data/assets.js";
export { compose, Sprites } from "./data/compose.js";
export type { Dataset, Sample } from "./data/dataset.js";
export { FolderDataset, type FolderOptions } from "./data/folder.js";
export { fitPatches, type PatchFit } from "./data/pca.js";
export { loadSprites } from "./data/sprites.js";
export { WorldDataset, type WorldDatasetOptions } from "./data/stream.js";
export {
  CLASSES,
  COLOURS,
  captionOf,
  combinations,
  isHeldOut,
  MOTIONS,
  type Spec,
  WORLDS,
  type World,
  world,
} from "./data/world.js";
export { type Evaluation, evaluate, type JudgedClip } from "./evaluate.js";
export { heldOutLoss } from "./heldout.js";
export { judge, type Marks, mark, type Verdict } from "./judge/judge.js";
export { SpriteJudge } from "./judge/sprite.js";
export { JsonLog, readLog } from "./log.js";
export { dropoutOf, lossOf, type StepInfo, type TrainOptions, train } from "./loop.js";
export {
  encodeAnimatedWebp,
  encodeGif,
  type VideoClip,
  writeAnimatedWebp,
  writeContactSheet,
  writeGif,
  writeMp4,
} from "./media.js";
export { AdamW, type AdamWOptions, EMA, type EMAOptions, type LossScaling, type StateFormat } from "./optim.js";
export { type Rate, type RateOptions, rateOf } from "./rate.js";
export { type ReportData, renderReport } from "./report.js";
export { RunFolder } from "./run.js";
export { openSource, type Source } from "./source.js";
export { saveState, type TrainState } from "./state.js";
export { type BatchTensors, trainStep, uploadBatch } from "./step.js";
