import { mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { createServer, type Server } from "node:http";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { createEngine, Engine, Key } from "../../engine/index.js";
import { saveModel } from "../../model/checkpoint.js";
import { PixelCodec } from "../../model/codec.js";
import { Flow } from "../../model/diffusion/flow.js";
import { addLanguage } from "../../model/language.js";
import { STDiT } from "../../model/stdit.js";
import { openBranch } from "../../model/text/branch.js";
import { captionEncoderOf } from "../../model/text/captions.js";
import type { EncoderSpec, OpenEncoder } from "../../model/text/spec.js";
import { run } from "../../train/commands/sample.js";
import { encoderAssets } from "../../train/data/assets.js";
import { rejects } from "../files/throws.js";
import { randomize, SMALL } from "../model/grown.js";

const test = suite("sample");
const folder = mkdtempSync(join(tmpdir(), "espalier-sample-"));
const at = (name: string) => join(folder, name);
const [plain, spoken] = [at("plain.safetensors"), at("spoken.safetensors")];
const PROMPT = "an ox moving left on a blue background";
let server: Server;
const asked: string[] = [];

test.before(async () => {
  const engine = await createEngine();
  const model = new STDiT(engine, { ...SMALL, inChannels: 3, predSigma: false, depth: 1 }, { key: Key.from(1) });
  await randomize(model, Key.from(2));
  const content = {
    codec: new PixelCodec(),
    objective: new Flow(),
    text: { type: "vocabulary", words: ["an", "ox", "moving", "left"] },
    vectors: { shape: [4, 3], data: Float32Array.from({ length: 12 }, (_, i) => Math.sin(i + 1)) },
  };
  await saveModel(plain, { model, ...content });
  const { encoder, said } = await openBranch(engine, { encoder: "language" }, "S", encoderAssets);
  const { dim: channels, maxLength } = encoder;
  const branched = await addLanguage(model, { channels, maxLength, key: Key.from(3), encoder: { ...said } });
  await randomize(branched, Key.from(4), 0.5);
  await saveModel(spoken, { model: branched, ...content });
  encoder.dispose?.();
  engine.destroy();
  server = createServer((request, response) => {
    let body = "";
    request.on("data", (part) => {
      body += part;
    });
    request.on("end", () => {
      const { model, messages } = JSON.parse(body);
      asked.push(`${model}: ${messages.at(-1).content}`);
      const content = "An ox walks to the left across a blue field.";
      response.end(JSON.stringify({ choices: [{ message: { content } }] }));
    });
  });
  await new Promise<void>((done) => server.listen(0, "127.0.0.1", done));
});
test.after(() => {
  server.close();
  rmSync(folder, { recursive: true });
});

/** Runs the command; its notes (what it writes to stderr) and the first clip. */
async function sampled(...args: string[]): Promise<{ notes: string; clip: Uint8Array }> {
  const { log, error } = console;
  const notes: string[] = [];
  console.log = () => {};
  console.error = (...parts) => notes.push(parts.join(" "));
  const out = mkdtempSync(at("out-"));
  try {
    assert.is(await run([...args, "--steps", "2", "--out", out]), 0);
  } finally {
    Object.assign(console, { log, error });
  }
  const [name] = readdirSync(out).filter((file) => file.endsWith(".webp"));
  return { notes: notes.join("\n"), clip: readFileSync(join(out, name)) };
}
const differ = (a: Uint8Array, b: Uint8Array) => Buffer.compare(a, b) !== 0;

test("a plain model: two names of one scale", async () => {
  const one = await sampled(plain, PROMPT, "--guidance", "3");
  const other = await sampled(plain, PROMPT, "--t5-scale", "3", "--parts", "3");
  assert.not.ok(differ(one.clip, other.clip));
});

test("compiled, unless op by op is asked for", async () => {
  const { compile } = Engine.prototype;
  const seen: boolean[] = [];
  Engine.prototype.compile = function (this: Engine, f) {
    seen.push(this.eager);
    return compile.call(this, f as never) as never;
  };
  try {
    await sampled(plain, PROMPT);
    const usual = seen.splice(0);
    await sampled(plain, PROMPT, "--eager");
    assert.ok(usual.length > 0 && !usual.includes(true));
    assert.ok(seen.length > 0 && !seen.includes(false));
  } finally {
    Engine.prototype.compile = compile;
  }
});

test("a model with a language branch: its language model comes from the file; long prompts by rules, given or asked for", async () => {
  const usual = await sampled(spoken, PROMPT);
  assert.not.match(usual.notes, "language prompt");
  const scaled = await sampled(spoken, PROMPT, "--llm-scale", "9", "--llm", "language");
  assert.ok(differ(usual.clip, scaled.clip), "--llm-scale counts");
  const rules = await sampled(spoken, PROMPT, "--prompt-form", "SL");
  assert.match(rules.notes, `language prompt: ${PROMPT}. The picture shows an ox.`);
  assert.ok(differ(usual.clip, rules.clip), "--prompt-form counts");
  const given = await sampled(spoken, PROMPT, "--long-prompt", "a quiet ox");
  assert.match(given.notes, "language prompt: a quiet ox");
  assert.ok(differ(usual.clip, given.clip), "--long-prompt counts");
  const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}/v1`;
  const made = await sampled(spoken, PROMPT, "--prompt-form", "L", "--recaption-url", url, "--recaption-model", "big");
  assert.match(made.notes, "language prompt: An ox walks to the left across a blue field.");
  assert.equal(asked, [`big: ${PROMPT}`]);
});

test("what cannot be is refused in words, and nothing is written", async () => {
  const files = () => readdirSync(folder, { recursive: true }).filter((name) => /\.\w+$/.test(String(name))).length;
  const before = files();
  const refused = (args: string[], message: string) => rejects(() => sampled(...args), message);
  for (const [flag, value] of [
    ["llm-scale", "2"],
    ["llm", "language"],
    ["prompt-form", "L"],
    ["long-prompt", "an ox"],
  ])
    await refused([plain, PROMPT, `--${flag}`, value], `--${flag} has no use: ${plain} has no language branch`);
  await refused([plain, PROMPT, "--guidance", "2", "--t5-scale", "2"], "are one option: both were given");
  await refused([spoken, PROMPT, "--t5-scale", "seven"], '--t5-scale takes a number: got "seven"');
  await refused([spoken, PROMPT, "--llm-scale=-1"], "the language scale must be a number from 0: got -1");
  await refused([spoken, PROMPT, "--prompt-form", "LS"], 'prompt form: must be S, L or SL: "LS" was given');
  await refused(
    [spoken, PROMPT, "--prompt-form", "S", "--long-prompt", "x"],
    "--long-prompt has no use: the form is S",
  );
  await refused([spoken, "a", "b", "c", "--long-prompt", "x", "--long-prompt", "y"], "got 2 for 3 prompts");
  await refused([spoken, PROMPT, "--recaption-model", "big"], "give --recaption-url URL");
  await refused([spoken, PROMPT, "--recaption-url", "http://127.0.0.1:9"], "give --recaption-model NAME");
  const endpoint = ["--recaption-url", "http://127.0.0.1:9", "--recaption-model", "big"];
  await refused(
    [spoken, PROMPT, ...endpoint, "--long-prompt", "x"],
    "--recaption-url has no use: long prompts are given",
  );
  await refused([spoken, PROMPT, ...endpoint], "the model was trained with form S");
  await refused([spoken, PROMPT, "--parts", "2"], '--parts takes auto, 1 or 3: got "2"');
  await refused([spoken, PROMPT, "--llm", "words"], "words is no language model");
  await refused([spoken, PROMPT, "--t5", at("t5")], "the model was trained with word vectors");
  assert.is(files(), before);
});

test("the encoder of captions: what the file names, or what is named for it", async () => {
  const opened: EncoderSpec[] = [];
  let disposed = 0;
  const assets = {
    ...encoderAssets,
    open: async (_: unknown, spec: EncoderSpec) => {
      opened.push(spec);
      const encoder = { dim: 5, maxLength: 4, fingerprint: "t5 1", encode: () => assert.unreachable() };
      return { ...encoder, dispose: () => disposed++ } as unknown as OpenEncoder;
    },
  };
  const find = (info: Record<string, unknown> | undefined, where?: string, captionChannels = 5) =>
    captionEncoderOf(
      undefined as never,
      { model: { config: { captionChannels, maxLength: 120 } as never }, text: { info, encoder: undefined } },
      assets,
      where,
    );
  const named = { type: "t5", encoder: "t5-folder", fingerprint: "t5 1", maxLength: 77 };
  await find(named);
  await find(named, "elsewhere");
  await find(undefined, "t5-folder");
  assert.equal(opened, [
    { encoder: "t5-folder", maxLength: 77 },
    { encoder: "elsewhere", maxLength: 77 },
    { encoder: "t5-folder", maxLength: 120 },
  ]);
  assert.is(disposed, 0);
  await rejects(() => find(undefined), "the file does not say which encoder reads the model's captions; name it (--t5");
  await rejects(() => find(undefined, "x", 4096), "captions are 4096 wide: those of x are 5");
  await rejects(() => find({ ...named, fingerprint: "t5 2" }), "trained with t5 2: t5-folder is t5 1");
  assert.is(disposed, 2);
  await rejects(() => find({ type: "words", fingerprint: "w" }, "x"), "was trained with word vectors: x was given");
  await rejects(() => find({ type: "clip" }), 'another encoder: "clip"');
});

test.run();
