import { type Compiled, cat, type Engine, type Key, normal, type Tensor } from "../engine/index.js";
import { uploadTimes } from "../model/diffusion/objective.js";
import { timestepCodes } from "../model/embed.js";
import type { Batch } from "./batch.js";
import type { AdamW, EMA } from "./optim.js";
import type { Setup } from "./setup.js";

/** Stream of a step's key for codecs whose latents are samples, apart from those of its parts. */
const LATENT = 0x4c41;

/** Captions on the GPU, as a model takes them. */
interface Captions {
  /** [B, L, D] */
  y: Tensor;
  /** [B, L] */
  mask: Tensor;
  /** [B], 1 where the null caption is in its place. */
  drop: Tensor;
}

/** A batch on the GPU: all that a compiled step is given anew each time. */
export interface BatchTensors extends Captions {
  /** [B, 3, T, H, W], or the latents. */
  clips: Tensor;
  isLatent: boolean;
  /** [B], in the objective's units. */
  times: Tensor;
  /** Whether the loss has a time to treat apart; most batches have none, and a plan without. */
  zeros: boolean;
  /** [B, 256]: what the model gets as its timestep. */
  codes: Tensor;
  language?: Captions;
}

/** A batch's numbers, uploaded. */
export function uploadBatch({ model: { engine }, objective }: Setup, batch: Batch): BatchTensors {
  const times = objective.times(batch.time);
  const captions = ({ embeddings, mask, drop }: NonNullable<Batch["language"]> | Batch, shape: Batch["textShape"]) => ({
    y: engine.tensor(embeddings, shape), // [B, L, D]
    mask: engine.tensor(mask, shape.slice(0, 2)), // [B, L]
    drop: engine.tensor(drop), // [B]
  });
  return {
    clips: engine.tensor(batch.video, batch.shape),
    isLatent: batch.isLatent,
    times: uploadTimes(engine, objective, times),
    zeros: objective.kind === "iddpm" && times.includes(0),
    codes: timestepCodes(engine, objective.timesteps(times)),
    ...captions(batch, batch.textShape),
    ...(batch.language && { language: captions(batch.language, batch.language.shape) }),
  };
}

/** The loss of one batch, []; noise is drawn with `key`. */
function lossAt({ model, codec, objective }: Setup, given: BatchTensors, key: Key): Tensor {
  const { engine } = model;
  const { clips, isLatent, times, zeros, codes, y, mask, drop, language } = given;
  const draws = Array.from({ length: clips.shape[0] }, (_, i) => key.fold(LATENT).fold(i));
  const x0 = isLatent ? clips : engine.noGrad(() => codec.encode(clips, draws)); // [B, C, T, h, w]
  const eps = normal(engine, key, x0.shape); // [B, C, T, h, w]
  const sample = { x0, eps, times, zeros };
  const xt = objective.noise(sample); // [B, C, T, h, w]
  const output = model.forward(xt, codes, y, mask, { drop, language }); // [B, out, T, h, w]
  return objective.loss(output, sample).loss; // []
}

/** The losses of batches, compiled, without gradients; dispose it at the end. */
export const evalStep = (setup: Setup): Compiled<[batch: BatchTensors, key: Key], Tensor> => {
  const { engine }: { engine: Engine } = setup.model;
  return engine.compile((given: BatchTensors, key: Key) => engine.noGrad(() => lossAt(setup, given, key))); // []
};

/** Walks back from a batch's loss; a share of 1 / `parts` of the step's gradient, times `scale`. */
function backward(setup: Setup, given: BatchTensors, key: Key, parts = 1, scale?: Tensor): Tensor {
  const loss = lossAt(setup, given, key); // []
  (parts === 1 ? loss : loss.mul(1 / parts)).backward(scale);
  return loss;
}

/** The loss and the gradients of one batch; a share of 1 / `parts` of the step's gradient. */
export const lossOf = (setup: Setup, batch: Batch, key: Key, parts = 1): Tensor =>
  backward(setup, uploadBatch(setup, batch), key, parts); // []

/**
 * A whole optimizer step as one compiled function of its batches, whose gradients are averaged, and of the key of its
 * noise: losses, gradients, clipping, AdamW, averaged weights. Set `optimizer.lr` before each call; dispose it at the end.
 * @returns [2]: loss, and norm of the gradient before clipping; with loss scaling [5]: then also scale, good steps since
 * it changed, and steps skipped
 */
export function trainStep(
  setup: Setup,
  optimizer: AdamW,
  ema: EMA,
  { clip }: { clip: number },
): Compiled<[batches: BatchTensors[], key: Key], Tensor> {
  const { engine }: { engine: Engine } = setup.model;
  return engine.compile((batches: BatchTensors[], key: Key) => {
    const { lossScale } = optimizer;
    const losses = batches.map((b, k) => backward(setup, b, key.fold(k), batches.length, lossScale)); // [] each
    const { norm } = optimizer.step({ clip });
    optimizer.zeroGrad();
    ema.update();
    const { scaling } = optimizer;
    return engine.noGrad(() => {
      const loss = losses.reduce((a, b) => a.add(b)).mul(1 / losses.length); // []
      return cat([loss.reshape([1]), norm.reshape([1]), ...(scaling ? [scaling] : [])], 0); // [2] or [5]
    });
  });
}
