import { ConfigError } from "../../engine/errors.js";

/** Prompts as a model takes them, on the host; the model uploads them. */
export interface Encoded {
  /** [B, L, D] row-major; rows past a prompt's end are zero. */
  embeddings: Float32Array;
  /** [B, L]: 1 where there is a token, 0 where there is padding. */
  mask: Int32Array;
  shape: [batch: number, length: number, dim: number];
  /** Words that the encoder has no meaning for, each once. */
  unknown: string[];
  /** Places in the batch of prompts that were too long and lost their end. */
  truncated: number[];
  /** What the two lists above mean, a sentence each, to be shown to a person. */
  warnings: string[];
}

/** Turns prompts into vectors that a model attends to. */
export interface TextEncoder {
  /** Width D of a vector. */
  readonly dim: number;
  /** Length L that every prompt is padded or cut to. */
  readonly maxLength: number;
  /** @throws ConfigError for a prompt that is empty, without a word, or not text */
  encode(prompts: string[]): Encoded | Promise<Encoded>;
}

/** What tells an encoder apart from others, known without its weights. */
export interface Identity {
  dim: number;
  maxLength: number;
  /** The encoder's own; undefined for one that has none, such as a vocabulary. */
  fingerprint: string | undefined;
}

export function identityOf(encoder: TextEncoder & { readonly fingerprint?: string }): Identity {
  const { dim, maxLength, fingerprint } = encoder;
  return { dim, maxLength, fingerprint };
}

/**
 * Refuses what is no list of prompts. JavaScript callers pass anything, so types are checked too.
 * @param empty whether a prompt may be empty
 * @throws ConfigError naming the first prompt that is not text or is empty
 */
export function checkPrompts(prompts: readonly unknown[], empty = false): asserts prompts is readonly string[] {
  if (!Array.isArray(prompts))
    throw new ConfigError(
      `prompt: a list of prompts is needed: ${typeof prompts} was given; pass ["an ox moving left"]`,
    );
  if (prompts.length === 0) throw new ConfigError("prompt: at least one is needed: the list is empty; pass one");
  prompts.forEach((prompt, i) => {
    if (typeof prompt !== "string")
      throw new ConfigError(
        `prompt ${i}: must be text: ${prompt === null ? "null" : typeof prompt} was given; pass a string`,
      );
    if (!empty && prompt.trim() === "")
      throw new ConfigError(`prompt ${i}: must not be empty: ${JSON.stringify(prompt)} was given; say what to show`);
  });
}
