import { ConfigError } from "../engine/errors.js";
import type { Tensor } from "../engine/index.js";
import { modelEntries, saveModel } from "../model/checkpoint.js";
import { loadTensors, saveTensors } from "../model/state.js";
import type { STDiT } from "../model/stdit.js";
import type { Checkpoint, Json } from "./checkpoint.js";
import { type Config, parseConfig } from "./config.js";
import { AdamW, EMA } from "./optim.js";
import type { RunFolder } from "./run.js";
import type { Setup } from "./setup.js";

/** All that a run needs to go on as if it had never stopped. */
export interface TrainState {
  setup: Setup;
  optimizer: AdamW;
  ema: EMA;
  /** Steps done. */
  step: number;
  config: Config;
}

/** What moves the parameters of a setup, as the configuration says. */
export function learnersOf(
  { model }: Pick<Setup, "model">,
  { optim, ema, train }: Config,
): Pick<TrainState, "optimizer" | "ema"> {
  const parameters = trainedParameters(model);
  const { lr, betas, eps, weightDecay, state } = optim;
  const scaling = train.precision === "mixed" ? {} : undefined;
  return {
    optimizer: new AdamW(parameters, { lr, betas, eps, weightDecay, state, scaling }),
    ema: new EMA(parameters, ema),
  };
}

/** The parameters that learn. */
export const trainedParameters = (model: STDiT): Record<string, Tensor> =>
  Object.fromEntries(model.namedParameters().filter(([, p]) => p.requiresGrad));

// A checkpoint is a model file with the averaged weights under the model's own names, so that anything that reads models
// reads checkpoints. What training needs beside lies under "train.".
const WEIGHTS = "train.weights.";
const OPTIMIZER = "train.optimizer.";

const modelContent = ({ setup, ema }: TrainState) => ({
  model: setup.model,
  codec: setup.codec,
  objective: setup.objective,
  ...setup.about,
  weights: ema.params,
});

/** Writes a checkpoint of this moment and returns its path. */
export async function saveState(folder: RunFolder, state: TrainState): Promise<string> {
  const { setup, optimizer, ema, step, config } = state;
  const { engine } = setup.model;
  const { entries, metadata } = modelEntries(modelContent(state));
  const weights = trainedParameters(setup.model);
  return folder.checkpoints.save(step, {
    tensors: [
      ...entries,
      ...saveTensors(engine, weights, WEIGHTS),
      ...saveTensors(engine, optimizer.state().tensors, OPTIMIZER),
    ],
    state: {
      ...Object.fromEntries(Object.entries(metadata).map(([key, text]) => [key, JSON.parse(text) as Json])),
      // Data, noise and dropped captions are functions of the seed and the step, so these two are cursor and keys.
      train: { step, seed: config.run.seed, optimizerSteps: optimizer.steps, emaUpdates: ema.updates },
      config: config as unknown as Json,
    },
  });
}

/** Brings weights in training, averages and the optimizer back; `setup` holds the averaged weights when it begins. */
export async function restoreState(checkpoint: Checkpoint, state: TrainState): Promise<void> {
  const { setup, optimizer, ema } = state;
  const { optimizerSteps, emaUpdates } = checkpoint.state.train as { optimizerSteps: number; emaUpdates: number };
  // The average began as a copy of the model, which was loaded with the averaged weights.
  ema.updates = emaUpdates;
  await loadTensors(setup.model.engine, trainedParameters(setup.model), checkpoint.file, {
    prefix: WEIGHTS,
  });
  await optimizer.load(optimizerSteps, checkpoint.file, OPTIMIZER);
  state.step = checkpoint.step;
}

/** Writes the averaged model alone: what one keeps, shares and samples from. */
export async function exportModel(path: string, state: TrainState): Promise<string> {
  return (
    await saveModel(path, {
      ...modelContent(state),
      metadata: { train: JSON.stringify({ step: state.step, config: state.config }) },
    })
  ).path;
}

/** Options that may change when a run goes on; all others decide its numbers. */
const FREE = [
  ...["run.out", "run.resume", "run.keep", "run.checkpointEvery", "run.sampleEvery", "run.logEvery"],
  // Blocks that are run again give the same bits, unless halves are rounded elsewhere: see below.
  "train.checkpointBlocks",
  // Where encoders lie; that they are the same is seen by their fingerprints.
  ...["codec.vae", "text.t5", "text.llm"],
];

/** @throws ConfigError naming what differs from the run that is to be gone on with */
export function checkSameRun(saved: Json, config: Config): void {
  const flat = (value: unknown, path = ""): [string, string][] =>
    value && typeof value === "object" && !Array.isArray(value)
      ? Object.entries(value).flatMap(([k, v]) => flat(v, path ? `${path}.${k}` : k))
      : [[path, JSON.stringify(value)]];
  // Options that are newer than the run were at their defaults in it.
  const before = new Map(flat(parseConfig(saved)));
  // A compiled step keeps between joined launches what it would round to f16, and joins other ones with checkpoints.
  const isFree = (path: string) =>
    FREE.includes(path) && !(path === "train.checkpointBlocks" && config.train.precision === "mixed");
  const differs = flat(config).filter(
    ([path, value]) =>
      !isFree(path) && !path.startsWith("sample.") && value !== undefined && before.get(path) !== value,
  );
  if (differs.length)
    throw new ConfigError(
      `resume: options differ from the run's: ${differs.map(([path, value]) => `${path} is ${value}, was ${before.get(path)}`).join("; ")}; leave them as they were, or begin another run with --out`,
    );
}
