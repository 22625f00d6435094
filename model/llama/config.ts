import { ConfigError, checkOptions, nearest } from "../../engine/errors.js";

/** How rotary frequencies are changed for longer texts than a model was first trained on. */
export type RopeScaling =
  | { type: "default" }
  /** All positions divided by the factor (position interpolation). */
  | { type: "linear"; factor: number }
  /** The base grows with texts longer than `maxPositions` (NTK-aware). */
  | { type: "dynamic"; factor: number }
  /** Llama 3.1's: long waves divided by the factor, short ones kept, those between blended. */
  | { type: "llama3"; factor: number; lowFreqFactor: number; highFreqFactor: number; originalMaxPositions: number };

/** Everything that decides a Llama's parameters and function. */
export interface LlamaConfig {
  vocabSize: number;
  /** Width C of a token. */
  hidden: number;
  /** Width of the MLP. */
  intermediate: number;
  depth: number;
  heads: number;
  /** Heads of keys and values; each serves heads / kvHeads heads of queries. */
  kvHeads: number;
  /** Width of a head; usually hidden / heads. */
  headDim: number;
  /** Added to the mean square in norms. */
  eps: number;
  /** Base of the rotary frequencies. */
  theta: number;
  ropeScaling: RopeScaling;
  /** Longest text that the model is meant for. */
  maxPositions: number;
  /** The table of embeddings is the output head too. */
  tied: boolean;
  attentionBias: boolean;
  mlpBias: boolean;
}

/** Llama-3-8B. */
export const LLAMA_3_8B: LlamaConfig = {
  vocabSize: 128256,
  hidden: 4096,
  intermediate: 14336,
  depth: 32,
  heads: 32,
  kvHeads: 8,
  headDim: 128,
  eps: 1e-5,
  theta: 5e5,
  ropeScaling: { type: "default" },
  maxPositions: 8192,
  tied: false,
  attentionBias: false,
  mlpBias: false,
};

const KEYS = Object.keys(LLAMA_3_8B) as (keyof LlamaConfig)[];
const ROPE_TYPES = ["default", "linear", "dynamic", "llama3"];

/**
 * A checked configuration; what is left out is that of Llama-3-8B, but kvHeads follows heads and headDim hidden / heads.
 * @throws ConfigError for an unknown key (with the nearest), a bad value or sizes that do not divide
 */
export function llamaConfig(given: Partial<LlamaConfig> = {}): LlamaConfig {
  checkOptions("llama", given, KEYS);
  const defined = Object.fromEntries(Object.entries(given).filter(([, value]) => value !== undefined));
  const c: LlamaConfig = { ...LLAMA_3_8B, ...defined };
  if (given.kvHeads === undefined && given.heads !== undefined) c.kvHeads = c.heads;
  if (given.headDim === undefined) c.headDim = c.hidden / c.heads;
  const refuse = (key: keyof LlamaConfig, rule: string): never => {
    throw new ConfigError(`llama: ${key} ${rule}: got ${JSON.stringify(c[key])}.`);
  };
  for (const key of [
    "vocabSize",
    "hidden",
    "intermediate",
    "depth",
    "heads",
    "kvHeads",
    "headDim",
    "maxPositions",
  ] as const)
    if (!(Number.isInteger(c[key]) && c[key] >= 1)) refuse(key, "must be a whole number from 1");
  for (const key of ["eps", "theta"] as const)
    if (!(Number.isFinite(c[key]) && c[key] > 0)) refuse(key, "must be a number above 0");
  for (const key of ["tied", "attentionBias", "mlpBias"] as const)
    if (typeof c[key] !== "boolean") refuse(key, "must be true or false");
  if (c.heads % c.kvHeads) refuse("kvHeads", `must divide heads ${c.heads}`);
  if (c.headDim % 2) refuse("headDim", "must be even: rotary embeddings turn pairs");
  checkScaling(c.ropeScaling);
  return c;
}

function checkScaling(s: RopeScaling): void {
  const refuse = (rule: string): never => {
    throw new ConfigError(`llama: rope scaling: ${rule}: got ${JSON.stringify(s)}.`);
  };
  if (!ROPE_TYPES.includes(s.type)) {
    const guess = nearest(String(s.type), ROPE_TYPES);
    throw new ConfigError(
      `llama: rope scaling: unknown type "${s.type}"; ${guess ? `did you mean "${guess}"?` : `known are ${ROPE_TYPES.join(", ")}`}`,
    );
  }
  if (s.type === "default") return;
  if (!(Number.isFinite(s.factor) && s.factor >= 1)) refuse("factor must be a number from 1");
  if (s.type !== "llama3") return;
  if (!(s.lowFreqFactor > 0 && s.highFreqFactor > s.lowFreqFactor))
    refuse("high_freq_factor must be above low_freq_factor, and that above 0");
  if (!(Number.isInteger(s.originalMaxPositions) && s.originalMaxPositions >= 1))
    refuse("original_max_position_embeddings must be a whole number from 1");
}

type Json = Record<string, unknown>;

/** `rope_scaling` (or the newer `rope_parameters`) of a config.json. */
function scalingOf(given: Json | undefined): RopeScaling {
  const type = given?.rope_type ?? given?.type ?? "default";
  if (type === "linear" || type === "dynamic") return { type, factor: given?.factor as number };
  if (type === "llama3")
    return {
      type,
      factor: given?.factor as number,
      lowFreqFactor: given?.low_freq_factor as number,
      highFreqFactor: given?.high_freq_factor as number,
      originalMaxPositions: given?.original_max_position_embeddings as number,
    };
  return { type: type as "default" };
}

/**
 * The configuration in a Hugging Face `config.json`.
 * @param json its text, or the object in it
 * @throws ConfigError for another family, an activation or a scaling that is not known, or a value out of range
 */
export function llamaConfigOf(json: string | Json): LlamaConfig {
  let read: unknown = json;
  if (typeof json === "string")
    try {
      read = JSON.parse(json);
    } catch (cause) {
      throw new ConfigError(`llama: config.json is no JSON: ${(cause as Error).message}.`, { cause });
    }
  if (typeof read !== "object" || read === null || Array.isArray(read))
    throw new ConfigError("llama: config.json must hold one object; take the one beside the weights.");
  const c = read as Json;
  if (c.model_type !== undefined && c.model_type !== "llama")
    throw new ConfigError(
      `llama: another family: config.json says model_type ${JSON.stringify(c.model_type)}; only "llama" is read here.`,
    );
  if (c.hidden_act !== undefined && c.hidden_act !== "silu")
    throw new ConfigError(`llama: hidden_act must be "silu": got ${JSON.stringify(c.hidden_act)}.`);
  if (c.partial_rotary_factor !== undefined && c.partial_rotary_factor !== 1)
    throw new ConfigError(`llama: partial_rotary_factor must be 1: got ${JSON.stringify(c.partial_rotary_factor)}.`);
  const rope = (c.rope_parameters ?? c.rope_scaling ?? undefined) as Json | undefined;
  for (const key of [
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
  ] as const)
    if (c[key] === undefined) throw new ConfigError(`llama: config.json lacks "${key}"; take a Llama model's.`);
  return llamaConfig({
    vocabSize: c.vocab_size as number,
    hidden: c.hidden_size as number,
    intermediate: c.intermediate_size as number,
    depth: c.num_hidden_layers as number,
    heads: c.num_attention_heads as number,
    kvHeads: (c.num_key_value_heads ?? c.num_attention_heads) as number,
    headDim: (c.head_dim ?? undefined) as number | undefined,
    eps: (c.rms_norm_eps ?? 1e-6) as number,
    theta: (rope?.rope_theta ?? c.rope_theta ?? 10000) as number,
    ropeScaling: scalingOf(rope),
    maxPositions: (c.max_position_embeddings ?? 2048) as number,
    tied: (c.tie_word_embeddings ?? false) as boolean,
    attentionBias: (c.attention_bias ?? false) as boolean,
    mlpBias: (c.mlp_bias ?? false) as boolean,
  });
}

/** The configuration as a Hugging Face `config.json` holds it. */
export function encodeLlamaConfig(c: LlamaConfig): Json {
  const s = c.ropeScaling;
  return {
    architectures: ["LlamaForCausalLM"],
    model_type: "llama",
    vocab_size: c.vocabSize,
    hidden_size: c.hidden,
    intermediate_size: c.intermediate,
    num_hidden_layers: c.depth,
    num_attention_heads: c.heads,
    num_key_value_heads: c.kvHeads,
    head_dim: c.headDim,
    hidden_act: "silu",
    rms_norm_eps: c.eps,
    rope_theta: c.theta,
    rope_scaling:
      s.type === "default"
        ? null
        : s.type === "llama3"
          ? {
              rope_type: s.type,
              factor: s.factor,
              low_freq_factor: s.lowFreqFactor,
              high_freq_factor: s.highFreqFactor,
              original_max_position_embeddings: s.originalMaxPositions,
            }
          : { rope_type: s.type, factor: s.factor },
    max_position_embeddings: c.maxPositions,
    tie_word_embeddings: c.tied,
    attention_bias: c.attentionBias,
    mlp_bias: c.mlpBias,
  };
}
