import { DataError } from "../../engine/errors.js";
import { charsMapOf } from "./charsmap.js";

/** What a piece of a SentencePiece vocabulary is for (sentencepiece_model.proto, SentencePiece.Type). */
export const PIECE = { normal: 1, unknown: 2, control: 3, userDefined: 4, unused: 5, byte: 6 } as const;

export interface Piece {
  text: string;
  score: number;
  type: number;
}

/** The parts of a SentencePiece model that encoding needs. */
export interface SentencePiece {
  /** By id. */
  pieces: Piece[];
  algorithm: "unigram" | "bpe";
  /** Ids, -1 where there is none. */
  unk: number;
  bos: number;
  eos: number;
  pad: number;
  byteFallback: boolean;
  /** Rules that rewrite characters first; empty where text stays as it is. */
  charsMap: Uint8Array;
  addDummyPrefix: boolean;
  removeExtraWhitespaces: boolean;
}

type Field = { field: number; number: number; bytes?: undefined } | { field: number; number: 0; bytes: Uint8Array };

const refuse = (file: string, what: string): DataError =>
  new DataError(`sentencepiece: ${what}: ${file}; take the spiece.model or tokenizer.model beside the weights`);

/** Fields of a protobuf message: varints and fixed numbers as `number`, the rest as `bytes`. */
function* fields(bytes: Uint8Array, file: string): Generator<Field> {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  let at = 0;
  const need = (length: number) => {
    if (!(length <= bytes.length - at)) throw refuse(file, `cut off at byte ${at} of a message of ${bytes.length}`);
  };
  const varint = (): number => {
    // Up to 64 bits: negative int32 are written as ten bytes. `| 0` of the low half gives them back.
    let [low, high] = [0, 0];
    for (let shift = 0; ; shift += 7) {
      need(1);
      if (shift > 63) throw refuse(file, `a number has more than ten bytes before byte ${at}`);
      const byte = bytes[at++];
      if (shift < 28) low |= (byte & 127) << shift;
      else if (shift === 28) {
        low |= (byte & 15) << 28;
        high = (byte & 127) >>> 4;
      } else if (shift < 63) high += (byte & 127) * 2 ** (shift - 32);
      if (byte < 128) break;
    }
    return high === 0 ? low >>> 0 : low | 0;
  };
  while (at < bytes.length) {
    const tag = varint();
    const field = tag >>> 3;
    if (field === 0) throw refuse(file, `field number 0 before byte ${at}`);
    switch (tag & 7) {
      case 0:
        yield { field, number: varint() };
        break;
      case 1:
        need(8);
        yield { field, number: view.getFloat64(at, true) };
        at += 8;
        break;
      case 2: {
        const length = varint();
        need(length);
        yield { field, number: 0, bytes: bytes.subarray(at, at + length) };
        at += length;
        break;
      }
      case 5:
        need(4);
        yield { field, number: view.getFloat32(at, true) };
        at += 4;
        break;
      default:
        throw refuse(file, `unknown wire type ${tag & 7} before byte ${at}`);
    }
  }
}

function readPiece(bytes: Uint8Array, file: string): Piece {
  const piece: Piece = { text: "", score: 0, type: PIECE.normal };
  for (const f of fields(bytes, file)) {
    if (f.field === 1 && f.bytes) piece.text = new TextDecoder("utf-8", { ignoreBOM: true }).decode(f.bytes);
    else if (f.field === 2) piece.score = f.number;
    else if (f.field === 3) piece.type = f.number;
  }
  return piece;
}

/**
 * Reads a SentencePiece model (`spiece.model`, `tokenizer.model`), a protobuf message ModelProto of
 * https://github.com/google/sentencepiece/blob/master/src/sentencepiece_model.proto.
 * @throws DataError for bytes that are none, or a model that is neither unigram nor BPE
 */
export function readSentencePiece(bytes: Uint8Array, file = "spiece.model"): SentencePiece {
  const model: SentencePiece = {
    pieces: [],
    algorithm: "unigram",
    unk: 0,
    bos: 1,
    eos: 2,
    pad: -1,
    byteFallback: false,
    charsMap: new Uint8Array(0),
    addDummyPrefix: true,
    removeExtraWhitespaces: true,
  };
  for (const { field, bytes: body } of fields(bytes, file)) {
    if (!body) continue;
    if (field === 1) model.pieces.push(readPiece(body, file));
    else if (field === 2)
      for (const f of fields(body, file)) {
        if (f.field === 3) {
          if (f.number !== 1 && f.number !== 2)
            throw refuse(file, `a model of words or characters (type ${f.number}) is not read, unigram and BPE are`);
          model.algorithm = f.number === 1 ? "unigram" : "bpe";
        } else if (f.field === 24 && f.number !== 0) throw refuse(file, "whitespace as a suffix is not read");
        else if (f.field === 35) model.byteFallback = f.number !== 0;
        else if (f.field === 40) model.unk = f.number;
        else if (f.field === 41) model.bos = f.number;
        else if (f.field === 42) model.eos = f.number;
        else if (f.field === 43) model.pad = f.number;
      }
    else if (field === 3)
      for (const f of fields(body, file)) {
        if (f.field === 2 && f.bytes) model.charsMap = f.bytes;
        else if (f.field === 3) model.addDummyPrefix = f.number !== 0;
        else if (f.field === 4) model.removeExtraWhitespaces = f.number !== 0;
        else if (f.field === 5 && f.number === 0) throw refuse(file, "unescaped whitespace is not read");
      }
  }
  if (model.pieces.length === 0) throw refuse(file, `${bytes.length} bytes hold no vocabulary`);
  if (model.pieces[model.unk]?.type !== PIECE.unknown)
    throw refuse(
      file,
      `no piece for unknown text: id ${model.unk} is ${JSON.stringify(model.pieces[model.unk]?.text)}`,
    );
  if (model.algorithm === "unigram" && model.byteFallback)
    throw refuse(file, "a unigram model that falls back to bytes is not read");
  return model;
}

/**
 * Pairs that BPE joins, first those of best score. A SentencePiece model names only what comes out of a join: every
 * way to cut a piece into two other pieces is one.
 */
function mergesOf(pieces: readonly Piece[]): [string, string][] {
  const ids = new Map(pieces.map(({ text }, id) => [text, id]));
  const merges: { pair: [string, string]; score: number; ids: [number, number] }[] = [];
  for (const { text, score, type } of pieces) {
    if (type !== PIECE.normal) continue;
    const chars = Array.from(text);
    for (let i = 1, cut = 0; i < chars.length; i++) {
      cut += chars[i - 1].length;
      const pair: [string, string] = [text.slice(0, cut), text.slice(cut)];
      const [left, right] = pair.map((part) => ids.get(part));
      if (left !== undefined && right !== undefined) merges.push({ pair, score, ids: [left, right] });
    }
  }
  merges.sort((a, b) => b.score - a.score || a.ids[0] - b.ids[0] || a.ids[1] - b.ids[1]);
  return merges.map(({ pair }) => pair);
}

const utf8Length = (text: string) => new TextEncoder().encode(text).length;

/** Scores by id, as the lattice of a unigram model uses them. */
function unigramScores(pieces: readonly Piece[]): number[] {
  const normal = pieces.flatMap(({ score, type }) => (type === PIECE.normal ? [score] : []));
  const [top, low] = [normal.reduce((a, b) => Math.max(a, b), -1e30), normal.reduce((a, b) => Math.min(a, b), 0)];
  return pieces.map(({ text, score, type }) =>
    // A user's own symbol beats any way to cut it, since no piece is likelier than the likeliest.
    type === PIECE.userDefined ? utf8Length(text) * top - 0.1 : type === PIECE.normal ? score : low,
  );
}

/**
 * The model as the object in a Hugging Face `tokenizer.json`, but for a normalizer: text must go through `normalizerOf`
 * first. Control symbols become special tokens.
 */
export function sentencePieceJson(model: SentencePiece): Record<string, unknown> {
  const { pieces, algorithm, addDummyPrefix } = model;
  const isAdded = (type: number) =>
    type === PIECE.control || type === PIECE.unknown || (algorithm === "bpe" && type === PIECE.userDefined);
  const added = pieces.flatMap(({ text, type }, id) =>
    isAdded(type)
      ? [{ id, content: text, special: type !== PIECE.userDefined, normalized: false, lstrip: false, rstrip: false }]
      : [],
  );
  // Unused pieces keep their ids, under a name that no text contains.
  const names = pieces.map(({ text, type }, id) => (type === PIECE.unused ? `\u0000unused ${id}` : text));
  const scores = unigramScores(pieces);
  return {
    version: "1.0",
    added_tokens: added,
    normalizer: addDummyPrefix ? { type: "Prepend", prepend: " " } : null,
    pre_tokenizer: { type: "Metaspace", replacement: "▁", prepend_scheme: "never" },
    post_processor: null,
    decoder: {
      type: "Sequence",
      decoders: [
        { type: "Replace", pattern: { String: "▁" }, content: " " },
        { type: "ByteFallback" },
        { type: "Fuse" },
        ...(addDummyPrefix ? [{ type: "Strip", content: " ", start: 1, stop: 0 }] : []),
      ],
    },
    model:
      algorithm === "unigram"
        ? { type: "Unigram", unk_id: model.unk, vocab: names.map((name, id) => [name, scores[id]]) }
        : {
            type: "BPE",
            vocab: Object.fromEntries(names.map((name, id) => [name, id])),
            merges: mergesOf(pieces),
            unk_token: pieces[model.unk].text,
            byte_fallback: model.byteFallback,
            fuse_unk: true,
          },
  };
}

/** What a SentencePiece model does to text before it cuts it. */
export function normalizerOf(model: SentencePiece): (text: string) => string {
  const rewrite = model.charsMap.length > 0 ? charsMapOf(model.charsMap) : (text: string) => text;
  if (!model.removeExtraWhitespaces) return rewrite;
  return (text) =>
    rewrite(text)
      .replace(/^ +| +$/g, "")
      .replace(/ {2,}/g, " ");
}
