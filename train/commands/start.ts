import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { mkdir, writeFile } from "node:fs/promises";
import { ConfigError, createEngine, type Engine } from "../../engine/index.js";
import { forwardFlops } from "../../model/flops.js";
import { parseArguments } from "../arguments.js";
import { secondsPerStep } from "../calibrate.js";
import { type Config, parseConfig } from "../config.js";
import { compose } from "../data/compose.js";
import { type Evaluation, evaluate, type JudgedClip } from "../evaluate.js";
import { readLog } from "../log.js";
import { train } from "../loop.js";
import { encodeAnimatedWebp, writeContactSheet, writeGif, writeMp4 } from "../media.js";
import { mergeConfigs } from "../options.js";
import { PRESETS, type Preset } from "../presets.js";
import { duration, Progress } from "../progress.js";
import { renderReport } from "../report.js";
import { RunFolder } from "../run.js";
import { openSource, type Source } from "../source.js";
import { adapterLine } from "./adapter.js";
import { interruption } from "./train.js";

const usage = `Usage: espalier start [options]      (npm start -- [options])

The demonstration: trains a small video diffusion transformer from scratch on the embedded clips, samples captions whose
combination it never saw, judges the clips and writes report.html. What it learns follows from the speed of the adapter.
Interrupted, it goes on where it was when started again.

  --minutes X     time to take, sampling included [8]
  --preset NAME   ${PRESETS.map((p) => p.name).join(", ")}; default: the largest that fits the time
  --steps N       training steps instead of the preset's
  --clips N       clips to sample and judge [48]
  --out FOLDER    [runs/start, and runs/start-2 … once that is finished]
  --seed N        [42]
  --adapter NAME  hardware, lavapipe, swiftshader, or part of a GPU's name`;

/** Share of the time for training and sampling; the rest is for start-up, choosing, judging and writing. */
const WORK = 0.88;
/** Clips that are sampled while it trains, four at each quarter. */
const WATCHED = 16;
/** The shortest course that still teaches something, as a share of a preset's steps. */
const LEAST = 0.03;

/** The plan of a demonstration, kept in its folder so that an interrupted one goes on with it. */
interface Plan {
  preset: string;
  config: Config;
  notes: string[];
}

function configOf(preset: Preset, out: string, seed: number, steps = preset.steps): Config {
  return parseConfig(
    mergeConfigs(preset.config, {
      run: { out, seed, checkpointEvery: 100, sampleEvery: Math.max(1, Math.ceil(steps / 4)), logEvery: 1, keep: 2 },
      train: { steps },
      ...(steps < 60 && { optim: { warmupSteps: Math.floor(steps / 4) } }),
    }),
  );
}

/**
 * The largest preset that fits into `whole` seconds on this adapter together with the sampling of `clips`, by timing a
 * few steps of each candidate.
 */
async function choose(engine: Engine, out: string, seed: number, whole: number, clips: number): Promise<Plan> {
  let rate = Number.POSITIVE_INFINITY;
  for (const preset of [...PRESETS].reverse()) {
    const at = PRESETS.indexOf(preset);
    const next = PRESETS[at - 1];
    const config = configOf(preset, out, seed);
    const source = await openSource(config);
    const each = await secondsPerStep(engine, config, source, (WORK * whole) / preset.steps);
    rate = flopsOf(config) / each;
    // A guided sampling step runs the model twice over a clip; a training step costs three runs over each.
    const forward = flopsOf(config) / (3 * config.train.batchSize);
    const seconds = Math.max(0, WORK * whole - (2 * config.sample.steps * forward * (clips + WATCHED)) / rate);
    const total = each * preset.steps;
    console.error(
      `preset ${preset.name}: ${(each * 1000).toFixed(0)} ms a step, ${duration(total)} for ${preset.steps} steps`,
    );
    if (total > seconds) {
      // The smallest does not fit either: the time decides how far it gets.
      if (preset === PRESETS.at(-1)) {
        const steps = Math.max(Math.ceil(preset.steps * LEAST), Math.floor(seconds / each));
        const note = `This adapter is too slow for the smallest demonstration in ${duration(whole)}: it trains ${steps} of ${preset.steps} steps, so clips will be rough. Use --minutes to give it more time.`;
        return { preset: preset.name, config: configOf(preset, out, seed, steps), notes: [note] };
      }
      const fits = PRESETS[at + 1];
      return { preset: fits.name, config: configOf(fits, out, seed), notes: [] };
    }
    // The next is not even tried when the speed seen so far puts it far out of reach.
    if (next && (flopsOf(configOf(next, out, seed)) * next.steps) / rate > 3 * seconds)
      return { preset: preset.name, config, notes: [] };
  }
  return { preset: PRESETS[0].name, config: configOf(PRESETS[0], out, seed), notes: [] };
}

/** Floating-point operations of one training step. */
function flopsOf(config: Config): number {
  const { data, codec, model, train: plan } = config;
  const side = data.size / codec.patch;
  const sizes = {
    inChannels: codec.channels,
    predSigma: false,
    hidden: model.hidden,
    depth: model.depth,
    heads: model.heads,
    mlpRatio: model.mlpRatio,
    patch: model.patch,
    frames: data.frames,
    latent: [side, side] as const,
    captionChannels: model.captionChannels,
    maxLength: model.maxLength,
    spaceScale: 1,
    timeScale: 1,
    temporalOwner: 0,
    languageChannels: 0,
    languageLength: 1,
    languageGate: "scalar" as const,
  };
  return 3 * plan.batchSize * forwardFlops(sizes, [data.frames, side, side], model.maxLength);
}

/** The folder to work in: a named one, or the first of the series that is not finished. */
function chooseFolder(given: string | undefined): string {
  if (given !== undefined) {
    if (existsSync(`${given}/report.html`))
      throw new ConfigError(
        `start: ${given} holds a finished demonstration; look at ${given}/report.html, or give another folder with --out`,
      );
    return given;
  }
  for (let n = 1; ; n++) {
    const path = n === 1 ? "runs/start" : `runs/start-${n}`;
    if (!existsSync(`${path}/report.html`)) return path;
  }
}

export async function run(args: string[]): Promise<number> {
  const { values, words, help } = parseArguments("start", args, {
    minutes: "number",
    preset: "text",
    steps: "whole",
    clips: "whole",
    out: "text",
    seed: "whole",
    adapter: "text",
  });
  if (help) {
    console.log(usage);
    return 0;
  }
  if (words.length) throw new ConfigError(`start: takes no arguments beside options: got ${words.join(" ")}`);
  const minutes = (values.minutes as number | undefined) ?? 8;
  const count = (values.clips as number | undefined) ?? 48;
  const seed = (values.seed as number | undefined) ?? 42;
  if (!(minutes > 0)) throw new ConfigError(`start: --minutes must be above 0: got ${minutes}`);
  const named = values.preset === undefined ? undefined : PRESETS.find((p) => p.name === values.preset);
  if (values.preset !== undefined && !named)
    throw new ConfigError(`start: unknown preset "${values.preset}" (${PRESETS.map((p) => p.name).join(", ")})`);

  const began = performance.now();
  const out = chooseFolder(values.out as string | undefined);
  const engine = await createEngine({ adapter: values.adapter as string | undefined, seed });
  console.error(adapterLine(engine));
  const { folder, latest } = await RunFolder.open(out, 2, true);
  const { signal, end } = interruption();
  const timings: { name: string; seconds: number }[] = [];
  const timed = async <T>(name: string, f: () => Promise<T>): Promise<T> => {
    const start = performance.now();
    const result = await f();
    timings.push({ name, seconds: (performance.now() - start) / 1000 });
    return result;
  };
  try {
    const planFile = folder.file("plan.json");
    let plan: Plan;
    if (latest && existsSync(planFile)) {
      plan = JSON.parse(readFileSync(planFile, "utf8")) as Plan;
      console.error(`going on with ${out} from step ${latest.step} of ${plan.config.train.steps}`);
    } else {
      plan =
        named || values.steps
          ? {
              preset: (named ?? PRESETS.at(-1)!).name,
              config: configOf(named ?? PRESETS.at(-1)!, out, seed, values.steps as number | undefined),
              notes: [],
            }
          : await timed("choosing a preset", () => choose(engine, out, seed, minutes * 60, count));
      writeFileSync(planFile, JSON.stringify(plan, null, 2));
    }
    const { config } = plan;
    const preset = PRESETS.find((p) => p.name === plan.preset)!;
    console.error(
      `training preset ${preset.name}: ${preset.doc}, ${config.train.steps} steps of ${config.train.batchSize} clips`,
    );
    for (const note of plan.notes) console.error(note);

    const source = await openSource(config);
    const state = await timed("training", () => train(engine, config, source, folder, latest, { signal }));
    const bar = new Progress({ total: count, label: "sample" });
    const evaluation = await timed("sampling and judging", () =>
      state.ema.use(() => evaluate(state.setup, config, source, count, (done) => bar.update(done))),
    ).finally(() => bar.stop());

    const { colour, motion, class: classes } = evaluation.right;
    await timed("writing clips", () => writeClips(evaluation, folder));
    const report = folder.file("report.html");
    const total = (performance.now() - began) / 1000;
    await writeFile(
      report,
      await reportOf({
        plan,
        preset,
        config,
        source,
        engine,
        evaluation,
        folder,
        timings,
        total,
        resumed: latest !== undefined,
      }),
    );
    console.log(
      `\n${count} clips of combinations it never saw: colour right in ${colour}, motion in ${motion}, class in ${classes}`,
    );
    console.log(`clips    ${folder.file("clips")}`);
    console.log(`model    ${folder.file("model.safetensors")}`);
    console.log(`report   ${report}   (${duration(total)} in all)`);
    return 0;
  } finally {
    end();
    await latest?.file.close();
    folder.close();
    engine.destroy();
  }
}

/** The first clip of each caption, in order. */
function firstOfEach(clips: readonly JudgedClip[]): JudgedClip[] {
  const seen = new Set<string>();
  return clips.filter((c) => !seen.has(c.caption) && seen.add(c.caption));
}

/** All clips as WebP and GIF; the first of each caption as MP4 too, and together on one sheet. */
async function writeClips({ clips }: Evaluation, folder: RunFolder): Promise<void> {
  await mkdir(folder.file("clips"), { recursive: true });
  const nameOf = (c: JudgedClip) =>
    folder.file("clips", `${String(clips.indexOf(c)).padStart(2, "0")}-${c.caption.replace(/ /g, "-")}`);
  for (const c of clips) {
    await writeFile(`${nameOf(c)}.webp`, await encodeAnimatedWebp(c.clip));
    await writeGif(`${nameOf(c)}.gif`, c.clip);
  }
  for (const c of firstOfEach(clips).slice(0, 8)) {
    const mp4 = await writeMp4(`${nameOf(c)}.mp4`, c.clip);
    if (!mp4.written) {
      console.error(`no MP4: ${mp4.reason}`);
      break;
    }
  }
  await writeContactSheet(
    folder.file("clips", "sheet.png"),
    firstOfEach(clips)
      .slice(0, 12)
      .map((c) => c.clip),
  );
}

interface ReportParts {
  plan: Plan;
  preset: Preset;
  config: Config;
  source: Source;
  engine: Engine;
  evaluation: Evaluation;
  folder: RunFolder;
  timings: { name: string; seconds: number }[];
  total: number;
  resumed: boolean;
}

async function reportOf({
  plan,
  preset,
  config,
  source,
  engine,
  evaluation,
  folder,
  timings,
  total,
  resumed,
}: ReportParts): Promise<string> {
  const log = readLog(folder.file("log.jsonl"));
  const { world, sprites } = source.composed!;
  const shown = firstOfEach(evaluation.clips).slice(0, 24);
  const of = evaluation.clips.length;
  const { right } = evaluation;
  const training = timings.find((t) => t.name === "training")!.seconds;
  const flops = flopsOf(config) * config.train.steps;
  return renderReport({
    title: "Espalier: a video diffusion transformer, trained from scratch",
    lead: `It learned ${preset.doc} and was asked for combinations that it never saw.`,
    tiles: [
      { label: "colour right", value: `${right.colour} / ${of}` },
      { label: "motion right", value: `${right.motion} / ${of}` },
      { label: "class right", value: `${right.class} / ${of}` },
      { label: "in all", value: duration(total) },
    ],
    loss: { step: log.map((l) => l.step), loss: log.map((l) => l.loss as number) },
    clips: await Promise.all(
      shown.map(async (c) => ({
        caption: c.caption,
        sampled: await encodeAnimatedWebp(c.clip),
        real: await encodeAnimatedWebp({ ...c.clip, video: compose(c.spec, world, sprites) }),
        verdict: { colour: c.marks.colour, motion: c.marks.motion, class: c.marks.class },
      })),
    ),
    judges: [
      { name: "colour", right: right.colour, of, doc: "median of the border, nearest named colour" },
      { name: "motion", right: right.motion, of, doc: "slope of the foreground's centre over the frames" },
      { name: "class", right: right.class, of, doc: "nearest sprite at its best place and size" },
    ],
    config,
    adapter: {
      name: engine.info.name,
      kind: engine.info.kind,
      driver: engine.info.description,
      backend: engine.info.backend,
      "training TFLOP": (flops / 1e12).toFixed(2),
      "GFLOP/s in training": resumed ? "unknown: the run was resumed" : (flops / 1e9 / training).toFixed(1),
    },
    timings: [...timings, { name: "in all", seconds: total }],
    warnings: [
      ...plan.notes,
      ...(engine.info.faster
        ? [`Trained on a software adapter (${engine.info.name}). Faster would be ${engine.info.faster}.`]
        : []),
    ],
  });
}
