import { add, type Engine, ShapeError, type Tensor, to, where } from "../../engine/index.js";
import { normal } from "../init.js";
import { Embedding } from "../layers.js";
import { Module, type ModuleOptions } from "../module.js";
import type { LoadOptions, LoadReport, StateSource } from "../state.js";
import { StateView, viewOf } from "../view.js";
import { type T5Config, t5Config } from "./config.js";
import { T5Block, T5Norm } from "./layer.js";

/** The blocks and the norm after them: checkpoints name them `encoder.*`. */
export class T5Stack extends Module {
  static override readonly names = { finalLayerNorm: "final_layer_norm" };
  readonly block: T5Block[];
  readonly finalLayerNorm: T5Norm;

  constructor(
    engine: Engine,
    readonly config: T5Config,
    { key, dtype }: ModuleOptions = {},
  ) {
    super(engine);
    const { depth, hidden, eps } = config;
    this.block = Array.from(
      { length: depth },
      (_, i) => new T5Block(engine, config, { dtype, key: key?.fold(i), hasBias: i === 0 }),
    );
    this.finalLayerNorm = new T5Norm(engine, hidden, eps, { key, dtype });
  }

  /** Embeddings [B, L, C], f32, and a mask [B, L] to the same shape. */
  forward(x: Tensor, mask?: Tensor): Tensor {
    const { engine } = this;
    const [B, L] = x.shape;
    const position = this.block[0].layer[0].selfAttention.positionBias(L); // [1, h, L, L]
    // Below what attention takes for hidden, whatever a distance adds.
    const hidden = mask && where(mask.equal(0), engine.tensor([-3.3e38]), engine.tensor([0])).reshape([B, 1, 1, L]); // [B, 1, 1, L]
    const bias = hidden ? add(position, hidden) : position; // [B or 1, h, L, L]
    // One scope in another: each block's input is freed as soon as its output is there.
    const after = (n: number): Tensor =>
      n === 0 ? x : engine.scope(() => this.block[n - 1].forward(after(n - 1), bias)); // [B, L, C]
    return this.finalLayerNorm.forward(after(this.block.length)); // [B, L, C]
  }
}

/**
 * The encoder of T5 v1.1 (https://arxiv.org/abs/1910.10683, https://arxiv.org/abs/2002.05202): norms before each half
 * block, unscaled attention with one shared table of relative positions, a gated GELU, no biases. Names are those of
 * Hugging Face's checkpoints. Weights may be stored in f16; what adds up from block to block stays f32.
 */
export class T5Encoder extends Module {
  readonly config: T5Config;
  readonly shared: Embedding;
  readonly encoder: T5Stack;

  /**
   * @param options `key` draws initial weights as T5 was started: unit variance of embeddings, 1/√(fan in) else
   * @throws ConfigError for a configuration that cannot be
   */
  constructor(engine: Engine, config: Partial<T5Config> = {}, { key, dtype }: ModuleOptions = {}) {
    super(engine);
    this.config = t5Config(config);
    const { vocabSize, hidden } = this.config;
    this.shared = new Embedding(engine, vocabSize, hidden, { weightInit: normal(1), dtype, key: key?.fold(0) });
    this.encoder = new T5Stack(engine, this.config, { key: key?.fold(1), dtype });
  }

  /**
   * What the encoder makes of each token, after the final norm: [B, L, C], f32. Rows of padding mean nothing.
   * @param ids [B, L] of integers
   * @param mask [B, L] of integers, 0 where there is padding
   * @throws ShapeError for ids or a mask of another shape
   */
  forward(ids: Tensor, mask?: Tensor): Tensor {
    if (ids.rank !== 2 || ids.shape.includes(0))
      throw new ShapeError(`t5: ids must be [B, L], not empty: got [${ids.shape.join(", ")}].`);
    if (mask && `${mask.shape}` !== `${ids.shape}`)
      throw new ShapeError(`t5: the mask must have the ids' shape [${ids.shape}]: got [${mask.shape}].`);
    return this.engine.scope(() => this.encoder.forward(to(this.shared.forward(ids), "f32"), mask)); // [B, L, C]
  }

  /**
   * Loads a checkpoint of the encoder, or the encoder out of a whole T5. The table of embeddings may go by its other
   * name, `encoder.embed_tokens.weight`.
   */
  override loadStateDict(source: StateSource, options: LoadOptions = {}): Promise<LoadReport> {
    const { prefix = "", ignore = [] } = options;
    const view = viewOf(source);
    const [own, other] = [`${prefix}shared.weight`, `${prefix}encoder.embed_tokens.weight`];
    const parts = new Map(view.parts);
    const table = parts.get(own) ?? parts.get(other);
    parts.delete(other);
    if (table) parts.set(own, table);
    const all = { ...options, ignore: ["decoder.", "lm_head.", ...ignore] };
    return super.loadStateDict(new StateView(view.name, parts), all);
  }
}
