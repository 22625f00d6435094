import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type Browser, chromium, type Page } from "playwright-core";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { createEngine, type Engine, Key, normal } from "../../engine/index.js";
import { type ModelContent, saveModel } from "../../model/checkpoint.js";
import { PixelCodec } from "../../model/codec.js";
import { Flow } from "../../model/diffusion/flow.js";
import { Iddpm } from "../../model/diffusion/iddpm.js";
import { STDiT } from "../../model/stdit.js";
import { WordEncoder } from "../../model/text/words.js";
import { findChromium } from "./chromium.js";

const test = suite("page");
const home = mkdtempSync(join(tmpdir(), "espalier-page-"));
const file = (name: string) => join(home, name);

let server: ChildProcess;
let url: string;
let browser: Browser;
let page: Page;
const errors: string[] = [];
const addresses: string[] = [];

/** A model of random weights that samples in no time; its clips are noise, but each request's own. */
async function saveTiny(engine: Engine, name: string, captionChannels: number, content: Partial<ModelContent>) {
  const model = new STDiT(engine, {
    inChannels: 3,
    predSigma: content.objective instanceof Iddpm,
    hidden: 16,
    depth: 1,
    heads: 2,
    mlpRatio: 2,
    patch: [1, 4, 4],
    frames: 4,
    latent: [16, 16],
    captionChannels,
    maxLength: 10,
    spaceScale: 1,
    timeScale: 1,
  });
  const weights = Object.fromEntries(
    model.namedParameters().map(([path, p], i) => [path, normal(engine, Key.from(i), p.shape).mul(0.3)]),
  );
  await saveModel(file(name), { model, weights, codec: new PixelCodec(), objective: new Flow(), ...content });
}

async function saveModels(): Promise<void> {
  const engine = await createEngine();
  const words = "a an on background moving left up ox frog blue red".split(" ");
  const vectors = {
    shape: [words.length, 8],
    data: Float32Array.from({ length: words.length * 8 }, (_, i) => Math.sin(i * i)),
  };
  await saveTiny(engine, "tiny model.safetensors", 8, { text: { type: "vocabulary", words }, vectors });
  const { dim, mix, fingerprint } = new WordEncoder(readFileSync("model/text/words.bin"));
  await saveTiny(engine, "words.safetensors", dim, {
    objective: new Iddpm(),
    text: { type: "words", mix, fingerprint },
  });
  await saveTiny(engine, "others.safetensors", dim, { text: { type: "words", mix, fingerprint: "00000000" } });
  await saveTiny(engine, "t5.safetensors", dim, { text: { type: "t5" } });
  await saveTiny(engine, "bare.safetensors", dim, { codec: undefined, text: { type: "words", mix, fingerprint } });
  engine.destroy();
  const whole = readFileSync(file("words.safetensors"));
  writeFileSync(file("cut.safetensors"), whole.subarray(0, whole.length - 100));
  writeFileSync(file("notes.safetensors"), "these are no tensors at all");
}

/** `npm run page` as a person starts it. */
async function serve(): Promise<void> {
  server = spawn(process.execPath, [".build/page.mjs", "--port", "0", "--checkpoint", file("tiny model.safetensors")], {
    stdio: ["ignore", "pipe", "inherit"],
  });
  const [line] = await once(server.stdout!.setEncoding("utf8"), "data");
  url = /http:\S+/.exec(line)![0];
}

test.before(async () => {
  await Promise.all([saveModels(), findChromium()]);
  await serve();
  const { executablePath, args, env } = await findChromium();
  browser = await chromium.launch({ executablePath, args, env, headless: false, timeout: 60_000 });
  page = await browser.newPage({ viewport: { width: 1440, height: 900 } });
  page.setDefaultTimeout(30_000);
  page.on("console", (message) => message.type() === "error" && errors.push(message.text()));
  page.on("pageerror", (error) => errors.push(String(error)));
  page.on("request", (request) => addresses.push(request.url()));
});
test.after(async () => {
  await browser?.close();
  server?.kill();
  rmSync(home, { recursive: true, force: true });
});

const text = async (id: string) => (await page.locator(id).textContent())!;
const holds = (id: string, pattern: RegExp) =>
  page.waitForFunction(({ id, source }) => new RegExp(source, "s").test(document.querySelector(id)!.textContent!), {
    id,
    source: pattern.source,
  });
/** The message that comes up. */
async function fault(title: string): Promise<string> {
  await page.waitForSelector("#fault:not([hidden])");
  assert.is(await text("#fault-title"), title);
  return text("#fault-text");
}
const says = (pattern: RegExp) => holds("#said", pattern);
const open = (name: string) => page.setInputFiles("#file", file(name));

interface Seen {
  step: number;
  picture: number;
}
/** Samples, and gives a number for the picture of each step that was on the screen. */
async function sample(prompt: string, steps: number, seed: number): Promise<Seen[]> {
  await page.fill("#prompt", prompt);
  await page.fill("#steps", String(steps));
  await page.fill("#seed", String(seed));
  await page.evaluate(watch);
  await page.click("#sample");
  await page.waitForFunction(
    () => /^Done/.test(document.getElementById("said")!.textContent!) || !document.getElementById("fault")!.hidden,
  );
  assert.match(await text("#said"), /^Done/, await text("#fault"));
  return page.evaluate(() => (globalThis as unknown as { seen: Seen[] }).seen);
}

/** Runs in the page: notes each step that is shown. */
function watch(): void {
  const seen: Seen[] = [];
  const [clip, strip] = ["clip", "strip"].map((id) => document.getElementById(id) as HTMLCanvasElement);
  new MutationObserver(() => {
    const { data } = strip.getContext("2d")!.getImageData(0, 0, strip.width, strip.height);
    let picture = 0;
    for (const byte of data) picture = (Math.imul(picture, 31) + byte) | 0;
    seen.push({ step: Number(clip.dataset.step), picture });
  }).observe(clip, { attributeFilter: ["data-step"] });
  Object.assign(globalThis, { seen });
}

test("opens its model by itself and names the adapter", async () => {
  await page.goto(url);
  await says(/^Ready/);
  assert.is(await text("#model"), "tiny model.safetensors");
  assert.match(await text("#about"), /^[\d,]+ parameters, clips of 4 frames, 16 × 16$/);
  assert.match(await text("#adapter"), /^GPU: SwiftShader: a software adapter, .* Faster: a browser/);
  // The two whose words the model has.
  assert.equal(await page.locator("#captions button").allInnerTexts(), [
    "an ox moving left on a blue background",
    "a frog moving up on a red background",
  ]);
  assert.equal(await page.locator("#sampler option").allInnerTexts(), ["euler", "heun"]);
});

let ox: Seen[];
test("a prompt is sampled, and every step shows", async () => {
  ox = await sample("an ox moving left on a blue background", 6, 7);
  assert.equal(
    ox.map(({ step }) => step),
    [1, 2, 3, 4, 5, 6],
  );
  assert.is(new Set(ox.map(({ picture }) => picture)).size, 6);
  assert.match(await text("#said"), /^Done in \d/);
  assert.is(await text("#place"), "6 of 6");
  assert.is(
    await page.getAttribute("#clip", "aria-label"),
    "an ox moving left on a blue background, as believed after step 6 of 6",
  );
});

test("the same request gives the same pictures; another seed, prompt, guidance or sampler others", async () => {
  assert.equal(await sample("an ox moving left on a blue background", 6, 7), ox);
  const differ = (other: Seen[]) => assert.is.not(other.at(-1)!.picture, ox.at(-1)!.picture);
  differ(await sample("an ox moving left on a blue background", 6, 8));
  differ(await sample("a frog moving up on a red background", 6, 7));
  await page.fill("#guidance", "4");
  assert.is(await text("#weight"), "4.0");
  differ(await sample("an ox moving left on a blue background", 6, 7));
  await page.fill("#guidance", "1.5");
  await page.selectOption("#sampler", "heun");
  differ(await sample("an ox moving left on a blue background", 6, 7));
  await page.selectOption("#sampler", "euler");
});

test("the clip loops, can be held, and earlier steps can be looked at", async () => {
  const frame = () => page.evaluate(() => (document.getElementById("clip") as HTMLCanvasElement).toDataURL());
  const frames = new Set<string>();
  for (let i = 0; i < 40 && frames.size < 4; i++) {
    frames.add(await frame());
    await page.waitForTimeout(60);
  }
  assert.is(frames.size, 4, "all four frames come by");
  await page.click("#play");
  assert.is(await text("#play"), "Play");
  const held = await frame();
  await page.waitForTimeout(400);
  assert.is(await frame(), held);
  await page.focus("#step");
  for (let i = 0; i < 4; i++) await page.keyboard.press("ArrowLeft");
  assert.is(await text("#place"), "2 of 6");
  assert.is.not(await frame(), held);
  await page.keyboard.press("End");
  assert.is(await frame(), held);
  await page.click("#play");
});

test("from the keyboard alone: an example, a request, and Escape in the middle of it", async () => {
  await page.fill("#steps", "400");
  await page.focus("#prompt");
  await page.keyboard.press("Tab");
  await page.keyboard.press("Tab");
  await page.keyboard.press("Tab");
  assert.is(
    await page.evaluate(() => document.activeElement!.textContent),
    "a frog moving up on a red background",
    "Cancel is off, so the examples are next",
  );
  await page.keyboard.press("Enter");
  assert.is(await page.inputValue("#prompt"), "a frog moving up on a red background");
  await page.focus("#prompt");
  await page.keyboard.press("Enter");
  await holds("#place", /^([3-9]|\d\d+) of 400/);
  assert.match(await text("#left"), /^[\d.]+ (s|min.*) left$/);
  assert.ok(await page.isDisabled("#sample"));
  const began = Date.now();
  await page.keyboard.press("Escape");
  await says(/^Cancelled after step \d+ of 400$/);
  assert.ok(Date.now() - began < 1000, "at once");
  const at = await text("#place");
  assert.ok(Number(at.split(" ")[0]) < 400);
  await page.waitForTimeout(500);
  assert.is(await text("#place"), at, "no step comes after it");
  assert.equal(await sample("an ox moving left on a blue background", 6, 7), ox);
});

test("prompts: words that the model lacks, too many words, none", async () => {
  await page.fill("#prompt", "an ox moving left on a purple background");
  await page.waitForSelector("#notes .warning");
  assert.is(await text("#notes"), "Words that the model does not know: purple");
  await page.fill("#prompt", "an ox moving left on a blue background ".repeat(2));
  await holds("#notes", /10 words are read: it has 16/);
  assert.is(await page.getAttribute("#prompt", "aria-invalid"), "false");
  for (const [prompt, refused] of [
    ["zebra", /hold a word that the model knows: "zebra" has none; it knows a, an, on,/],
    ["  ", /not be empty/],
  ] as const) {
    await page.fill("#prompt", prompt);
    await page.click("#sample");
    await says(/^The prompt cannot be used/);
    assert.match(await text("#notes"), refused);
    assert.is(await page.getAttribute("#prompt", "aria-invalid"), "true");
    assert.is(await page.evaluate(() => document.activeElement!.id), "prompt");
    assert.not.ok(await page.isVisible("#fault"));
  }
  await page.fill("#steps", "0");
  await page.click("#sample");
  assert.ok(
    await page.evaluate(
      () =>
        document.querySelector("#steps:invalid") !== null &&
        document.getElementById("said")!.textContent !== "Sampling",
    ),
  );
  assert.equal(await sample("an ox moving left on a blue background", 6, 7), ox);
});

for (const [name, message] of [
  ["notes.safetensors", /notes\.safetensors/],
  ["cut.safetensors", /cut\.safetensors/],
  ["others.safetensors", /trained with other word vectors: its table is 00000000, the one here is [0-9a-f]{8}/],
  ["t5.safetensors", /trained with another encoder: "t5"; word vectors \("words"\) are what there is here/],
  ["bare.safetensors", /bare\.safetensors holds no codec/],
] as const)
  test(`${name} is refused, and the model before stays`, async () => {
    await open(name);
    assert.match(await fault("That model could not be opened"), message);
    assert.is(await text("#model"), "tiny model.safetensors");
    assert.equal(await sample("an ox moving left on a blue background", 6, 7), ox);
    assert.not.ok(await page.isVisible("#fault"), "a new request clears the message");
  });

test("a model that is dropped on the page is opened, with the word vectors that it was trained with", async () => {
  const bytes = readFileSync(file("words.safetensors")).toString("base64");
  await page.evaluate((base64) => {
    const dataTransfer = new DataTransfer();
    dataTransfer.items.add(new File([Uint8Array.from(atob(base64), (c) => c.charCodeAt(0))], "dropped.safetensors"));
    for (const type of ["dragover", "drop"])
      document.body.dispatchEvent(new DragEvent(type, { dataTransfer, bubbles: true, cancelable: true }));
  }, bytes);
  await holds("#model", /^dropped/);
  assert.equal(await page.locator("#sampler option").allInnerTexts(), ["ddim", "dpm-solver++", "ddpm"]);
  assert.is(await page.locator("#captions button").count(), 4);
  assert.ok(addresses.some((address) => address.endsWith("/model/text/words.bin")));
  const seen = await sample("a zebra moving left", 3, 0);
  assert.is(new Set(seen.map(({ picture }) => picture)).size, 3);
});

test("a GPU that is lost while sampling is taken again, with the model", async () => {
  await open("tiny model.safetensors");
  await holds("#model", /^tiny/);
  await page.fill("#steps", "400");
  await page.fill("#prompt", "an ox moving left on a blue background");
  await page.click("#sample");
  await holds("#place", /^\d+ of 400/);
  await page.workers()[0].evaluate(() => {
    const { createCommandEncoder } = GPUDevice.prototype;
    GPUDevice.prototype.createCommandEncoder = function (...args) {
      GPUDevice.prototype.createCommandEncoder = createCommandEncoder;
      this.destroy();
      return createCommandEncoder.apply(this, args);
    };
  });
  await says(/^Ready again/);
  assert.match(await fault("The GPU was lost"), /It is back, and the model too/);
  assert.equal(await sample("an ox moving left on a blue background", 6, 7), ox);
});

test("everything has a label and fits, on a desk and on a phone", async () => {
  const unlabelled = await page.evaluate(() =>
    [...document.querySelectorAll<HTMLInputElement>("input, select, textarea")]
      .filter((field) => !field.labels?.length)
      .map(({ id }) => id),
  );
  assert.equal(unlabelled, []);
  for (const [width, height] of [
    [1440, 900],
    [390, 844],
    [320, 640],
  ]) {
    await page.setViewportSize({ width, height });
    const wide = await page.evaluate(() => document.documentElement.scrollWidth);
    assert.ok(wide <= width, `${wide} pixels wide on a screen of ${width}`);
    if (width === 320) continue;
    const { bottom } = await page.evaluate(() => document.getElementById("sample")!.getBoundingClientRect().toJSON());
    assert.ok(bottom <= height, `the button ends at ${bottom} on a screen of ${height}`);
  }
  const grounds = new Set<string>();
  for (const colorScheme of ["light", "dark"] as const) {
    await page.emulateMedia({ colorScheme });
    grounds.add(await page.evaluate(() => getComputedStyle(document.body).backgroundColor));
  }
  assert.is(grounds.size, 2);
});

test("without WebGPU it says how to turn it on", async () => {
  const { executablePath, args, env } = await findChromium();
  const plain = await chromium.launch({
    executablePath,
    env,
    args: args.filter((arg) => !/webgpu|vulkan/i.test(arg)),
    headless: false,
  });
  try {
    const other = await plain.newPage();
    await other.goto(url);
    await other.waitForSelector("#fault:not([hidden])");
    assert.is(await other.textContent("#fault-title"), "No GPU for this page");
    const how = /^adapter: no WebGPU adapter: .*\. Turn on graphics acceleration .*--enable-unsafe-webgpu/;
    assert.match((await other.textContent("#fault-text"))!, how);
    assert.ok(await other.isDisabled("#sample"));
    await other.click("#again");
    await other.waitForSelector("#fault:not([hidden])");
  } finally {
    await plain.close();
  }
});

test("nothing came from elsewhere, and nothing went wrong unseen", () => {
  assert.equal(
    addresses.filter((address) => !address.startsWith(url)),
    [],
  );
  assert.equal(errors, []);
});

test.run();
