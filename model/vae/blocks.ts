import {
  add,
  cat,
  conv2d,
  type Engine,
  groupNorm,
  matmul,
  scaledDotProductAttention,
  silu,
  softmax,
  type Tensor,
  upsampleNearest,
} from "../../engine/index.js";
import { biasUniform, ones, zeros } from "../init.js";
import { Conv2d, Linear } from "../layers.js";
import { Module, type ModuleOptions } from "../module.js";

/** Norms here add 1e-6 to the variance. */
const EPS = 1e-6;

/** Applies steps one after the other; each one's input is freed as soon as its output is there. */
export function chain(engine: Engine, x: Tensor, steps: readonly ((x: Tensor) => Tensor)[]): Tensor {
  const after = (n: number): Tensor => (n === 0 ? x : engine.scope(() => steps[n - 1](after(n - 1))));
  return after(steps.length);
}

/** A convolution that keeps the size, with PyTorch's initial values. */
export function conv(engine: Engine, inputs: number, outputs: number, kernel: number, options: ModuleOptions): Conv2d {
  const start = biasUniform(inputs * kernel * kernel);
  return new Conv2d(engine, inputs, outputs, kernel, {
    ...options,
    padding: (kernel - 1) / 2,
    weightInit: start,
    biasInit: start,
  });
}

/** Group norm with a scale and a shift for each channel. */
export class GroupNorm extends Module {
  readonly weight: Tensor;
  readonly bias: Tensor;

  constructor(
    engine: Engine,
    readonly groups: number,
    channels: number,
    options: ModuleOptions = {},
  ) {
    super(engine);
    this.weight = this.parameter([channels], ones, options);
    this.bias = this.parameter([channels], zeros, options);
  }

  forward(x: Tensor): Tensor {
    return groupNorm(x, this.groups, { weight: this.weight, bias: this.bias, eps: EPS }); // as x
  }
}

/** x + conv(silu(norm(conv(silu(norm(x)))))), with a 1x1 convolution of x where channels differ. */
export class ResnetBlock extends Module {
  static override readonly names = { convShortcut: "conv_shortcut" };
  readonly norm1: GroupNorm;
  readonly conv1: Conv2d;
  readonly norm2: GroupNorm;
  readonly conv2: Conv2d;
  readonly convShortcut?: Conv2d;

  constructor(engine: Engine, inputs: number, outputs: number, groups: number, { key, dtype }: ModuleOptions = {}) {
    super(engine);
    this.norm1 = new GroupNorm(engine, groups, inputs, { key, dtype });
    this.conv1 = conv(engine, inputs, outputs, 3, { key: key?.fold(0), dtype });
    this.norm2 = new GroupNorm(engine, groups, outputs, { key, dtype });
    this.conv2 = conv(engine, outputs, outputs, 3, { key: key?.fold(1), dtype });
    if (inputs !== outputs) this.convShortcut = conv(engine, inputs, outputs, 1, { key: key?.fold(2), dtype });
  }

  /** [N, inputs, h, w] to [N, outputs, h, w]. */
  forward(x: Tensor): Tensor {
    const { engine, norm1, conv1, norm2, conv2, convShortcut } = this;
    const h = chain(engine, x, [
      (t) => norm1.forward(t),
      silu,
      (t) => conv1.forward(t),
      (t) => norm2.forward(t),
      silu,
      (t) => conv2.forward(t),
    ]); // [N, outputs, h, w]
    return add(convShortcut ? convShortcut.forward(x) : x, h); // [N, outputs, h, w]
  }
}

/** Widest head that attention kernels keep in registers on every adapter. */
const WIDEST = 128;
/** Numbers of the largest matrix of scores that is held at once: 64 MB. */
const SCORES = 1 << 24;

/**
 * softmax(q kᵀ / √C) v of one head, q, k, v [N, L, C]. Heads of 512 channels are too wide for the fused kernels of GPUs:
 * there, two products and a softmax over some rows at a time.
 */
export function attend(q: Tensor, k: Tensor, v: Tensor, scores = SCORES, widest = WIDEST): Tensor {
  const [N, L, C] = q.shape;
  if (C <= widest) {
    const [qh, kh, vh] = [q, k, v].map((t) => t.reshape([N, 1, L, C])); // [N, 1, L, C] each
    return scaledDotProductAttention(qh, kh, vh).reshape([N, L, C]); // [N, L, C]
  }
  const { engine } = q;
  const step = Math.max(1, Math.floor(scores / L));
  const across = k.permute([0, 2, 1]); // [N, C, L]
  const one = (n: number, from: number) =>
    engine.scope(() => {
      const rows = q.slice(0, n, n + 1).slice(1, from, Math.min(L, from + step)); // [1, rows, C]
      const weights = softmax(matmul(rows.mul(C ** -0.5), across.slice(0, n, n + 1))); // [1, rows, L]
      return matmul(weights, v.slice(0, n, n + 1)); // [1, rows, C]
    });
  const items = Array.from({ length: N }, (_, n) => {
    const parts = Array.from({ length: Math.ceil(L / step) }, (_, i) => one(n, i * step));
    return parts.length === 1 ? parts[0] : cat(parts, 1); // [1, L, C]
  });
  return items.length === 1 ? items[0] : cat(items, 0); // [N, L, C]
}

/** One head of attention over all places of a picture, added to it. */
export class SpatialAttention extends Module {
  static override readonly names = { groupNorm: "group_norm", toQ: "to_q", toK: "to_k", toV: "to_v", toOut: "to_out" };
  readonly groupNorm: GroupNorm;
  readonly toQ: Linear;
  readonly toK: Linear;
  readonly toV: Linear;
  readonly toOut: readonly [Linear];

  constructor(engine: Engine, channels: number, groups: number, { key, dtype }: ModuleOptions = {}) {
    super(engine);
    const linear = (n: number) => new Linear(engine, channels, channels, { key: key?.fold(n), dtype });
    this.groupNorm = new GroupNorm(engine, groups, channels, { key, dtype });
    this.toQ = linear(0);
    this.toK = linear(1);
    this.toV = linear(2);
    this.toOut = [linear(3)];
  }

  /** [N, C, h, w] to the same shape. */
  forward(x: Tensor): Tensor {
    const [N, C, h, w] = x.shape;
    const y = this.engine.scope(() => {
      const rows = this.groupNorm
        .forward(x)
        .reshape([N, C, h * w])
        .permute([0, 2, 1])
        .contiguous(); // [N, L, C]
      const a = attend(this.toQ.forward(rows), this.toK.forward(rows), this.toV.forward(rows)); // [N, L, C]
      return this.toOut[0].forward(a).permute([0, 2, 1]).reshape([N, C, h, w]); // [N, C, h, w]
    });
    return add(x, y); // [N, C, h, w]
  }
}

/** Residual, attention, residual at the smallest size. */
export class MidBlock extends Module {
  readonly attentions: readonly SpatialAttention[];
  readonly resnets: readonly [ResnetBlock, ResnetBlock];

  constructor(
    engine: Engine,
    channels: number,
    groups: number,
    attention: boolean,
    { key, dtype }: ModuleOptions = {},
  ) {
    super(engine);
    const resnet = (n: number) => new ResnetBlock(engine, channels, channels, groups, { key: key?.fold(n), dtype });
    this.attentions = attention ? [new SpatialAttention(engine, channels, groups, { key: key?.fold(2), dtype })] : [];
    this.resnets = [resnet(0), resnet(1)];
  }

  forward(x: Tensor): Tensor {
    const parts = [this.resnets[0], ...this.attentions, this.resnets[1]];
    return chain(
      this.engine,
      x,
      parts.map((m) => (t: Tensor) => m.forward(t)),
    ); // as x
  }
}

/** A 3x3 convolution of stride 2 with one row and one column of zeros below and right of the picture alone. */
class HalvingConv extends Conv2d {
  override forward(x: Tensor): Tensor {
    const side = [0, 1] as const;
    return conv2d(x, this.weight, this.bias, { stride: 2, padding: [side, side] }); // [N, C, h/2, w/2]
  }
}

/** Halves height and width. */
export class Downsample extends Module {
  readonly conv: Conv2d;

  constructor(engine: Engine, channels: number, options: ModuleOptions = {}) {
    super(engine);
    const start = biasUniform(channels * 9);
    this.conv = new HalvingConv(engine, channels, channels, 3, { ...options, weightInit: start, biasInit: start });
  }

  forward(x: Tensor): Tensor {
    return this.conv.forward(x); // [N, C, h/2, w/2]
  }
}

/** Doubles height and width. */
export class Upsample extends Module {
  readonly conv: Conv2d;

  constructor(engine: Engine, channels: number, options: ModuleOptions = {}) {
    super(engine);
    this.conv = conv(engine, channels, channels, 3, options);
  }

  forward(x: Tensor): Tensor {
    return this.engine.scope(() => this.conv.forward(upsampleNearest(x, 2))); // [N, C, 2h, 2w]
  }
}

/** What a level is made of. */
export interface LevelSizes {
  inputs: number;
  outputs: number;
  layers: number;
  groups: number;
  /** Whether it changes height and width at its end. */
  resize: boolean;
}

const resnets = (engine: Engine, { inputs, outputs, layers, groups }: LevelSizes, { key, dtype }: ModuleOptions) =>
  Array.from(
    { length: layers },
    (_, i) => new ResnetBlock(engine, i ? outputs : inputs, outputs, groups, { key: key?.fold(i), dtype }),
  );

/** A level of the encoder: residual blocks, then half the size. */
export class DownBlock extends Module {
  readonly resnets: readonly ResnetBlock[];
  readonly downsamplers: readonly Downsample[];

  constructor(engine: Engine, sizes: LevelSizes, options: ModuleOptions = {}) {
    super(engine);
    const { key, dtype } = options;
    this.resnets = resnets(engine, sizes, options);
    this.downsamplers = sizes.resize
      ? [new Downsample(engine, sizes.outputs, { key: key?.fold(sizes.layers), dtype })]
      : [];
  }

  forward(x: Tensor): Tensor {
    const parts = [...this.resnets, ...this.downsamplers];
    return chain(
      this.engine,
      x,
      parts.map((m) => (t: Tensor) => m.forward(t)),
    ); // [N, outputs, h/2, w/2], or h, w on the last level
  }
}

/** A level of the decoder: residual blocks, then twice the size. */
export class UpBlock extends Module {
  readonly resnets: readonly ResnetBlock[];
  readonly upsamplers: readonly Upsample[];

  constructor(engine: Engine, sizes: LevelSizes, options: ModuleOptions = {}) {
    super(engine);
    const { key, dtype } = options;
    this.resnets = resnets(engine, sizes, options);
    this.upsamplers = sizes.resize
      ? [new Upsample(engine, sizes.outputs, { key: key?.fold(sizes.layers), dtype })]
      : [];
  }

  forward(x: Tensor): Tensor {
    const parts = [...this.resnets, ...this.upsamplers];
    return chain(
      this.engine,
      x,
      parts.map((m) => (t: Tensor) => m.forward(t)),
    ); // [N, outputs, 2h, 2w], or h, w on the last level
  }
}
