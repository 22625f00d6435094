import { existsSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { createEngine, Key } from "../../engine/index.js";
import type { STDiTConfig } from "../../model/config.js";
import { Iddpm } from "../../model/diffusion/iddpm.js";
import { addLora } from "../../model/lora.js";
import { STDiT } from "../../model/stdit.js";
import { run } from "../../train/commands/train.js";
import { type ConfigInput, parseConfig } from "../../train/config.js";
import { dryRun, type Forecast, forecast } from "../../train/dryrun.js";
import { train } from "../../train/loop.js";
import { RunFolder } from "../../train/run.js";
import type { Setup } from "../../train/setup.js";
import { openSource } from "../../train/source.js";
import { printed } from "./command.js";

const test = suite("dry run");
const scratch = mkdtempSync(join(tmpdir(), "espalier-dry-"));
test.after(() => rmSync(scratch, { recursive: true, force: true }));

/** A model with what training asks of its surroundings, without files: latents of 1/8 of the side, in 4 channels. */
function setupOf(model: STDiT): Setup {
  const { captionChannels: dim, maxLength } = model.config;
  return {
    model,
    objective: new Iddpm({ loss: "mse+vb" }),
    codec: {
      channels: 4,
      latentShape: ([B, , T, H, W]: number[]) => [B, 4, T, H / 8, W / 8],
    } as unknown as Setup["codec"],
    text: { dim, maxLength } as Setup["text"],
    about: { text: undefined },
    dispose: () => model.dispose(),
  };
}

interface Size extends Partial<STDiTConfig> {
  batch: number;
}

/** What `forecast` says of a model, and what cannot be done without. */
async function against(size: Size, checkpointBlocks: boolean): Promise<{ told: Forecast; least: number }> {
  const { batch, ...config } = size;
  const engine = await createEngine({ dry: true });
  try {
    const model = new STDiT(engine, config, { key: Key.from(1) });
    model.checkpointBlocks = checkpointBlocks;
    const [T, rows] = [model.config.frames, model.config.latent[0]];
    const told = forecast(
      setupOf(model),
      parseConfig({ train: { batchSize: batch }, data: { frames: T, size: 8 * rows }, ema: { decay: 0 } }),
      true,
    );
    return { told, least: leastOf(model, batch) };
  } finally {
    engine.destroy();
  }
}

/**
 * Bytes in f32 of parameters, gradients and AdamW's two averages; of what enters each block; and of what one block's
 * operations need for their gradients.
 */
function leastOf(model: STDiT, B: number): number {
  const { hidden: C, depth, mlpRatio, maxLength: L, frames, latent, patch } = model.config;
  const N = (B * frames * latent[0] * latent[1]) / (patch[0] * patch[1] * patch[2]);
  // Modulated input, q, k, v, their attention, its projection: of the latter's gate the gradient is a product.
  const self = N * C * (1 + 3 + 1 + 1);
  const cross = N * C * (1 + 1 + 1) + B * L * C * 2;
  // The norm's input and the modulated one, before and after GELU, the result.
  const mlp = N * C * (1 + 1 + 2 * mlpRatio + 1);
  return 4 * (4 * model.countParameters() + depth * N * C + 2 * self + cross + mlp);
}

const MB = (bytes: number) => `${(bytes / 1e6).toFixed(1)} MB`;
const SIZES: Record<string, Size> = {
  "many parameters": { batch: 1, hidden: 256, depth: 4, heads: 4, frames: 4, latent: [8, 8], captionChannels: 64 },
  "many tokens": { batch: 4, hidden: 128, depth: 8, heads: 4, frames: 16, latent: [16, 16], captionChannels: 64 },
  "many blocks": { batch: 2, hidden: 64, depth: 24, heads: 4, frames: 8, latent: [16, 16], captionChannels: 64 },
};

test("with blocks run again in backward, a step takes little more than it must", async () => {
  const rows: string[] = [];
  for (const [name, size] of Object.entries(SIZES)) {
    const { told, least } = await against(size, true);
    const plain = await against(size, false);
    rows.push(
      `${name}: ${MB(told.peak)}, at least ${MB(least)}: ${(told.peak / least).toFixed(2)} times (${MB(plain.told.peak)} without)`,
    );
    console.log(`  ${rows.at(-1)}`);
    assert.ok(told.peak <= 1.25 * least, rows.at(-1));
    assert.ok(told.peak < plain.told.peak);
  }
});

/** Runs three steps and gives what the engine held. */
async function measured(config: ConfigInput, name: string): Promise<number> {
  const full = parseConfig(config);
  const engine = await createEngine();
  const { folder } = await RunFolder.open(join(scratch, name), 1, false);
  let held = 0;
  const enough = new Error("three steps");
  try {
    const milestones = new Map([
      [
        3,
        async () => {
          held = engine.memory().held;
          throw enough;
        },
      ],
    ]);
    await train(engine, full, await openSource(full), folder, undefined, { milestones, progress: false });
  } catch (error) {
    if (error !== enough) throw error;
  } finally {
    folder.close();
    engine.destroy();
  }
  return held;
}

const small = { run: { sampleEvery: 0 }, model: { hidden: 32, depth: 2, heads: 2 } };
const RUNS: Record<string, ConfigInput> = {
  plain: { ...small, train: { batchSize: 2, steps: 9 } },
  "more blocks, run again": {
    ...small,
    model: { hidden: 64, depth: 5, heads: 4 },
    train: { batchSize: 4, steps: 9, checkpointBlocks: true },
  },
  "noise and variances of pixels": {
    ...small,
    codec: { kind: "pixels" },
    data: { frames: 2, size: 16 },
    objective: { kind: "iddpm" },
    optim: { accumulate: 2 },
    train: { batchSize: 2, steps: 9 },
  },
  "no copy of the weights": {
    ...small,
    model: { hidden: 128, depth: 3, heads: 4 },
    ema: { decay: 0 },
    train: { batchSize: 1, steps: 9 },
  },
  "op by op": { ...small, train: { batchSize: 3, steps: 9, eager: true } },
};

test("what is predicted is what is then held, within 5%", async () => {
  for (const [name, config] of Object.entries(RUNS)) {
    const dry = await createEngine({ dry: true });
    const full = parseConfig(config);
    const told = await dryRun(dry, full, await openSource(full));
    dry.destroy();
    const held = await measured(config, name);
    console.log(`  ${name}: predicted ${MB(told.held)}, held ${MB(held)}`);
    assert.ok(Math.abs(told.held / held - 1) < 0.05, `${name}: ${told.held} for ${held}`);
    const sum = told.rows.reduce((n, { bytes }) => n + bytes, 0);
    assert.is(sum, told.held);
  }
});

test("paper size: adapters within 6 GB, all of 56 blocks within 20 GB", async () => {
  const at = async (depth: number, lora: boolean, mixed: boolean) => {
    const engine = await createEngine({ dry: true });
    const model = new STDiT(engine, { depth }, { key: Key.from(1) });
    model.checkpointBlocks = true;
    if (mixed) model.compute = "f16";
    if (lora) addLora(model, { pattern: "blocks.**", rank: 16, key: Key.from(2) });
    const config = parseConfig({
      data: { frames: 16, size: 256 },
      train: { batchSize: 1, precision: mixed ? "mixed" : "f32" },
      ...(!lora && { optim: { state: "8bit" }, ema: { decay: 0 } }),
    });
    const told = forecast(setupOf(model), config, true);
    engine.destroy();
    return told;
  };
  const told: string[] = [];
  const { name: adapter, has16 } = await createEngine({ dry: true }).then((e) => {
    const known = { name: e.info.name, has16: e.has("shader-f16") };
    e.destroy();
    return known;
  });
  if (!has16) console.log(`  mixed precision is left out: ${adapter} lacks f16`);
  for (const [name, depth, lora, most] of [
    ["adapters of rank 16", 28, true, 6e9],
    ["56 blocks, averages in 8 bits", 56, false, 20e9],
  ] as const)
    for (const mixed of has16 ? [true, false] : [false]) {
      const { held } = await at(depth, lora, mixed);
      told.push(`${name}, ${mixed ? "mixed" : "f32"}: ${MB(held)}`);
      console.log(`  ${told.at(-1)}`);
      assert.ok(held < most, told.at(-1));
    }
});

test("the command prints it, writes nothing and says whether it fits", async () => {
  const out = join(scratch, "none");
  const about = ["--dry-run", "--out", out, "--hidden", "32", "--depth", "2", "--batch-size", "2"];
  const roomy = await printed(run, ...about, "--budget", "1");
  assert.is(roomy.code, 0, roomy.error?.message);
  for (const row of [/parameters +\d/, /gradients +\d/, /optimizer +\d/, /averaged weights +\d/, /in all, at most +\d/])
    assert.match(roomy.text, row);
  assert.match(roomy.text, /fits the budget of 1.00 GB/);
  assert.match(
    (await printed(run, ...about, "--budget", "0.001")).text,
    /does not fit the budget of 1.00 MB: .* too much/,
  );
  assert.not(existsSync(out));
  assert.match(
    (await printed(run, ...about, "--budget", "no")).error!.message,
    /--budget takes gigabytes above 0: got "no"/,
  );
  assert.match(
    (await printed(run, ...about, "--resume")).error!.message,
    /--dry-run predicts a run from its beginning/,
  );
});

test.run();
