import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { writeFile } from "node:fs/promises";
import { join } from "node:path";

import { Key } from "../../engine/index.js";
import { describeGrowth } from "../../model/growth.js";

import { sample } from "../../model/pipeline.js";
import { secondsPerStep } from "../calibrate.js";
import { type Config, parseConfig } from "../config.js";
import { openSetup } from "../continued.js";
import { embeddedDir } from "../data/assets.js";
import { compose } from "../data/compose.js";
import { captionOf, combinations, type Spec } from "../data/world.js";
import { clipsOf, type Evaluation, evaluate, requestOf } from "../evaluate.js";
import { compareBits, comparisonText, probe } from "../growing.js";
import { heldOutLoss } from "../heldout.js";
import { readLog } from "../log.js";
import { train } from "../loop.js";
import { encodeAnimatedWebp, type VideoClip } from "../media.js";
import { duration, Progress } from "../progress.js";
import { type JudgeScore, type ReportFilms, renderReport } from "../report.js";
import { newSetup, type Setup } from "../setup.js";
import { openSource, type Source } from "../source.js";
import { reportClips, writeClips } from "./clips.js";
import { gatesOf, stepFlops } from "./measure.js";
import { BATCH, CLIPS, type DemoOptions, Stage, samplingOf } from "./stage.js";

/** Share of the time for training and sampling; the rest is for start-up, measuring, judging and writing. */
const WORK = 0.8;
/** More steps than these no longer show in the clips. */
const MOST = 375;
/** Fewer teach nothing. */
const LEAST = 20;
/** Captions whose two colours are swapped. */
const SWAPS = 4;

/** Pairs of swapped prompts beside n judged clips. */
const swapsOf = (n: number) => Math.min(SWAPS, Math.ceil(n / 8));

/** How a demonstration goes on from the base, beside the time that it takes. Its losses are means over twice `clips`. */
export interface ContinualOptions extends DemoOptions {
  /** New blocks, by insertion; 0 leaves the depth as it is. */
  blocks: number;
}

/** The plan of a demonstration, kept in its folder so that an interrupted one goes on with it. */
interface Plan {
  config: Config;
  clips: number;
  /** Clips whose mean loss is taken before and after. */
  measured: number;
  notes: string[];
}

/** The model file that ships in the package: what the demonstrations go on from. */
export const baseFile = () => join(embeddedDir(), "base.safetensors");

/** Going on with the new clips from the base. */
export function continualConfig(
  out: string,
  { seed, blocks, batchSize = BATCH, sampleSteps }: Omit<ContinualOptions, "minutes" | "steps" | "clips">,
  steps: number,
  clips: number,
): Config {
  return parseConfig({
    run: { out, seed, checkpointEvery: 50, sampleEvery: 0, logEvery: 1, keep: 2 },
    data: { world: "new" },
    replay: { fraction: 0.25, clips: "wide" },
    model: { from: baseFile() },
    ...(blocks > 0 && { grow: { mode: "insert", blocks } }),
    language: { encoder: "language" },
    optim: { lr: 1.5e-3, warmupSteps: Math.min(30, Math.floor(steps / 4)) },
    ema: { decay: 0.995 },
    train: { steps, batchSize },
    sample: { guidance: 1.5, languageGuidance: 2, ...samplingOf(clips, sampleSteps) },
  });
}

/**
 * The course of the paper in miniature: a trained base is grown and given a language branch without changing what it
 * does, goes on with clips of another kind, and is asked for what the base could not know: which colour is on top.
 */
export async function continual(options: ContinualOptions): Promise<number> {
  const stage = await Stage.open(options, "runs/start");
  const { engine, folder, latest } = stage;
  const open: { dispose(): void }[] = [];
  const hold = <T extends { dispose(): void }>(it: T): T => {
    open.push(it);
    return it;
  };
  try {
    const base = hold(await openSetup(engine, baseFile()));
    const planFile = folder.file("plan.json");
    let plan: Plan | undefined;
    if (latest && existsSync(planFile)) {
      plan = JSON.parse(readFileSync(planFile, "utf8")) as Plan;
      console.error(`going on with ${folder.path} from step ${latest.step} of ${plan.config.train.steps}`);
    }
    const { clips: asked = CLIPS } = options;
    const first = plan?.config ?? continualConfig(folder.path, options, MOST, asked);
    const measured = plan?.measured ?? 2 * asked;
    const source = await openSource(first);
    const old = source.replayed!;

    // Before: what the base knows, and that growing it changes nothing.
    const grown = hold(await newSetup(engine, first, source));
    const key = Key.from(options.seed);
    const same = await stage.timed("checking that nothing changed", async () =>
      compareBits(await probe(base.model, key), await probe(grown.model, key)),
    );
    const unchanged = comparisonText(same);
    console.error(describeGrowth(grown.model));
    console.error(
      `parameters ${base.model.countParameters().toLocaleString("en")} -> ${grown.model.countParameters().toLocaleString("en")}; ${unchanged}`,
    );
    const before = await stage.timed("losses before", async () => ({
      old: await heldOutLoss(base, old, measured),
      fresh: await heldOutLoss(base, source, measured),
    }));
    console.error(`loss before: old captions ${before.old.toFixed(3)}, new captions ${before.fresh.toFixed(3)}`);
    plan ??= await stage.timed("measuring speed", () =>
      planFor(stage, { ...options, clips: asked }, first, source, measured),
    );
    writeFileSync(planFile, JSON.stringify(plan, null, 2));
    const { config, clips: count } = plan;
    for (const note of plan.notes) console.error(note);
    open.splice(open.indexOf(grown), 1)[0].dispose();

    console.error(
      `training ${config.train.steps} steps of ${config.train.batchSize} clips, a quarter of them old ones`,
    );
    const state = await stage.timed("training", () =>
      train(engine, config, source, folder, latest, { signal: stage.signal }),
    );
    const { setup } = hold({ setup: state.setup, dispose: () => state.setup.dispose() });

    // After, with the averaged weights.
    const swaps = swappedSpecs(source, swapsOf(count));
    const half = Math.ceil(count / 2);
    const bar = new Progress({ total: count + 2 * half, label: "sample" });
    const after = await stage
      .timed("sampling and judging", () =>
        state.ema.use(async () => ({
          gates: await gatesOf(setup.model),
          fresh: await heldOutLoss(setup, source, measured),
          old: await heldOutLoss(setup, old, measured),
          swaps: await swapFilms(base, setup, config, source, swaps),
          judged: await evaluate(setup, config, source, count, (done) => bar.update(done)),
          silent: await evaluate(setup, config, source, half, (done) => bar.update(count + done), {
            languageGuidance: 0,
          }),
          judgedOld: await evaluate(setup, config, old, half, (done) => bar.update(count + half + done)),
        })),
      )
      .finally(() => bar.stop());
    await stage.timed("writing clips", async () => {
      await writeClips(after.judged.clips, folder.file("clips"));
      await writeClips(after.judgedOld.clips, folder.file("clips", "old"));
    });

    const log = readLog(folder.file("log.jsonl"));
    const report = folder.file("report.html");
    const whole = stage.seconds;
    const { right } = after.judged;
    const flops = stepFlops(setup, config) * config.train.steps;
    const html = renderReport({
      title: "Espalier: a trained video model, grown and taught new things",
      lead: `A base that knew 24 things on plain backgrounds got ${options.blocks ? `${config.grow.blocks ?? 0} more blocks and ` : ""}a language branch, and learned 6 new things on two-coloured backgrounds. Before training its outputs were those of the base: ${unchanged}.`,
      tiles: [
        { label: "which colour is on top", value: `${right.colour} / ${count}` },
        { label: "motion right", value: `${right.motion} / ${count}` },
        { label: "class right", value: `${right.class} / ${count}` },
        { label: "in all", value: duration(whole) },
      ],
      loss: { step: log.map((l) => l.step), loss: log.map((l) => l.loss as number) },
      films: [after.swaps],
      tables: [
        {
          title: "Loss on unseen combinations",
          head: ["captions", "before", "after"],
          rows: [
            ["new: two-coloured backgrounds", before.fresh.toFixed(3), after.fresh.toFixed(3)],
            ["old: what the base knew", before.old.toFixed(3), after.old.toFixed(3)],
          ],
        },
        {
          title: "Gates of the language branch",
          note: "tanh(alpha) of each block; 0 before training",
          head: ["block", "gate"],
          rows: after.gates.map((gate, i) => [`${i}`, gate]),
        },
      ],
      clips: await reportClips(after.judged.clips, source),
      judges: judgesOf(after.judged, after.silent, after.judgedOld),
      config,
      adapter: stage.adapterRows(flops),
      timings: [...stage.timings, { name: "in all", seconds: whole }],
      warnings: [...plan.notes, ...stage.adapterWarnings()],
    });
    await writeFile(report, html);
    writeFileSync(
      folder.file("result.json"),
      JSON.stringify(
        {
          unchanged: same,
          loss: { before, after: { old: after.old, fresh: after.fresh } },
          gates: after.gates,
          clips: count,
          right,
          silentClips: after.silent.clips.length,
          silentRight: after.silent.right,
          oldClips: after.judgedOld.clips.length,
          oldRight: after.judgedOld.right,
          seconds: whole,
          adapter: engine.info.name,
        },
        null,
        2,
      ),
    );
    console.log(
      `\n${count} clips of new combinations: colours in order in ${right.colour} (${after.silent.right.colour} of ${half} without the language branch), motion right in ${right.motion}, class in ${right.class}`,
    );
    console.log(
      `loss     new captions ${before.fresh.toFixed(3)} -> ${after.fresh.toFixed(3)}, old captions ${before.old.toFixed(3)} -> ${after.old.toFixed(3)}`,
    );
    console.log(`gates    ${after.gates.join("  ")}`);
    console.log(`clips    ${folder.file("clips")}`);
    console.log(`model    ${folder.file("model.safetensors")}`);
    console.log(`report   ${report}   (${duration(whole)} in all)`);
    return 0;
  } finally {
    for (const it of open) it.dispose();
    await stage.close();
  }
}

/** How many steps and clips the time allows on this adapter. */
async function planFor(
  stage: Stage,
  { minutes, steps, clips, ...rest }: ContinualOptions & { clips: number },
  config: Config,
  source: Source,
  measured: number,
): Promise<Plan> {
  const out = stage.folder.path;
  if (steps) return { config: continualConfig(out, rest, steps, clips), clips, measured, notes: [] };
  const each = await secondsPerStep(stage.engine, config, source, (minutes * 60) / MOST);
  // Three forward passes a guided step; a training step costs three a clip, for each of its clips.
  const clip = (each / (3 * config.train.batchSize)) * 3 * config.sample.steps;
  /** Seconds of sampling for n judged clips: they, half as many old ones, half without language, swaps in three ways. */
  const sampling = (n: number) => clip * (n * (1 + 1 / 2 + 1 / 3) + 2 * swapsOf(n) * (7 / 3) + Math.min(4, n));
  const left = WORK * minutes * 60 - stage.seconds;
  // Sampling gets at most a third of the time.
  let most = clips;
  while (most > 4 && sampling(most) > left / 3) most--;
  const fit = Math.floor((left - sampling(most)) / each);
  const notes: string[] = [];
  const taken = Math.max(LEAST, Math.min(MOST, fit));
  if (taken < MOST || most < clips)
    notes.push(
      `This adapter needs ${(each * 1000).toFixed(0)} ms a step: in ${duration(minutes * 60)} it trains ${taken} of ${MOST} steps and samples ${most} of ${clips} clips. Use --minutes to give it more time.`,
    );
  return { config: continualConfig(out, rest, taken, most), clips: most, measured, notes };
}

/** Unseen combinations, of another class each, and the same with their colours swapped, which is unseen too. */
function swappedSpecs({ composed }: Source, count: number): Spec[] {
  const specs = combinations(composed!.world, "heldOut");
  const firsts = composed!.world.classes.flatMap((name) => specs.find((s) => s.class === name) ?? []).slice(0, count);
  return firsts.flatMap((s) => [s, { ...s, colours: [...s.colours].reverse() }]);
}

/** The same prompts and noise through the base, the trained model without its branch, and with it. */
async function swapFilms(
  base: Setup,
  trained: Setup,
  config: Config,
  { composed }: Source,
  specs: Spec[],
): Promise<ReportFilms> {
  const prompts = specs.map(captionOf);
  const clips = async (setup: Setup, changes = {}): Promise<VideoClip[]> => {
    const request = { ...requestOf(config, prompts, config.run.seed, setup.model), ...changes };
    const { video, shape } = await sample(setup, request);
    return clipsOf(video, shape);
  };
  const columns: [string, VideoClip[]][] = [
    ["base", await clips(base)],
    ["without language", await clips(trained, { languageGuidance: 0 })],
    ["with language", await clips(trained)],
  ];
  const { world, sprites } = composed!;
  const rows = specs.map(async (spec, i) => {
    const real = { ...columns[0][1][i], video: compose(spec, world, sprites) };
    const films = [...columns.map(([label, list]) => [label, list[i]] as const), ["real", real] as const];
    return {
      caption: prompts[i],
      films: await Promise.all(
        films.map(async ([label, clip]) => ({ label, picture: await encodeAnimatedWebp(clip) })),
      ),
    };
  });
  return {
    title: "The same prompt with its two colours swapped",
    note: "equal noise; word vectors carry no order, so only the language branch can tell the two prompts apart",
    rows: await Promise.all(rows),
  };
}

function judgesOf({ clips, right }: Evaluation, silent: Evaluation, old: Evaluation): JudgeScore[] {
  const of = clips.length;
  return [
    { name: "colours in order", right: right.colour, of, doc: "median of the upper and the lower half's border" },
    {
      name: "colours in order, without language",
      right: silent.right.colour,
      of: silent.clips.length,
      doc: "the same model with the branch's guidance at 0",
    },
    { name: "colours in either order", right: right.colourPair, of },
    { name: "motion", right: right.motion, of, doc: "slope of the foreground's centre over the frames" },
    { name: "class", right: right.class, of, doc: "nearest sprite at its best place and size" },
    { name: "class, old captions", right: old.right.class, of: old.clips.length },
    { name: "motion, old captions", right: old.right.motion, of: old.clips.length },
    { name: "colour, old captions", right: old.right.colour, of: old.clips.length },
  ];
}
