import { ConfigError, checkOptions } from "../../engine/errors.js";

/** Everything that decides an AutoencoderKL's parameters and function. */
export interface VaeConfig {
  inChannels: number;
  outChannels: number;
  /** Channels at full size, at half of it, and so on; each level after the first halves height and width. */
  channels: readonly number[];
  /** Residual blocks of an encoder's level; a decoder's has one more. */
  layersPerBlock: number;
  latentChannels: number;
  /** Groups of every norm. */
  groups: number;
  /** Latents are (z - shiftFactor) · scalingFactor, so that their variance is about 1. */
  scalingFactor: number;
  shiftFactor: number;
  /** A 1x1 convolution behind the encoder. */
  quantConv: boolean;
  /** A 1x1 convolution before the decoder. */
  postQuantConv: boolean;
  /** Attention between the residual blocks of the smallest size. */
  midAttention: boolean;
  /** Side in pixels that it was trained at: the default side of a tile. */
  sampleSize: number;
}

/** Stable Diffusion's autoencoder: sd-vae-ft-ema and sd-vae-ft-mse have these sizes. */
export const SD_VAE: VaeConfig = {
  inChannels: 3,
  outChannels: 3,
  channels: [128, 256, 512, 512],
  layersPerBlock: 2,
  latentChannels: 4,
  groups: 32,
  scalingFactor: 0.18215,
  shiftFactor: 0,
  quantConv: true,
  postQuantConv: true,
  midAttention: true,
  sampleSize: 256,
};

const KEYS = Object.keys(SD_VAE) as (keyof VaeConfig)[];

/**
 * A checked configuration; what is left out is Stable Diffusion's.
 * @throws ConfigError for an unknown key (with the nearest), a bad value or channels that the groups do not divide
 */
export function vaeConfig(given: Partial<VaeConfig> = {}): VaeConfig {
  checkOptions("vae", given, KEYS);
  const defined = Object.fromEntries(Object.entries(given).filter(([, value]) => value !== undefined));
  const c: VaeConfig = { ...SD_VAE, ...defined };
  const refuse = (key: keyof VaeConfig, rule: string): never => {
    throw new ConfigError(`vae: ${key} ${rule}: got ${JSON.stringify(c[key])}.`);
  };
  const isCount = (n: unknown) => Number.isInteger(n) && (n as number) >= 1;
  for (const key of ["inChannels", "outChannels", "layersPerBlock", "latentChannels", "groups", "sampleSize"] as const)
    if (!isCount(c[key])) refuse(key, "must be a whole number from 1");
  for (const key of ["quantConv", "postQuantConv", "midAttention"] as const)
    if (typeof c[key] !== "boolean") refuse(key, "must be true or false");
  if (!(Number.isFinite(c.scalingFactor) && c.scalingFactor > 0)) refuse("scalingFactor", "must be a number above 0");
  if (!Number.isFinite(c.shiftFactor)) refuse("shiftFactor", "must be a number");
  if (!Array.isArray(c.channels) || c.channels.length === 0 || !c.channels.every(isCount))
    refuse("channels", "must be a list of whole numbers from 1, one for each level");
  if (c.channels.some((n) => n % c.groups)) refuse("channels", `must all be multiples of groups ${c.groups}`);
  return c;
}

type Json = Record<string, unknown>;

/** Keys of a diffusers config.json that have one counterpart here. */
const PAIRS = {
  in_channels: "inChannels",
  out_channels: "outChannels",
  block_out_channels: "channels",
  layers_per_block: "layersPerBlock",
  latent_channels: "latentChannels",
  norm_num_groups: "groups",
  scaling_factor: "scalingFactor",
  shift_factor: "shiftFactor",
  use_quant_conv: "quantConv",
  use_post_quant_conv: "postQuantConv",
  mid_block_add_attention: "midAttention",
  sample_size: "sampleSize",
} as const satisfies Record<string, keyof VaeConfig>;

/** What diffusers takes where its config.json says nothing. */
const DEFAULTS: Partial<VaeConfig> = { channels: [64], layersPerBlock: 1, sampleSize: 32 };

const DOWN = "DownEncoderBlock2D";
const UP = "UpDecoderBlock2D";

/**
 * The configuration in a diffusers `config.json` of an AutoencoderKL.
 * @param json its text, or the object in it
 * @throws ConfigError for another class, blocks or an activation that are not known, or a value out of range
 */
export function vaeConfigOf(json: string | Json): VaeConfig {
  let read: unknown = json;
  if (typeof json === "string")
    try {
      read = JSON.parse(json);
    } catch (cause) {
      throw new ConfigError(`vae: config.json is no JSON: ${(cause as Error).message}.`, { cause });
    }
  if (typeof read !== "object" || read === null || Array.isArray(read))
    throw new ConfigError("vae: config.json must hold one object; take the one beside the weights.");
  const c = read as Json;
  if (c._class_name !== undefined && c._class_name !== "AutoencoderKL")
    throw new ConfigError(
      `vae: another class: config.json says ${JSON.stringify(c._class_name)}; only "AutoencoderKL" is read here${c._diffusers_version && !c.block_out_channels ? ", whose folder is called vae in a pipeline's" : ""}.`,
    );
  if (c.block_out_channels === undefined)
    throw new ConfigError('vae: config.json lacks "block_out_channels"; take an AutoencoderKL\'s.');
  if (c.act_fn !== undefined && c.act_fn !== "silu")
    throw new ConfigError(`vae: act_fn must be "silu": got ${JSON.stringify(c.act_fn)}.`);
  for (const key of ["latents_mean", "latents_std"])
    if (c[key] !== undefined && c[key] !== null)
      throw new ConfigError(`vae: ${key} is not read here: its latents are scaled channel by channel.`);
  const levels = (c.block_out_channels as unknown[]).length;
  for (const [key, block] of [
    ["down_block_types", DOWN],
    ["up_block_types", UP],
  ] as const) {
    const list = c[key];
    if (list === undefined) continue;
    if (!Array.isArray(list) || list.some((b) => b !== block) || list.length !== levels)
      throw new ConfigError(
        `vae: ${key} must be ${levels} times "${block}", one for each of block_out_channels: got ${JSON.stringify(list)}.`,
      );
  }
  const given = Object.entries(PAIRS).flatMap(([from, to]) =>
    c[from] === undefined || c[from] === null ? [] : [[to, c[from]]],
  );
  return vaeConfig({ ...DEFAULTS, ...Object.fromEntries(given) });
}

/** The configuration as a diffusers `config.json` holds it. */
export function encodeVaeConfig(c: VaeConfig): Json {
  return {
    _class_name: "AutoencoderKL",
    act_fn: "silu",
    down_block_types: c.channels.map(() => DOWN),
    up_block_types: c.channels.map(() => UP),
    ...Object.fromEntries(Object.entries(PAIRS).map(([to, from]) => [to, c[from]])),
  };
}
