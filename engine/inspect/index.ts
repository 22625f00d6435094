import { anomaly } from "./anomaly.js";
import { ceilings } from "./ceilings.js";
import { debug } from "./debug.js";
import { memory } from "./memory.js";
import { plan } from "./plan.js";
import { source } from "./source.js";
import { tape } from "./tape.js";
import { trace } from "./trace.js";

export type { Anomaly, Finding } from "./anomaly.js";
export type { Ceilings } from "./ceilings.js";
export type { DebugLevel } from "./debug.js";
export type { MemoryView } from "./memory.js";
export type { PlannedLaunch, PlanView } from "./plan.js";
export type { TapeReport } from "./tape.js";
export type { Trace, TracedLaunch } from "./trace.js";

/** Ways to look at what the engine does. None of them changes a number. */
export const inspect = { anomaly, ceilings, debug, memory, plan, source, tape, trace };
