import {
  add,
  checkOptions,
  checkpoint,
  type DType,
  type Engine,
  expand,
  type Shape,
  ShapeError,
  silu,
  type Tensor,
  to,
} from "../engine/index.js";
import { FinalLayer, type LanguageInput, STDiTBlock } from "./block.js";
import { outChannels, type STDiTConfig, stditConfig } from "./config.js";
import { CaptionEmbedder, countTimes, posTable1d, posTable2d, type Times, TimestepEmbedder } from "./embed.js";
import type { GrowthRecord } from "./growth.js";
import { biasUniform, normal, xavierUniform, zeros } from "./init.js";
import type { LanguageRecord } from "./language.js";
import { Conv3dPatch, Linear } from "./layers.js";
import { Module, type ModuleOptions } from "./module.js";

/** Initial values other than the original's, which suit small models that must learn fast. */
export interface STDiTInit {
  /** Bias of the patch embedding: U(-1/√fan in, 1/√fan in) as in the original, or zero. */
  patchBias?: "uniform" | "zero";
  /** Weights of the caption MLP: N(0, 0.02) as in the original, or Xavier's rule. */
  captionInit?: "normal" | "xavier";
  /** Added to the initial gates of every block; 0 in the original. */
  gateBias?: number;
}

/** Options of a run beside its inputs. */
export interface STDiTCall {
  /** [B], nonzero where a caption is replaced by the null caption (its mask stays). */
  drop?: ArrayLike<number> | Tensor;
  /** The second caption, for models that have a second cross-attention; they need it in every run. */
  language?: LanguageCall;
}

/** What a language model made of the captions of a run. */
export interface LanguageCall {
  /** [B, L, D] or [B, 1, L, D] with the D of the model's language branch. */
  y: Tensor;
  /** [M, L] integers, zero where there is no token; repeated when M divides B. None: all are used. */
  mask?: Tensor;
  /** [B], nonzero where the second caption is replaced by its null caption (its mask stays). */
  drop?: ArrayLike<number> | Tensor;
}

/** Position tables of other grids that are kept. */
const TABLES = 8;

const list = (shape: Shape) => `[${shape.join(", ")}]`;

/**
 * The spatial-temporal diffusion transformer of Open-Sora 1.0 (STDiT): latent video, time and caption in, prediction
 * out. State-dict names and numbers are those of its checkpoints.
 */
export class STDiT extends Module {
  static override readonly names = {
    xEmbedder: "x_embedder.proj",
    tEmbedder: "t_embedder",
    tBlock: "t_block.1",
    yEmbedder: "y_embedder",
    yEmbedderLlm: "y_embedder_llm",
    finalLayer: "final_layer",
    posEmbed: "pos_embed",
    posEmbedTemporal: "pos_embed_temporal",
  };
  readonly config: STDiTConfig;
  readonly xEmbedder: Conv3dPatch;
  readonly tEmbedder: TimestepEmbedder;
  /** Shared by all blocks. */
  readonly tBlock: Linear;
  readonly yEmbedder: CaptionEmbedder;
  /** Of the second caption. */
  readonly yEmbedderLlm?: CaptionEmbedder;
  readonly blocks: STDiTBlock[];
  readonly finalLayer: FinalLayer;
  /** [1, S, C] and [1, T, C] of the grid that the configuration names. */
  readonly posEmbed: Tensor;
  readonly posEmbedTemporal: Tensor;
  /** Re-runs each block in backward instead of keeping its activations: less memory, more time, the same numbers. */
  checkpointBlocks = false;
  /**
   * Dtype of activations where that differs from the weights', which are converted for each product: "f16" with weights in
   * f32 is mixed precision. Times and what is read from them stay in the weights' dtype until the blocks.
   */
  compute: DType | undefined;
  /** Which blocks are copies of which; undefined for a model that never grew. */
  growth: GrowthRecord | undefined;
  /** How its language branch began; undefined without one, or with one from the start. */
  language: LanguageRecord | undefined;
  readonly #tables = new Map<string, Tensor>();
  #scaleOnes: Tensor | undefined;

  /**
   * @param config what is left out is STDiT-XL/2's
   * @param options `key` decides the initial values; without it they are undefined until `loadStateDict`
   * @throws ConfigError for an unknown or impossible configuration
   */
  constructor(engine: Engine, config: Partial<STDiTConfig> = {}, options: ModuleOptions & STDiTInit = {}) {
    super(engine);
    checkOptions("stdit", options, ["key", "dtype", "patchBias", "captionInit", "gateBias"]);
    const c = stditConfig(config);
    const { key, dtype = "f32", patchBias = "uniform", captionInit = "normal", gateBias = 0 } = options;
    const C = c.hidden;
    const values = c.patch[0] * c.patch[1] * c.patch[2];
    this.config = c;
    this.xEmbedder = new Conv3dPatch(engine, c.inChannels, C, c.patch, {
      dtype,
      key: key?.fold(0),
      biasInit: patchBias === "zero" ? zeros : biasUniform(c.inChannels * values),
    });
    this.tEmbedder = new TimestepEmbedder(engine, C, { dtype, key: key?.fold(1) });
    this.tBlock = new Linear(engine, C, 6 * C, { dtype, key: key?.fold(2), weightInit: normal(0.02) });
    this.yEmbedder = new CaptionEmbedder(engine, c.captionChannels, C, c.maxLength, {
      dtype,
      key: key?.fold(3),
      weightInit: captionInit === "xavier" ? xavierUniform : normal(0.02),
    });
    if (c.languageChannels > 0)
      this.yEmbedderLlm = new CaptionEmbedder(engine, c.languageChannels, C, c.languageLength, {
        dtype,
        key: key?.fold(6),
        weightInit: captionInit === "xavier" ? xavierUniform : normal(0.02),
      });
    const block = { dtype, mlpRatio: c.mlpRatio, gateBias, language: c.languageChannels ? c.languageGate : undefined };
    this.blocks = Array.from(
      { length: c.depth },
      (_, i) => new STDiTBlock(engine, C, c.heads, { ...block, key: key?.fold(5).fold(i) }),
    );
    this.finalLayer = new FinalLayer(engine, C, values * outChannels(c), { dtype, key: key?.fold(4) });
    const [T, GH, GW] = [c.frames / c.patch[0], c.latent[0] / c.patch[1], c.latent[1] / c.patch[2]];
    this.posEmbed = this.buffer(engine.tensor(posTable2d(C, GH, GW, c.spaceScale), [1, GH * GW, C], dtype));
    this.posEmbedTemporal = this.buffer(engine.tensor(posTable1d(C, T, c.timeScale), [1, T, C], dtype));
  }

  /** The weights'. */
  get dtype(): DType {
    return this.xEmbedder.weight.dtype;
  }
  /** What activations are in. */
  get #inner(): DType {
    return this.compute ?? this.dtype;
  }

  /**
   * @param x noisy latent [B, inChannels, T, H, W]; T, H and W may be any multiples of the patch
   * @param timestep [B] on the 0 … 999 scale; host numbers (exact), a GPU tensor, or their `timestepCodes` [B, 256]
   * @param y captions [B, L, D] or [B, 1, L, D]
   * @param mask integers [M, L], zero where a caption has no token; repeated when M divides B. None: all are used.
   * @returns [B, inChannels, T, H, W] f32, with twice the channels where variances are learned
   * @throws ShapeError naming the input that does not fit, before GPU work
   */
  forward(x: Tensor, timestep: Times, y: Tensor, mask?: Tensor, call: STDiTCall = {}): Tensor {
    const { config } = this;
    const dtype = this.#inner;
    const C = config.hidden;
    this.#check(x, timestep, y, mask);
    this.#checkLanguage(x.shape[0], call.language);
    const [B] = x.shape;
    const caption = y.rank === 4 ? y.squeeze(1) : y; // [B, L, D]

    const patches = this.xEmbedder.forward(to(x, dtype)); // [B, T, GH, GW, C]
    const [, T, GH, GW] = patches.shape;
    const space = this.#table(this.posEmbed, `${GH}x${GW}`, () => posTable2d(C, GH, GW, config.spaceScale)); // [1, S, C]
    const time = this.#table(this.posEmbedTemporal, `${T}`, () => posTable1d(C, T, config.timeScale)).unsqueeze(2); // [1, T, 1, C]
    let tokens = add(patches.reshape([B, T, GH * GW, C]), to(space, dtype)); // [B, T, S, C]

    const t = this.tEmbedder.forward(timestep); // [B, C]
    const t6 = to(add(this.tBlock.forward(silu(t)).reshape([B, 6, C]), this.#ones()), dtype); // [B, 6, C]
    const c = this.yEmbedder.forward(caption, call.drop, dtype); // [B, L, C]
    const m = mask && this.#tile(mask, B); // [B, 1, 1, L]
    const second = this.#language(B, call.language);
    for (const [i, block] of this.blocks.entries()) {
      const temporal = i === config.temporalOwner ? to(time, dtype) : undefined; // [1, T, 1, C]
      tokens = this.#run(block, tokens, c, t6, m, temporal, second); // [B, T, S, C]
    }
    const values = this.finalLayer.forward(tokens, to(t, dtype)); // [B, T, S, pt·ph·pw·out]
    return this.#unpatchify(values, T, GH, GW); // [B, out, T, H, W]
  }

  #run(
    block: STDiTBlock,
    x: Tensor,
    y: Tensor,
    t6: Tensor,
    mask?: Tensor,
    temporal?: Tensor,
    language?: LanguageInput,
  ): Tensor {
    // Without gradients nobody needs a block's inner values: memory is that of one block, not of all.
    if (!this.engine.recording) return this.engine.scope(() => block.forward(x, y, t6, mask, temporal, language)); // [B, T, S, C]
    if (!this.checkpointBlocks) return block.forward(x, y, t6, mask, temporal, language); // [B, T, S, C]
    // Backward runs the block again, so what it reads must be held by the tape: everything is passed.
    const given = [mask, temporal, language?.y, language?.mask];
    const again = (...[a, b, c, ...rest]: Tensor[]) => {
      const [m, t, second, secondMask] = given.map((g) => g && rest.shift());
      return block.forward(a, b, c, m, t, second && { y: second, mask: secondMask }); // [B, T, S, C]
    };
    return checkpoint(again, x, y, t6, ...given.filter((t) => t !== undefined)); // [B, T, S, C]
  }

  /** The second caption at the model's width. */
  #language(B: number, call: LanguageCall | undefined): LanguageInput | undefined {
    if (!call) return undefined;
    const caption = call.y.rank === 4 ? call.y.squeeze(1) : call.y; // [B, L, D]
    return {
      y: this.yEmbedderLlm!.forward(caption, call.drop, this.#inner),
      mask: call.mask && this.#tile(call.mask, B),
    };
  }

  #check(x: Tensor, timestep: Times, y: Tensor, mask?: Tensor): void {
    const { inChannels, captionChannels, patch } = this.config;
    if (x.rank !== 5 || x.shape[1] !== inChannels)
      throw new ShapeError(`stdit: x must be [B, ${inChannels}, T, H, W]: got ${list(x.shape)}.`);
    const [B, , ...sizes] = x.shape;
    if (sizes.some((n, i) => n === 0 || n % patch[i]))
      throw new ShapeError(
        `stdit: frames, rows and columns must be multiples of the patch: got ${sizes.join(", ")} with patch ${patch.join(", ")}; take ${sizes.map((n, i) => Math.max(1, Math.ceil(n / patch[i])) * patch[i]).join(", ")}.`,
      );
    const times = countTimes(timestep);
    if (times !== B) throw new ShapeError(`stdit: needs one timestep a sample: got ${times} for a batch of ${B}.`);
    this.#checkCaption("", B, captionChannels, y, mask);
  }

  #checkLanguage(B: number, call: LanguageCall | undefined): void {
    const { languageChannels } = this.config;
    if (!languageChannels && call)
      throw new ShapeError(
        "stdit: the model has no language branch: got a second caption; add the branch with addLanguage, or leave it out.",
      );
    if (languageChannels && !call)
      throw new ShapeError(
        "stdit: the model has a language branch: no second caption was given; pass { language: { y, mask } }, with the null caption of yEmbedderLlm where there is none.",
      );
    if (call) this.#checkCaption("language ", B, languageChannels, call.y, call.mask);
  }

  #checkCaption(kind: string, B: number, channels: number, y: Tensor, mask?: Tensor): void {
    const rank = y.rank;
    if (!(rank === 3 || (rank === 4 && y.shape[1] === 1)) || y.shape[0] !== B || y.shape.at(-1) !== channels)
      throw new ShapeError(
        `stdit: ${kind}captions must be [${B}, L, ${channels}] or [${B}, 1, L, ${channels}]: got ${list(y.shape)}.`,
      );
    const L = y.shape[rank - 2];
    if (mask && (mask.rank !== 2 || mask.shape[1] !== L || mask.shape[0] === 0 || B % mask.shape[0]))
      throw new ShapeError(
        `stdit: the ${kind}mask must be [M, ${L}] with M dividing the batch ${B}: got ${list(mask.shape)}.`,
      );
  }

  /** Masks of a conditional half serve the unconditional half too: [m; m]. */
  #tile(mask: Tensor, B: number): Tensor {
    const [M, L] = mask.shape;
    const rows = M === B ? mask : expand(mask.unsqueeze(0), [B / M, M, L]); // [B/M, M, L]
    return rows.reshape([B, 1, 1, L]); // [B, 1, 1, L]
  }

  /** 1 in the scale rows: added to the timestep once here, "1 + scale" needs no launch in any block. */
  #ones(): Tensor {
    if (this.#scaleOnes?.dtype !== this.dtype) {
      this.#scaleOnes?.dispose();
      this.#scaleOnes = this.buffer(this.engine.tensor([0, 1, 0, 0, 1, 0], [6, 1], this.dtype));
    }
    return this.#scaleOnes!;
  }

  /** The stored table when the grid is the configuration's, else one made for this grid and kept. */
  #table(stored: Tensor, name: string, make: () => Float32Array): Tensor {
    const C = this.config.hidden;
    const { patch, latent, frames } = this.config;
    const own = stored === this.posEmbed ? `${latent[0] / patch[1]}x${latent[1] / patch[2]}` : `${frames / patch[0]}`;
    if (name === own) return stored;
    const key = `${name} ${this.dtype}`;
    let table = this.#tables.get(key);
    if (!table) {
      for (const [old, t] of this.#tables) {
        if (this.#tables.size < TABLES) break;
        t.dispose();
        this.#tables.delete(old);
      }
      const values = make();
      table = this.buffer(this.engine.tensor(values, [1, values.length / C, C], this.dtype));
      this.#tables.set(key, table);
    }
    return table;
  }

  /** Values lie (pt, ph, pw, out) in a token, channels fastest. */
  #unpatchify(values: Tensor, T: number, GH: number, GW: number): Tensor {
    const [pt, ph, pw] = this.config.patch;
    const out = outChannels(this.config);
    const B = values.shape[0];
    const cut = values.reshape([B, T, GH, GW, pt, ph, pw, out]); // [B, T, GH, GW, pt, ph, pw, out]
    const video = to(cut.permute([0, 7, 1, 4, 2, 5, 3, 6]), "f32"); // [B, out, T, pt, GH, ph, GW, pw]
    return video.reshape([B, out, T * pt, GH * ph, GW * pw]); // [B, out, T, H, W]
  }

  override dispose(): void {
    super.dispose();
    this.#scaleOnes?.dispose();
    for (const t of this.#tables.values()) t.dispose();
    this.#tables.clear();
  }
}
