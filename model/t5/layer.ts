import {
  add,
  type Engine,
  geluTanh,
  max,
  mul,
  rmsNorm,
  scaledDotProductAttention,
  type Tensor,
  to,
} from "../../engine/index.js";
import { normal, ones } from "../init.js";
import { Embedding, Linear } from "../layers.js";
import { Module, type ModuleOptions } from "../module.js";
import type { T5Config } from "./config.js";
import { bucketIndex } from "./position.js";

/**
 * y = x / √(mean(x²) + eps) · weight over the last axis. The sum of all layers that it reads is f32 whatever the
 * weights are stored in: a large T5's grows beyond what f16 holds.
 */
export class T5Norm extends Module {
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

  /** f32 to f32. */
  forward(x: Tensor): Tensor {
    return rmsNorm(x, { weight: to(this.weight, "f32"), eps: this.eps }); // as x
  }
}

/** Attention of all tokens to all, unscaled, with a learned number for each distance and head. */
export class T5Attention extends Module {
  static override readonly names = { relativeAttentionBias: "relative_attention_bias" };
  readonly q: Linear;
  readonly k: Linear;
  readonly v: Linear;
  readonly o: Linear;
  /** [buckets, heads]; the first block's serves all. */
  readonly relativeAttentionBias?: Embedding;

  constructor(
    engine: Engine,
    readonly config: T5Config,
    { key, dtype, hasBias = false }: ModuleOptions & { hasBias?: boolean } = {},
  ) {
    super(engine);
    const { hidden, heads, headDim, buckets } = config;
    const inner = heads * headDim;
    const linear = (inputs: number, outputs: number, std: number, n: number) =>
      new Linear(engine, inputs, outputs, { bias: false, dtype, weightInit: normal(std), key: key?.fold(n) });
    // Queries start smaller by √headDim: that stands for the scale that attention does without.
    this.q = linear(hidden, inner, (hidden * headDim) ** -0.5, 0);
    this.k = linear(hidden, inner, hidden ** -0.5, 1);
    this.v = linear(hidden, inner, hidden ** -0.5, 2);
    this.o = linear(inner, hidden, inner ** -0.5, 3);
    if (hasBias) {
      const weightInit = normal(hidden ** -0.5);
      this.relativeAttentionBias = new Embedding(engine, buckets, heads, { dtype, weightInit, key: key?.fold(4) });
    }
  }

  /** What is added to the scores of every block for a text of L tokens: [1, h, L, L], f32. */
  positionBias(length: number): Tensor {
    const { engine, config } = this;
    const index = engine.tensor(bucketIndex(length, config), [length, length], "i32"); // [L, L]
    const rows = this.relativeAttentionBias!.forward(index); // [L, L, h]
    return to(rows, "f32").permute([2, 0, 1]).unsqueeze(0); // [1, h, L, L]
  }

  /**
   * x [B, L, C] to the same shape.
   * @param bias [B or 1, h, L, L], f32, added to the scores
   */
  forward(x: Tensor, bias: Tensor): Tensor {
    const { heads, headDim } = this.config;
    const [B, L] = x.shape;
    const split = (t: Tensor) => t.reshape([B, L, heads, headDim]).permute([0, 2, 1, 3]); // [B, h, L, d]
    const [q, k, v] = [this.q, this.k, this.v].map((linear) => split(linear.forward(x))); // [B, h, L, d] each
    const a = scaledDotProductAttention(q, k, v, { mask: bias, scale: 1 }); // [B, h, L, d]
    return this.o.forward(a.permute([0, 2, 1, 3]).reshape([B, L, heads * headDim])); // [B, L, C]
  }
}

/** wo(gelu(wi_0(x)) · wi_1(x)) (https://arxiv.org/abs/2002.05202). */
export class T5FeedForward extends Module {
  static override readonly names = { wi0: "wi_0", wi1: "wi_1" };
  readonly wi0: Linear;
  readonly wi1: Linear;
  readonly wo: Linear;

  constructor(engine: Engine, { hidden, intermediate }: T5Config, { key, dtype }: ModuleOptions = {}) {
    super(engine);
    const linear = (inputs: number, outputs: number, n: number) =>
      new Linear(engine, inputs, outputs, {
        bias: false,
        dtype,
        weightInit: normal(inputs ** -0.5),
        key: key?.fold(n),
      });
    this.wi0 = linear(hidden, intermediate, 0);
    this.wi1 = linear(hidden, intermediate, 1);
    this.wo = linear(intermediate, hidden, 2);
  }

  /** x [..., C] to f32 of the same shape. */
  forward(x: Tensor): Tensor {
    if (x.dtype === "f32") return this.wo.forward(mul(geluTanh(this.wi0.forward(x)), this.wi1.forward(x))); // [..., C]
    const [gate, up] = [this.wi0, this.wi1].map((linear) => to(linear.forward(x), "f32")); // [..., F] each
    const h = mul(geluTanh(gate), up); // [..., F]
    // In a large T5 this product is beyond f16. Each row is brought to 1 and back, which cancels: no gradient is lost.
    const top = this.engine.noGrad(() => max(h.abs(), -1, true).clamp(1e-30, 3e38)); // [..., 1]
    return mul(to(this.wo.forward(to(h.div(top), x.dtype)), "f32"), top); // [..., C]
  }
}

/** A block's first half: norm, attention. */
export class T5SelfLayer extends Module {
  static override readonly names = { selfAttention: "SelfAttention", layerNorm: "layer_norm" };
  readonly selfAttention: T5Attention;
  readonly layerNorm: T5Norm;

  constructor(engine: Engine, config: T5Config, options: ModuleOptions & { hasBias: boolean }) {
    super(engine);
    this.selfAttention = new T5Attention(engine, config, options);
    this.layerNorm = new T5Norm(engine, config.hidden, config.eps, options);
  }

  /** x [B, L, C], f32, and the bias of the scores to x's shape. */
  forward(x: Tensor, bias: Tensor): Tensor {
    const h = to(this.layerNorm.forward(x), this.layerNorm.weight.dtype); // [B, L, C]
    return add(x, to(this.selfAttention.forward(h, bias), "f32")); // [B, L, C]
  }
}

/** A block's second half: norm, feed-forward. */
export class T5FeedForwardLayer extends Module {
  static override readonly names = { denseReluDense: "DenseReluDense", layerNorm: "layer_norm" };
  readonly denseReluDense: T5FeedForward;
  readonly layerNorm: T5Norm;

  constructor(engine: Engine, config: T5Config, options: ModuleOptions) {
    super(engine);
    this.denseReluDense = new T5FeedForward(engine, config, options);
    this.layerNorm = new T5Norm(engine, config.hidden, config.eps, options);
  }

  /** [B, L, C], f32, to the same. */
  forward(x: Tensor): Tensor {
    const h = to(this.layerNorm.forward(x), this.layerNorm.weight.dtype); // [B, L, C]
    return add(x, this.denseReluDense.forward(h)); // [B, L, C]
  }
}

/** Attention and feed-forward, each added to what came in. */
export class T5Block extends Module {
  readonly layer: [T5SelfLayer, T5FeedForwardLayer];

  constructor(engine: Engine, config: T5Config, { key, dtype, hasBias }: ModuleOptions & { hasBias: boolean }) {
    super(engine);
    this.layer = [
      new T5SelfLayer(engine, config, { key: key?.fold(0), dtype, hasBias }),
      new T5FeedForwardLayer(engine, config, { key: key?.fold(1), dtype }),
    ];
  }

  /** x [B, L, C], f32, and the bias of the scores to x's shape. */
  forward(x: Tensor, bias: Tensor): Tensor {
    return this.layer[1].forward(this.layer[0].forward(x, bias)); // [B, L, C]
  }
}
