import { closeSync, fsyncSync, ftruncateSync, mkdirSync, openSync, readFileSync, writeSync } from "node:fs";
import { dirname } from "node:path";
import { EspalierError } from "../engine/errors.js";

/** One line of a log: a step and whatever was measured at it. */
export interface LogLine {
  step: number;
  [key: string]: unknown;
}

/** A log that cannot be opened or written. */
export class LogError extends EspalierError {
  override name = "LogError";
}

// JSON knows no such numbers, and a loss that became one must not read as null.
const SPECIAL = ["NaN", "Infinity", "-Infinity"];

function encodeLine(line: LogLine): string {
  return `${JSON.stringify(line, (_, value) => (typeof value === "number" && !Number.isFinite(value) ? String(value) : value))}\n`;
}

function decodeLine(text: string): LogLine | undefined {
  try {
    const line = JSON.parse(text, (_, value) => (SPECIAL.includes(value) ? Number(value) : value));
    return typeof line?.step === "number" ? line : undefined;
  } catch {
    return undefined;
  }
}

/** Lines of a log file, and the byte after each. Stops at the first that is torn or no log line. */
function* scan(bytes: Buffer): Generator<{ line: LogLine; end: number }> {
  for (let begin = 0; begin < bytes.length; ) {
    const end = bytes.indexOf(0x0a, begin) + 1;
    const line = end === 0 ? undefined : decodeLine(bytes.toString("utf8", begin, end));
    if (line === undefined) return;
    yield { line, end };
    begin = end;
  }
}

/** Reads a log; a torn last line is left out. Throws LogError where there is no file. */
export function readLog(path: string): LogLine[] {
  let bytes: Buffer;
  try {
    bytes = readFileSync(path);
  } catch (cause) {
    throw new LogError(`log: not readable: ${path}: ${(cause as Error).message}`, { cause });
  }
  return Array.from(scan(bytes), ({ line }) => line);
}

/**
 * A log of one JSON object a line, appended and handed to the system at once, so that only a crash of the machine can
 * lose a line. Numbers that JSON lacks are written as "NaN", "Infinity" and "-Infinity"; `readLog` turns them back.
 */
export class JsonLog {
  readonly path: string;
  #file: number | undefined;

  /**
   * Opens a log for appending and makes its folder where needed.
   * @param resumedStep lines of later steps, and a torn last line, are cut off; without it the log starts empty
   */
  constructor(path: string, resumedStep?: number) {
    this.path = path;
    try {
      mkdirSync(dirname(path), { recursive: true });
      this.#file = openSync(path, resumedStep === undefined ? "w" : "a+");
      if (resumedStep === undefined) return;
      const bytes = readFileSync(path);
      let keep = 0;
      for (const { line, end } of scan(bytes)) {
        if (line.step > resumedStep) break;
        keep = end;
      }
      if (keep < bytes.length) ftruncateSync(this.#file, keep);
    } catch (cause) {
      throw new LogError(`log: not writable: ${path}: ${(cause as Error).message}`, { cause });
    }
  }

  /** Appends one line. Throws LogError where the disk is full. */
  write(line: LogLine): void {
    if (this.#file === undefined) throw new LogError(`log: already closed: ${this.path}`);
    const bytes = Buffer.from(encodeLine(line));
    try {
      for (let done = 0; done < bytes.length; ) done += writeSync(this.#file, bytes, done);
    } catch (cause) {
      throw new LogError(`log: not writable: ${this.path}: ${(cause as Error).message}`, { cause });
    }
  }

  /** Waits until every line so far is on the disk. */
  sync(): void {
    if (this.#file !== undefined) fsyncSync(this.#file);
  }

  close(): void {
    if (this.#file !== undefined) closeSync(this.#file);
    this.#file = undefined;
  }
}
