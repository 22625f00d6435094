import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { ConfigError } from "../../engine/errors.js";
import { describe, parseConfig } from "../../train/config.js";
import { configOf, helpText, mergeConfigs, optionTable, parseFlags } from "../../train/options.js";

const test = suite("config");

/** The text of the ConfigError that `run` throws. */
function refusal(run: () => unknown): string {
  try {
    run();
  } catch (error) {
    assert.instance(error, ConfigError, String(error));
    return (error as Error).message;
  }
  assert.unreachable("nothing was thrown");
  return "";
}

const flags = (...args: string[]) => configOf(parseFlags(args));

test("defaults are the small demonstration's", () => {
  const config = parseConfig();
  assert.equal(config.model.patch, [1, 2, 2]);
  assert.is(config.optim.lr, 3e-3);
  assert.equal(config.objective, { kind: "flow", flowShift: 4, learnSigma: false, variational: false });
  assert.is(config.sample.sampler, "euler");
  assert.equal(parseConfig({ objective: { kind: "iddpm" } }).objective.variational, true);
  assert.is(parseConfig({ objective: { kind: "v" } }).sample.sampler, "ddim");
});

test("a stored configuration parses to itself", () => {
  const inputs = [
    {},
    { objective: { kind: "iddpm" }, sample: { sampler: "ddpm", steps: 100, cfgChannels: 3 } },
    {
      data: { kind: "csv", path: "a.csv", frameInterval: 2 },
      codec: { kind: "pixels" },
      optim: { schedule: "constant" },
    },
  ] as const;
  for (const input of inputs) {
    const config = parseConfig(input);
    assert.equal(parseConfig(JSON.parse(JSON.stringify(config))), config);
  }
});

const REFUSED: [unknown, string][] = [
  [{ optim: { weight_decay: 0 } }, 'config: unknown key "optim.weight_decay"; did you mean "optim.weightDecay"?'],
  [{ lr: 1 }, 'config: unknown key "lr"; did you mean "optim.lr"?'],
  [{ trian: {} }, 'config: unknown key "trian"; did you mean "train"?'],
  [{ model: { batchSize: 4 } }, 'config: unknown key "model.batchSize"; did you mean "train.batchSize"?'],
  [
    { zzz: 1 },
    'config: unknown key "zzz"; known are run, data, replay, codec, text, model, grow, language, lora, objective, optim, ema, train, sample',
  ],
  [[], "config: it is not an object: []; give options by section"],
  [{ optim: 3 }, "config: optim is not an object: 3; give options by section"],
  [{ optim: { lr: 0 } }, "config: optim.lr not allowed: 0; give a number above 0"],
  [{ optim: { lr: "3e-3" } }, 'config: optim.lr not allowed: "3e-3"; give a number above 0'],
  [{ optim: { lr: Number.NaN } }, "config: optim.lr not allowed: NaN; give a number above 0"],
  [{ run: { seed: 1.5 } }, "config: run.seed not allowed: 1.5; give an integer from 0 to 4294967295"],
  [{ ema: { decay: 1 } }, "config: ema.decay not allowed: 1; give a number from 0 to below 1"],
  [
    { optim: { betas: [0.9, 1] } },
    "config: optim.betas not allowed: [0.9,1]; give 2 values, each a number from 0 to below 1",
  ],
  [
    { optim: { schedule: "exp" } },
    'config: optim.schedule not allowed: "exp"; give constant, warmup, cosine or linear-decay',
  ],
  [{ data: { world: "flat" } }, 'config: data.world not allowed: "flat"; give easy, base, wide, hard or new'],
  [
    { sample: { cfgChannels: "some" } },
    'config: sample.cfgChannels not allowed: "some"; give "all" or an integer of at least 1',
  ],
  [{ data: { kind: "folder" } }, "config: data.path missing: data.kind is folder; say where it lies"],
  [{ data: { path: "x" } }, "config: data.path has no use: data.kind is world; leave it out"],
  [{ data: { flip: false } }, "config: data.flip has no use: data.kind is world; leave it out"],
  [{ data: { frameInterval: 2 } }, "config: data.frameInterval has no use: data.kind is world; leave it out"],
  [
    { data: { kind: "folder", path: "x", world: "hard" } },
    "config: data.world has no use: data.kind is folder; leave it out",
  ],
  [{ codec: { kind: "pixels", channels: 4 } }, "config: codec.channels has no use: codec.kind is pixels; leave it out"],
  [
    { codec: { patch: 1, channels: 8 } },
    "config: codec.channels too many: 8 of 3 values in a square of side 1; lower it to 3",
  ],
  [
    { data: { size: 30 } },
    "config: data.size not divisible: 30 by 8 (codec.patch 4 x model.patch 2); give a multiple of 8, such as 32",
  ],
  [
    { data: { frames: 9 }, model: { patch: [2, 2, 2] } },
    "config: data.frames not divisible: 9 by model.patch 2; give a multiple of 2, such as 10",
  ],
  [{ model: { heads: 5 } }, "config: model.hidden not divisible: 64 by 5 heads; give a multiple of 5, such as 65"],
  [
    { model: { hidden: 66, heads: 2 } },
    "config: model.hidden not divisible: 66 by 4 (sines and cosines of rows and columns); give a multiple of 4, such as 68",
  ],
  [{ model: { mlpRatio: 0.3 } }, "config: model.mlpRatio gives no whole width: 64 x 0.3 = 19.2; 0.296875 would"],
  [
    { objective: { kind: "v", flowShift: 2 } },
    "config: objective.flowShift has no use: objective.kind is v; leave it out",
  ],
  [
    { objective: { learnSigma: true, variational: false } },
    "config: objective.learnSigma needs kind iddpm: objective.kind is flow; set it to false",
  ],
  [
    { objective: { kind: "iddpm", learnSigma: false, variational: true } },
    "config: objective.variational needs learned variances: objective.learnSigma is false; set both or none",
  ],
  [
    { optim: { schedule: "constant", warmupSteps: 5 } },
    "config: optim.warmupSteps has no use: optim.schedule is constant; leave it out",
  ],
  [
    { optim: { schedule: "cosine", decayFraction: 0.5 } },
    "config: optim.decayFraction has no use: optim.schedule is cosine; leave it out",
  ],
  [
    { optim: { schedule: "warmup", finalFraction: 0.5 } },
    "config: optim.finalFraction has no use: optim.schedule is warmup; leave it out",
  ],
  [
    { optim: { warmupSteps: 50 }, train: { steps: 50 } },
    "config: optim.warmupSteps too many: 50 of 50 steps; lower it",
  ],
  [
    { sample: { sampler: "ddim" } },
    "config: sample.sampler does not fit the objective: ddim with objective.kind flow; take euler or heun",
  ],
  [
    { objective: { kind: "v" }, sample: { sampler: "heun" } },
    "config: sample.sampler does not fit the objective: heun with objective.kind v; take ddpm or ddim or dpm-solver++",
  ],
  [{ sample: { eta: 0.5 } }, "config: sample.eta has no use: sample.sampler is euler; leave it out"],
  [
    { sample: { cfgChannels: 9 } },
    'config: sample.cfgChannels too many: 9 of 8 latent channels; give "all" or up to 8',
  ],
];

for (const [input, message] of REFUSED)
  test(`refused: ${JSON.stringify(input)}`, () => {
    assert.is(
      refusal(() => parseConfig(input)),
      message,
    );
  });

test("every error is told at once", () => {
  const text = refusal(() => parseConfig({ optim: { lr: -1, beta: 1 }, train: { steps: 0 } }));
  assert.equal(text.split("\n"), [
    "config: 3 errors",
    "  optim.lr not allowed: -1; give a number above 0",
    '  unknown key "optim.beta"; did you mean "optim.betas"?',
    "  train.steps not allowed: 0; give an integer of at least 1",
  ]);
});

test("flags: full names, short ones, switches, lists, words", () => {
  const parsed = parseFlags(
    [
      ...["train", "--optim.lr", "1e-3", "--depth=2", "--no-warmup", "--resume", "--model.patch", "1,4,4"],
      ...[
        "--cfgChannels",
        "4",
        "--objective.learnSigma=false",
        "--gateBias",
        "-0.5",
        "--fast",
        "--adapter",
        "software",
        "--",
        "more",
      ],
    ],
    { fast: "boolean", adapter: "string" },
  );
  assert.equal(parsed.words, ["train", "more"]);
  assert.equal(parsed.others, { fast: true, adapter: "software" });
  const config = configOf(parsed);
  assert.equal([config.optim.lr, config.model.depth, config.ema.warmup, config.run.resume], [1e-3, 2, false, true]);
  assert.equal([config.model.patch, config.sample.cfgChannels, config.model.gateBias], [[1, 4, 4], 4, -0.5]);
  assert.is(parseFlags(["--help"]).help, true);
});

test("words of a flag may be joined by dashes", () => {
  const config = flags("--batch-size", "3", "--checkpoint-blocks", "--no-ema.warmup", "--train.checkpoint-blocks");
  assert.equal([config.train.batchSize, config.train.checkpointBlocks, config.ema.warmup], [3, true, false]);
});

test("flags that are wrong are refused", () => {
  assert.is(
    refusal(() => flags("--lrr", "1")),
    "flags: unknown option: --lrr; did you mean --lr?",
  );
  assert.is(
    refusal(() => flags("--batch-sizes", "1")),
    "flags: unknown option: --batch-sizes; did you mean --batchSize?",
  );
  assert.is(
    refusal(() => flags("--qqqqqqqq", "1")),
    "flags: unknown option: --qqqqqqqq; --help lists them",
  );
  assert.is(
    refusal(() => flags("-v")),
    "flags: unknown option: -v; --help lists them",
  );
  assert.is(
    refusal(() => flags("--steps", "1")),
    "flags: ambiguous: --steps; say --train.steps or --sample.steps",
  );
  assert.is(
    refusal(() => flags("--lr")),
    "flags: value missing: --lr; give --lr VALUE",
  );
  assert.is(
    refusal(() => flags("--no-lr")),
    "flags: not a switch: --no-lr; give --lr VALUE",
  );
  assert.is(
    refusal(() => flags("--lr=")),
    'config: optim.lr not allowed: ""; give a number above 0',
  );
  assert.is(
    refusal(() => flags("--lr", "fast")),
    'config: optim.lr not allowed: "fast"; give a number above 0',
  );
  assert.is(
    refusal(() => flags("--resume=maybe")),
    'config: run.resume not allowed: "maybe"; give true or false',
  );
  assert.match(
    refusal(() => flags("--model.patch", "1,2")),
    /^config: model.patch not allowed: \[1,2\]; give 3 values/,
  );
});

test("a file, then flags", () => {
  const folder = mkdtempSync(join(tmpdir(), "config-"));
  try {
    const path = join(folder, "c.json");
    writeFileSync(path, JSON.stringify({ optim: { lr: 1e-4, gradClip: 2 }, model: { depth: 1 } }));
    const config = configOf(parseFlags(["--config", path, "--lr", "1e-5"]), { model: { depth: 7, hidden: 32 } });
    assert.equal([config.optim.lr, config.optim.gradClip, config.model.depth, config.model.hidden], [1e-5, 2, 1, 32]);
    writeFileSync(path, "{ oops }");
    assert.match(
      refusal(() => flags("--config", path)),
      /^config: file is not JSON: .*c\.json: /,
    );
    writeFileSync(path, "[]");
    assert.is(
      refusal(() => flags("--config", path)),
      "config: it is not an object: []; give options by section",
    );
    assert.match(
      refusal(() => flags("--config", join(folder, "none"))),
      /^config: file not readable: /,
    );
  } finally {
    rmSync(folder, { recursive: true });
  }
  assert.equal(mergeConfigs({ a: { x: 1, y: 2 } }, undefined, { a: { y: 3 }, b: 1 }), { a: { x: 1, y: 3 }, b: 1 });
});

test("every option is documented, and every short flag works", () => {
  const help = helpText();
  const table = optionTable();
  assert.ok(table.length > 40);
  for (const { path, alias, wants, doc } of table) {
    assert.ok(doc.length > 10 && wants.length > 0, `${path} lacks a doc`);
    assert.ok(help.includes(`--${path}`), path);
    const value = wants === "true or false" ? "true" : "1";
    if (alias !== undefined) assert.equal(parseFlags([`--${alias}=${value}`]), parseFlags([`--${path}=${value}`]));
  }
  const doubled = table.filter(({ alias }) => alias === undefined).map(({ path }) => path);
  assert.equal(doubled, [
    "data.kind",
    "codec.kind",
    "codec.patch",
    "model.patch",
    "objective.kind",
    "train.steps",
    "sample.steps",
  ]);
});

test("a configuration with all defaults filled in may be given again", () => {
  for (const input of [{}, { model: { from: "base.safetensors" }, lora: { pattern: "blocks.**" } }]) {
    const whole = parseConfig(input);
    assert.equal(parseConfig(JSON.parse(JSON.stringify(whole))), whole);
  }
});

test("describe lists every option set and marks what is not the default", () => {
  const text = describe(parseConfig({ optim: { lr: 0.5 } }));
  const lines = text.split("\n");
  assert.equal(
    lines.filter((line) => line.includes("*")).map((line) => line.split(/\s+/)),
    [["optim.lr", "*", "0.5"]],
  );
  assert.match(text, /^model\.patch +1,2,2$/m);
  const empty = optionTable().filter(({ path, standard }) => standard === "" && !text.includes(`${path} `));
  assert.is(lines.length, optionTable().length - empty.length);
  assert.ok(empty.some(({ path }) => path === "data.path"));
});

test.run();
