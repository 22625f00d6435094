import { ConfigError, checkOptions } from "../../engine/errors.js";

/** Everything that decides a T5 v1.1 encoder's parameters and function. */
export interface T5Config {
  vocabSize: number;
  /** Width C of a token. */
  hidden: number;
  /** Width of a head; heads need not add up to `hidden`. */
  headDim: number;
  heads: number;
  /** Width of the gated feed-forward. */
  intermediate: number;
  depth: number;
  /** Rows of the table of relative positions; half are for keys after the query. */
  buckets: number;
  /** From this distance on all positions share a bucket. */
  maxDistance: number;
  /** Added to the mean square in norms. */
  eps: number;
}

/** The encoder of T5 v1.1 XXL: 4.76e9 parameters. */
export const T5_V1_1_XXL: T5Config = {
  vocabSize: 32128,
  hidden: 4096,
  headDim: 64,
  heads: 64,
  intermediate: 10240,
  depth: 24,
  buckets: 32,
  maxDistance: 128,
  eps: 1e-6,
};

const KEYS = Object.keys(T5_V1_1_XXL) as (keyof T5Config)[];

/**
 * A checked configuration; what is left out is that of T5 v1.1 XXL.
 * @throws ConfigError for an unknown key (with the nearest) or a value out of range
 */
export function t5Config(given: Partial<T5Config> = {}): T5Config {
  checkOptions("t5", given, KEYS);
  const defined = Object.fromEntries(Object.entries(given).filter(([, value]) => value !== undefined));
  const c: T5Config = { ...T5_V1_1_XXL, ...defined };
  const refuse = (key: keyof T5Config, rule: string): never => {
    throw new ConfigError(`t5: ${key} ${rule}: got ${JSON.stringify(c[key])}.`);
  };
  for (const key of KEYS)
    if (key !== "eps" && !(Number.isInteger(c[key]) && c[key] >= 1)) refuse(key, "must be a whole number from 1");
  if (!(Number.isFinite(c.eps) && c.eps > 0)) refuse("eps", "must be a number above 0");
  if (c.buckets % 4)
    refuse("buckets", "must divide by 4: half are for each side, and half of those for exact distances");
  if (c.maxDistance <= c.buckets / 4) refuse("maxDistance", `must be above the exact distances, ${c.buckets / 4}`);
  return c;
}

/** Hugging Face's words for the feed-forward that is read here: T5 v1.1's, a product of a GELU and a linear. */
const GATED = "gated-gelu";

type Json = Record<string, unknown>;

/**
 * The encoder's configuration in a Hugging Face `config.json`.
 * @throws ConfigError for another family, the feed-forward of T5 before v1.1 or an unknown one, or a value out of range
 */
export function t5ConfigOf(c: Json): T5Config {
  if (c.model_type !== undefined && c.model_type !== "t5")
    throw new ConfigError(
      `t5: another family: config.json says model_type ${JSON.stringify(c.model_type)}; only "t5" is read here.`,
    );
  const form = c.feed_forward_proj ?? "relu";
  if (form !== GATED)
    throw new ConfigError(
      `t5: the feed-forward must be gated: config.json says feed_forward_proj ${JSON.stringify(form)}${c.feed_forward_proj === undefined ? " (by leaving it out)" : ""}, "${GATED}" is read; take a T5 v1.1 model, such as google/t5-v1_1-xxl or DeepFloyd's copy of it.`,
    );
  for (const key of ["vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_heads"] as const)
    if (c[key] === undefined) throw new ConfigError(`t5: config.json lacks "${key}"; take a T5 v1.1 model's.`);
  return t5Config({
    vocabSize: c.vocab_size as number,
    hidden: c.d_model as number,
    headDim: c.d_kv as number,
    heads: c.num_heads as number,
    intermediate: c.d_ff as number,
    depth: c.num_layers as number,
    buckets: (c.relative_attention_num_buckets ?? 32) as number,
    maxDistance: (c.relative_attention_max_distance ?? 128) as number,
    eps: (c.layer_norm_epsilon ?? 1e-6) as number,
  });
}

/** The configuration as a Hugging Face `config.json` of an encoder alone holds it. */
export function encodeT5Config(c: T5Config): Json {
  return {
    architectures: ["T5EncoderModel"],
    model_type: "t5",
    vocab_size: c.vocabSize,
    d_model: c.hidden,
    d_kv: c.headDim,
    num_heads: c.heads,
    d_ff: c.intermediate,
    num_layers: c.depth,
    relative_attention_num_buckets: c.buckets,
    relative_attention_max_distance: c.maxDistance,
    layer_norm_epsilon: c.eps,
    feed_forward_proj: GATED,
    is_encoder_decoder: false,
    pad_token_id: 0,
    eos_token_id: 1,
  };
}
