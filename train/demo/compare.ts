import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { ConfigError, createEngine, type Engine } from "../../engine/index.js";
import { adapterLine } from "../commands/adapter.js";
import { interruption } from "../commands/train.js";
import { type Config, type ConfigInput, parseConfig } from "../config.js";
import { openSetup } from "../continued.js";
import { evaluate } from "../evaluate.js";
import { heldOutLoss } from "../heldout.js";
import { readLog } from "../log.js";
import { train } from "../loop.js";
import { mergeConfigs } from "../options.js";
import { duration } from "../progress.js";
import { type ReportTable, renderReport } from "../report.js";
import { RunFolder } from "../run.js";
import { newSetup, type Setup } from "../setup.js";
import { openSource, type Source } from "../source.js";
import type { TrainState } from "../state.js";
import { baseFile } from "./continual.js";
import { stepFlops } from "./measure.js";
import { BATCH, type DemoOptions, samplingOf } from "./stage.js";

/** What a comparison is told, or takes where nothing is said. */
type CompareOptions = DemoOptions & { steps: number; clips: number; batchSize: number };

/** A way of going on from the base, at the rate that suits it. */
interface Method {
  name: string;
  config: ConfigInput;
}

/** Layers that adapters are put on: all attentions and MLPs. */
const ADAPTED = "blocks.*.attn.**,blocks.*.attnTemp.**,blocks.*.crossAttn.**,blocks.*.mlp.**";
const twice = (mode: "insert" | "prefix" | "suffix"): ConfigInput => ({ grow: { mode, blocks: 4 } });

const METHODS: readonly Method[] = [
  { name: "vanilla", config: {} },
  { name: "LoRA, rank 8", config: { lora: { pattern: ADAPTED, rank: 8 }, optim: { lr: 5e-3 } } },
  { name: "insert x2", config: twice("insert") },
  { name: "prefix x2", config: twice("prefix") },
  { name: "suffix x2", config: twice("suffix") },
  { name: "insert x2, new blocks only", config: { ...twice("insert"), train: { scope: "new" }, optim: { lr: 2e-3 } } },
  { name: "language branch", config: { language: { encoder: "language" }, sample: { languageGuidance: 2 } } },
];

/** What was measured at one moment of one method's training. */
interface Point {
  step: number;
  samples: number;
  tflop: number;
  fresh: number;
  old: number;
  clips: number;
  right: { colour: number; colourPair: number; motion: number; class: number };
}

interface Outcome {
  method: string;
  parameters: number;
  trained: number;
  samples: Point;
  compute: Point;
}

const slug = (name: string) => name.toLowerCase().replace(/[^a-z0-9]+/g, "-");

function configFor(method: Method, out: string, options: CompareOptions): Config {
  const { seed, steps, clips, batchSize, sampleSteps } = options;
  const common: ConfigInput = {
    run: { out, seed, checkpointEvery: 50, sampleEvery: 0, logEvery: 5, keep: 1 },
    data: { world: "new" },
    replay: { fraction: 0.25, clips: "wide" },
    model: { from: baseFile() },
    // A rate that does not fall: both moments that are compared are then points of one course.
    optim: { lr: 1e-3, schedule: "warmup", warmupSteps: Math.min(30, Math.floor(steps / 4)) },
    ema: { decay: 0.98 },
    train: { steps, batchSize },
    sample: { guidance: 1.5, ...samplingOf(clips, sampleSteps) },
  };
  const { train: more, ...rest } = method.config;
  return parseConfig(mergeConfigs(common, rest, { train: { steps, ...more } }));
}

/**
 * Goes on from the base in seven ways, with the same clips in the same order, and measures each twice: when it has seen
 * as many samples as the others, and when it has spent as many operations. Interrupted, it goes on where it was.
 */
export async function compareMethods(options: DemoOptions): Promise<number> {
  const { seed, clips = 24, steps = 250, batchSize = BATCH, out = "runs/compare", adapter } = options;
  const given: CompareOptions = { ...options, clips, steps, batchSize };
  if (existsSync(`${out}/report.html`))
    throw new ConfigError(
      `start: ${out} holds a finished comparison; look at ${out}/report.html, or give another folder with --out`,
    );
  const engine = await createEngine({ adapter, seed });
  console.error(adapterLine(engine));
  const stop = interruption();
  const began = performance.now();
  try {
    const outcomes: Outcome[] = [];
    const curves: string[] = [];
    let budget: number | undefined;
    for (const method of METHODS) {
      const path = `${out}/${slug(method.name)}`;
      const config = configFor(method, path, given);
      const source = await openSource(config);
      const fresh = await newSetup(engine, config, source);
      const each = stepFlops(fresh, config);
      fresh.dispose();
      budget ??= each * steps;
      const outcome = await runMethod(engine, method, config, source, Math.round(budget / each), clips, stop.signal);
      outcomes.push(outcome);
      curves.push(path);
      console.error(rowsOf([outcome], "samples").join("\n"));
    }
    const source = await openSource(configFor(METHODS[0], `${out}/base`, given));
    const base = await openSetup(engine, baseFile());
    const start = { fresh: await heldOutLoss(base, source), old: await heldOutLoss(base, source.replayed!) };
    base.dispose();
    const log = readLog(`${curves[0]}/log.jsonl`);
    const note = (what: string) =>
      `${what}; base before: new ${start.fresh.toFixed(3)}, old ${start.old.toFixed(3)}; a quarter of the samples are old ones`;
    writeFileSync(`${out}/result.json`, JSON.stringify({ base: start, steps, seed, outcomes }, null, 2));
    const html = renderReport({
      title: "Espalier: seven ways of going on from a trained model",
      lead: `Each saw the same clips in the same order. Losses are on combinations never trained; judges saw ${clips} clips of them.`,
      loss: { step: log.map((l) => l.step), loss: log.map((l) => l.loss as number) },
      tables: [
        tableOf(outcomes, "samples", "At equal samples", note(`${steps * batchSize} samples each`)),
        tableOf(
          outcomes,
          "compute",
          "At equal compute",
          note(`${((budget ?? 0) / 1e12).toFixed(1)} TFLOP each, or all samples where they cost less`),
        ),
      ],
      clips: [],
      judges: [],
      config: configFor(METHODS[0], out, given),
      adapter: { name: engine.info.name, driver: engine.info.description },
      timings: [{ name: "in all", seconds: (performance.now() - began) / 1000 }],
      warnings: [],
    });
    writeFileSync(`${out}/report.html`, html);
    for (const kind of ["samples", "compute"] as const)
      console.log(`\nat equal ${kind}\n${rowsOf(outcomes, kind).join("\n")}`);
    console.log(`\nreport   ${out}/report.html   (${duration((performance.now() - began) / 1000)} in all)`);
    return 0;
  } finally {
    stop.end();
    engine.destroy();
  }
}

/** One method's training, or what an earlier call measured of it. */
async function runMethod(
  engine: Engine,
  method: Method,
  config: Config,
  source: Source,
  computeStep: number,
  clips: number,
  signal: AbortSignal,
): Promise<Outcome> {
  const done = `${config.run.out}/outcome.json`;
  if (existsSync(done)) return JSON.parse(readFileSync(done, "utf8")) as Outcome;
  console.error(`\n${method.name}`);
  const { folder, latest } = await RunFolder.open(config.run.out, config.run.keep, true);
  try {
    const last = config.train.steps;
    const middle = Math.min(last, computeStep);
    const pointFile = (step: number) => folder.file(`point-${step}.json`);
    const measure = async (state: TrainState) => {
      const point = await state.ema.use(() => measurePoint(state, source, clips));
      writeFileSync(pointFile(state.step), JSON.stringify(point));
    };
    const milestones = new Map([...new Set([middle, last])].map((step) => [step, measure]));
    const state = await train(engine, config, source, folder, latest, { signal, milestones });
    // A run that had ended before it was measured has no further step to be measured after.
    if (!existsSync(pointFile(last))) await measure(state);
    const read = (step: number) => JSON.parse(readFileSync(pointFile(step), "utf8")) as Point;
    const outcome: Outcome = {
      method: method.name,
      parameters: state.setup.model.countParameters(),
      trained: state.setup.model.parameters().reduce((n, p) => n + (p.requiresGrad ? p.size : 0), 0),
      samples: read(last),
      compute: read(middle),
    };
    state.ema.dispose();
    state.optimizer.dispose();
    state.setup.dispose();
    engine.memoryPool.trim();
    writeFileSync(done, JSON.stringify(outcome, null, 2));
    return outcome;
  } finally {
    await latest?.file.close();
    folder.close();
  }
}

async function measurePoint({ setup, config, step }: TrainState, source: Source, clips: number): Promise<Point> {
  const { right } = await evaluate(setup, config, source, clips);
  return {
    step,
    samples: step * config.train.batchSize,
    tflop: (step * stepFlops(setup as Setup, config)) / 1e12,
    fresh: await heldOutLoss(setup, source),
    old: await heldOutLoss(setup, source.replayed!),
    clips,
    right,
  };
}

const HEAD = ["method", "samples", "TFLOP", "new loss", "old loss", "class", "motion", "pair", "order"];

function cells({ method, ...of }: Outcome, kind: "samples" | "compute"): (string | number)[] {
  const { samples, tflop, fresh, old, clips, right } = of[kind];
  const share = (n: number) => (n / clips).toFixed(2);
  return [
    method,
    samples,
    tflop.toFixed(1),
    fresh.toFixed(3),
    old.toFixed(3),
    share(right.class),
    share(right.motion),
    share(right.colourPair),
    share(right.colour),
  ];
}

function tableOf(outcomes: Outcome[], kind: "samples" | "compute", title: string, note: string): ReportTable {
  const head = ["method", "parameters", "trained", ...HEAD.slice(1)];
  const rows = outcomes.map((o) => {
    const [name, ...rest] = cells(o, kind);
    return [name, o.parameters.toLocaleString("en"), o.trained.toLocaleString("en"), ...rest];
  });
  return { title, note, head, rows };
}

function rowsOf(outcomes: Outcome[], kind: "samples" | "compute"): string[] {
  const rows = [HEAD, ...outcomes.map((o) => cells(o, kind).map(String))];
  const widths = HEAD.map((_, i) => Math.max(...rows.map((row) => row[i].length)));
  return rows.map((row) => row.map((text, i) => (i ? text.padStart(widths[i]) : text.padEnd(widths[i]))).join("  "));
}
