import { add, addcmul, chunk, type Engine, type Tensor, tanh, to } from "../engine/index.js";
import { CrossAttention, SelfAttention } from "./attention.js";
import type { LanguageGate } from "./config.js";
import { type Init, normal, zeros } from "./init.js";
import { LayerNorm, Linear, Mlp } from "./layers.js";
import { Module, type ModuleOptions } from "./module.js";

/** Options of a block. */
export interface BlockOptions extends ModuleOptions {
  mlpRatio?: number;
  /** Added to the initial gates, so that blocks count from the first step. */
  gateBias?: number;
  /** With a second, gated cross-attention, to what a language model made of the caption. */
  language?: LanguageGate;
}

/** A second caption of a run: [B, L, C] and its mask [B, 1, 1, L]. */
export interface LanguageInput {
  y: Tensor;
  mask?: Tensor;
}

/** randn / √C, with `gateBias` added to the rows of the two gates. */
const tableInit =
  (gateBias: number): Init =>
  (engine, shape, key, dtype) => {
    const table = normal(1 / Math.sqrt(shape[1]))(engine, shape, key, dtype);
    if (gateBias === 0) return table;
    return add(table, engine.tensor([0, 0, gateBias, 0, 0, gateBias], [6, 1], dtype));
  };

/**
 * One block of the spatial-temporal transformer: attention within each frame, attention of each place over time,
 * attention to the caption, MLP. Tokens stay [B, T, S, C] throughout.
 *
 * Timestep and table give six rows: shift, scale and gate of the attentions (both share the gate), then of the MLP.
 */
export class STDiTBlock extends Module {
  static override readonly names = {
    scaleShiftTable: "scale_shift_table",
    attnTemp: "attn_temp",
    crossAttn: "cross_attn",
    crossAttnLlm: "cross_attn_llm",
    gateLlm: "gate_llm",
  };
  /** [6, C] */
  readonly scaleShiftTable: Tensor;
  readonly norm1: LayerNorm;
  readonly attn: SelfAttention;
  readonly attnTemp: SelfAttention;
  readonly crossAttn: CrossAttention;
  readonly crossAttnLlm?: CrossAttention;
  /** [1], [heads] or [C]: tanh of it multiplies the second cross-attention. 0 at first, which leaves the block as it was. */
  readonly gateLlm?: Tensor;
  readonly norm2: LayerNorm;
  readonly mlp: Mlp;

  constructor(engine: Engine, width: number, heads: number, options: BlockOptions = {}) {
    super(engine);
    const { key, dtype, mlpRatio = 4, gateBias = 0, language } = options;
    this.scaleShiftTable = this.parameter([6, width], tableInit(gateBias), { dtype, key: key?.fold(0) });
    this.norm1 = new LayerNorm(engine, width, { affine: false, eps: 1e-6 });
    this.attn = new SelfAttention(engine, width, heads, { dtype, key: key?.fold(1) });
    this.attnTemp = new SelfAttention(engine, width, heads, { dtype, key: key?.fold(2), zeroProj: true });
    this.crossAttn = new CrossAttention(engine, width, heads, { dtype, key: key?.fold(3), zeroProj: true });
    if (language) {
      // Its projection must not be zero: beside a gate of zero, neither of the two would ever get a gradient.
      this.crossAttnLlm = new CrossAttention(engine, width, heads, { dtype, key: key?.fold(5) });
      const gates = { scalar: 1, head: heads, channel: width }[language];
      this.gateLlm = this.parameter([gates], zeros, { dtype, key: key?.fold(6) });
    }
    this.norm2 = new LayerNorm(engine, width, { affine: false, eps: 1e-6 });
    this.mlp = new Mlp(engine, width, width * mlpRatio, width, { dtype, key: key?.fold(4) });
  }

  /**
   * @param x [B, T, S, C]
   * @param y caption [B, L, C]
   * @param t6 [B, 6, C]: what the timestep adds to the table, with 1 already in its two scale rows
   * @param mask [B, 1, 1, L] or none
   * @param temporal [1, T, 1, C], added to the input of temporal attention only
   * @param language the second caption, for blocks that have a second cross-attention
   */
  forward(x: Tensor, y: Tensor, t6: Tensor, mask?: Tensor, temporal?: Tensor, language?: LanguageInput): Tensor {
    const rows = add(t6, to(this.scaleShiftTable, t6.dtype)).unsqueeze(2); // [B, 6, 1, C]
    const [shift1, scale1, gate1, shift2, scale2, gate2] = chunk(rows, 6, 1); // [B, 1, 1, C] each
    const z = addcmul(shift1, this.norm1.forward(x), scale1); // [B, T, S, C]
    const xs = addcmul(x, gate1, this.attn.forward(z, 2)); // [B, T, S, C]
    const zt = temporal ? add(xs, temporal) : xs; // [B, T, S, C]
    const xt = addcmul(xs, gate1, this.attnTemp.forward(zt, 1)); // [B, T, S, C]
    const xc = add(xt, this.crossAttn.forward(xt, y, mask)); // [B, T, S, C]
    const xl = language ? this.#language(xc, language) : xc; // [B, T, S, C]
    const zm = addcmul(shift2, this.norm2.forward(xl), scale2); // [B, T, S, C]
    return addcmul(xl, gate2, this.mlp.forward(zm)); // [B, T, S, C]
  }

  /** x + tanh(gate) · attention to the second caption. */
  #language(x: Tensor, { y, mask }: LanguageInput): Tensor {
    const cross = this.crossAttnLlm!;
    const gate = tanh(to(this.gateLlm!, x.dtype)); // [1], [heads] or [C]
    const perHead = gate.size === cross.heads && gate.size !== 1;
    if (perHead) return add(x, cross.forward(x, y, mask, gate)); // [B, T, S, C]
    return addcmul(x, gate, cross.forward(x, y, mask)); // [B, T, S, C]
  }
}

/** Tokens to the values of their patches, modulated by the timestep. */
export class FinalLayer extends Module {
  static override readonly names = { scaleShiftTable: "scale_shift_table" };
  /** [2, C]: shift, scale */
  readonly scaleShiftTable: Tensor;
  readonly norm: LayerNorm;
  readonly linear: Linear;

  constructor(engine: Engine, width: number, outputs: number, options: ModuleOptions = {}) {
    super(engine);
    const { key, dtype } = options;
    this.scaleShiftTable = this.parameter([2, width], normal(1 / Math.sqrt(width)), { dtype, key: key?.fold(0) });
    this.norm = new LayerNorm(engine, width, { affine: false, eps: 1e-6 });
    this.linear = new Linear(engine, width, outputs, { dtype, key: key?.fold(1), weightInit: zeros });
  }

  /** x [B, T, S, C] and the timestep's vector t [B, C] to [B, T, S, outputs]. */
  forward(x: Tensor, t: Tensor): Tensor {
    const rows = add(t.unsqueeze(1), to(this.scaleShiftTable, t.dtype)).unsqueeze(2); // [B, 2, 1, C]
    const [shift, scale] = chunk(rows, 2, 1); // [B, 1, 1, C] each
    const z = addcmul(shift, this.norm.forward(x), add(scale, 1)); // [B, T, S, C]
    return this.linear.forward(z); // [B, T, S, outputs]
  }
}
