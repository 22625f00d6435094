import { ConfigError, checkOptions } from "../engine/index.js";
import type { Patch } from "./layers.js";

/** Everything that decides a spatial-temporal transformer's parameters and function. */
export interface STDiTConfig {
  /** Channels of a latent. */
  inChannels: number;
  /** Also predict variances: twice the output channels. */
  predSigma: boolean;
  /** Width C of a token. */
  hidden: number;
  depth: number;
  heads: number;
  /** Width of the MLP as a multiple of C. */
  mlpRatio: number;
  patch: Patch;
  /** Latent frames, and latent rows and columns, that the stored position tables are for. Others are computed. */
  frames: number;
  latent: readonly [rows: number, columns: number];
  /** Width D of a caption vector. */
  captionChannels: number;
  /** Rows of the null caption: the longest caption. */
  maxLength: number;
  /** Positions are divided by these. */
  spaceScale: number;
  timeScale: number;
  /** The block whose temporal attention sees the frames' positions. */
  temporalOwner: number;
  /** Width of the vectors of a second caption, which a language model made; 0 means no second cross-attention. */
  languageChannels: number;
  /** Rows of the second null caption: the longest second caption. */
  languageLength: number;
  /** What a block's gate on the second cross-attention is one number for. */
  languageGate: LanguageGate;
}

/** One gate a block, one a head, or one a channel. */
export type LanguageGate = "scalar" | "head" | "channel";
const GATES: readonly LanguageGate[] = ["scalar", "head", "channel"];

/** STDiT-XL/2 for 16 frames of 256 x 256: 759,620,768 parameters. */
export const STDIT_XL_2: STDiTConfig = {
  inChannels: 4,
  predSigma: true,
  hidden: 1152,
  depth: 28,
  heads: 16,
  mlpRatio: 4,
  patch: [1, 2, 2],
  frames: 16,
  latent: [32, 32],
  captionChannels: 4096,
  maxLength: 120,
  spaceScale: 0.5,
  timeScale: 1,
  temporalOwner: 0,
  languageChannels: 0,
  languageLength: 256,
  languageGate: "scalar",
};

/** Keys that files from before they existed lack. */
const LATER: readonly string[] = ["temporal_owner", "language_channels", "language_length", "language_gate"];

const KEYS = Object.keys(STDIT_XL_2) as (keyof STDiTConfig)[];

/**
 * A checked configuration; what is left out is that of STDiT-XL/2.
 * @throws ConfigError for an unknown key (with the nearest), a bad value or sizes that do not divide
 */
export function stditConfig(given: Partial<STDiTConfig> = {}): STDiTConfig {
  checkOptions("stdit", given, KEYS);
  const defined = Object.fromEntries(Object.entries(given).filter(([, value]) => value !== undefined));
  const c: STDiTConfig = { ...STDIT_XL_2, ...defined };
  const refuse = (key: string, rule: string) => {
    throw new ConfigError(`stdit: ${key} ${rule}: got ${JSON.stringify(c[key as keyof STDiTConfig])}.`);
  };
  for (const key of [
    "inChannels",
    "hidden",
    "depth",
    "heads",
    "frames",
    "captionChannels",
    "maxLength",
    "languageLength",
  ] as const)
    if (!(Number.isInteger(c[key]) && c[key] >= 1)) refuse(key, "must be a whole number from 1");
  if (!(Number.isInteger(c.languageChannels) && c.languageChannels >= 0))
    refuse("languageChannels", "must be a whole number, 0 for no second cross-attention");
  if (!GATES.includes(c.languageGate)) refuse("languageGate", `must be ${GATES.join(", ")}`);
  for (const key of ["mlpRatio", "spaceScale", "timeScale"] as const)
    if (!(Number.isFinite(c[key]) && c[key] > 0)) refuse(key, "must be a number above 0");
  for (const [key, count] of [
    ["patch", 3],
    ["latent", 2],
  ] as const)
    if (!(Array.isArray(c[key]) && c[key].length === count && c[key].every((n) => Number.isInteger(n) && n >= 1)))
      refuse(key, `must be ${count} whole numbers from 1`);
  if (typeof c.predSigma !== "boolean") refuse("predSigma", "must be true or false");
  if (!(Number.isInteger(c.temporalOwner) && c.temporalOwner >= 0 && c.temporalOwner < c.depth))
    refuse("temporalOwner", `must be a block from 0 to ${c.depth - 1}`);
  if (c.hidden % c.heads) refuse("heads", `must divide hidden ${c.hidden}`);
  if (c.hidden % 4) refuse("hidden", "must divide by 4 (sines and cosines of rows and columns)");
  if (!Number.isInteger(c.hidden * c.mlpRatio)) refuse("mlpRatio", `must give a whole width with hidden ${c.hidden}`);
  const sizes = [c.frames, ...c.latent];
  if (sizes.some((n, i) => n % c.patch[i])) refuse("patch", `must divide frames and latent ${sizes.join(", ")}`);
  return c;
}

/** Channels of a model's output: the prediction, then the variances where they are learned. */
export const outChannels = (c: STDiTConfig): number => (c.predSigma ? 2 : 1) * c.inChannels;

const snake = (name: string) => name.replace(/[A-Z]/g, (l) => `_${l.toLowerCase()}`);

/** The configuration as checkpoints hold it: JSON with snake_case keys. */
export function encodeConfig(c: STDiTConfig): string {
  return JSON.stringify({
    ...Object.fromEntries(KEYS.map((key) => [snake(key), c[key]])),
    out_channels: outChannels(c),
  });
}

/**
 * Reads what `encodeConfig` wrote.
 * @throws ConfigError for text that is no such JSON
 */
export function decodeConfig(text: string): STDiTConfig {
  let json: unknown;
  try {
    json = JSON.parse(text);
  } catch (cause) {
    throw new ConfigError(`stdit: the configuration is no JSON: ${(cause as Error).message}.`, { cause });
  }
  if (typeof json !== "object" || json === null || Array.isArray(json))
    throw new ConfigError(`stdit: the configuration is no object: ${text.slice(0, 60)}.`);
  const { out_channels: out, ...rest } = json as Record<string, unknown>;
  const names = new Map(KEYS.map((key) => [snake(key), key]));
  checkOptions("stdit", rest, [...names.keys(), "out_channels"]);
  const missing = [...names.keys()].filter((key) => !(key in rest) && !LATER.includes(key));
  if (missing.length) throw new ConfigError(`stdit: the configuration lacks ${missing.join(", ")}.`);
  const config = stditConfig(Object.fromEntries(Object.entries(rest).map(([key, value]) => [names.get(key)!, value])));
  if (out !== undefined && out !== outChannels(config))
    throw new ConfigError(
      `stdit: out_channels must be ${outChannels(config)} with in_channels ${config.inChannels} and pred_sigma ${config.predSigma}: got ${JSON.stringify(out)}.`,
    );
  return config;
}
