import { existsSync, mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { ConfigError } from "../engine/errors.js";
import { type Checkpoint, CheckpointFolder } from "./checkpoint.js";

const isAlive = (pid: number): boolean => {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === "EPERM";
  }
};

/**
 * The folder of one run: `checkpoints/`, `samples/`, `log.jsonl`, `tensorboard/`, `config.json`, `report.html`.
 * A lock file keeps two processes from writing into one run; that of a killed process is taken over.
 */
export class RunFolder {
  readonly checkpoints: CheckpointFolder;
  private readonly lock: string;

  private constructor(
    readonly path: string,
    keep: number,
  ) {
    this.checkpoints = new CheckpointFolder(join(path, "checkpoints"), keep);
    this.lock = join(path, "lock");
  }

  /**
   * @param resume whether a run that is there may be gone on with
   * @throws ConfigError when another process works in the folder, or a run is there and `resume` is not set
   */
  static async open(
    path: string,
    keep: number,
    resume: boolean,
  ): Promise<{ folder: RunFolder; latest: Checkpoint | undefined }> {
    const folder = new RunFolder(path, keep);
    mkdirSync(join(path, "samples"), { recursive: true });
    folder.takeLock();
    const latest = await folder.checkpoints.latest();
    if (!latest && !resume) return { folder, latest };
    if (latest && !resume) {
      await latest.file.close();
      folder.close();
      throw new ConfigError(
        `run: a run is already there: ${path} has a checkpoint of step ${latest.step}; go on with --resume, or choose another folder with --out`,
      );
    }
    return { folder, latest };
  }

  private takeLock(): void {
    for (;;) {
      try {
        writeFileSync(this.lock, `${process.pid}\n`, { flag: "wx" });
        return;
      } catch (error) {
        if ((error as NodeJS.ErrnoException).code !== "EEXIST")
          throw new ConfigError(`run: folder not writable: ${this.path}: ${(error as Error).message}`);
      }
      const pid = existsSync(this.lock) ? Number.parseInt(readFileSync(this.lock, "utf8"), 10) : 0;
      if (pid && pid !== process.pid && isAlive(pid))
        throw new ConfigError(
          `run: process ${pid} is working in ${this.path}; wait for it, or choose another folder with --out`,
        );
      rmSync(this.lock, { force: true });
    }
  }

  file(...names: string[]): string {
    return join(this.path, ...names);
  }

  /** Lets other processes in. */
  close(): void {
    rmSync(this.lock, { force: true });
  }
}
