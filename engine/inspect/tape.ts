import { show } from "../shape.js";
import type { Entry } from "../tape.js";
import type { Tensor } from "../tensor.js";
import { table } from "./table.js";

/** What `backward()` of a tensor would walk. */
export interface TapeReport {
  /** In the order in which the ops ran. */
  entries: readonly Pick<Entry, "op" | "module" | "inputs" | "outputs" | "savedBytes">[];
  /** Bytes that are kept for backward. A tensor that several ops keep counts for each. */
  savedBytes: number;
  toString(): string;
}

/** The recorded ops that `loss` was computed by. Nothing is read from the GPU. */
export function tape(loss: Tensor): TapeReport {
  loss.check("inspect.tape");
  const wanted = new Set([loss.uid]);
  const entries: Entry[] = [];
  for (const e of [...loss.engine.tape.entries].reverse()) {
    if (!e.outputs.some((o) => wanted.has(o.uid))) continue;
    entries.unshift(e);
    for (const i of e.inputs) if (i.needs) wanted.add(i.uid);
  }
  const savedBytes = entries.reduce((n, e) => n + e.savedBytes, 0);
  return {
    entries,
    savedBytes,
    toString: () =>
      `${table(
        ["#", "op", "inputs (* wants a gradient)", "outputs", "saved bytes", "module"],
        entries.map((e, i) => [
          `${i}`,
          e.op,
          e.inputs.map((x) => `${x.name}${show(x.shape)}${x.needs ? "*" : ""}`).join(" "),
          e.outputs.map((o) => show(o.shape)).join(" "),
          `${e.savedBytes}`,
          e.module,
        ]),
      )}\n${entries.length} ops, ${savedBytes} bytes saved`,
  };
}
