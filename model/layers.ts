import {
  type Activation,
  add,
  conv2d,
  type Engine,
  embedding,
  geluTanh,
  layerNorm,
  linear,
  matmul,
  reshape,
  ShapeError,
  silu,
  type Tensor,
  to,
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

/** A low-rank addition to a linear layer: a [rank, in] and b [out, rank], counted alpha / rank times. */
export interface Adapter {
  a: Linear;
  b: Linear;
  alpha: number;
}

/**
 * y = x Wᵀ + b over the last axis; weight [out, in], converted to the dtype of x, so that a gradient of full weights comes
 * back in full. With an adapter (see `addLora`) alpha / rank · (x Aᵀ) Bᵀ is added, computed in the adapter's dtype, or in
 * that of x where the weight is converted too.
 */
export class Linear extends Module {
  static override readonly names = { loraA: "lora_A", loraB: "lora_B" };
  /** Another tensor while an adapter is merged into it. */
  weight: Tensor;
  readonly bias?: Tensor;
  loraA?: Linear;
  loraB?: Linear;
  loraAlpha = 0;
  /** The weight without its adapter, while that is merged into `weight`. */
  loraBase?: Tensor;

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
    const alone = !this.loraA || this.loraBase;
    const bias = this.bias && to(this.bias, x.dtype); // [out]
    if (alone && (activation === "none" || !this.engine.recording))
      return linear(x, to(this.weight, x.dtype), bias, activation); // [..., out]
    const y = this.adapted(x, linear(x, to(this.weight, x.dtype), bias)); // [..., out]
    if (activation === "none") return y; // [..., out]
    return activation === "silu" ? silu(y) : geluTanh(y); // [..., out]
  }

  /** x Wᵀ with the adapter's share but without the bias, for callers that add the bias in a way of their own. */
  product(x: Tensor): Tensor {
    return this.adapted(x, linear(x, to(this.weight, x.dtype))); // [..., out]
  }

  private adapted(x: Tensor, y: Tensor): Tensor {
    const { loraA, loraB } = this;
    if (!loraA || !loraB || this.loraBase) return y; // [..., out]
    // Where weights are converted, x is what all computes in: a second copy of it would cost as much memory again.
    const dtype = this.weight.dtype === x.dtype ? loraA.weight.dtype : x.dtype;
    // Scaled where it is narrow.
    const low = loraA.forward(to(x, dtype)).mul(this.loraScale); // [..., rank]
    return add(y, to(loraB.forward(low), y.dtype)); // [..., out]
  }

  /** alpha / rank. */
  private get loraScale(): number {
    return this.loraAlpha / this.loraA!.weight.shape[0];
  }

  /** Puts an adapter on, in place of any other, or takes it off. The one before still belongs to whoever made it. */
  setAdapter(adapter: Adapter | undefined): void {
    this.loraA = adapter?.a;
    this.loraB = adapter?.b;
    this.loraAlpha = adapter?.alpha ?? 0;
    this.rebind();
  }

  /** Gives the layer a weight that holds the adapter's share, summed in f32; see `mergeLora`. */
  mergeAdapter(): void {
    const { engine, weight, loraA, loraB } = this;
    if (!loraA || !loraB || this.loraBase) return;
    const sum = () => {
      const share = matmul(to(loraB.weight, "f32"), to(loraA.weight, "f32")).mul(this.loraScale); // [out, in]
      return to(add(to(weight, "f32"), share), weight.dtype); // [out, in]
    };
    const merged = engine.noGrad(() => engine.scope(sum)).setRequiresGrad(weight.requiresGrad);
    this.loraBase = this.mark(weight, "aside");
    this.weight = this.mark(merged, "parameter");
    for (const { weight } of [loraA, loraB]) this.mark(weight, "aside");
  }

  /** Brings back the weight that `mergeAdapter` set aside: the same memory, so the same bits. */
  unmergeAdapter(): void {
    const { loraA, loraB, loraBase } = this;
    if (!loraA || !loraB || !loraBase) return;
    this.weight.dispose();
    this.weight = this.mark(loraBase, "parameter");
    this.loraBase = undefined;
    for (const { weight } of [loraA, loraB]) this.mark(weight, "parameter");
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
    const [weight, bias] = [this.weight, this.bias].map((p) => p && to(p, x.dtype)); // [C] each
    return layerNorm(x, { weight, bias, eps: this.eps }); // as x
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
    const [weight, bias] = [this.weight, this.bias].map((p) => p && to(p, x.dtype));
    return conv2d(x, weight!, bias, { stride: this.stride, padding: this.padding }); // [B, out, H', W']
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
    const weight = to(reshape(this.weight, [out, inputs * pt * ph * pw]), x.dtype); // [out, in·pt·ph·pw]
    return linear(rows, weight, to(this.bias, x.dtype)); // [B, T/pt, H/ph, W/pw, out]
  }
}
