import { ConfigError, createEngine } from "../../engine/index.js";
import { describeImport } from "../../model/foreign/report.js";
import { describe } from "../config.js";
import { dryRun, forecastText } from "../dryrun.js";
import { type TrainOptions, train } from "../loop.js";
import { configOf, type Flags, helpText, mergeConfigs, parseFlags } from "../options.js";
import { RunFolder } from "../run.js";
import { openSource } from "../source.js";
import { adapterLine } from "./adapter.js";

const usage = () => `Usage: espalier train [--config FILE.json] [options]

Trains a spatial-temporal diffusion transformer on composed clips (default), on a folder with captions.jsonl, or on a
CSV of videos. Writes checkpoints, logs (log.jsonl, tensorboard/), samples and model.safetensors into --out.

  --adapter NAME  hardware, lavapipe, swiftshader, or part of a GPU's name
  --resume        goes on from the newest checkpoint in --out, with that run's own options; without one, begins
  --dry-run       prints what GPU memory the run would take, by what it is for, and ends; nothing is run or written
  --budget GB     most GPU memory to hold, 1 GB being 10^9 bytes; --dry-run says whether the run fits
  --config FILE   options as JSON, by section; flags win
  --codec WHERE   another name of --codec.vae

Goes on from a model (--from), with an autoencoder, a T5 and a language model that lie elsewhere:
  espalier train --from grown.safetensors --data.kind csv --data.path clips.csv --frames 16 --size 256 \\
    --codec ./sd-vae-ft-ema --t5 ./t5-v1_1-xxl --llm ./Meta-Llama-3-8B-Instruct --variants 1 --cache ./cache
With --variants and a --cache that espalier encode or an earlier run filled, neither encoder is loaded; the autoencoder
is loaded for samples alone.

${helpText()}`;

/** A signal that Ctrl-C sets: the run stops after its present step and keeps a checkpoint; a second one kills. */
export function interruption(): { signal: AbortSignal; end(): void } {
  const controller = new AbortController();
  const stop = () => {
    if (controller.signal.aborted) process.exit(130);
    console.error("\nstopping after this step; press Ctrl-C again to quit at once");
    controller.abort("interrupted");
  };
  process.on("SIGINT", stop).on("SIGTERM", stop);
  return { signal: controller.signal, end: () => void process.off("SIGINT", stop).off("SIGTERM", stop) };
}

/** Bytes of --budget. */
function budgetOf({ budget: text }: Flags["others"]): number | undefined {
  if (text === undefined) return undefined;
  const gigabytes = Number(text);
  if (!(gigabytes > 0 && Number.isFinite(gigabytes)))
    throw new ConfigError(`train: --budget takes gigabytes above 0: got "${text}"; give a number such as 7.5`);
  return gigabytes * 1e9;
}

/** Tells what the run would take. */
async function predict(flags: Flags, adapter: string | undefined, budget: number | undefined): Promise<number> {
  const config = configOf(flags);
  if (config.run.resume)
    throw new ConfigError("train: --dry-run predicts a run from its beginning: --resume was given; leave it out");
  const source = await openSource(config);
  const engine = await createEngine({ adapter, seed: config.run.seed, dry: true });
  try {
    console.error(adapterLine(engine));
    console.log(forecastText(engine, await dryRun(engine, config, source), budget));
    return 0;
  } finally {
    engine.destroy();
  }
}

export async function run(args: string[]): Promise<number> {
  const flags = parseFlags(args, { adapter: "string", codec: "string", budget: "string", "dry-run": "boolean" });
  // The name that every command knows it by.
  if (flags.others.codec !== undefined) flags.config.codec = { ...flags.config.codec, vae: flags.others.codec };
  if (flags.help) {
    console.log(usage());
    return 0;
  }
  const adapter = flags.others.adapter as string | undefined;
  const budget = budgetOf(flags.others);
  if (flags.others["dry-run"] === true) return predict(flags, adapter, budget);
  const { run: about } = flags.config;
  // What else is given with --resume is said of the run that is there, whose own options are not known yet.
  let config = configOf(about?.resume === true ? { ...flags, config: { run: about } } : flags);
  const { folder, latest } = await RunFolder.open(config.run.out, config.run.keep, config.run.resume);
  // A run that died before its first checkpoint begins again, and so would one whose folder is misspelt.
  if (config.run.resume && !latest)
    console.error(`nothing to resume: ${config.run.out} holds no checkpoint; beginning at step 0`);
  const { signal, end } = interruption();
  try {
    config = configOf(flags, latest && mergeConfigs(latest.state.config, { run: { resume: true } }));
    // Data and options fail before a GPU is touched.
    const source = await openSource(config);
    if (source.skips?.count) console.error(`data: skipped ${source.skips}`);
    const engine = await createEngine({ adapter, budget, seed: config.run.seed });
    try {
      console.error(adapterLine(engine));
      console.error(latest ? `resumed from ${latest.path}` : describe(config));
      const { kind, cache, variants } = config.data;
      if (cache !== undefined && kind !== "world" && variants === undefined)
        console.error(
          "cache: keeps captions alone: clips are cut anew each time; --variants 1 keeps their latents too",
        );
      const options: TrainOptions = { signal, onImport: (report) => console.error(describeImport(report)) };
      const state = await train(engine, config, source, folder, latest, options);
      if (source.skips?.count) console.error(`data: skipped ${source.skips}`);
      console.log(`trained ${state.step} steps: ${folder.file("model.safetensors")}`);
      return 0;
    } finally {
      engine.destroy();
    }
  } finally {
    end();
    await latest?.file.close();
    folder.close();
  }
}
