import { existsSync } from "node:fs";
import { ConfigError, createEngine, type Engine } from "../../engine/index.js";
import type { Checkpoint } from "../checkpoint.js";
import { adapterLine } from "../commands/adapter.js";
import { interruption } from "../commands/train.js";
import type { ReportData } from "../report.js";
import { RunFolder } from "../run.js";

/** What every demonstration may be told. */
export interface DemoOptions {
  /** Time to take, sampling included. */
  minutes: number;
  seed: number;
  /** Clips to sample and judge. */
  clips?: number;
  /** Clips of a training step. */
  batchSize?: number;
  /** Steps of the sampler for each clip. */
  sampleSteps?: number;
  out?: string;
  adapter?: string;
  /** Training steps instead of those that fit the time. */
  steps?: number;
}

/** Clips of a training step that goes on from the base, where nothing else is said. */
export const BATCH = 16;
/** Clips to judge, where nothing else is said. */
export const CLIPS = 48;
/** Clips that are sampled at a time. */
const AT_A_TIME = 8;

/** The sampling part of a configuration: no more clips at a time, nor on the sheet that training leaves, than are judged. */
export const samplingOf = (clips: number, sampleSteps?: number) => ({
  count: Math.min(AT_A_TIME, clips),
  ...(sampleSteps !== undefined && { steps: sampleSteps }),
});

/** The folder to work in: a named one, or the first of the series that is not finished. */
function chooseFolder(given: string | undefined, series: string): string {
  if (given !== undefined) {
    if (existsSync(`${given}/report.html`))
      throw new ConfigError(
        `start: ${given} holds a finished demonstration; look at ${given}/report.html, or give another folder with --out`,
      );
    return given;
  }
  for (let n = 1; ; n++) {
    const path = n === 1 ? series : `${series}-${n}`;
    if (!existsSync(`${path}/report.html`)) return path;
  }
}

/** What a demonstration runs on: an adapter, a folder that keeps what was made, a clock, and Ctrl-C. */
export class Stage {
  readonly timings: { name: string; seconds: number }[] = [];
  private readonly began = performance.now();

  private constructor(
    readonly engine: Engine,
    readonly folder: RunFolder,
    /** Where an interrupted demonstration goes on. */
    readonly latest: Checkpoint | undefined,
    private readonly stop: ReturnType<typeof interruption>,
  ) {}

  /** @param series folder for demonstrations of this kind; later ones get a number */
  static async open({ out, adapter, seed }: DemoOptions, series: string): Promise<Stage> {
    const path = chooseFolder(out, series);
    const engine = await createEngine({ adapter, seed });
    try {
      console.error(adapterLine(engine));
      const { folder, latest } = await RunFolder.open(path, 2, true);
      return new Stage(engine, folder, latest, interruption());
    } catch (error) {
      engine.destroy();
      throw error;
    }
  }

  get signal(): AbortSignal {
    return this.stop.signal;
  }

  /** Seconds since the beginning. */
  get seconds(): number {
    return (performance.now() - this.began) / 1000;
  }

  /** Runs a part and keeps its time. */
  async timed<T>(name: string, f: () => Promise<T>): Promise<T> {
    const start = performance.now();
    const result = await f();
    this.timings.push({ name, seconds: (performance.now() - start) / 1000 });
    return result;
  }

  /** What a report says of the adapter. */
  adapterRows(flops: number): ReportData["adapter"] {
    const { info } = this.engine;
    const training = this.timings.find((t) => t.name === "training")?.seconds;
    const speed = this.latest || !training ? "unknown: the run was resumed" : (flops / 1e9 / training).toFixed(1);
    return {
      name: info.name,
      kind: info.kind,
      driver: info.description,
      backend: info.backend,
      "training TFLOP": (flops / 1e12).toFixed(2),
      "GFLOP/s in training": speed,
    };
  }

  /** What slows this machine down, for a report's warnings. */
  adapterWarnings(): string[] {
    const { info } = this.engine;
    return info.faster ? [`Trained on a software adapter (${info.name}). Faster would be ${info.faster}.`] : [];
  }

  async close(): Promise<void> {
    this.stop.end();
    await this.latest?.file.close();
    this.folder.close();
    this.engine.destroy();
  }
}
