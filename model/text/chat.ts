import { Template } from "@huggingface/jinja";
import { ConfigError } from "../../engine/errors.js";
import type { Tokenizer } from "./tokenizer.js";

/** One turn of a chat. */
export interface ChatMessage {
  role: "system" | "user" | "assistant";
  content: string;
}

// Templates of later Llamas write today's date, which would make a caption's vectors another every day. This is the one
// that they fall back to.
const DATE = "26 Jul 2024";
/** Stands for a prompt while the text around it is found out. No template changes letters. */
const PLACE = "Espalierprompt";
/** How special tokens of chats are written; their ids tell whether they are any. */
const MARK = /<\|[^|<>\s]+\|>|<\/?s>/g;

const textOf = (token: unknown): string | undefined =>
  typeof token === "string" ? token : (token as { content?: string } | null | undefined)?.content;

/** The template in what a `tokenizer_config.json` says: a text, or several by name of which "default" is taken. */
function sourceOf(given: unknown): string | undefined {
  if (typeof given === "string") return given;
  if (!Array.isArray(given)) return undefined;
  const named = given as { name?: unknown; template?: unknown }[];
  const source = named.find(({ name }) => name === "default")?.template;
  return typeof source === "string" ? source : undefined;
}

/**
 * A chat template (Jinja) with the special tokens of its tokenizer, as Hugging Face's `apply_chat_template` runs it.
 */
export class ChatTemplate {
  readonly source: string;
  private readonly template: Template;
  private readonly tokens: Record<string, string>;

  /**
   * @param source the template; default the one in the tokenizer's configuration
   * @throws ConfigError when there is none, it is no Jinja, or it needs a special token that the tokenizer lacks
   */
  constructor(
    private readonly tokenizer: Tokenizer,
    source = sourceOf(tokenizer.config.chat_template),
  ) {
    if (source === undefined)
      throw new ConfigError(
        `chat template: none: the tokenizer_config.json of ${tokenizer.name} has no "chat_template"; pass the template's text, or template: false for bare prompts`,
      );
    this.source = source;
    this.tokens = Object.fromEntries(
      ["bos_token", "eos_token", "pad_token", "unk_token"].flatMap((key) => {
        const text = textOf(tokenizer.config[key]);
        return text === undefined ? [] : [[key, text]];
      }),
    );
    for (const key of ["bos_token", "eos_token"])
      if (new RegExp(`\\b${key}\\b`).test(source) && this.tokens[key] === undefined)
        throw new ConfigError(
          `chat template: needs the tokenizer's ${key}: ${tokenizer.name} has none; add "${key}" to tokenizer_config.json, or take both from one folder`,
        );
    try {
      this.template = new Template(source);
    } catch (cause) {
      throw new ConfigError(`chat template: is no Jinja: ${(cause as Error).message}`, { cause });
    }
  }

  /**
   * The text of a chat.
   * @param generate whether the mark of the assistant's turn follows, where the template asks
   * @throws ConfigError with the template's own words when it refuses the chat
   */
  render(messages: readonly ChatMessage[], generate = true): string {
    try {
      return this.template.render({
        messages: messages.map((message) => ({ ...message })),
        add_generation_prompt: generate,
        date_string: DATE,
        ...this.tokens,
      });
    } catch (cause) {
      throw new ConfigError(`chat template: refuses the chat: ${(cause as Error).message}`, { cause });
    }
  }

  /**
   * The text before and after a prompt.
   * @param system a system message before it
   * @throws ConfigError when the template leaves the prompt out, or writes a special token that the tokenizer lacks
   */
  around(system?: string): { before: string; after: string } {
    const parts = this.render(chatOf(PLACE, system)).split(PLACE);
    if (parts.length !== 2)
      throw new ConfigError(
        `chat template: must write the user's message once: it is there ${parts.length - 1} times; pass another template, or template: false`,
      );
    const [before, after] = parts;
    for (const mark of `${before}${after}`.match(MARK) ?? [])
      if (this.tokenizer.idOf(mark) === undefined)
        throw new ConfigError(
          `chat template: writes a special token that the tokenizer lacks: ${JSON.stringify(mark)} is none of the ${this.tokenizer.vocabSize} tokens of ${this.tokenizer.name}; take template and tokenizer from one folder, or pass template: false`,
        );
    return { before, after };
  }
}

/** A prompt as a chat. */
export const chatOf = (prompt: string, system?: string): ChatMessage[] => [
  ...(system === undefined ? [] : [{ role: "system" as const, content: system }]),
  { role: "user", content: prompt },
];

/** Special tokens that are written out in a text: a prompt with one would change the chat around it. */
export const marksIn = (text: string, tokenizer: Tokenizer): string[] =>
  (text.match(MARK) ?? []).filter((mark) => tokenizer.idOf(mark) !== undefined);
