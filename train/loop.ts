import { join } from "node:path";
import {
  AbortedError,
  ConfigError,
  DeviceLostError,
  type Engine,
  EspalierError,
  Key,
  type Tensor,
} from "../engine/index.js";
import type { Codec } from "../model/codec.js";
import type { ImportReport } from "../model/foreign/report.js";
import { type Batch, Batches } from "./batch.js";
import { LatentDataset } from "./cache/latents.js";
import type { Checkpoint } from "./checkpoint.js";
import type { Config } from "./config.js";
import type { Dataset } from "./data/dataset.js";
import { FolderDataset } from "./data/folder.js";
import { JsonLog } from "./log.js";
import { sampleSheet } from "./preview.js";
import { Progress } from "./progress.js";
import { rateOf } from "./rate.js";
import type { RunFolder } from "./run.js";
import { languageReader, newSetup, type Setup, savedSetup } from "./setup.js";
import type { Source } from "./source.js";
import { checkSameRun, exportModel, learnersOf, restoreState, saveState, type TrainState } from "./state.js";
import { trainStep, uploadBatch } from "./step.js";
import { EventLog } from "./tfevents.js";

export { lossOf } from "./step.js";

/** Steps in a row whose loss is no number before a run gives up: single ones are skipped by the optimizer. */
const PATIENCE = 20;

/** What a caller learns of each step. */
export interface StepInfo {
  step: number;
  loss: number;
  /** Global norm of the gradient before clipping. */
  norm: number;
  lr: number;
}

export interface TrainOptions {
  /** Stops after the step in work, with a checkpoint. */
  signal?: AbortSignal;
  onStep?: (info: StepInfo) => void;
  /** Told what was taken from a model file that others made. */
  onImport?: (report: ImportReport) => void;
  /** What to do with the state after certain steps, such as measuring it; training waits. */
  milestones?: ReadonlyMap<number, (state: TrainState) => Promise<void>>;
  /** Draw a progress bar. Default true. */
  progress?: boolean;
}

/** The clips of a run as latents that are kept, where the configuration names a cache and the clips are a fixed number. */
async function keptLatents({ data }: Config, dataset: Dataset, engine: Engine, codec: Codec) {
  if (data.cache === undefined || !(dataset instanceof FolderDataset) || dataset.variants === 0) return undefined;
  return LatentDataset.open(data.cache, dataset, engine, codec);
}

/** Shares of dropped captions. One condition: Open-Sora's; two: InstructPix2Pix's (https://arxiv.org/abs/2211.09800). */
export function dropoutOf({ train }: Config, { model }: Pick<Setup, "model">) {
  const two = model.config.languageChannels > 0;
  if (!two && train.languageDropout)
    throw new ConfigError(
      "train.languageDropout has no use: the model reads no language model; set language.encoder, or leave it out",
    );
  const { conditionDropout = two ? 0.05 : 0.1, languageDropout = two ? 0.05 : 0 } = train;
  return { conditionDropout, languageDropout };
}

/**
 * Trains by a configuration until its last step, from the beginning or from `from`. The loss of a step depends on the
 * configuration alone, so a run that was killed and resumed has the numbers of one that was not.
 * @returns the trained state; its setup belongs to the caller
 */
export async function train(
  engine: Engine,
  config: Config,
  source: Source,
  folder: RunFolder,
  from: Checkpoint | undefined,
  options: TrainOptions = {},
): Promise<TrainState> {
  const { run, optim, train: plan } = config;
  if (from) checkSameRun(from.state.config, config);

  const setup = from ? await savedSetup(engine, config, from) : await newSetup(engine, config, source);
  if (setup.report) options.onImport?.(setup.report);
  const { optimizer, ema } = learnersOf(setup, config);
  const state: TrainState = { setup, optimizer, ema, step: 0, config };
  if (from) await restoreState(from, state);

  const rate = rateOf({ ...optim, steps: plan.steps });
  const latents = await keptLatents(config, source.dataset, engine, setup.codec);
  if (!latents) await setup.codec.open?.();
  const batches = new Batches(
    latents ?? source.dataset,
    setup.text,
    { batchSize: plan.batchSize, ...dropoutOf(config, setup), seed: run.seed },
    languageReader(setup),
  );
  const noise = Key.from(run.seed).fold(1);
  const log = new JsonLog(folder.file("log.jsonl"), from && state.step);
  const events = new EventLog(folder.file("tensorboard"), from && state.step);
  const bar = options.progress === false ? undefined : new Progress({ total: plan.steps, start: state.step });
  const step = trainStep(setup, optimizer, ema, { clip: optim.gradClip });
  const { eager } = engine;
  engine.eager ||= plan.eager;
  let saved = from?.path;
  let bad = 0;

  /** Reads one step's numbers back and tells everyone. */
  const report = async (step: number, lr: number, numbers: Tensor) => {
    const [loss, norm, scale, , skipped] = await numbers.data().finally(() => numbers.dispose());
    bad = Number.isFinite(loss) && Number.isFinite(norm) ? 0 : bad + 1;
    if (step % run.logEvery === 0 || step === plan.steps) {
      const scaling = scale !== undefined && { scale, skipped };
      log.write({ step, loss, norm, lr, samples: step * plan.batchSize * optim.accumulate, ...scaling });
      events.scalars(step, {
        "train/loss": loss,
        "train/gradient norm": norm,
        "train/lr": lr,
        ...(scaling && { "train/loss scale": scale, "train/skipped steps": skipped }),
      });
    }
    bar?.update(step, { loss, lr, samples: plan.batchSize * optim.accumulate });
    options.onStep?.({ step, loss, norm, lr });
    if (bad >= PATIENCE)
      throw new EspalierError(
        `train: the loss was no number in ${bad} steps in a row, the last being ${step}; lower --lr (now ${lr}) and go on from ${saved ?? "the beginning"}.`,
      );
  };

  let reading: Promise<void> | undefined;
  try {
    while (state.step < plan.steps) {
      const lr = rate(state.step);
      const parts: Batch[] = [];
      for (let k = 0; k < optim.accumulate; k++) parts.push(await batches.get(state.step * optim.accumulate + k));

      optimizer.lr = lr;
      const key = noise.fold(state.step);
      const numbers = engine.scope(() =>
        step(
          parts.map((batch) => uploadBatch(setup, batch)),
          key,
        ).keep(),
      ); // [2]
      engine.submit();
      state.step++;

      // The GPU works on this step while the numbers of the one before are read.
      const last = reading;
      const done = state.step;
      await last;
      reading = report(done, lr, numbers);
      reading.catch(() => {});

      const stop = options.signal?.aborted === true;
      const milestone = options.milestones?.get(done);
      const ended = done === plan.steps;
      if (
        ended ||
        stop ||
        milestone ||
        done % run.checkpointEvery === 0 ||
        (run.sampleEvery > 0 && done % run.sampleEvery === 0)
      )
        await reading;
      if (ended || stop || done % run.checkpointEvery === 0) {
        log.sync();
        saved = await saveState(folder, state);
      }
      if (ended || (run.sampleEvery > 0 && done % run.sampleEvery === 0))
        await sampleSheet(state, source, folder, events);
      await milestone?.(state);
      if (stop && !ended)
        throw new AbortedError(`train: stopped after step ${done} of ${plan.steps}; --resume goes on from ${saved}.`);
    }
    await exportModel(join(folder.path, "model.safetensors"), state);
    return state;
  } catch (error) {
    if (error instanceof DeviceLostError)
      throw new DeviceLostError(
        `${error.message}\ntrain: ${saved ? `the last checkpoint is ${saved}; --resume goes on from it` : "no checkpoint was written yet; begin again"}.`,
      );
    throw error;
  } finally {
    engine.eager = eager;
    step.dispose();
    bar?.stop();
    await latents?.close();
    log.close();
    events.close();
  }
}
