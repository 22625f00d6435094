import { type Options, SingleBar } from "cli-progress";

/** What one update tells. Left-out numbers stay as they were. */
export interface ProgressUpdate {
  loss?: number;
  /** The optimizer's present rate. */
  lr?: number;
  /** Samples (clips) worked on since the last update. */
  samples?: number;
}

/** Options of `Progress`. */
export interface ProgressOptions {
  /** The value at which the work is done. */
  total: number;
  /** The value to start from, as when a run is resumed. Default 0. */
  start?: number;
  /** A word in front. Default "train". */
  label?: string;
  /** Where to draw. Default stderr. */
  stream?: NodeJS.WriteStream;
  /** Seconds between lines where the stream is no terminal. Default 10. */
  every?: number;
  /** The clock, in milliseconds. */
  now?: () => number;
}

// Rates are those of the last half minute: steady enough to read, and they forget a pause such as sampling.
const WINDOW_MS = 30_000;
const BAR_WIDTH = 20;

/** Seconds in words: "8s", "3m 05s", "2h 07m". */
export function duration(seconds: number): string {
  const s = Math.max(0, Math.round(seconds));
  const two = (n: number) => String(n).padStart(2, "0");
  if (s < 60) return `${s}s`;
  if (s < 3600) return `${Math.floor(s / 60)}m ${two(s % 60)}s`;
  return `${Math.floor(s / 3600)}h ${two(Math.floor(s / 60) % 60)}m`;
}

/**
 * How far a run is: step, loss, rate, samples a second and time left. On a terminal one line that redraws itself;
 * elsewhere (a file, a pipe) a plain line every few seconds. Call `stop` whatever happens: the terminal's line is
 * redrawn until then.
 */
export class Progress {
  readonly #options: Required<ProgressOptions>;
  readonly #bar: SingleBar | undefined;
  #value: number;
  #loss: number | undefined;
  #lr: number | undefined;
  #samples = 0;
  #marks: { time: number; value: number; samples: number }[] = [];
  #lastLine = Number.NEGATIVE_INFINITY;
  #stopped = false;

  constructor(options: ProgressOptions) {
    this.#options = { start: 0, label: "train", stream: process.stderr, every: 10, now: Date.now, ...options };
    const { start, total, stream } = this.#options;
    this.#value = start;
    this.#mark();
    if (!stream.isTTY) return;
    const format: Options["format"] = () => this.line();
    // Its own signal handler would swallow the first Ctrl-C.
    this.#bar = new SingleBar({ format, stream, fps: 8, clearOnComplete: true, gracefulExit: false });
    this.#bar.start(total, start);
  }

  #mark(): void {
    const time = this.#options.now();
    this.#marks.push({ time, value: this.#value, samples: this.#samples });
    while (this.#marks.length > 2 && time - this.#marks[1].time > WINDOW_MS) this.#marks.shift();
  }

  /** Tells the value reached, and what is known there. */
  update(value: number, { loss, lr, samples = 0 }: ProgressUpdate = {}): void {
    this.#value = value;
    this.#loss = loss ?? this.#loss;
    this.#lr = lr ?? this.#lr;
    this.#samples += samples;
    this.#mark();
    if (this.#bar !== undefined) this.#bar.update(value);
    else if (this.#options.now() - this.#lastLine >= this.#options.every * 1000) this.#writeLine();
  }

  /** The present state as one line of text. */
  line(): string {
    const { label, total, start } = this.#options;
    const [first, last] = [this.#marks[0], this.#marks[this.#marks.length - 1]];
    const seconds = (last.time - first.time) / 1000;
    const steps = last.value - first.value;
    const samples = last.samples - first.samples;
    const share = total > start ? Math.min(1, this.#value / total) : 1;
    const full = Math.round(share * BAR_WIDTH);
    const parts = [`${label} ${"█".repeat(full)}${"░".repeat(BAR_WIDTH - full)} ${this.#value}/${total}`];
    if (this.#loss !== undefined) parts.push(`loss ${this.#loss.toFixed(4)}`);
    if (this.#lr !== undefined) parts.push(`lr ${this.#lr.toExponential(1)}`);
    if (seconds > 0 && samples > 0) parts.push(`${(samples / seconds).toPrecision(3)} samples/s`);
    if (seconds > 0 && steps > 0 && this.#value < total)
      parts.push(`${duration(((total - this.#value) * seconds) / steps)} left`);
    return parts.join(" · ");
  }

  #writeLine(): void {
    this.#lastLine = this.#options.now();
    this.#options.stream.write(`${this.line()}\n`);
  }

  /** Writes a line of text above the bar. */
  print(text: string): void {
    this.#bar?.stop();
    this.#options.stream.write(`${text}\n`);
    if (!this.#stopped) this.#bar?.start(this.#options.total, this.#value);
  }

  /** Ends it and leaves the last state as a plain line. */
  stop(): void {
    if (this.#stopped) return;
    this.#stopped = true;
    this.#bar?.stop();
    this.#writeLine();
  }
}
