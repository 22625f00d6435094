import { ConfigError, checkOptions, nearest, type Tensor } from "../engine/index.js";
import { type STDiTConfig, stditConfig } from "./config.js";
import { buildModel, type Origin, originOf } from "./origin.js";
import { StateError, type StateSource } from "./state.js";
import type { STDiT } from "./stdit.js";
import { isZero, type StatePart, StateView, shapeOf, viewOf } from "./view.js";

/** Where new blocks go: spread among the old ones, before them, or after them. */
export type GrowthMode = "insert" | "prefix" | "suffix";
const MODES: readonly GrowthMode[] = ["insert", "prefix", "suffix"];

/** How to grow. */
export interface GrowthOptions {
  mode: GrowthMode;
  /** How many blocks to add. */
  blocks: number;
  /**
   * Which block's temporal attention sees the frames' positions afterwards: that which did before ("original", which
   * keeps outputs equal), or the first one whatever it is ("first", as Open-Sora's code would: a prefix then changes
   * outputs).
   */
  temporalOwner?: "original" | "first";
}

/** A grown model's blocks in order. */
export interface GrowthPlan {
  readonly mode: GrowthMode;
  /** Block of the model before, and whether this is a copy of it that adds nothing yet. */
  readonly blocks: readonly { readonly source: number; readonly isNew: boolean }[];
  /** Blocks before. */
  readonly depth: number;
  readonly temporalOwner: number;
}

/** How a model came to its blocks. */
export interface GrowthRecord {
  /** Every growth, the first one first. */
  readonly steps: readonly { readonly mode: GrowthMode; readonly blocks: number }[];
  /** For each block: the block of the model that never grew that it goes back to, and the step (from 1) it was new in, or 0. */
  readonly blocks: readonly { readonly from: number; readonly step: number }[];
}

const gcd = (a: number, b: number): number => (b === 0 ? a : gcd(b, a % b));
const shown = (value: unknown) => (typeof value === "number" ? `${value}` : (JSON.stringify(value) ?? String(value)));

function checkGrowth(depth: number, options: GrowthOptions): void {
  checkOptions("growth", options, ["mode", "blocks", "temporalOwner"]);
  const { mode, blocks, temporalOwner = "original" } = options;
  if (!MODES.includes(mode)) {
    const guess = typeof mode === "string" ? nearest(mode, MODES) : undefined;
    throw new ConfigError(
      `growth: unknown mode ${shown(mode)}${guess ? `; did you mean "${guess}"?` : ";"} (${MODES.join(", ")})`,
    );
  }
  if (!(Number.isSafeInteger(blocks) && blocks >= 1))
    throw new ConfigError(
      `growth: blocks must be a whole number from 1: got ${shown(blocks)}; say how many blocks to add to the ${depth} there are.`,
    );
  if (temporalOwner !== "original" && temporalOwner !== "first")
    throw new ConfigError(`growth: temporalOwner must be "original" or "first": got ${shown(temporalOwner)}.`);
}

/**
 * Where each block of a grown model comes from. With m new on n old blocks and m/n = p/q in lowest terms, "insert" puts
 * p copies of the last block after every q old blocks.
 * @param depth n
 * @param owner the block that sees the frames' positions before
 * @throws ConfigError for an unknown mode (with the nearest) or a number of blocks that is no whole number from 1
 */
export function growthPlan(depth: number, options: GrowthOptions, owner = 0): GrowthPlan {
  if (!(Number.isSafeInteger(depth) && depth >= 1))
    throw new ConfigError(`growth: a model has a whole number of blocks from 1: got ${shown(depth)}.`);
  checkGrowth(depth, options);
  const { mode, blocks: added, temporalOwner = "original" } = options;
  const old = Array.from({ length: depth }, (_, source) => ({ source, isNew: false }));
  const copies = (source: number, count: number) => Array.from({ length: count }, () => ({ source, isNew: true }));
  const part = gcd(added, depth);
  const [p, q] = [added / part, depth / part];
  const blocks = {
    prefix: () => [...copies(0, added), ...old],
    suffix: () => [...old, ...copies(depth - 1, added)],
    insert: () => old.flatMap((b) => [b, ...((b.source + 1) % q === 0 ? copies(b.source, p) : [])]),
  }[mode]();
  const kept = blocks.findIndex((b) => !b.isNew && b.source === owner);
  return { mode, blocks, depth, temporalOwner: temporalOwner === "first" ? 0 : kept };
}

/** Last linears of a block's four layers, and of the second cross-attention: zero in new blocks, which so add nothing. */
const ZEROED = ["attn.proj", "attn_temp.proj", "cross_attn.proj", "mlp.fc2"].flatMap((l) => [
  `${l}.weight`,
  `${l}.bias`,
]);
const ZEROED_LLM = ["cross_attn_llm.proj.weight", "cross_attn_llm.proj.bias"];

/** The tensors of each block of a source by their name in the block. */
function blocksOf(view: StateView, depth: number): Map<string, StatePart>[] {
  const blocks: Map<string, StatePart>[] = [];
  for (const [name, part] of view.parts) {
    const found = /^blocks\.(\d+)\.(.+)$/.exec(name);
    if (!found) continue;
    const index = Number(found[1]);
    blocks[index] ??= new Map();
    blocks[index].set(found[2], part);
  }
  const refuse = (what: string, missing: string[], unexpected: string[]) => {
    throw new StateError(`growth: ${view.name} ${what}`, missing, unexpected, []);
  };
  const absent = Array.from({ length: depth }, (_, i) => i).filter((i) => !blocks[i]);
  if (absent.length)
    refuse(
      `lacks block${absent.length > 1 ? "s" : ""} ${absent.join(", ")} of 0 to ${depth - 1}: growing needs all of them; take a whole checkpoint.`,
      absent.map((i) => `blocks.${i}`),
      [],
    );
  if (blocks.length > depth)
    refuse(
      `holds block ${blocks.length - 1}, its configuration says ${depth} blocks; give the depth it has.`,
      [],
      [`blocks.${blocks.length - 1}`],
    );
  const all = new Set(blocks.flatMap((b) => [...b.keys()]));
  const missing = blocks.flatMap((b, i) => [...all].filter((n) => !b.has(n)).map((n) => `blocks.${i}.${n}`));
  if (missing.length)
    refuse(`lacks ${missing.slice(0, 8).join(", ")}: other blocks have it; take a whole checkpoint.`, missing, []);
  return blocks;
}

/**
 * A source of the model before as one of the grown model: blocks moved and repeated, the last linears of new blocks
 * zero, everything else as it was. Nothing is copied before it is loaded.
 * @throws StateError naming blocks or tensors of blocks that the source lacks
 */
export async function grownSource(source: StateSource, plan: GrowthPlan): Promise<StateView> {
  const view = viewOf(source);
  const blocks = blocksOf(view, plan.depth);
  const parts = new Map([...view.parts].filter(([name]) => !/^blocks\.\d+\./.test(name)));
  for (const [i, { source: index, isNew }] of plan.blocks.entries()) {
    const block = blocks[index];
    // A gate of zero silences the branch already, and beside it a projection of zero would never learn.
    const gate = block.get("gate_llm");
    const silent = isNew && gate !== undefined && (await isZero(gate));
    const zeroed = isNew ? [...ZEROED, ...(silent ? [] : ZEROED_LLM)] : [];
    for (const [name, part] of block)
      parts.set(`blocks.${i}.${name}`, zeroed.includes(name) ? { shape: shapeOf(part), make: "zeros" } : part);
  }
  return new StateView(view.name, parts);
}

const fresh = (depth: number): GrowthRecord => ({
  steps: [],
  blocks: Array.from({ length: depth }, (_, from) => ({ from, step: 0 })),
});

function grownRecord(before: GrowthRecord, plan: GrowthPlan): GrowthRecord {
  const steps = [...before.steps, { mode: plan.mode, blocks: plan.blocks.length - plan.depth }];
  const blocks = plan.blocks.map(({ source, isNew }) => {
    const old = before.blocks[source];
    return isNew ? { from: old.from, step: steps.length } : old;
  });
  return { steps, blocks };
}

/** The origin of a grown model; see `grow`. */
export async function growOrigin(origin: Origin, options: GrowthOptions): Promise<Origin> {
  const { config, growth } = origin;
  const plan = growthPlan(config.depth, options, config.temporalOwner);
  const next: Partial<STDiTConfig> = { depth: plan.blocks.length, temporalOwner: plan.temporalOwner };
  return {
    ...origin,
    config: stditConfig({ ...config, ...next }),
    source: await grownSource(origin.source, plan),
    growth: grownRecord(growth ?? fresh(config.depth), plan),
  };
}

/**
 * A deeper model with the same outputs, as a new model on the same engine: copies of blocks are added whose last
 * linears (of both attentions, the cross-attention and the MLP; weight and bias) are zero, so that each adds nothing
 * until it is trained. At first those four linears alone get a gradient in a new block. The model given stays as it is.
 *
 * LLaMA Pro (https://arxiv.org/abs/2401.02415) grows language models so, and then trains the new blocks alone.
 * @throws ConfigError for options that are no growth
 */
export async function grow(model: STDiT, options: GrowthOptions): Promise<STDiT> {
  const origin = await growOrigin(originOf(model), options);
  const grown = await buildModel(model.engine, origin, { dtype: model.dtype });
  grown.checkpointBlocks = model.checkpointBlocks;
  return grown;
}

/** The record as checkpoints hold it. */
export const encodeGrowth = (growth: GrowthRecord): string => JSON.stringify(growth);

/**
 * Reads what `encodeGrowth` wrote for a model of `depth` blocks.
 * @throws ConfigError for text that is no record, or a record that its own steps do not lead to
 */
export function decodeGrowth(text: string, depth: number, file = "the file"): GrowthRecord {
  const refuse = (rule: string): never => {
    throw new ConfigError(
      `growth: the record in ${file} ${rule}; take the metadata "growth" out to read the model without it.`,
    );
  };
  let json: Partial<GrowthRecord> | null;
  try {
    json = JSON.parse(text);
  } catch (cause) {
    return refuse(`is no JSON: ${(cause as Error).message}`);
  }
  const { steps, blocks } = json ?? {};
  if (!Array.isArray(steps) || !Array.isArray(blocks)) return refuse('must have lists "steps" and "blocks"');
  if (blocks.length !== depth) return refuse(`is of ${blocks.length} blocks, the model has ${depth}`);
  const added = steps.reduce((n, s) => n + Number(s?.blocks), 0);
  if (!(depth - added >= 1)) return refuse(`adds ${added} blocks, the model has ${depth} in all`);
  let record = fresh(depth - added);
  for (const { mode, blocks } of steps as GrowthRecord["steps"])
    try {
      record = grownRecord(record, growthPlan(record.blocks.length, { mode, blocks }));
    } catch (error) {
      return refuse(`has a step that is none (${(error as Error).message})`);
    }
  const wrong = record.blocks.findIndex((b, i) => b.from !== blocks[i]?.from || b.step !== blocks[i]?.step);
  if (wrong >= 0)
    return refuse(
      `says of block ${wrong} ${shown(blocks[wrong])}, its steps lead to ${JSON.stringify(record.blocks[wrong])}`,
    );
  return record;
}

const WIDTH = 96;

/**
 * Blocks in order by the number they had in the model that never grew, with a star for copies ("**" for those of the
 * second growth …), and where frames' positions enter.
 */
export function describeGrowth({ config, growth }: Pick<STDiT, "config" | "growth">): string {
  const { steps, blocks } = growth ?? fresh(config.depth);
  const added = blocks.filter((b) => b.step > 0).length;
  const how = steps.map(({ mode, blocks: n }, i) => `${"*".repeat(i + 1)} ${mode} ${n}`).join(", ");
  const lines = [`${blocks.length} blocks${added ? `, ${added} of them new (${how})` : ""}`, ""];
  for (const { from, step } of blocks) {
    const word = `${from}${"*".repeat(step)}`;
    const last = lines.length - 1;
    if (lines[last].length + word.length + 1 > WIDTH) lines.push(word);
    else lines[last] = lines[last] ? `${lines[last]} ${word}` : word;
  }
  const owner = blocks[config.temporalOwner];
  lines.push(`frames' positions enter at index ${config.temporalOwner}: block ${owner.from}${"*".repeat(owner.step)}`);
  return lines.join("\n");
}

const BRANCH = /^y_embedder_llm\.|^blocks\.\d+\.(cross_attn_llm\.|gate_llm$)/;

/**
 * What growth and an added language branch brought: every parameter of the new blocks, and of the branch.
 * @throws ConfigError for a model that has neither
 */
export function newParameters(model: STDiT): [name: string, parameter: Tensor][] {
  const { growth, language } = model;
  if (!growth && !language)
    throw new ConfigError("growth: the model has nothing new: it never grew and no branch was added; grow it first.");
  return model.namedParameters().filter(([name]) => {
    const block = /^blocks\.(\d+)\./.exec(name);
    return (language && BRANCH.test(name)) || (block && (growth?.blocks[Number(block[1])].step ?? 0) > 0);
  });
}

/** Lets all parameters learn, or only those that `newParameters` names, as LLaMA Pro does. */
export function setTrained(model: STDiT, which: "all" | "new"): void {
  if (which !== "all" && which !== "new")
    throw new ConfigError(`growth: what is trained must be "all" or "new": got ${shown(which)}.`);
  const chosen = new Set((which === "new" ? newParameters(model) : model.namedParameters()).map(([name]) => name));
  for (const [name, p] of model.namedParameters()) p.setRequiresGrad(chosen.has(name));
}
