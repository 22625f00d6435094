import source from "../../shaders/matmul.wgsl";
import { ShapeError } from "../errors.js";
import { kernel } from "../kernel.js";
import { collapse, expandStrides, show, sizeOf } from "../shape.js";
import { strided, type Tensor } from "../tensor.js";

/** What may follow a matrix product within its launch. */
export type Activation = "none" | "geluTanh" | "silu";

const activations: Record<Activation, string> = { none: "return v;", geluTanh: "return gelu_tanh(v);", silu: "return silu(v);" };
export const activationNames = Object.keys(activations) as Activation[];

/** Options of one product. */
export interface Epilogue {
  /** [n], contiguous. */
  bias?: Tensor;
  activation?: Activation;
}

/**
 * Records y = act(a · w + bias) into the dense tensor `y` [..., m, n] from a [..., m, k] and w [..., k, n], both with any
 * strides; leading axes broadcast. Neither is copied.
 */
export function launchMatmul(y: Tensor, a: Tensor, w: Tensor, { bias, activation = "none" }: Epilogue = {}): void {
  const { engine } = y;
  if (y.size === 0) return;
  const lead = y.shape.slice(0, -2);
  const batchOf = (t: Tensor) => expandStrides(t.shape.slice(0, -2), t.strides.slice(0, -2), lead);
  const walk = collapse(lead, [batchOf(a), batchOf(w)]);
  if (walk.shape.length > 4)
    throw new ShapeError(`matmul: ${show(lead)} has more than 4 batch axes that cannot be merged; reshape it to fewer.`);
  const pad = (list: readonly number[], fill: number) => [...Array<number>(4 - list.length).fill(fill), ...list];
  const [m, n, k] = [a.shape.at(-2)!, w.shape.at(-1)!, a.shape.at(-1)!];
  const layout = (t: Tensor) => [t.offset, t.strides.at(-2)!, t.strides.at(-1)!, 0];
  const naive = kernel("matmul", source, "naive", { T: y.dtype, BIAS: `${bias !== undefined}`, act: activations[activation] });
  engine.launch(naive, { a: strided(a), w: strided(w), bias: bias ?? strided(a), y }, {
    m, n, k, size: y.size, batch: pad(walk.shape, 1), a: layout(a), w: layout(w),
    a_batch: pad(walk.strides[0], 0), w_batch: pad(walk.strides[1], 0),
  }, Math.ceil(sizeOf(y.shape) / 64));
}
