import {
  add,
  type Engine,
  mul,
  rmsNorm,
  rotary,
  scaledDotProductAttention,
  silu,
  type Tensor,
} from "../../engine/index.js";
import { normal, ones } from "../init.js";
import { Linear } from "../layers.js";
import { Module, type ModuleOptions } from "../module.js";
import type { LlamaConfig } from "./config.js";

/** Weights start as N(0, 0.02²), as Llama's do. */
export const weightInit = normal(0.02);

/** y = x / √(mean(x²) + eps) · weight over the last axis. */
export class RmsNorm extends Module {
  readonly weight: Tensor;

  constructor(
    engine: Engine,
    width: number,
    readonly eps: number,
    options: ModuleOptions = {},
  ) {
    super(engine);
    this.weight = this.parameter([width], ones, options);
  }

  forward(x: Tensor): Tensor {
    return rmsNorm(x, { weight: this.weight, eps: this.eps }); // as x
  }
}

/** What every layer of one run shares. */
export interface LlamaRun {
  /** [L, 1, headDim / 2], in the layers' dtype. */
  cos: Tensor;
  sin: Tensor;
  /** [B, 1, 1, L] of integers, 0 where there is padding. */
  mask?: Tensor;
}

/** Causal attention with rotary positions and grouped heads of keys and values. */
export class LlamaAttention extends Module {
  static override readonly names = { qProj: "q_proj", kProj: "k_proj", vProj: "v_proj", oProj: "o_proj" };
  readonly qProj: Linear;
  readonly kProj: Linear;
  readonly vProj: Linear;
  readonly oProj: Linear;

  constructor(
    engine: Engine,
    readonly config: LlamaConfig,
    { key, dtype }: ModuleOptions = {},
  ) {
    super(engine);
    const { hidden, heads, kvHeads, headDim, attentionBias: bias } = config;
    const linear = (inputs: number, outputs: number, n: number) =>
      new Linear(engine, inputs, outputs, { bias, dtype, weightInit, key: key?.fold(n) });
    this.qProj = linear(hidden, heads * headDim, 0);
    this.kProj = linear(hidden, kvHeads * headDim, 1);
    this.vProj = linear(hidden, kvHeads * headDim, 2);
    this.oProj = linear(heads * headDim, hidden, 3);
  }

  /** [B, L, C] to the same shape. */
  forward(x: Tensor, { cos, sin, mask }: LlamaRun): Tensor {
    const { heads, kvHeads, headDim } = this.config;
    const [B, L] = x.shape;
    const q = rotary(this.qProj.forward(x).reshape([B, L, heads, headDim]), cos, sin); // [B, L, h, d]
    const k = rotary(this.kProj.forward(x).reshape([B, L, kvHeads, headDim]), cos, sin); // [B, L, hkv, d]
    const v = this.vProj.forward(x).reshape([B, L, kvHeads, headDim]); // [B, L, hkv, d]
    const [qh, kh, vh] = [q, k, v].map((t) => t.permute([0, 2, 1, 3])); // [B, heads, L, d] each
    const a = scaledDotProductAttention(qh, kh, vh, { mask, causal: true }); // [B, h, L, d]
    return this.oProj.forward(a.permute([0, 2, 1, 3]).reshape([B, L, heads * headDim])); // [B, L, C]
  }
}

/** down(silu(gate(x)) · up(x)) (https://arxiv.org/abs/2002.05202). */
export class LlamaMlp extends Module {
  static override readonly names = { gateProj: "gate_proj", upProj: "up_proj", downProj: "down_proj" };
  readonly gateProj: Linear;
  readonly upProj: Linear;
  readonly downProj: Linear;

  constructor(engine: Engine, { hidden, intermediate, mlpBias: bias }: LlamaConfig, { key, dtype }: ModuleOptions) {
    super(engine);
    const linear = (inputs: number, outputs: number, n: number) =>
      new Linear(engine, inputs, outputs, { bias, dtype, weightInit, key: key?.fold(n) });
    this.gateProj = linear(hidden, intermediate, 0);
    this.upProj = linear(hidden, intermediate, 1);
    this.downProj = linear(intermediate, hidden, 2);
  }

  forward(x: Tensor): Tensor {
    return this.downProj.forward(mul(silu(this.gateProj.forward(x)), this.upProj.forward(x))); // as x
  }
}

/** Attention and MLP, each after a norm and added to what came in. */
export class LlamaLayer extends Module {
  static override readonly names = {
    selfAttn: "self_attn",
    inputLayernorm: "input_layernorm",
    postAttentionLayernorm: "post_attention_layernorm",
  };
  readonly selfAttn: LlamaAttention;
  readonly mlp: LlamaMlp;
  readonly inputLayernorm: RmsNorm;
  readonly postAttentionLayernorm: RmsNorm;

  constructor(engine: Engine, config: LlamaConfig, { key, dtype }: ModuleOptions = {}) {
    super(engine);
    this.selfAttn = new LlamaAttention(engine, config, { key: key?.fold(0), dtype });
    this.mlp = new LlamaMlp(engine, config, { key: key?.fold(1), dtype });
    this.inputLayernorm = new RmsNorm(engine, config.hidden, config.eps, { key, dtype });
    this.postAttentionLayernorm = new RmsNorm(engine, config.hidden, config.eps, { key, dtype });
  }

  /** [B, L, C] to the same shape. */
  forward(x: Tensor, run: LlamaRun): Tensor {
    const h = add(x, this.selfAttn.forward(this.inputLayernorm.forward(x), run)); // [B, L, C]
    return add(h, this.mlp.forward(this.postAttentionLayernorm.forward(h))); // [B, L, C]
  }
}
