import { type Engine, silu, type Tensor } from "../../engine/index.js";
import type { Conv2d } from "../layers.js";
import { Module, type ModuleOptions } from "../module.js";
import { chain, conv, DownBlock, GroupNorm, type LevelSizes, MidBlock, UpBlock } from "./blocks.js";
import type { VaeConfig } from "./config.js";

const run = (m: { forward(x: Tensor): Tensor }) => (x: Tensor) => m.forward(x);

/** Sizes of a level. */
const level = (
  { groups }: VaeConfig,
  inputs: number,
  outputs: number,
  layers: number,
  resize: boolean,
): LevelSizes => ({
  inputs,
  outputs,
  layers,
  groups,
  resize,
});

/** Pictures to moments, without the 1x1 convolution behind it. */
export class VaeEncoder extends Module {
  static override readonly names = {
    convIn: "conv_in",
    downBlocks: "down_blocks",
    midBlock: "mid_block",
    convNormOut: "conv_norm_out",
    convOut: "conv_out",
  };
  readonly convIn: Conv2d;
  readonly downBlocks: readonly DownBlock[];
  readonly midBlock: MidBlock;
  readonly convNormOut: GroupNorm;
  readonly convOut: Conv2d;

  constructor(engine: Engine, config: VaeConfig, { key, dtype }: ModuleOptions = {}) {
    super(engine);
    const { channels, layersPerBlock, inChannels, latentChannels, groups, midAttention } = config;
    const last = channels.length - 1;
    const own = (n: number) => ({ key: key?.fold(n), dtype });
    this.convIn = conv(engine, inChannels, channels[0], 3, own(0));
    this.downBlocks = channels.map(
      (c, i) =>
        new DownBlock(engine, level(config, channels[Math.max(0, i - 1)], c, layersPerBlock, i < last), own(i + 3)),
    );
    this.midBlock = new MidBlock(engine, channels[last], groups, midAttention, own(1));
    this.convNormOut = new GroupNorm(engine, groups, channels[last], { key, dtype });
    this.convOut = conv(engine, channels[last], 2 * latentChannels, 3, own(2));
  }

  /** [N, inChannels, H, W] to [N, 2 · latentChannels, h, w]. */
  forward(x: Tensor): Tensor {
    const steps = [this.convIn, ...this.downBlocks, this.midBlock, this.convNormOut].map(run);
    return chain(this.engine, x, [...steps, silu, run(this.convOut)]); // [N, 2 · latent, h, w]
  }
}

/** Latents to pictures. */
export class VaeDecoder extends Module {
  static override readonly names = {
    convIn: "conv_in",
    midBlock: "mid_block",
    upBlocks: "up_blocks",
    convNormOut: "conv_norm_out",
    convOut: "conv_out",
  };
  readonly convIn: Conv2d;
  readonly midBlock: MidBlock;
  readonly upBlocks: readonly UpBlock[];
  readonly convNormOut: GroupNorm;
  readonly convOut: Conv2d;

  constructor(engine: Engine, config: VaeConfig, { key, dtype }: ModuleOptions = {}) {
    super(engine);
    const { channels, layersPerBlock, outChannels, latentChannels, groups, midAttention } = config;
    const turned = [...channels].reverse();
    const last = turned.length - 1;
    const own = (n: number) => ({ key: key?.fold(n), dtype });
    this.convIn = conv(engine, latentChannels, turned[0], 3, own(0));
    this.midBlock = new MidBlock(engine, turned[0], groups, midAttention, own(1));
    this.upBlocks = turned.map(
      (c, i) =>
        new UpBlock(engine, level(config, turned[Math.max(0, i - 1)], c, layersPerBlock + 1, i < last), own(i + 3)),
    );
    this.convNormOut = new GroupNorm(engine, groups, turned[last], { key, dtype });
    this.convOut = conv(engine, turned[last], outChannels, 3, own(2));
  }

  /** [N, latentChannels, h, w] to [N, outChannels, H, W]. */
  forward(z: Tensor): Tensor {
    const steps = [this.convIn, this.midBlock, ...this.upBlocks, this.convNormOut].map(run);
    return chain(this.engine, z, [...steps, silu, run(this.convOut)]); // [N, out, H, W]
  }
}
