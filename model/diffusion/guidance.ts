import { add, ConfigError, cat, checkOptions, split, sub, type Tensor } from "../../engine/index.js";
import type { STDiT } from "../stdit.js";
import type { Predict } from "./walk.js";

/** Options of `guided`. */
export interface GuidanceOptions {
  /** How far to go beyond the unconditional prediction: 0 ignores the caption, 1 is plain, 1.5 to 7 are usual. */
  scale?: number;
  /** How many channels, from the first, are guided; the others stay the conditional ones. Default "all" latent channels. */
  cfgChannels?: number | "all";
}

/**
 * Classifier-free guidance: u + scale (c - u) of the outputs with the captions and with the null caption, in one run
 * over the doubled batch (Ho and Salimans, https://arxiv.org/abs/2207.12598). The unconditional half sees the masks of
 * the captions, as dropped captions do in training. Learned variances are the conditional half's. At scale 1 the second
 * half is left out.
 * @param y captions [B, L, D] or [B, 1, L, D]
 * @param mask [B, L], zero where a caption has no token
 */
export function guided(model: STDiT, y: Tensor, mask: Tensor | undefined, options: GuidanceOptions = {}): Predict {
  checkOptions("guidance", options, ["scale", "cfgChannels"]);
  const { scale = 1, cfgChannels = "all" } = options;
  const { inChannels } = model.config;
  if (!(scale >= 0 && Number.isFinite(scale)))
    throw new ConfigError(`guidance: the scale must be a number from 0: got ${scale}; 1 is plain.`);
  if (cfgChannels !== "all" && !(Number.isInteger(cfgChannels) && cfgChannels >= 1 && cfgChannels <= inChannels))
    throw new ConfigError(`guidance: cfgChannels must be "all" or 1 to ${inChannels}: got ${cfgChannels}.`);
  const channels = cfgChannels === "all" ? inChannels : cfgChannels;
  return (x, timestep) => {
    const [B] = x.shape;
    if (scale === 1) return model.forward(x, Array<number>(B).fill(timestep), y, mask); // [B, out, T, H, W]
    const captions = y.rank === 4 ? y.squeeze(1) : y; // [B, L, D]
    const none = model.yEmbedder.nullCaption(B, captions.shape[1]).to(captions.dtype); // [B, L, D]
    const both = model.forward(cat([x, x], 0), Array<number>(2 * B).fill(timestep), cat([captions, none], 0), mask); // [2B, out, T, H, W]
    const [c, u] = split(both, [B, B], 0); // [B, out, T, H, W] each
    const rest = both.shape[1] - channels;
    const [cg, plain] = split(c, [channels, rest], 1); // [B, channels, …], [B, rest, …]
    const [ug] = split(u, [channels, rest], 1); // [B, channels, T, H, W]
    const g = add(ug, sub(cg, ug).mul(scale)); // [B, channels, T, H, W]
    return rest === 0 ? g : cat([g, plain], 1); // [B, out, T, H, W]
  };
}
