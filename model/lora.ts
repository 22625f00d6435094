import { ConfigError, checkOptions, EspalierError, type Key, nearest, type Tensor } from "../engine/index.js";
import { biasUniform, zeros } from "./init.js";
import { Linear } from "./layers.js";
import { isPattern, type Module, matcher } from "./module.js";
import { type LoadOptions, type LoadReport, loadTensors, StateError, type StateSource } from "./state.js";

/** What `addLora` takes. */
export interface LoraOptions {
  /**
   * Which linear layers: one pattern or several, each of a path of fields ("blocks.*.crossAttn.**") or of a checkpoint
   * name ("blocks.*.cross_attn.**"). `*` stands for one part, `**` for any number.
   */
  pattern: string | readonly string[];
  /** Rows of A and columns of B. */
  rank: number;
  /** An adapter counts alpha / rank. Default: rank. */
  alpha?: number;
  /** Decides A; B begins as zeros. */
  key: Key;
}

/** What a file says of its adapters. */
export interface LoraConfig {
  rank: number;
  alpha: number;
  /** Checkpoint names of the layers, such as "blocks.0.attn.qkv". */
  targets: readonly string[];
}

/** A linear layer of a model under both of its names. */
export interface NamedLinear {
  /** As checkpoints name it. */
  name: string;
  /** As fields name it. */
  path: string;
  linear: Linear;
}

/** A linear layer with its adapter. */
export interface Adapted extends NamedLinear {
  a: Linear;
  b: Linear;
}

/** Checkpoint names of the parameters that adding adapters froze, by model. */
const frozen = new WeakMap<Module, readonly string[]>();

const list = (names: readonly string[]) =>
  `${names.slice(0, 8).join(", ")}${names.length > 8 ? ` and ${names.length - 8} more` : ""}`;
const shown = (value: unknown) => (typeof value === "number" ? `${value}` : (JSON.stringify(value) ?? String(value)));

/** All linear layers of a model, those of adapters not counted. */
export function linearsOf(model: Module): NamedLinear[] {
  const modules = model.namedModules();
  const inner = new Set<Module>();
  for (const m of modules.values()) if (m instanceof Linear) for (const l of [m.loraA, m.loraB]) if (l) inner.add(l);
  const names = new Map(Object.entries(model.stateDict()).map(([name, t]) => [t, name]));
  const found = new Map<Linear, NamedLinear>();
  for (const [path, linear] of modules)
    if (linear instanceof Linear && !inner.has(linear) && !found.has(linear))
      found.set(linear, { name: names.get(linear.weight)!.replace(/\.?weight$/, ""), path, linear });
  return [...found.values()];
}

/** The layers of a model that have adapters, merged or not. */
export function adaptedOf(model: Module): Adapted[] {
  return linearsOf(model).flatMap((layer) => {
    const { loraA: a, loraB: b } = layer.linear;
    return a && b ? [{ ...layer, a, b }] : [];
  });
}

/** As `adaptedOf`. @throws EspalierError when there are none */
export function needAdapters(subject: string, model: Module): Adapted[] {
  const layers = adaptedOf(model);
  if (!layers.length)
    throw new EspalierError(`${subject}: the model has no adapters; put them on with addLora or loadLora first.`);
  return layers;
}

/** Whether the adapters of a model are merged into its weights. */
export const isMerged = (model: Module): boolean => adaptedOf(model).some(({ linear }) => linear.loraBase);

/** @throws EspalierError when the adapters are merged */
export function needUnmerged(subject: string, model: Module): void {
  if (isMerged(model))
    throw new EspalierError(`${subject}: the adapters are merged into the weights; call unmergeLora first.`);
}

/** The rank and alpha that all layers share. */
export function loraConfig(model: Module): LoraConfig | undefined {
  const layers = adaptedOf(model).map(({ name, linear, a }) => ({
    name,
    rank: a.weight.shape[0],
    alpha: linear.loraAlpha,
  }));
  if (!layers.length) return undefined;
  const [first] = layers;
  const other = layers.find(({ rank, alpha }) => rank !== first.rank || alpha !== first.alpha);
  if (other)
    throw new ConfigError(
      `lora: one file holds adapters of one rank and alpha: ${first.name} has rank ${first.rank} and alpha ${first.alpha}, ${other.name} has ${other.rank} and ${other.alpha}; add them with one call of addLora.`,
    );
  return { rank: first.rank, alpha: first.alpha, targets: layers.map(({ name }) => name) };
}

/** @throws ConfigError unless the rank is possible for every layer and alpha is a number above 0 */
function checkSizes(subject: string, layers: readonly NamedLinear[], rank: number, alpha: number): void {
  if (!(Number.isSafeInteger(rank) && rank >= 1))
    throw new ConfigError(`${subject}: rank must be a whole number from 1: got ${shown(rank)}; 4 to 64 are usual.`);
  for (const { name, linear } of layers) {
    const [out, inputs] = linear.weight.shape;
    const most = Math.min(out, inputs);
    if (rank > most)
      throw new ConfigError(
        `${subject}: rank must be at most the smaller side of every layer: got ${rank} for ${name} [${out}, ${inputs}]; take 1 to ${most}, or leave that layer out.`,
      );
  }
  if (!(Number.isFinite(alpha) && alpha > 0))
    throw new ConfigError(
      `${subject}: alpha must be a number above 0: got ${shown(alpha)}; leave it out for alpha = rank.`,
    );
}

/**
 * Puts adapters on layers and freezes everything else. Without a key A and B are undefined until they are loaded.
 * Adapters are f32 whatever the layer is, as training needs.
 */
export function attach(
  subject: string,
  model: Module,
  layers: readonly NamedLinear[],
  { rank, alpha, key }: { rank: number; alpha: number; key?: Key },
): void {
  const adapted = adaptedOf(model);
  if (adapted.length)
    throw new EspalierError(
      `${subject}: the model has adapters already: ${list(adapted.map(({ name }) => name))}; call removeLora first, and give all patterns at once.`,
    );
  checkSizes(subject, layers, rank, alpha);
  const trained = model.namedParameters().filter(([, p]) => p.requiresGrad);
  for (const [, p] of trained) p.setRequiresGrad(false);
  frozen.set(
    model,
    trained.map(([name]) => name),
  );
  for (const [i, { linear }] of layers.entries()) {
    const [out, inputs] = linear.weight.shape;
    // PEFT's start: Kaiming's uniform rule with a = √5, which is U with bound 1 / √(fan in).
    const start = { bias: false, weightInit: biasUniform(inputs), key: key?.fold(i) };
    const a = new Linear(model.engine, inputs, rank, start);
    const b = new Linear(model.engine, rank, out, { ...start, weightInit: zeros });
    linear.setAdapter({ a, b, alpha });
  }
}

/** The layers that some pattern matches, in the model's order. */
function matching(subject: string, model: Module, patterns: readonly string[]): NamedLinear[] {
  const layers = linearsOf(model);
  const chosen = new Set<NamedLinear>();
  for (const pattern of patterns) {
    const match = matcher(pattern);
    const hits = layers.filter(({ name, path }) => match.test(name) || match.test(path));
    if (!hits.length) {
      const other = model.namedModules().get(pattern);
      const names = layers.map(({ name }) => name);
      const guess = isPattern(pattern) ? undefined : nearest(pattern, names);
      const told = other
        ? `it is a ${other.constructor.name}; "${pattern}.**" stands for the layers inside`
        : guess !== undefined
          ? `did you mean "${guess}"?`
          : `there are ${list(names) || "none"}`;
      throw new ConfigError(`${subject}: "${pattern}" matches no linear layer; ${told}`);
    }
    for (const hit of hits) chosen.add(hit);
  }
  return layers.filter((layer) => chosen.has(layer));
}

/**
 * Puts low-rank adapters (LoRA, https://arxiv.org/abs/2106.09685) on linear layers and freezes all other parameters:
 * y = x Wᵀ + b + alpha / rank · (x Aᵀ) Bᵀ with A [rank, in] and B [out, rank], f32. B begins as zeros, so that outputs
 * are what they were. A and B are parameters named "LAYER.lora_A.weight" and "LAYER.lora_B.weight", each after the
 * layer's own; the names and the order of all others stay. Make optimizers afterwards.
 * @returns checkpoint names of the layers, in order
 * @throws ConfigError for a pattern that matches no linear layer or an impossible rank or alpha, EspalierError when the
 * model has adapters already; the model is then as it was
 */
export function addLora(model: Module, options: LoraOptions): string[] {
  checkOptions("addLora", options, ["pattern", "rank", "alpha", "key"]);
  const { pattern, rank, alpha = rank, key } = options;
  const patterns: readonly unknown[] = Array.isArray(pattern) ? pattern : [pattern];
  if (!patterns.length || !patterns.every((p): p is string => typeof p === "string" && p !== ""))
    throw new ConfigError(
      `addLora: pattern must be text or a list of texts: got ${shown(pattern)}; "blocks.*.attn.**" is one, "**" is every linear layer.`,
    );
  if (!key) throw new ConfigError("addLora: needs a key, which decides A: got none; Key.from(seed) makes one.");
  const layers = matching("addLora", model, patterns as string[]);
  attach("addLora", model, layers, { rank, alpha, key });
  return layers.map(({ name }) => name);
}

/** The layers of these names. @throws StateError naming those that the model lacks */
export function namedLinears(subject: string, model: Module, names: readonly string[]): NamedLinear[] {
  const layers = new Map(linearsOf(model).map((layer) => [layer.name, layer]));
  const unknown = names.filter((name) => !layers.has(name));
  if (unknown.length) {
    const told = unknown.map((name) => {
      const guess = nearest(name, layers.keys());
      return guess === undefined ? name : `${name} (did you mean ${guess}?)`;
    });
    throw new StateError(`${subject}: the model has no such linear layer: ${list(told)}.`, [], unknown, []);
  }
  const wanted = new Set(names);
  return [...layers.values()].filter(({ name }) => wanted.has(name));
}

/** Puts the adapters on that a model file tells of; their numbers are undefined until they are loaded. */
export function attachLora(model: Module, config: LoraConfig): void {
  attach("lora", model, namedLinears("lora", model, config.targets), config);
}

/**
 * Adds alpha / rank · B · A to the weights of the adapted layers, summed in f32 and rounded to the layer's dtype. Until
 * `unmergeLora` the model is a plain one: nothing is computed beside the layers, and its parameters, state dict and files
 * hold the merged weights and no adapters. Costs the memory of those weights once more, since the base weights are set
 * aside. Weights that are loaded meanwhile are lost when the base comes back.
 * @throws EspalierError without adapters, or when they are merged already
 */
export function mergeLora(model: Module): void {
  const layers = needAdapters("mergeLora", model);
  needUnmerged("mergeLora", model);
  for (const { linear } of layers) linear.mergeAdapter();
}

/**
 * Takes the adapters out of the weights again. The base weights come back from where they were set aside, bit for bit,
 * and the merged ones' memory is given back.
 * @throws EspalierError when no adapters are merged
 */
export function unmergeLora(model: Module): void {
  const layers = needAdapters("unmergeLora", model);
  if (!isMerged(model))
    throw new EspalierError("unmergeLora: the adapters are not merged; mergeLora merges them into the weights.");
  for (const { linear } of layers) linear.unmergeAdapter();
}

/**
 * Takes adapters off and gives their memory back; the parameters that adding them froze are trained again. Call it on
 * the module that they were added to, and make optimizers afterwards. By default the base is left, bit for bit.
 * @param options.keepMerged leave merged weights for good, and give the base weights' memory back
 * @throws EspalierError without adapters, or when those to be kept are not merged
 */
export function removeLora(model: Module, options: { keepMerged?: boolean } = {}): void {
  checkOptions("removeLora", options, ["keepMerged"]);
  const { keepMerged = false } = options;
  const layers = needAdapters("removeLora", model);
  const merged = isMerged(model);
  if (keepMerged && !merged)
    throw new EspalierError("removeLora: keepMerged: the adapters are not merged; call mergeLora first.");
  if (merged && !keepMerged) unmergeLora(model);
  for (const { linear, a, b } of layers) {
    linear.loraBase?.dispose();
    linear.loraBase = undefined;
    linear.setAdapter(undefined);
    a.dispose();
    b.dispose();
  }
  const names = new Set(frozen.get(model));
  for (const [name, p] of model.namedParameters()) if (names.has(name)) p.setRequiresGrad();
  frozen.delete(model);
}

/** The state dict of a model without its adapters: names and order of the plain model. */
export function baseState(model: Module): Record<string, Tensor> {
  const inner = new Set(adaptedOf(model).flatMap(({ a, b }) => [a.weight, b.weight]));
  return Object.fromEntries(Object.entries(model.stateDict()).filter(([, t]) => !inner.has(t)));
}

/**
 * Loads a plain checkpoint into a model with adapters, and leaves these as they are; see `Module.loadStateDict`.
 * @throws EspalierError while adapters are merged, StateError for names or shapes that do not fit
 */
export async function loadBase(model: Module, source: StateSource, options: LoadOptions = {}): Promise<LoadReport> {
  needUnmerged("loadBase", model);
  return loadTensors(model.engine, baseState(model), source, options);
}
