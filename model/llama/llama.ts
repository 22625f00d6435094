import { ConfigError, type Engine, EspalierError, linear, ShapeError, type Tensor } from "../../engine/index.js";
import { Embedding, Linear } from "../layers.js";
import { Module, type ModuleOptions } from "../module.js";
import { Safetensors } from "../safetensors.js";
import type { LoadOptions, LoadReport, StateSource } from "../state.js";
import { type LlamaConfig, llamaConfig } from "./config.js";
import { LlamaLayer, type LlamaRun, RmsNorm, weightInit } from "./layer.js";
import { ropeTables } from "./rope.js";

/** What `Llama` takes beside its configuration. */
export interface LlamaInit extends ModuleOptions {
  /** Whether there is an output head. Encoders do without, which saves vocabulary x hidden numbers. Default true. */
  head?: boolean;
}

/** The layers without an output head: checkpoints name them `model.*`. */
export class LlamaModel extends Module {
  static override readonly names = { embedTokens: "embed_tokens" };
  readonly embedTokens: Embedding;
  readonly layers: LlamaLayer[];
  readonly norm: RmsNorm;
  #tables: { length: number; cos: Float32Array; sin: Float32Array } | undefined;

  constructor(
    engine: Engine,
    readonly config: LlamaConfig,
    { key, dtype }: ModuleOptions = {},
  ) {
    super(engine);
    const { vocabSize, hidden, depth, eps } = config;
    this.embedTokens = new Embedding(engine, vocabSize, hidden, { weightInit, dtype, key: key?.fold(0) });
    this.layers = Array.from(
      { length: depth },
      (_, i) => new LlamaLayer(engine, config, { dtype, key: key?.fold(i + 1) }),
    );
    this.norm = new RmsNorm(engine, hidden, eps, { key, dtype });
  }

  /** Rotary tables of a length, and the mask as attention takes it. */
  #run(length: number, mask: Tensor | undefined): LlamaRun {
    if (this.#tables?.length !== length) this.#tables = { length, ...ropeTables(this.config, length) };
    const { engine, config } = this;
    const table = (numbers: Float32Array) =>
      engine.tensor(numbers, [length, 1, config.headDim / 2], this.norm.weight.dtype); // [L, 1, d/2]
    return {
      cos: table(this.#tables.cos),
      sin: table(this.#tables.sin),
      mask: mask?.reshape([mask.shape[0], 1, 1, length]), // [B, 1, 1, L]
    };
  }

  /** ids and mask [B, L] to the states [B, L, C] of a layer; see `Llama.hiddenStates`. */
  forward(ids: Tensor, mask?: Tensor, layer = -1): Tensor {
    const { depth } = this.config;
    if (ids.rank !== 2 || ids.shape.includes(0))
      throw new ShapeError(`llama: ids must be [B, L], not empty: got [${ids.shape.join(", ")}].`);
    if (mask && `${mask.shape}` !== `${ids.shape}`)
      throw new ShapeError(`llama: the mask must have the ids' shape [${ids.shape}]: got [${mask.shape}].`);
    if (!(Number.isInteger(layer) && layer >= -depth - 1 && layer <= depth))
      throw new ConfigError(
        `llama: layer must be a whole number from ${-depth - 1} to ${depth}: got ${layer}; 0 are the embeddings, -1 is after the final norm.`,
      );
    const count = layer < 0 ? depth + 1 + layer : layer;
    const { engine } = this;
    return engine.scope(() => {
      const run = this.#run(ids.shape[1], mask);
      // One scope in another: each layer's input is freed as soon as its output is there.
      const after = (n: number): Tensor =>
        n === 0
          ? this.embedTokens.forward(ids) // [B, L, C]
          : engine.scope(() => this.layers[n - 1].forward(after(n - 1), run)); // [B, L, C]
      const x = after(count);
      // The last layer's own output is never asked for: as in Hugging Face's lists, the norm's takes its place.
      return count === depth ? this.norm.forward(x) : x; // [B, L, C]
    });
  }
}

/**
 * A Llama 2 or 3: a causal transformer with rotary positions, grouped-query attention, RMS norms and gated MLPs
 * (https://arxiv.org/abs/2407.21783), with the names of Hugging Face's checkpoints.
 */
export class Llama extends Module {
  static override readonly names = { lmHead: "lm_head" };
  readonly config: LlamaConfig;
  readonly model: LlamaModel;
  /** Absent where the table of embeddings is the head, and in encoders. */
  readonly lmHead?: Linear;
  readonly #head: boolean;

  /** @throws ConfigError for a configuration that cannot be */
  constructor(engine: Engine, config: Partial<LlamaConfig>, { key, dtype, head = true }: LlamaInit = {}) {
    super(engine);
    this.config = llamaConfig(config);
    this.#head = head;
    this.model = new LlamaModel(engine, this.config, { key: key?.fold(0), dtype });
    const { hidden, vocabSize, tied } = this.config;
    if (head && !tied)
      this.lmHead = new Linear(engine, hidden, vocabSize, { bias: false, weightInit, dtype, key: key?.fold(1) });
  }

  /**
   * What the model makes of each token: [B, L, C].
   * @param ids [B, L] of integers
   * @param mask [B, L] of integers, 0 where there is padding; padding belongs at the end
   * @param layer 0 for the embeddings, i for the output of layer i, and `depth` for the final norm's, as in Hugging
   *   Face's `hidden_states`; negative from the end: -1 is `last_hidden_state`, -2 what enters the last layer
   * @throws ConfigError for a layer that there is not, ShapeError for ids or mask of another shape
   */
  hiddenStates(ids: Tensor, mask?: Tensor, layer = -1): Tensor {
    return this.model.forward(ids, mask, layer);
  }

  /** Scores of each next token: ids and mask [B, L] to [B, L, vocabulary]. */
  forward(ids: Tensor, mask?: Tensor): Tensor {
    if (!this.#head)
      throw new EspalierError("llama: made without a head, it gives states but no scores; make it with head: true.");
    const states = this.model.forward(ids, mask); // [B, L, C]
    return this.lmHead ? this.lmHead.forward(states) : linear(states, this.model.embedTokens.weight); // [B, L, V]
  }

  /**
   * Loads a checkpoint by Hugging Face's names, whether of the model with its head or of the layers alone.
   * Names that have no use here are left out: rotary buffers, and a head that is not wanted or is the embeddings' twin.
   */
  override loadStateDict(source: StateSource, options: LoadOptions = {}): Promise<LoadReport> {
    const { prefix = "", ignore = [] } = options;
    const names = source instanceof Safetensors ? [...source.tensors.keys()] : Object.keys(source);
    const own = names.filter((name) => name.startsWith(prefix)).map((name) => name.slice(prefix.length));
    const left = own.filter((name) => name.endsWith(".rotary_emb.inv_freq"));
    if (!this.lmHead) left.push("lm_head.");
    const all = { ...options, ignore: [...ignore, ...left] };
    const bare = own.includes("embed_tokens.weight") && !own.includes("model.embed_tokens.weight");
    return bare && !this.lmHead ? this.model.loadStateDict(source, all) : super.loadStateDict(source, all);
  }
}
