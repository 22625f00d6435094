import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { writeFile } from "node:fs/promises";
import type { Engine } from "../../engine/index.js";
import { forwardFlops } from "../../model/flops.js";
import { secondsPerStep } from "../calibrate.js";
import { type Config, parseConfig } from "../config.js";
import { evaluate } from "../evaluate.js";
import { readLog } from "../log.js";
import { train } from "../loop.js";
import { mergeConfigs } from "../options.js";
import { PRESETS, type Preset } from "../presets.js";
import { duration, Progress } from "../progress.js";
import { renderReport } from "../report.js";
import { openSource } from "../source.js";
import { reportClips, writeClips } from "./clips.js";
import { CLIPS, type DemoOptions, Stage, samplingOf } from "./stage.js";

/** Share of the time for training and sampling; the rest is for start-up, choosing, judging and writing. */
const WORK = 0.88;
/** Clips that are sampled while it trains, up to four at each quarter. */
const watchedOf = (clips: number) => 4 * Math.min(4, clips);
/** The shortest course that still teaches something, as a share of a preset's steps. */
const LEAST = 0.03;

/** The plan of a demonstration, kept in its folder so that an interrupted one goes on with it. */
interface Plan {
  preset: string;
  config: Config;
  notes: string[];
}

function configOf(preset: Preset, out: string, options: DemoOptions, steps = preset.steps): Config {
  return parseConfig(
    mergeConfigs(preset.config, {
      run: {
        out,
        seed: options.seed,
        checkpointEvery: 100,
        sampleEvery: Math.max(1, Math.ceil(steps / 4)),
        logEvery: 1,
        keep: 2,
      },
      train: { steps, ...(options.batchSize !== undefined && { batchSize: options.batchSize }) },
      sample: samplingOf(options.clips ?? CLIPS, options.sampleSteps),
      ...(steps < 60 && { optim: { warmupSteps: Math.floor(steps / 4) } }),
    }),
  );
}

/**
 * The largest preset that fits into the time on this adapter together with sampling and judging, by timing a few steps
 * of each candidate.
 */
async function choose(engine: Engine, out: string, options: DemoOptions): Promise<Plan> {
  const [whole, clips] = [options.minutes * 60, options.clips ?? CLIPS];
  let rate = Number.POSITIVE_INFINITY;
  for (const preset of [...PRESETS].reverse()) {
    const at = PRESETS.indexOf(preset);
    const next = PRESETS[at - 1];
    const config = configOf(preset, out, options);
    const source = await openSource(config);
    const each = await secondsPerStep(engine, config, source, (WORK * whole) / preset.steps);
    rate = flopsOf(config) / each;
    // A guided sampling step runs the model twice over a clip; a training step costs three runs over each.
    const forward = flopsOf(config) / (3 * config.train.batchSize);
    const seconds = Math.max(0, WORK * whole - (2 * config.sample.steps * forward * (clips + watchedOf(clips))) / rate);
    const total = each * preset.steps;
    console.error(
      `preset ${preset.name}: ${(each * 1000).toFixed(0)} ms a step, ${duration(total)} for ${preset.steps} steps`,
    );
    if (total > seconds) {
      // The smallest does not fit either: the time decides how far it gets.
      if (preset === PRESETS.at(-1)) {
        const steps = Math.max(Math.ceil(preset.steps * LEAST), Math.floor(seconds / each));
        const note = `This adapter is too slow for the smallest demonstration in ${duration(whole)}: it trains ${steps} of ${preset.steps} steps, so clips may be rough. Use --minutes to give it more time.`;
        return { preset: preset.name, config: configOf(preset, out, options, steps), notes: [note] };
      }
      const fits = PRESETS[at + 1];
      return { preset: fits.name, config: configOf(fits, out, options), notes: [] };
    }
    // The next is not even tried when the speed seen so far puts it far out of reach.
    if (next && (flopsOf(configOf(next, out, options)) * next.steps) / rate > 3 * seconds)
      return { preset: preset.name, config, notes: [] };
  }
  return { preset: PRESETS[0].name, config: configOf(PRESETS[0], out, options), notes: [] };
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

/** Trains from scratch on the largest world that fits the time, samples unseen combinations and judges them. */
export async function scratch(options: DemoOptions & { preset?: Preset }): Promise<number> {
  const { steps, clips: count = CLIPS, preset: named } = options;
  const stage = await Stage.open(options, "runs/scratch");
  const { engine, folder, latest } = stage;
  try {
    const planFile = folder.file("plan.json");
    let plan: Plan;
    if (latest && existsSync(planFile)) {
      plan = JSON.parse(readFileSync(planFile, "utf8")) as Plan;
      console.error(`going on with ${folder.path} from step ${latest.step} of ${plan.config.train.steps}`);
    } else {
      const preset = named ?? PRESETS.at(-1)!;
      plan =
        named || steps
          ? { preset: preset.name, config: configOf(preset, folder.path, options, steps), notes: [] }
          : await stage.timed("choosing a preset", () => choose(engine, folder.path, options));
      writeFileSync(planFile, JSON.stringify(plan, null, 2));
    }
    const { config } = plan;
    const preset = PRESETS.find((p) => p.name === plan.preset)!;
    console.error(
      `training preset ${preset.name}: ${preset.doc}, ${config.train.steps} steps of ${config.train.batchSize} clips`,
    );
    for (const note of plan.notes) console.error(note);

    const source = await openSource(config);
    const state = await stage.timed("training", () =>
      train(engine, config, source, folder, latest, { signal: stage.signal }),
    );
    const bar = new Progress({ total: count, label: "sample" });
    const { clips, right } = await stage
      .timed("sampling and judging", () =>
        state.ema.use(() => evaluate(state.setup, config, source, count, (done) => bar.update(done))),
      )
      .finally(() => bar.stop());
    await stage.timed("writing clips", () => writeClips(clips, folder.file("clips")));

    const log = readLog(folder.file("log.jsonl"));
    const report = folder.file("report.html");
    const whole = stage.seconds;
    const html = renderReport({
      title: "Espalier: a video diffusion transformer, trained from scratch",
      lead: `It learned ${preset.doc} and was asked for combinations that it never saw.`,
      tiles: [
        { label: "colour right", value: `${right.colour} / ${count}` },
        { label: "motion right", value: `${right.motion} / ${count}` },
        { label: "class right", value: `${right.class} / ${count}` },
        { label: "in all", value: duration(whole) },
      ],
      loss: { step: log.map((l) => l.step), loss: log.map((l) => l.loss as number) },
      clips: await reportClips(clips, source),
      judges: [
        { name: "colour", right: right.colour, of: count, doc: "median of the border, nearest named colour" },
        { name: "motion", right: right.motion, of: count, doc: "slope of the foreground's centre over the frames" },
        { name: "class", right: right.class, of: count, doc: "nearest sprite at its best place and size" },
      ],
      config,
      adapter: stage.adapterRows(flopsOf(config) * config.train.steps),
      timings: [...stage.timings, { name: "in all", seconds: whole }],
      warnings: [...plan.notes, ...stage.adapterWarnings()],
    });
    await writeFile(report, html);
    console.log(
      `\n${count} clips of combinations it never saw: colour right in ${right.colour}, motion in ${right.motion}, class in ${right.class}`,
    );
    console.log(`clips    ${folder.file("clips")}`);
    console.log(`model    ${folder.file("model.safetensors")}`);
    console.log(`report   ${report}   (${duration(whole)} in all)`);
    return 0;
  } finally {
    await stage.close();
  }
}
