import { existsSync, readFileSync, rmSync, writeFileSync } from "node:fs";

/** Whether a process of this machine lives. */
export function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === "EPERM";
  }
}

/**
 * Takes a lock file, which holds the number of its process; that of a process that is gone is taken over.
 * @returns the number of the living process that has it, undefined where it is now this one's
 * @throws the system's error where the file cannot be written
 */
export function takeLock(path: string): number | undefined {
  for (;;) {
    try {
      writeFileSync(path, `${process.pid}\n`, { flag: "wx" });
      return undefined;
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== "EEXIST") throw error;
    }
    const pid = existsSync(path) ? Number.parseInt(readFileSync(path, "utf8"), 10) : 0;
    if (pid && pid !== process.pid && isAlive(pid)) return pid;
    rmSync(path, { force: true });
  }
}

/** Lets other processes in. */
export function dropLock(path: string): void {
  rmSync(path, { force: true });
}
