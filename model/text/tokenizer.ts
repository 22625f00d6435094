import { Tokenizer as Library } from "@huggingface/tokenizers";
import { ConfigError, DataError, nearest } from "../../engine/errors.js";
import { type Folder, type FolderLocation, folderOf, jsonObject } from "../files/folder.js";
import type { SafetensorsLocation } from "../safetensors/reader.js";
import { charsMapOf } from "./charsmap.js";
import { normalizerOf, readSentencePiece, sentencePieceJson } from "./spiece.js";

/** What a special token is for. */
export type SpecialName = "pad" | "eos" | "bos" | "unk";

/** Text to ids of a vocabulary and back. */
export interface Tokenizer {
  /** What it was opened from, for errors. */
  readonly name: string;
  /** All ids lie below it. */
  readonly vocabSize: number;
  /** Ids of the special tokens that there are. */
  readonly special: Readonly<Partial<Record<SpecialName, number>>>;
  /** What `tokenizer_config.json` holds, such as `chat_template`; empty where there is none. */
  readonly config: Readonly<Record<string, unknown>>;
  /** Ids of a text, with nothing put before or after it. The name of a special token in the text becomes its id. */
  encode(text: string): number[];
  /** Text of ids, special tokens left out. @throws ConfigError for an id outside the vocabulary */
  decode(ids: ArrayLike<number>): string;
  /** Id of a token by its name in the vocabulary, such as "</s>". */
  idOf(token: string): number | undefined;
}

type Json = Record<string, unknown>;

/** Names that vocabularies use where no configuration says which token is which, the commonest first. */
const USUAL: Record<SpecialName, readonly string[]> = {
  pad: ["<pad>", "[PAD]", "<|finetune_right_pad_id|>"],
  eos: ["</s>", "<eos>", "<|end_of_text|>", "<|endoftext|>", "[SEP]"],
  bos: ["<s>", "<bos>", "<|begin_of_text|>", "[CLS]"],
  unk: ["<unk>", "[UNK]"],
};

/**
 * The id of a special token.
 * @throws ConfigError naming the token where the tokenizer has none
 */
export function specialId(tokenizer: Tokenizer, name: SpecialName): number {
  const id = tokenizer.special[name];
  if (id !== undefined) return id;
  const named = tokenText(tokenizer.config[`${name}_token`]);
  if (named === undefined)
    throw new ConfigError(
      `tokenizer: no ${name} token, usually ${JSON.stringify(USUAL[name][0])}: ${tokenizer.name} has ${tokenizer.vocabSize} tokens without it; name one as "${name}_token" in tokenizer_config.json, or take the tokenizer that the model was trained with`,
    );
  const others = USUAL[name].filter((token) => tokenizer.idOf(token) !== undefined);
  const guess = nearest(named, others) ?? others[0];
  throw new ConfigError(
    `tokenizer: ${name} token not in the vocabulary: tokenizer_config.json names ${JSON.stringify(named)}, ${tokenizer.name} has no such token${guess ? `; did you mean ${JSON.stringify(guess)}?` : "; take both from one folder"}`,
  );
}

const tokenText = (token: unknown): string | undefined =>
  typeof token === "string"
    ? token
    : ((token as { content?: unknown } | null | undefined)?.content as string | undefined);

/** Takes a compiled character map out of a normalizer: the library has only an approximation of it. */
function takeCharsMap(normalizer: unknown): { charsMap?: string; rest: unknown } {
  const node = normalizer as { type?: unknown; precompiled_charsmap?: unknown; normalizers?: unknown[] } | null;
  if (node?.type === "Precompiled" && typeof node.precompiled_charsmap === "string")
    return { charsMap: node.precompiled_charsmap, rest: null };
  if (node?.type !== "Sequence" || !Array.isArray(node.normalizers) || node.normalizers.length === 0)
    return { rest: normalizer };
  const { charsMap, rest } = takeCharsMap(node.normalizers[0]);
  if (charsMap === undefined) return { rest: normalizer };
  return { charsMap, rest: { ...node, normalizers: [...(rest ? [rest] : []), ...node.normalizers.slice(1)] } };
}

/** Runs a `tokenizer.json`; `special` are ids that are known from elsewhere. */
function tokenizerOf(
  json: Json,
  config: Json,
  name: string,
  normalize?: (text: string) => string,
  special: Partial<Record<SpecialName, number>> = {},
): Tokenizer {
  const refuse = (what: string, cause?: unknown) =>
    new DataError(`tokenizer: ${what}: ${name}; take the tokenizer.json beside the model's weights`, { cause });
  if (typeof json.model !== "object" || json.model === null) throw refuse('no "model"');
  const { charsMap, rest } = takeCharsMap(json.normalizer ?? null);
  const rewrite =
    normalize ??
    (charsMap === undefined
      ? (text: string) => text
      : charsMapOf(Uint8Array.from(atob(charsMap), (c) => c.charCodeAt(0))));
  const defaults = { added_tokens: [], pre_tokenizer: null, post_processor: null, decoder: null };
  const tokens = Object.fromEntries(
    Object.entries(config).map(([key, value]) => [key, key.endsWith("_token") ? (tokenText(value) ?? value) : value]),
  );
  let library: Library;
  let ids: Map<string, number>;
  try {
    library = new Library({ ...defaults, ...json, normalizer: rest }, tokens);
    ids = new Map(library.get_vocab());
  } catch (cause) {
    throw refuse((cause as Error).message.replace(/\.$/, ""), cause);
  }
  const vocabSize = Array.from(ids.values()).reduce((a, b) => Math.max(a, b), -1) + 1;
  if (vocabSize === 0) throw refuse("an empty vocabulary");
  const idOf = (token: string) => ids.get(token);
  const found = { ...special };
  for (const kind of Object.keys(USUAL) as SpecialName[]) {
    const named = tokenText(config[`${kind}_token`]);
    // A name that the vocabulary lacks is told when the token is asked for: many models never use theirs.
    found[kind] =
      named === undefined ? (special[kind] ?? USUAL[kind].map(idOf).find((id) => id !== undefined)) : idOf(named);
    if (found[kind] === undefined) delete found[kind];
  }
  return {
    name,
    vocabSize,
    special: found,
    config,
    encode: (text) => library.encode(rewrite(text), { add_special_tokens: false }).ids,
    decode(given) {
      const list = Array.from(given);
      for (const id of list)
        if (library.id_to_token(id) === undefined)
          throw new ConfigError(`tokenizer: id outside the vocabulary: ${id}; ${name} has ids below ${vocabSize}`);
      // The library takes no empty list.
      return list.length === 0
        ? ""
        : library.decode(list, { skip_special_tokens: true, clean_up_tokenization_spaces: false });
    },
    idOf,
  };
}

function fromSentencePiece(bytes: Uint8Array, config: Json, name: string): Tokenizer {
  const model = readSentencePiece(bytes, name);
  const special: Partial<Record<SpecialName, number>> = {};
  for (const kind of ["pad", "eos", "bos", "unk"] as const)
    if (model.pieces[model[kind]] !== undefined) special[kind] = model[kind];
  return tokenizerOf(sentencePieceJson(model), config, name, normalizerOf(model), special);
}

const NAMES = ["tokenizer.json", "spiece.model", "tokenizer.model"] as const;

/** A folder and the one file in it that a path or address ends in. */
function fileOf(location: string | URL): { folder: string; file: string } | undefined {
  const match = /^(.*?)([^/\\]+\.(?:json|model))$/.exec(String(location));
  return match ? { folder: match[1] || ".", file: match[2] } : undefined;
}

async function read(folder: Folder, file: string): Promise<Tokenizer | undefined> {
  const bytes = await folder.bytes(file);
  if (bytes === undefined) return undefined;
  const name = `${folder.name}/${file}`;
  const config = (await folder.json("tokenizer_config.json")) ?? {};
  if (!file.endsWith(".json")) return fromSentencePiece(bytes, config, name);
  return tokenizerOf(jsonObject(new TextDecoder().decode(bytes), name), config, name);
}

/**
 * Opens the tokenizer of a model: a `tokenizer.json` of Hugging Face's tokenizers, or a SentencePiece model
 * (`spiece.model`, `tokenizer.model`; unigram or BPE). A `tokenizer_config.json` beside it names the special tokens.
 * @param location a folder, one of those files, or where each of them is, by name (in a page: picked files, addresses)
 * @throws DataError when there is none, or for one that is broken; FileError for one that cannot be read
 */
export async function openTokenizer(
  location: FolderLocation | Readonly<Record<string, SafetensorsLocation>>,
): Promise<Tokenizer> {
  const one = typeof location === "string" || location instanceof URL ? fileOf(location) : undefined;
  const folder = folderOf(one?.folder ?? location);
  for (const file of one ? [one.file] : NAMES) {
    const tokenizer = await read(folder, file);
    if (tokenizer) return tokenizer;
  }
  throw new DataError(
    `tokenizer: not found: ${one ? String(location) : `none of ${NAMES.join(", ")} in ${folder.name}`}; take the files beside the model's weights`,
  );
}
