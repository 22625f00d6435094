import source from "../../shaders/update.wgsl";
import { computeType } from "../dtype.js";
import { EspalierError, ShapeError } from "../errors.js";
import { kernel } from "../kernel.js";
import { needFloat, sameDType } from "../op.js";
import { sameShape, show } from "../shape.js";
import type { Tensor } from "../tensor.js";

const groups = (vectors: number): number => Math.ceil(vectors / 64);

/** What one step of AdamW does to `count` vectors of four elements from vector `first` on. */
export interface AdamWStep {
  first: number;
  count: number;
  lr: number;
  betas: readonly [number, number];
  eps: number;
  weightDecay: number;
  /** Number of this step, from 1. */
  t: number;
  /** Largest norm of the gradient; 0 clips nothing. */
  clip: number;
}

/** One launch of AdamW over flat f32 buffers; `norm` holds the gradient's norm, on the GPU. */
export function launchAdamW(param: Tensor, grad: Tensor, m: Tensor, v: Tensor, norm: Tensor, s: AdamWStep): void {
  const [beta1, beta2] = s.betas;
  param.engine.launch(
    kernel("update", source, "adamw"),
    { norm, grad, m, v, param },
    {
      first: s.first,
      count: s.count,
      beta1,
      beta2,
      rest1: 1 - beta1,
      rest2: 1 - beta2,
      decay: 1 - s.lr * s.weightDecay,
      rate: s.lr / (1 - beta1 ** s.t),
      root: 1 / Math.sqrt(1 - beta2 ** s.t),
      eps: s.eps,
      clip: s.clip,
    },
    groups(s.count),
  );
}

/** shadow = decay · shadow + (1 - decay) · param over flat f32 buffers. */
export function launchEma(shadow: Tensor, param: Tensor, decay: number): void {
  const count = Math.ceil(shadow.size / 4);
  shadow.engine.launch(
    kernel("update", source, "ema"),
    { source: param, shadow },
    { count, decay, rest: 1 - decay },
    groups(count),
  );
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
