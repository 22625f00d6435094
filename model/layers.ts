import {
  type Activation,
  conv2d,
  type Engine,
  embedding,
  geluTanh,
  layerNorm,
  linear,
  reshape,
  ShapeError,
  silu,
  type Tensor,
} from "../engine/index.js";
import { type Init, normal, ones, xavierUniform, zeros } from "./init.js";
import { Module, type ModuleOptions } from "./module.js";

/** What linear-like layers take beside their sizes. */
export interface LinearOptions extends ModuleOptions {
  bias?: boolean;
  /** Default Xavier's uniform rule. */
  weightInit?: Init;
  /** Default zeros. */
  biasInit?: Init;
}

/** y = x Wᵀ + b over the last axis; weight [out, in]. */
export class Linear extends Module {
  readonly weight: Tensor;
  readonly bias?: Tensor;

  constructor(engine: Engine, inputs: number, outputs: number, options: LinearOptions = {}) {
    super(engine);
    const { bias = true, weightInit = xavierUniform, biasInit = zeros, key } = options;
    this.weight = this.parameter([outputs, inputs], weightInit, { ...options, key: key?.fold(0) });
    if (bias) this.bias = this.parameter([outputs], biasInit, { ...options, key: key?.fold(1) });
  }

  /**
   * [..., in] to [..., out], with an activation in the same launch. While gradients are recorded the activation is an op
   * of its own: backward would otherwise have to repeat the product.
   */
  forward(x: Tensor, activation: Activation = "none"): Tensor {
    if (activation === "none" || !this.engine.recording) return linear(x, this.weight, this.bias, activation); // [..., out]
    const y = linear(x, this.weight, this.bias); // [..., out]
    return activation === "silu" ? silu(y) : geluTanh(y); // [..., out]
  }
}

/** y = (x - mean) / √(variance + eps) over the last axis, with or without a learned scale and shift. */
export class LayerNorm extends Module {
  readonly weight?: Tensor;
  readonly bias?: Tensor;
  readonly eps: number;

  constructor(engine: Engine, width: number, options: ModuleOptions & { affine?: boolean; eps?: number } = {}) {
    super(engine);
    const { affine = true, eps = 1e-5 } = options;
    this.eps = eps;
    if (affine) {
      this.weight = this.parameter([width], ones, options);
      this.bias = this.parameter([width], zeros, options);
    }
  }

  forward(x: Tensor): Tensor {
    return layerNorm(x, { weight: this.weight, bias: this.bias, eps: this.eps }); // as x
  }
}

/** Row `index` of a table [count, width] for each index. */
export class Embedding extends Module {
  readonly weight: Tensor;

  constructor(engine: Engine, count: number, width: number, options: ModuleOptions & { weightInit?: Init } = {}) {
    super(engine);
    this.weight = this.parameter([count, width], options.weightInit ?? normal(1), options);
  }

  /** i32 or u32 [...] to [..., width]. */
  forward(index: Tensor): Tensor {
    return embedding(this.weight, index); // [..., width]
  }
}

/** Linear, GELU (tanh form), Linear. */
export class Mlp extends Module {
  readonly fc1: Linear;
  readonly fc2: Linear;

  constructor(engine: Engine, inputs: number, hidden: number, outputs: number, options: LinearOptions = {}) {
    super(engine);
    this.fc1 = new Linear(engine, inputs, hidden, { ...options, key: options.key?.fold(0) });
    this.fc2 = new Linear(engine, hidden, outputs, { ...options, key: options.key?.fold(1) });
  }

  forward(x: Tensor): Tensor {
    const h = this.fc1.forward(x, "geluTanh"); // [..., hidden]
    return this.fc2.forward(h); // [..., out]
  }
}

/** A 2-D convolution; weight [out, in, k, k]. */
export class Conv2d extends Module {
  readonly weight: Tensor;
  readonly bias?: Tensor;
  readonly stride: number;
  readonly padding: number;

  constructor(
    engine: Engine,
    inputs: number,
    outputs: number,
    kernel: number,
    options: LinearOptions & { stride?: number; padding?: number } = {},
  ) {
    super(engine);
    const { bias = true, weightInit = xavierUniform, biasInit = zeros, stride = 1, padding = 0, key } = options;
    this.stride = stride;
    this.padding = padding;
    this.weight = this.parameter([outputs, inputs, kernel, kernel], weightInit, { ...options, key: key?.fold(0) });
    if (bias) this.bias = this.parameter([outputs], biasInit, { ...options, key: key?.fold(1) });
  }

  /** [B, in, H, W] to [B, out, H', W']. */
  forward(x: Tensor): Tensor {
    return conv2d(x, this.weight, this.bias, { stride: this.stride, padding: this.padding }); // [B, out, H', W']
  }
}

/** Frames, rows and columns that one token covers. */
export type Patch = readonly [frames: number, rows: number, columns: number];

/**
 * A 3-D convolution whose kernel is its stride: cuts a video into patches and maps each to a token. It is computed as
 * one product with the patches as rows, so that tokens come out token by token and the large result is never permuted.
 * weight [out, in, pt, ph, pw].
 */
export class Conv3dPatch extends Module {
  readonly weight: Tensor;
  readonly bias: Tensor;

  constructor(
    engine: Engine,
    inputs: number,
    outputs: number,
    readonly patch: Patch,
    options: LinearOptions = {},
  ) {
    super(engine);
    const { weightInit = xavierUniform, biasInit = zeros, key } = options;
    this.weight = this.parameter([outputs, inputs, ...patch], weightInit, { ...options, key: key?.fold(0) });
    this.bias = this.parameter([outputs], biasInit, { ...options, key: key?.fold(1) });
  }

  /**
   * [B, in, T, H, W] to [B, T/pt, H/ph, W/pw, out].
   * @throws ShapeError when a size is no multiple of the patch
   */
  forward(x: Tensor): Tensor {
    const [out, inputs] = this.weight.shape;
    const [pt, ph, pw] = this.patch;
    if (x.rank !== 5 || x.shape[1] !== inputs)
      throw new ShapeError(`patches: needs [B, ${inputs}, T, H, W]: got [${x.shape.join(", ")}].`);
    const [B, , T, H, W] = x.shape;
    if (T % pt || H % ph || W % pw)
      throw new ShapeError(
        `patches: sizes must be multiples of the patch: T, H, W = ${T}, ${H}, ${W} with patch ${pt}, ${ph}, ${pw}; take ${Math.ceil(T / pt) * pt}, ${Math.ceil(H / ph) * ph}, ${Math.ceil(W / pw) * pw}.`,
      );
    const cut = x.reshape([B, inputs, T / pt, pt, H / ph, ph, W / pw, pw]); // [B, in, T/pt, pt, H/ph, ph, W/pw, pw]
    const rows = cut.permute([0, 2, 4, 6, 1, 3, 5, 7]).reshape([B, T / pt, H / ph, W / pw, inputs * pt * ph * pw]); // [B, T/pt, H/ph, W/pw, in·pt·ph·pw]
    return linear(rows, reshape(this.weight, [out, inputs * pt * ph * pw]), this.bias); // [B, T/pt, H/ph, W/pw, out]
  }
}
