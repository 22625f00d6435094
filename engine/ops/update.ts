import source from "../../shaders/update.wgsl";
import { computeType } from "../dtype.js";
import type { Engine } from "../engine.js";
import { EspalierError, ShapeError } from "../errors.js";
import { kernel } from "../kernel.js";
import { needFloat, sameDType } from "../op.js";
import { sameShape, show } from "../shape.js";
import type { Tensor } from "../tensor.js";

const groups = (vectors: number): number => Math.ceil(vectors / 64);

/** What every step of AdamW does to `count` vectors of four elements from vector `first` on. */
export interface AdamWStep {
  first: number;
  count: number;
  betas: readonly [number, number];
  eps: number;
  /** Largest norm of the gradient; 0 clips nothing. */
  clip: number;
}

/** Elements that share one scale of packed averages. */
export const PACK = 64;

/** AdamW's averages: m and v in f32, or m and √v as codes with the two scales of each 64 elements. */
export type Averages =
  | { bits: 32; mean: Tensor; square: Tensor }
  | { bits: 16 | 8; mean: Tensor; square: Tensor; scales: Tensor };

/** Where the GPU's half of a schedule begins, in elements: a binding may begin there. */
const GPU_HALF = 64;

/**
 * What changes from step to step, in a buffer that the host writes before each step: launches stay equal. The loss scale
 * lies beside it, which only the GPU writes.
 */
export class Schedule {
  /** f32: decay, rate, root, step (u32); from element 64 on what `scaling` shows. */
  readonly numbers: Tensor;
  /** f32 [3]: loss scale, good steps since it last changed, steps skipped so far. */
  readonly scaling: Tensor;
  /** f32 []: the loss scale. */
  readonly scale: Tensor;

  constructor(engine: Engine, scale: number) {
    this.numbers = engine.empty([GPU_HALF + 4], "f32", "schedule", "optimizer").keep();
    this.scaling = this.numbers.view([3], [1], GPU_HALF, "loss scale").keep();
    this.scale = this.numbers.view([], [], GPU_HALF, "loss scale").keep();
    engine.write(this.scaling, new Uint8Array(Float32Array.of(scale, 0, 0).buffer));
  }

  /** Writes the numbers of step `t`, from 1. */
  set(t: number, { lr, betas, weightDecay }: { lr: number; betas: readonly [number, number]; weightDecay: number }) {
    const bytes = new ArrayBuffer(16);
    new Float32Array(bytes).set([1 - lr * weightDecay, lr / (1 - betas[0] ** t), 1 / Math.sqrt(1 - betas[1] ** t)]);
    new Uint32Array(bytes)[3] = t;
    this.numbers.engine.write(this.numbers, new Uint8Array(bytes));
  }

  dispose(): void {
    for (const t of [this.scale, this.scaling, this.numbers]) t.dispose();
  }
}

/** One launch of AdamW over flat f32 buffers; `norm` holds the norm of the (scaled) gradient, on the GPU. */
export function launchAdamW(
  param: Tensor,
  grad: Tensor,
  averages: Averages,
  norm: Tensor,
  { numbers: schedule }: Schedule,
  { first, count, betas: [beta1, beta2], eps, clip }: AdamWStep,
): void {
  const params = { first, count, beta1, beta2, rest1: 1 - beta1, rest2: 1 - beta2, eps, clip };
  if (averages.bits === 32) {
    const { mean: m, square: v } = averages;
    param.engine.launch(
      kernel("update", source, "adamw"),
      { norm, grad, m, v, param, schedule },
      params,
      groups(count),
    );
    return;
  }
  const { bits, mean, square, scales } = averages;
  param.engine.launch(
    kernel("update", source, "adamw_packed", { BITS: bits }),
    { norm, grad, m_codes: mean, v_codes: square, param, schedule, scales },
    params,
    groups(count),
  );
}

/**
 * The loss scale after a step with a gradient of this norm: halved where that is not finite, doubled after `window` steps
 * in a row that were. Returns the norm without the scale, f32 [].
 */
export function launchRescale(norm: Tensor, { numbers }: Schedule, window: number): Tensor {
  const { engine } = norm;
  const unscaled = engine.empty([], "f32", "rescale");
  engine.launch(kernel("update", source, "rescale"), { norm, scaling: numbers, unscaled }, { window }, 1);
  return unscaled;
}

/** shadow = shares[0] · shadow + shares[1] · param over flat f32 buffers. */
export function launchEma(shadow: Tensor, param: Tensor, shares: Tensor): void {
  const count = Math.ceil(shadow.size / 4);
  shadow.engine.launch(kernel("update", source, "ema"), { source: param, shadow, shares }, { count }, groups(count));
}

/**
 * Adds x to y in place, or overwrites y when `fresh`. Elements between y's end and the next multiple of four, which
 * belong to nobody in a flat buffer, become zero.
 */
export function addTo(y: Tensor, x: Tensor, fresh = false): void {
  if (!sameShape(y.shape, x.shape))
    throw new ShapeError(`addTo: shapes differ: ${show(y.shape)} and ${show(x.shape)}; they must be equal.`);
  const { engine } = y;
  const dense = engine.noGrad(() => (x.storage === y.storage ? engine.copy(x) : engine.dense(x)));
  const dtype = sameDType("addTo", y, x);
  const k = kernel("update", source, "accumulate", { T: dtype, C: computeType(dtype) });
  engine.launch(k, { x: dense, y }, { n: y.size, fresh: fresh ? 1 : 0 }, groups(y.size / 4));
  if (dense !== x) dense.dispose();
}

/** Partial sums of one tensor: enough to fill the adapter, few enough that one workgroup adds them up at once. */
const partialsOf = (x: Tensor): number => {
  const most = x.engine.kind === "software" ? 1024 : 65536;
  return Math.min(most, Math.max(1, Math.ceil(x.size / 64)));
};

/**
 * The root of the sum of squares over all values of all tensors, f32 []: what gradients are clipped by. One launch a
 * tensor and one for the sum, always in the same order: equal inputs give equal bits.
 */
export function globalNorm(tensors: readonly Tensor[]): Tensor {
  if (!tensors.length) throw new EspalierError("globalNorm: needs at least one tensor: got none.");
  const { engine } = tensors[0];
  for (const t of tensors) {
    t.check("globalNorm");
    needFloat("globalNorm", t);
  }
  return engine.noGrad(() =>
    engine.atomically(() => {
      const result = engine.empty([], "f32", "globalNorm");
      const n = tensors.reduce((total, t) => total + partialsOf(t), 0);
      const partial = engine.empty([n], "f32", "globalNorm");
      let base = 0;
      for (const t of tensors) {
        const x = engine.dense(t);
        const lanes = partialsOf(x);
        // An empty tensor has no memory worth reading, yet its partial sum must be zero: n = 0 sums nothing.
        engine.launch(
          kernel("update", source, "squares", { T: x.dtype }),
          { x, partial },
          { n: x.size, base, lanes },
          groups(lanes),
        );
        base += lanes;
      }
      engine.launch(kernel("update", source, "root"), { partials: partial, result }, { n }, 1);
      return result;
    }),
  );
}
