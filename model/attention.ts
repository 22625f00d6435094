import {
  add,
  ConfigError,
  chunk,
  type Engine,
  matmul,
  scaledDotProductAttention,
  softmax,
  type Tensor,
  to,
  where,
} from "../engine/index.js";
import { zeros } from "./init.js";
import { Linear } from "./layers.js";
import { Module, type ModuleOptions } from "./module.js";

/** What both attentions take beside their sizes. */
export interface AttentionOptions extends ModuleOptions {
  /** Start with an output projection of zeros: the layer then adds nothing. */
  zeroProj?: boolean;
}

function checkHeads(width: number, heads: number): number {
  if (!(Number.isInteger(heads) && heads >= 1 && width % heads === 0))
    throw new ConfigError(
      `attention: the width must divide by the heads: ${width} by ${heads}; take heads that divide it.`,
    );
  return width / heads;
}

/** softmax(q kᵀ / √d), written out for hooks: the attention op never keeps it. */
function attentionMap(q: Tensor, k: Tensor, mask?: Tensor): Tensor {
  const scores = matmul(q, k, { transposeB: true }).mul(1 / Math.sqrt(q.shape.at(-1)!)); // [..., h, N, L]
  if (!mask) return softmax(scores, -1); // [..., h, N, L]
  const blocked = where(
    mask.equal(0),
    scores.engine.tensor([-1e9]).to(scores.dtype),
    scores.engine.tensor([0]).to(scores.dtype),
  ); // as mask
  return softmax(add(scores, blocked), -1); // [..., h, N, L]
}

/**
 * Multi-head self-attention along one axis of a grid of tokens. Heads and grid are rearranged by strides alone: space
 * and time read the same memory.
 */
export class SelfAttention extends Module {
  static override readonly emits = ["weights"];
  /** Rows of its weight: queries, keys, values, each head by head. */
  readonly qkv: Linear;
  readonly proj: Linear;
  readonly headDim: number;

  constructor(
    engine: Engine,
    width: number,
    readonly heads: number,
    options: AttentionOptions = {},
  ) {
    super(engine);
    const { key, dtype, zeroProj = false } = options;
    this.headDim = checkHeads(width, heads);
    this.qkv = new Linear(engine, width, 3 * width, { dtype, key: key?.fold(0) });
    this.proj = new Linear(engine, width, width, { dtype, key: key?.fold(1), ...(zeroProj && { weightInit: zeros }) });
  }

  /**
   * [..., C] to the same shape; tokens attend to those that differ from them in `axis` alone.
   * Below A is that axis and … the other grid axes. Hooks on "weights" get [..., h, A, A].
   */
  forward(x: Tensor, axis: number): Tensor {
    const { heads, headDim } = this;
    const grid = x.shape.slice(0, -1);
    const r = grid.length;
    const others = grid.map((_, i) => i).filter((i) => i !== axis);
    const split = this.qkv.forward(x).reshape([...grid, 3, heads, headDim]); // [grid, 3, h, d]
    // Cut before heads are moved: so the three gradients are joined in the order of memory.
    const [q, k, v] = chunk(split, 3, r).map((t) => t.squeeze(r).permute([...others, r, axis, r + 1])); // […, h, A, d] each
    this.emit("weights", () => attentionMap(q, k)); // […, h, A, A]
    const a = scaledDotProductAttention(q, k, v); // […, h, A, d]
    // Where each grid axis, the heads and d are found in […, h, A, d].
    const back = [...grid.map((_, i) => (i === axis ? r : others.indexOf(i))), r - 1, r + 1];
    return this.proj.forward(a.permute(back).reshape(x.shape)); // [grid, C]
  }
}

/** Multi-head attention from tokens to a caption. */
export class CrossAttention extends Module {
  static override readonly names = { qLinear: "q_linear", kvLinear: "kv_linear" };
  static override readonly emits = ["weights"];
  readonly qLinear: Linear;
  /** Rows of its weight: keys, values, each head by head. */
  readonly kvLinear: Linear;
  readonly proj: Linear;
  readonly headDim: number;

  constructor(
    engine: Engine,
    width: number,
    readonly heads: number,
    options: AttentionOptions = {},
  ) {
    super(engine);
    const { key, dtype, zeroProj = false } = options;
    this.headDim = checkHeads(width, heads);
    this.qLinear = new Linear(engine, width, width, { dtype, key: key?.fold(0) });
    this.kvLinear = new Linear(engine, width, 2 * width, { dtype, key: key?.fold(1) });
    this.proj = new Linear(engine, width, width, { dtype, key: key?.fold(2), ...(zeroProj && { weightInit: zeros }) });
  }

  /**
   * x [B, ..., C] and y [B, L, C] to x's shape.
   * @param mask [B, 1, 1, L] of integers, zero where a caption has no token. Hooks on "weights" get [B, h, N, L].
   * @param gates [h]: multiplies each head before the projection, and the projection's bias by their mean, so that equal
   * gates are one gate on the whole output
   */
  forward(x: Tensor, y: Tensor, mask?: Tensor, gates?: Tensor): Tensor {
    const { heads, headDim } = this;
    const [B, L] = y.shape;
    const q = this.qLinear.forward(x).reshape([B, -1, heads, headDim]).permute([0, 2, 1, 3]); // [B, h, N, d]
    const kv = this.kvLinear.forward(y).reshape([B, L, 2, heads, headDim]); // [B, L, 2, h, d]
    const [k, v] = chunk(kv, 2, 2).map((t) => t.squeeze(2).permute([0, 2, 1, 3])); // [B, h, L, d] each
    this.emit("weights", () => attentionMap(q, k, mask)); // [B, h, N, L]
    const a = scaledDotProductAttention(q, k, v, { mask }); // [B, h, N, d]
    if (!gates) return this.proj.forward(a.permute([0, 2, 1, 3]).reshape(x.shape)); // [B, ..., C]
    const gated = a.mul(gates.reshape([heads, 1, 1])); // [B, h, N, d]
    const joined = this.proj.product(gated.permute([0, 2, 1, 3]).reshape(x.shape)); // [B, ..., C]
    return add(joined, to(this.proj.bias!, x.dtype).mul(gates.mean())); // [B, ..., C]
  }
}
