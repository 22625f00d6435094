// Makes a small vocabulary of words and word pieces, as a tokenizer.json that Hugging Face's libraries run.

/** Tokens with a meaning of their own, in the order of their ids. */
export const SPECIAL = ["<|pad|>", "<|unk|>", "<|begin|>", "<|end|>", "<|user|>", "<|assistant|>"] as const;
const [PAD, UNKNOWN, BEGIN, END] = SPECIAL;

/** Tokens with a meaning of their own, and what they are for. */
export interface Marks {
  /** In the order of their ids, from 0. */
  special: readonly string[];
  unknown: string;
  /** Put before a text, or after it. */
  begin?: string;
  end?: string;
}

/** Those of a model that answers in a chat. */
export const CHAT_MARKS: Marks = { special: SPECIAL, unknown: UNKNOWN, begin: BEGIN };

/** T5's: padding 0, the end of text 1, unknown 2; then the first of its marks for what was left out. */
export const T5_MARKS: Marks = { special: ["<pad>", "</s>", "<unk>", "<extra_id_0>"], unknown: "<unk>", end: "</s>" };

const PREFIX = "##";
const SIGNS = [..."0123456789.,:;'\"()-!?/&%$"];
const LETTERS = [..."abcdefghijklmnopqrstuvwxyz"];
/** Share of the vocabulary for endings of words. */
const ENDINGS = 0.12;

/**
 * Ids by token: the special ones, signs, letters alone and inside a word, all of `wanted`, then the commonest words and
 * the endings that save most pieces. Every word of the letters a to z has pieces.
 * @param words how often each word was met
 */
export function vocabularyOf(
  wanted: readonly string[],
  words: ReadonlyMap<string, number>,
  size: number,
  { special }: Marks = CHAT_MARKS,
): Record<string, number> {
  const kept = new Set<string>([...special, ...SIGNS]);
  for (const letter of [...LETTERS, ...SIGNS.slice(0, 10)]) kept.add(letter).add(PREFIX + letter);
  for (const word of wanted) kept.add(word);
  const common = [...words].sort((a, b) => b[1] - a[1] || (a[0] < b[0] ? -1 : 1));
  const room = size - kept.size;
  const whole = new Set(common.slice(0, Math.round(room * (1 - ENDINGS))).map(([word]) => word));
  for (const word of whole) kept.add(word);
  const endings = new Map<string, number>();
  for (const [word, count] of common) {
    if (whole.has(word)) continue;
    for (let n = 2; n <= Math.min(5, word.length - 1); n++) {
      const ending = PREFIX + word.slice(-n);
      // A piece of n letters stands for n pieces of one.
      endings.set(ending, (endings.get(ending) ?? 0) + (n - 1) * count);
    }
  }
  for (const [ending] of [...endings].sort((a, b) => b[1] - a[1] || (a[0] < b[0] ? -1 : 1))) {
    if (kept.size >= size) break;
    kept.add(ending);
  }
  return Object.fromEntries([...kept].map((token, id) => [token, id]));
}

/** A tokenizer.json over a vocabulary: lower case, signs apart, each word cut into its longest pieces from the left. */
export function tokenizerJson(
  vocabulary: Readonly<Record<string, number>>,
  { special, unknown, begin, end }: Marks = CHAT_MARKS,
) {
  const mark = (token: string | undefined) =>
    token === undefined ? [] : [{ SpecialToken: { id: token, type_id: 0 } }];
  const text = (id: string, type_id: number) => ({ Sequence: { id, type_id } });
  const around = [begin, end].filter((token) => token !== undefined);
  return {
    version: "1.0",
    truncation: null,
    padding: null,
    added_tokens: special.map((content) => ({
      id: vocabulary[content],
      content,
      single_word: false,
      lstrip: false,
      rstrip: false,
      normalized: false,
      special: true,
    })),
    normalizer: { type: "Sequence", normalizers: [{ type: "NFKC" }, { type: "Lowercase" }] },
    pre_tokenizer: { type: "BertPreTokenizer" },
    post_processor: {
      type: "TemplateProcessing",
      single: [...mark(begin), text("A", 0), ...mark(end)],
      pair: [...mark(begin), text("A", 0), text("B", 1), ...mark(end)],
      special_tokens: Object.fromEntries(
        around.map((token) => [token, { id: token, ids: [vocabulary[token]], tokens: [token] }]),
      ),
    },
    decoder: { type: "WordPiece", prefix: PREFIX, cleanup: true },
    model: {
      type: "WordPiece",
      unk_token: unknown,
      continuing_subword_prefix: PREFIX,
      max_input_chars_per_word: 40,
      vocab: vocabulary,
    },
  };
}

/** The instruction and the prompt between the marks of a chat, then the mark of who answers. */
export const CHAT_TEMPLATE =
  "{{ bos_token }}{% for message in messages %}" +
  "{% if message['role'] == 'user' %}<|user|>describe the clip: {{ message['content'] | trim }}" +
  "{% else %}<|assistant|>{{ message['content'] | trim }}{{ eos_token }}{% endif %}{% endfor %}" +
  "{% if add_generation_prompt %}<|assistant|>{% endif %}";

/** A tokenizer_config.json to go with it. */
export const TOKENIZER_CONFIG = {
  tokenizer_class: "PreTrainedTokenizerFast",
  pad_token: PAD,
  unk_token: UNKNOWN,
  bos_token: BEGIN,
  eos_token: END,
  chat_template: CHAT_TEMPLATE,
};

/** A tokenizer_config.json to go with T5's marks. */
export const T5_TOKENIZER_CONFIG = {
  tokenizer_class: "PreTrainedTokenizerFast",
  pad_token: "<pad>",
  eos_token: "</s>",
  unk_token: "<unk>",
};
