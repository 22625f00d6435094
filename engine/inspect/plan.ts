import type { Compiled } from "../compile/compile.js";
import type { Plan } from "../compile/plan.js";
import { EspalierError } from "../errors.js";
import { megabytes } from "../memory.js";
import { digits, table } from "./table.js";
import { type TracedLaunch, trace } from "./trace.js";

/** One command of a plan. */
export interface PlannedLaunch extends Partial<TracedLaunch> {
  /** Stem and entry point, or "copy" or "clear". */
  kernel: string;
  /** The ops that it stands for, in order; one where nothing was fused. */
  ops: readonly string[];
  module: string;
  /** Its WGSL. */
  source?: string;
}

/** What a compiled function does in each call. */
export interface PlanView {
  launches: readonly PlannedLaunch[];
  /** Commands that the function gave, before anything was fused or dropped. */
  traced: number;
  /** Bytes of the plan's buffers, which other plans may use as well, and what they would be if none were used twice. */
  bytes: number;
  unplanned: number;
  toString(): string;
}

const opsOf = (parts: readonly string[]): string => {
  const counted: [string, number][] = [];
  for (const op of parts) {
    const last = counted[counted.length - 1];
    if (last?.[0] === op) last[1]++;
    else counted.push([op, 1]);
  }
  return counted.map(([op, n]) => (n > 1 ? `${op} x${n}` : op)).join(" + ");
};

function viewOf(plan: Plan, timed: readonly TracedLaunch[]): PlanView {
  let next = 0;
  const launches = plan.commands.map((c): PlannedLaunch => {
    if (c.kind !== "launch") return { kernel: c.kind, ops: [c.kind], module: c.label };
    const { kernel, parts, meaning, tensors, label, groups } = c.launch;
    const measured = timed[next++];
    return {
      ...measured,
      kernel: `${kernel.name}.${kernel.entry}`,
      workgroups: groups,
      ops: parts ?? [meaning?.op ?? tensors[tensors.length - 1].op],
      module: label,
      source: kernel.source,
    };
  });
  const { traced, bytes, unplanned } = plan;
  const us = launches.reduce((n, l) => n + (l.us ?? 0), 0);
  return {
    launches,
    traced,
    bytes,
    unplanned,
    toString: () =>
      [
        table(
          ["#", "kernel", "ops", "workgroups", "µs", "bytes", "GB/s", "module"],
          launches.map((l, i) => [
            `${i}`,
            l.kernel,
            opsOf(l.ops),
            l.workgroups?.join(" x ") ?? "-",
            digits(l.us),
            l.bytes === undefined ? "-" : `${l.bytes}`,
            digits(l.gbs),
            l.module,
          ]),
        ),
        `${launches.length} commands of ${traced} that were traced${us ? `, ${digits(us / 1e3)} ms` : ""}; ${megabytes(bytes)} of memory where ${megabytes(unplanned)} would be taken without reuse`,
      ].join("\n\n"),
  };
}

/**
 * Every launch of a compiled function's newest plan: what was fused into it, workgroups, bytes and module.
 * @param run calls the function once, with arguments of the plan's kind: its launches are then timed as well
 * @throws EspalierError when the function has no plan: it was not called yet, or the engine is eager
 * @example console.log(`${await inspect.plan(step, () => step(x))}`)
 */
export async function plan<A extends readonly unknown[], R>(
  step: Compiled<A, R>,
  run?: () => unknown,
): Promise<PlanView> {
  const timed = run ? (await trace(step.engine, async () => void run())).launches : [];
  const newest = step.plans.at(-1);
  if (!newest)
    throw new EspalierError(
      "inspect.plan: the function has no plan yet; call it once, on an engine that is not eager, or give a call: inspect.plan(step, () => step(x)).",
    );
  return viewOf(newest, timed);
}
