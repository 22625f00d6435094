import { totalmem } from "node:os";
import { type Engine, EspalierError, Key } from "../engine/index.js";
import type { Batch } from "./batch.js";
import type { Config } from "./config.js";
import { FolderDataset } from "./data/folder.js";
import { languageReader, newSetup, type Setup } from "./setup.js";
import type { Source } from "./source.js";
import { learnersOf } from "./state.js";
import { trainStep, uploadBatch } from "./step.js";

/** GPU memory that a run is predicted to take, in bytes. */
export interface Forecast {
  /** By what it is for, at the moment of most. */
  rows: { name: string; bytes: number }[];
  /** Most that is in use at once: what a budget must allow. */
  peak: number;
  /** Most that is held at once, with what waits to be used again: `engine.memory().held` of the run. */
  held: number;
  /** The largest single buffer. */
  largest: number;
}

/** Steps until nothing new is taken: the first makes the plan, the second meets what the first gave back. */
const STEPS = 3;

/** Latents come from a cache, and the autoencoder stays closed, where the clips are a fixed number. */
const isCached = ({ data }: Config, { dataset }: Source): boolean =>
  data.cache !== undefined && dataset instanceof FolderDataset && dataset.variants > 0;

/** A batch of the run's shapes; its numbers count for nothing. */
function batchOf({ codec, text, language }: Setup, { data, train }: Config, isLatent: boolean): Batch {
  const B = train.batchSize;
  const clips: Batch["shape"] = [B, 3, data.frames, data.size, data.size];
  const shape = isLatent ? codec.latentShape(clips) : clips;
  const captions = ({ maxLength, dim }: Setup["text"]) => ({
    embeddings: new Float32Array(B * maxLength * dim),
    mask: new Int32Array(B * maxLength).fill(1),
    drop: new Uint32Array(B),
    shape: [B, maxLength, dim] as Batch["textShape"],
  });
  const { shape: textShape, ...first } = captions(text);
  return {
    video: new Float32Array(shape.reduce((a, b) => a * b)),
    isLatent,
    shape,
    captions: [],
    ...first,
    textShape,
    time: new Float32Array(B).fill(0.5),
    ...(language && { language: captions(language) }),
  };
}

/** Opens what reads captions, as the first batch would, and lets it take its memory; what it computes cannot be read. */
async function openEncoders(setup: Setup, caption: string): Promise<void> {
  const isDry = (error: unknown) => error instanceof EspalierError && setup.model.engine.memoryPool.dry;
  for (const encode of [(c: string[]) => setup.text.encode(c), languageReader(setup)])
    try {
      await encode?.([caption]);
    } catch (error) {
      if (!isDry(error) || !/^read: this engine is dry/.test((error as Error).message)) throw error;
    }
}

/**
 * Predicts what steps of training take, by running them on an engine that only reckons (`createEngine({ dry: true })`).
 * The setup is the caller's. Sampling between the steps is not counted.
 * @param isLatent whether batches are latents already
 */
export function forecast(setup: Setup, config: Config, isLatent: boolean): Forecast {
  const { engine } = setup.model;
  const { eager } = engine;
  engine.eager ||= config.train.eager;
  const { optimizer, ema } = learnersOf(setup, config);
  const step = trainStep(setup, optimizer, ema, { clip: config.optim.gradClip });
  const batch = batchOf(setup, config, isLatent);
  try {
    for (let n = 0; n < STEPS; n++) {
      const batches = () => Array.from({ length: config.optim.accumulate }, () => uploadBatch(setup, batch));
      engine.scope(() => {
        step(batches(), Key.from(config.run.seed).fold(n));
      });
    }
    return report(engine);
  } finally {
    engine.eager = eager;
    for (const part of [step, optimizer, ema]) part.dispose();
  }
}

function report(engine: Engine): Forecast {
  const { live, peak, held, byOwner } = engine.memory();
  const buffers = engine.memoryPool.largest(Number.POSITIVE_INFINITY);
  const averages = buffers.filter(({ owned }) => /^ema \[/.test(owned.what)).reduce((n, { bytes }) => n + bytes, 0);
  const { parameters = 0, gradients = 0, optimizer = 0, plan = 0, buffers: fixed = 0 } = byOwner;
  const known = parameters + gradients + optimizer + plan + fixed;
  const rows = [
    { name: "parameters", bytes: parameters },
    { name: "gradients", bytes: gradients },
    { name: "optimizer", bytes: optimizer - averages },
    { name: "averaged weights", bytes: averages },
    { name: "activations, planned", bytes: plan },
    { name: "activations, others", bytes: live - known + (peak - live) },
    { name: "tables and codec", bytes: fixed },
    { name: "waiting to be used again", bytes: held - peak },
  ];
  return { rows: rows.filter(({ bytes }) => bytes > 0), peak, held, largest: buffers[0]?.bytes ?? 0 };
}

/**
 * Predicts what a run by this configuration takes on the GPU, from its first step on.
 * @param engine a dry one
 * @throws what `train` throws for data, models and options that cannot be
 */
export async function dryRun(engine: Engine, config: Config, source: Source): Promise<Forecast> {
  if (!engine.memoryPool.dry)
    throw new EspalierError("dry run: needs an engine that only reckons: this one computes; pass { dry: true }.");
  const setup = await newSetup(engine, config, source);
  try {
    const isLatent = isCached(config, source);
    if (!isLatent) await setup.codec.open?.();
    await openEncoders(setup, (await source.dataset.sample(0)).caption);
    return forecast(setup, config, isLatent);
  } finally {
    setup.dispose();
  }
}

const gigabytes = (bytes: number) =>
  bytes < 1e8 ? `${(bytes / 1e6).toFixed(bytes < 1e7 ? 2 : 1)} MB` : `${(bytes / 1e9).toFixed(2)} GB`;

/** A forecast as a table, and whether it fits. `budget` is the most bytes that the run may hold. */
export function forecastText(engine: Engine, { rows, peak, held, largest }: Forecast, budget?: number): string {
  const { maxBufferSize, maxStorageBufferBindingSize } = engine.limits;
  const limit = Math.min(maxBufferSize, maxStorageBufferBindingSize);
  const line = (name: string, text: string) => `  ${name.padEnd(26)}${text.padStart(10)}`;
  const fit = (most: number, of: string) =>
    peak <= most
      ? `fits ${of} of ${gigabytes(most)}${held <= most ? "" : " with what waits given back in time"}`
      : `does not fit ${of} of ${gigabytes(most)}: ${gigabytes(peak - most)} too much; try --checkpoint-blocks, a smaller --batch-size with --accumulate, or --optim.state 8bit`;
  const shared = engine.kind === "software" || engine.kind === "integrated";
  return [
    "predicted GPU memory of training:",
    ...rows.map(({ name, bytes }) => line(name, gigabytes(bytes))),
    line("in all, at most", gigabytes(held)),
    `largest buffer ${gigabytes(largest)}; ${engine.info.name} binds at most ${gigabytes(limit)}`,
    ...(budget !== undefined ? [fit(budget, "the budget")] : []),
    ...(shared ? [fit(totalmem(), "this machine's memory, which the adapter shares,")] : []),
  ].join("\n");
}

/** Whether a forecast is within the budget and, where the adapter shares it, the machine's memory. */
export const fits = (engine: Engine, { peak }: Forecast, budget = Number.POSITIVE_INFINITY): boolean =>
  peak <= budget && (engine.kind === "discrete" || engine.kind === "unknown" || peak <= totalmem());
