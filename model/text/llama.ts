import { ConfigError, checkOptions } from "../../engine/errors.js";
import type { Llama } from "../llama/llama.js";
import { ChatTemplate, chatOf, marksIn } from "./chat.js";
import { checkPrompts, type Encoded, type TextEncoder } from "./encoder.js";
import { fnv1a } from "./table.js";
import type { Tokenizer } from "./tokenizer.js";

/** How a language model reads prompts. */
export interface LlamaEncoderOptions {
  /** Vectors a prompt, L. Default 256. */
  maxLength?: number;
  /** Whose states: -1 after the final norm, -2 what enters the last layer, …; see `Llama.hiddenStates`. Default -1. */
  layer?: number;
  /** The chat around a prompt: the tokenizer's own template (true, the default), another's text, or none (false). */
  template?: boolean | string;
  /** A system message for the template. */
  system?: string;
  /** Vectors of all tokens, or of the prompt's own, which have read the template before them too. Default "all". */
  tokens?: "all" | "prompt";
  /** Prompts that run at once. Default 8. */
  batch?: number;
}

const OPTIONS = ["maxLength", "layer", "template", "system", "tokens", "batch"];

/** Numbers of leading entries that two lists share. */
function shared(a: readonly number[], b: readonly number[]): number {
  let n = 0;
  while (n < a.length && n < b.length && a[n] === b[n]) n++;
  return n;
}

interface Row {
  /** What the model reads. */
  ids: number[];
  /** The first of them whose state is wanted. */
  from: number;
  /** Tokens of the prompt that did not fit. */
  cut: number;
}

/**
 * A language model's hidden states as vectors of a prompt: each token's state has read all that stands before it, so
 * that word order, and which colour belongs to which half, is in them. The model is frozen and runs batch by batch.
 */
export class LlamaTextEncoder implements TextEncoder {
  readonly dim: number;
  readonly maxLength: number;
  /** Identifies weights, tokenizer, template and options: two encoders with one fingerprint give the same vectors. */
  readonly fingerprint: string;
  /** What beside the weights decides the vectors, to be stored with a model that was trained on them. */
  readonly settings: Readonly<Required<Omit<LlamaEncoderOptions, "batch" | "system" | "template">>> & {
    template: boolean;
  };
  private readonly batch: number;
  private readonly before: string = "";
  private readonly after: string = "";
  private readonly chat: ChatTemplate | undefined;
  private readonly system: string | undefined;

  /**
   * @param weights identifies the weights and the tokenizer
   * @throws ConfigError for an option out of range, a template that does not fit the tokenizer, or a tokenizer with more
   *   tokens than the model
   */
  constructor(
    readonly model: Llama,
    readonly tokenizer: Tokenizer,
    weights: string,
    options: LlamaEncoderOptions = {},
  ) {
    checkOptions("language", options, OPTIONS);
    const { maxLength = 256, layer = -1, template = true, system, tokens = "all", batch = 8 } = options;
    const { hidden, depth, maxPositions, vocabSize } = model.config;
    for (const [name, value] of [
      ["maxLength", maxLength],
      ["batch", batch],
    ] as const)
      if (!(Number.isInteger(value) && value >= 1))
        throw new ConfigError(`language: ${name} must be a whole number from 1: got ${value}.`);
    if (!(Number.isInteger(layer) && layer >= -depth - 1 && layer <= depth))
      throw new ConfigError(
        `language: layer must be a whole number from ${-depth - 1} to ${depth}: got ${layer}; -1 is usual, -2 the next.`,
      );
    if (tokens !== "all" && tokens !== "prompt")
      throw new ConfigError(`language: tokens must be "all" or "prompt": got ${JSON.stringify(tokens)}.`);
    if (template !== true && template !== false && typeof template !== "string")
      throw new ConfigError(
        `language: template must be true, false or a template's text: got ${JSON.stringify(template)}.`,
      );
    if (system !== undefined && template === false)
      throw new ConfigError("language: a system message needs a template: template is false; leave one of them out.");
    if (tokenizer.vocabSize > vocabSize)
      throw new ConfigError(
        `language: tokenizer and model do not belong together: ${tokenizer.name} has ${tokenizer.vocabSize} tokens, the model embeds ${vocabSize}; take both from one folder.`,
      );
    this.dim = hidden;
    this.maxLength = maxLength;
    this.batch = batch;
    this.system = system;
    if (template !== false) {
      this.chat = new ChatTemplate(tokenizer, template === true ? undefined : template);
      ({ before: this.before, after: this.after } = this.chat.around(system));
    }
    const around = tokenizer.encode(this.before).length + tokenizer.encode(this.after).length;
    const most = tokens === "prompt" ? maxLength + around : maxLength;
    if (around >= most)
      throw new ConfigError(
        `language: maxLength must leave room for a prompt: it is ${maxLength}, the template alone has ${around} tokens; raise it.`,
      );
    if (most > maxPositions)
      throw new ConfigError(
        `language: the model reads ${maxPositions} tokens: maxLength ${maxLength} needs ${most}; lower it.`,
      );
    this.settings = { maxLength, layer, tokens, template: template !== false };
    const said = JSON.stringify([weights, this.before, this.after, this.settings]);
    this.fingerprint = `llama ${fnv1a(new globalThis.TextEncoder().encode(said), 0).toString(16).padStart(8, "0")}`;
  }

  /** The text that the model reads for a prompt. @throws ConfigError when the template does not write the prompt as it is */
  textOf(prompt: string): string {
    if (!this.chat) return prompt;
    const text = this.chat.render(chatOf(prompt, this.system));
    const wanted = `${this.before}${prompt.trim()}${this.after}`;
    // Templates may branch on what a message says; then the prompt's tokens could not be told from the template's.
    if (text !== wanted && text !== `${this.before}${prompt}${this.after}`)
      throw new ConfigError(
        `prompt: the template does not write it as it is: ${JSON.stringify(prompt.slice(0, 60))} became ${JSON.stringify(text.slice(0, 120))}; word it otherwise, or pass template: false`,
      );
    return text;
  }

  /** Tokens of a prompt. What does not fit is taken from the prompt's end, so that the template stays whole. */
  private rowOf(prompt: string, place: number): Row {
    const { tokenizer, maxLength } = this;
    const marks = marksIn(prompt, tokenizer);
    if (marks.length)
      throw new ConfigError(
        `prompt ${place}: must not hold a special token: ${JSON.stringify(marks[0])} was given; leave it out`,
      );
    const all = tokenizer.encode(this.textOf(prompt));
    if (!this.chat) {
      const { bos, eos } = tokenizer.special;
      // As the tokenizers of Llamas do of themselves: a beginning unless told otherwise, an end only when told.
      if (bos !== undefined && tokenizer.config.add_bos_token !== false) all.unshift(bos);
      if (eos !== undefined && tokenizer.config.add_eos_token === true) all.push(eos);
    }
    const head = this.chat ? shared(all, tokenizer.encode(this.before)) : Number(all[0] === tokenizer.special.bos);
    const tail = this.chat
      ? Math.min(all.length - head, shared(all.toReversed(), tokenizer.encode(this.after).toReversed()))
      : 0;
    const own = all.slice(head, all.length - tail);
    if (this.settings.tokens === "prompt") {
      // What follows a token has no part in its state.
      const kept = own.slice(0, maxLength);
      return { ids: [...all.slice(0, head), ...kept], from: head, cut: own.length - kept.length };
    }
    const kept = own.slice(0, Math.max(0, maxLength - head - tail));
    return {
      ids: [...all.slice(0, head), ...kept, ...all.slice(all.length - tail)].slice(0, maxLength),
      from: 0,
      cut: own.length - kept.length,
    };
  }

  /** @throws ConfigError for a prompt that is empty, not text, or holds a special token */
  async encode(prompts: string[]): Promise<Encoded> {
    checkPrompts(prompts);
    const { dim, maxLength, tokenizer, model } = this;
    const rows = prompts.map((prompt, i) => this.rowOf(prompt, i));
    const embeddings = new Float32Array(prompts.length * maxLength * dim);
    const mask = new Int32Array(prompts.length * maxLength);
    for (let at = 0; at < rows.length; at += this.batch) {
      const some = rows.slice(at, at + this.batch);
      const L = Math.max(...some.map(({ ids }) => ids.length));
      const ids = new Int32Array(some.length * L);
      const read = new Int32Array(some.length * L);
      some.forEach((row, b) => {
        ids.set(row.ids, b * L);
        read.fill(1, b * L, b * L + row.ids.length);
      });
      const { engine } = model;
      const states = engine.noGrad(() =>
        engine.scope(() => {
          const shape = [some.length, L];
          return model.hiddenStates(engine.tensor(ids, shape), engine.tensor(read, shape), this.settings.layer); // [b, L, D]
        }),
      );
      const data = (await states.data().finally(() => states.dispose())) as Float32Array;
      some.forEach(({ ids: list, from }, b) => {
        const row = at + b;
        embeddings.set(data.subarray((b * L + from) * dim, (b * L + list.length) * dim), row * maxLength * dim);
        mask.fill(1, row * maxLength, row * maxLength + list.length - from);
      });
    }
    const truncated = rows.flatMap(({ cut }, i) => (cut > 0 ? [i] : []));
    const unknown = this.unknownIn(prompts);
    return {
      embeddings,
      mask,
      shape: [prompts.length, maxLength, dim],
      unknown,
      truncated,
      warnings: [
        ...truncated.map(
          (i) =>
            `prompt ${i}: ${maxLength} tokens are read${this.chat && this.settings.tokens === "all" ? ", the template's included" : ""}: the prompt has ${rows[i].cut} more, and its end was left out`,
        ),
        ...(unknown.length ? [`prompt: words that ${tokenizer.name} has no token for: ${unknown.join(", ")}`] : []),
      ],
    };
  }

  private unknownIn(prompts: readonly string[]): string[] {
    const { unk } = this.tokenizer.special;
    if (unk === undefined) return [];
    const words = new Set(prompts.flatMap((prompt) => prompt.trim().split(/\s+/)));
    return [...words].filter((word) => this.tokenizer.encode(word).includes(unk));
  }

  /** Gives the model's memory back. */
  dispose(): void {
    this.model.dispose();
  }
  [Symbol.dispose](): void {
    this.dispose();
  }
}
