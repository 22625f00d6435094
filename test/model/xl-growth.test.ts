import { mkdtempSync, rmSync, statfsSync, statSync } from "node:fs";
import { freemem, tmpdir } from "node:os";
import { join } from "node:path";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { createEngine, type DType, type Engine, Key, normal } from "../../engine/index.js";
import { openModel, saveModel } from "../../model/checkpoint.js";
import { STDIT_XL_2 } from "../../model/config.js";
import { growOrigin } from "../../model/growth.js";
import { languageOrigin } from "../../model/language.js";
import { buildModel, originOf } from "../../model/origin.js";
import { STDiT } from "../../model/stdit.js";
import { equalBits } from "./grown.js";

const test = suite("STDiT-XL/2, 28 blocks grown to 56 with a language branch");
const GIB = 2 ** 30;
const LIMIT = 24 * GIB;

/** Outputs for a latent [1, 4, 2, 8, 8], one time and captions from one key: the same for every model. */
async function forward(engine: Engine, model: STDiT): Promise<Float32Array> {
  const key = Key.from(7);
  const out = engine.noGrad(() =>
    engine.scope(() => {
      const x = normal(engine, key.fold(0), [1, 4, 2, 8, 8]);
      const y = normal(engine, key.fold(1), [1, 20, 4096]);
      const language = { y: normal(engine, key.fold(2), [1, 24, 4096]) };
      return model.forward(x, [500], y, undefined, model.config.languageChannels ? { language } : {});
    }),
  );
  const values = (await out.data()) as Float32Array;
  out.dispose();
  return values;
}

/** A base in which nothing that fresh models have at zero is: as if it had been trained. */
async function trainedBase(engine: Engine, dtype: DType): Promise<STDiT> {
  const model = new STDiT(engine, STDIT_XL_2, { key: Key.from(1), dtype });
  const zeros = Object.entries(model.stateDict()).filter(([name]) =>
    /(attn_temp|cross_attn)\.proj\.|final_layer\.linear\./.test(name),
  );
  for (const [i, [name, p]] of zeros.entries()) {
    const values = normal(engine, Key.from(9).fold(i), p.shape, { std: 0.02, dtype });
    await model.loadStateDict({ [name]: values }, { strict: false });
    values.dispose();
  }
  return model;
}

test("is built, saved, reopened and run in half precision, with equal outputs, within 24 GiB", async () => {
  if (!process.env.ESPALIER_COMPLETE) {
    console.log("\n  not run: it takes 8 GiB of memory, 5 GiB of disk and minutes; ESPALIER_COMPLETE=1 runs it");
    return;
  }
  const folder = mkdtempSync(join(tmpdir(), "espalier-xl-"));
  const disk = statfsSync(folder);
  const room = disk.bavail * disk.bsize;
  let peak = 0;
  const timer = setInterval(() => {
    peak = Math.max(peak, process.memoryUsage.rss());
  }, 20);
  const timings: string[] = [];
  const timed = async <T>(name: string, f: () => Promise<T>): Promise<T> => {
    const start = performance.now();
    const value = await f();
    timings.push(`${name} ${((performance.now() - start) / 1000).toFixed(0)} s`);
    return value;
  };
  try {
    assert.ok(
      room > 5 * GIB && freemem() > 8 * GIB,
      `needs 5 GiB of disk and 8 GiB of memory: ${(room / GIB).toFixed(1)} and ${(freemem() / GIB).toFixed(1)} are free`,
    );
    const path = join(folder, "grown.safetensors");
    const engine = await createEngine();
    const dtype = engine.has("shader-f16") ? "f16" : "f32";
    const base = await timed("base", () => trainedBase(engine, dtype));
    const before = await timed("its outputs", () => forward(engine, base));
    const grown = await timed("growing", async () => {
      const deeper = await growOrigin(originOf(base), { mode: "insert", blocks: 28 });
      const origin = await languageOrigin(deeper, { channels: 4096, maxLength: 256, key: Key.from(2) });
      return buildModel(engine, origin, { dtype });
    });
    base.dispose();
    engine.memoryPool.trim();
    assert.is(grown.countParameters(), 1_807_118_296);
    assert.ok(equalBits(await timed("grown outputs", () => forward(engine, grown)), before), "outputs changed");
    await timed("saving", () => saveModel(path, { model: grown }));
    const { growth } = grown;
    grown.dispose();
    engine.destroy();
    assert.ok(statSync(path).size > (dtype === "f16" ? 2 : 4) * 1_807_118_296);

    const other = await createEngine();
    const again = await timed("opening", () => openModel(other, path, { dtype }));
    assert.equal(again.model.growth, growth);
    assert.equal(again.model.language, { gate: "scalar", duplicated: true });
    assert.ok(equalBits(await timed("its outputs", () => forward(other, again.model)), before), "outputs of the file");
    again.dispose();
    other.destroy();
  } finally {
    clearInterval(timer);
    rmSync(folder, { recursive: true, force: true });
  }
  console.log(`\n  ${timings.join(", ")}; resident memory at most ${(peak / GIB).toFixed(2)} GiB`);
  assert.ok(peak <= LIMIT, `resident memory ${(peak / GIB).toFixed(2)} GiB`);
});

test.run();
