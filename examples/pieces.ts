// Makes a small vocabulary of words and word pieces, as a tokenizer.json that Hugging Face's libraries run.

/** Tokens with a meaning of their own, in the order of their ids. */
export const SPECIAL = ["<|pad|>", "<|unk|>", "<|begin|>", "<|end|>", "<|user|>", "<|assistant|>"] as const;
const [PAD, UNKNOWN, BEGIN, END] = SPECIAL;
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
): Record<string, number> {
  const kept = new Set<string>([...SPECIAL, ...SIGNS]);
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
export function tokenizerJson(vocabulary: Readonly<Record<string, number>>) {
  return {
    version: "1.0",
    truncation: null,
    padding: null,
    added_tokens: SPECIAL.map((content) => ({
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
      single: [{ SpecialToken: { id: BEGIN, type_id: 0 } }, { Sequence: { id: "A", type_id: 0 } }],
      pair: [
        { SpecialToken: { id: BEGIN, type_id: 0 } },
        { Sequence: { id: "A", type_id: 0 } },
        { Sequence: { id: "B", type_id: 1 } },
      ],
      special_tokens: { [BEGIN]: { id: BEGIN, ids: [vocabulary[BEGIN]], tokens: [BEGIN] } },
    },
    decoder: { type: "WordPiece", prefix: PREFIX, cleanup: true },
    model: {
      type: "WordPiece",
      unk_token: UNKNOWN,
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
