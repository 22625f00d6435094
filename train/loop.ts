import { join } from "node:path";
import {
  AbortedError,
  ConfigError,
  cat,
  DeviceLostError,
  type Engine,
  EspalierError,
  Key,
  normal,
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
import { AdamW, EMA } from "./optim.js";
import { sampleSheet } from "./preview.js";
import { Progress } from "./progress.js";
import { rateOf } from "./rate.js";
import type { RunFolder } from "./run.js";
import { languageReader, newSetup, type Setup, savedSetup } from "./setup.js";
import type { Source } from "./source.js";
import { checkSameRun, exportModel, restoreState, saveState, type TrainState, trainedParameters } from "./state.js";
import { EventLog } from "./tfevents.js";

/** Stream of a step's key for codecs whose latents are samples, apart from those of its parts. */
const LATENT = 0x4c41;

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

/** A batch's language captions on the GPU. */
const languageInput = (engine: Engine, { embeddings, mask, shape, drop }: NonNullable<Batch["language"]>) => ({
  y: engine.tensor(embeddings, shape), // [B, L, D]
  mask: engine.tensor(mask, shape.slice(0, 2)), // [B, L]
  drop,
});

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

/** The loss of one batch, []; noise is drawn with `key`. */
export function batchLoss(setup: Setup, batch: Batch, key: Key): Tensor {
  const { model, codec, objective } = setup;
  const { engine } = model;
  const clips = engine.tensor(batch.video, batch.shape); // [B, 3, T, H, W], or the latents
  const draws = Array.from({ length: batch.shape[0] }, (_, i) => key.fold(LATENT).fold(i));
  const x0 = batch.isLatent ? clips : engine.noGrad(() => codec.encode(clips, draws)); // [B, C, T, h, w]
  const eps = normal(engine, key, x0.shape); // [B, C, T, H, W]
  const times = objective.times(batch.time); // [B]
  const sample = { x0, eps, times };
  const xt = objective.noise(sample); // [B, C, T, H, W]
  const y = engine.tensor(batch.embeddings, batch.textShape); // [B, L, D]
  const mask = engine.tensor(batch.mask, batch.textShape.slice(0, 2)); // [B, L]
  const language = batch.language && languageInput(engine, batch.language);
  const output = model.forward(xt, objective.timesteps(times), y, mask, { drop: batch.drop, language }); // [B, out, T, H, W]
  return objective.loss(output, sample).loss; // []
}

/** The loss and the gradients of one batch; a share of 1 / `parts` of the step's gradient. */
export function lossOf(setup: Setup, batch: Batch, key: Key, parts = 1): Tensor {
  const loss = batchLoss(setup, batch, key); // []
  (parts === 1 ? loss : loss.mul(1 / parts)).backward();
  return loss;
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
  const parameters = trainedParameters(setup.model);
  const optimizer = new AdamW(parameters, {
    lr: optim.lr,
    betas: optim.betas,
    eps: optim.eps,
    weightDecay: optim.weightDecay,
  });
  const ema = new EMA(parameters, config.ema);
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
  let saved = from?.path;
  let bad = 0;

  /** Reads one step's numbers back and tells everyone. */
  const report = async (step: number, lr: number, numbers: Tensor) => {
    const [loss, norm] = await numbers.data().finally(() => numbers.dispose());
    bad = Number.isFinite(loss) && Number.isFinite(norm) ? 0 : bad + 1;
    if (step % run.logEvery === 0 || step === plan.steps) {
      log.write({ step, loss, norm, lr, samples: step * plan.batchSize * optim.accumulate });
      events.scalars(step, { "train/loss": loss, "train/gradient norm": norm, "train/lr": lr });
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

      const numbers = engine.scope(() => {
        const key = noise.fold(state.step);
        const losses = parts.map((batch, k) => lossOf(setup, batch, key.fold(k), parts.length));
        optimizer.lr = lr;
        const { norm } = optimizer.step({ clip: optim.gradClip });
        optimizer.zeroGrad();
        ema.update();
        const loss = losses.reduce((a, b) => a.add(b)).mul(1 / losses.length);
        return stackNumbers(loss, norm).keep(); // [2]
      });
      engine.submit();
      state.step++;

      // The GPU works on this step while the numbers of the one before are read.
      const last = reading;
      const step = state.step;
      await last;
      reading = report(step, lr, numbers);
      reading.catch(() => {});

      const stop = options.signal?.aborted === true;
      const milestone = options.milestones?.get(step);
      const done = step === plan.steps;
      if (
        done ||
        stop ||
        milestone ||
        step % run.checkpointEvery === 0 ||
        (run.sampleEvery > 0 && step % run.sampleEvery === 0)
      )
        await reading;
      if (done || stop || step % run.checkpointEvery === 0) {
        log.sync();
        saved = await saveState(folder, state);
      }
      if (done || (run.sampleEvery > 0 && step % run.sampleEvery === 0))
        await sampleSheet(state, source, folder, events);
      await milestone?.(state);
      if (stop && !done)
        throw new AbortedError(`train: stopped after step ${step} of ${plan.steps}; --resume goes on from ${saved}.`);
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
    bar?.stop();
    await latents?.close();
    log.close();
    events.close();
  }
}

/** Two numbers as one tensor: one readback instead of two. */
function stackNumbers(a: Tensor, b: Tensor): Tensor {
  return a.engine.noGrad(() => cat([a.reshape([1]), b.reshape([1])], 0)); // [2]
}
