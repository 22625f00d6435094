import {
  ConfigError,
  checkOptions,
  type Engine,
  EspalierError,
  Flat,
  globalNorm,
  launchAdamW,
  launchEma,
  type Tensor,
} from "../engine/index.js";
import { loadTensors, type StateSource } from "../model/state.js";

/** Parameters by name, as `Object.fromEntries(model.namedParameters())` has them, or a list (named "0", "1", …). */
export type Parameters = Readonly<Record<string, Tensor>> | readonly Tensor[];

/** AdamW's settings; the defaults are PyTorch's. */
export interface AdamWOptions {
  /** Rate; `step({ lr })` overrides it. Default 1e-3. */
  lr?: number;
  /** Decay of the averages of the gradient and of its square. Default [0.9, 0.999]. */
  betas?: readonly [number, number];
  /** Added to the root of the averaged square. Default 1e-8. */
  eps?: number;
  /** Decoupled decay: each step multiplies parameters by 1 - lr · weightDecay. Default 0.01. */
  weightDecay?: number;
}

/** Averages and their step count, for checkpoints: `saveTensors(engine, tensors)` writes the tensors. */
export interface OptimizerState {
  steps: number;
  /** Views of the live values, f32, by name; they belong to the optimizer. */
  tensors: Record<string, Tensor>;
}

interface Named {
  name: string;
  tensor: Tensor;
}

/** Trained parameters by name; throws for what an optimizer cannot take. */
function trained(subject: string, parameters: Parameters): { all: Named[]; list: Named[] } {
  const all = Object.entries(parameters).map(([name, tensor]) => ({ name, tensor }));
  const seen = new Map<Tensor, string>();
  for (const { name, tensor } of all) {
    tensor.check(subject);
    if (tensor.engine !== all[0].tensor.engine)
      throw new EspalierError(`${subject}: parameter "${name}" belongs to another engine.`);
    if (seen.has(tensor))
      throw new EspalierError(
        `${subject}: parameters "${seen.get(tensor)}" and "${name}" are one tensor; give it once.`,
      );
    seen.set(tensor, name);
    if (tensor.requiresGrad && !tensor.engine.tape.isLeaf(tensor))
      throw new EspalierError(
        `${subject}: "${name}" is no parameter but computed: ${tensor.describe()}; give the tensors it was made from.`,
      );
    if (tensor.requiresGrad && tensor.dtype !== "f32")
      throw new EspalierError(
        `${subject}: parameter "${name}" is ${tensor.dtype}; training needs f32 parameters: convert the model with to("f32").`,
      );
  }
  const list = all.filter(({ tensor }) => tensor.requiresGrad);
  if (!list.length)
    throw new EspalierError(
      `${subject}: no parameter requires a gradient: got ${all.length}; call setRequiresGrad() on what is to be trained.`,
    );
  return { all, list };
}

function within(subject: string, name: string, value: number, ok: boolean, rule: string): void {
  if (!ok) throw new ConfigError(`${subject}: ${name} must be ${rule}: got ${value}.`);
}

const rate = (subject: string, lr: number) =>
  within(subject, "lr", lr, Number.isFinite(lr) && lr >= 0, "a finite number from 0 up");

/** The rest of EMA and AdamW that agree: flat parameters that must stay where they are. */
function checkHomes(subject: string, flat: Flat, list: readonly Named[]): void {
  for (const [i, { name, tensor }] of list.entries()) {
    tensor.check(subject);
    if (!flat.holds(tensor, i))
      throw new EspalierError(
        `${subject}: parameter "${name}" lies elsewhere now: EMA weights are swapped in (swap them back), or another optimizer took it (make this one anew).`,
      );
  }
}

/**
 * AdamW: Adam with decoupled weight decay and bias correction (https://arxiv.org/abs/1711.05101). All parameters move
 * into a few flat buffers, and stay the same tensors: one launch per buffer does the step. A parameter without a
 * gradient is left as it is. Frozen ones (`requiresGrad` false) take no part and no memory.
 */
export class AdamW {
  readonly engine: Engine;
  /** Names of the parameters that it trains. */
  readonly names: readonly string[];
  /** Steps taken so far. */
  steps = 0;
  private readonly list: Named[];
  private readonly frozen: Named[];
  private readonly options: Required<AdamWOptions>;
  private readonly parameters: Flat;
  private readonly gradients: Flat;
  private readonly mean: Flat;
  private readonly square: Flat;
  private readonly views: Record<string, Tensor> = {};

  constructor(parameters: Parameters, options: AdamWOptions = {}) {
    checkOptions("adamw", options, ["lr", "betas", "eps", "weightDecay"]);
    const { lr = 1e-3, betas = [0.9, 0.999], eps = 1e-8, weightDecay = 0.01 } = options;
    rate("adamw", lr);
    for (const [i, beta] of betas.entries()) within("adamw", `betas[${i}]`, beta, beta >= 0 && beta < 1, "in [0, 1)");
    within("adamw", "eps", eps, eps > 0 && Number.isFinite(eps), "a finite number above 0");
    within(
      "adamw",
      "weightDecay",
      weightDecay,
      weightDecay >= 0 && Number.isFinite(weightDecay),
      "a finite number from 0 up",
    );
    this.options = { lr, betas, eps, weightDecay };
    const { all, list } = trained("adamw", parameters);
    this.list = list;
    this.frozen = all.filter((p) => !list.includes(p));
    this.names = list.map(({ name }) => name);
    this.engine = list[0].tensor.engine;
    this.parameters = Flat.over(
      list.map(({ tensor }) => tensor),
      "adamw",
    );
    this.gradients = this.parameters.like("gradients", "gradients");
    this.mean = this.parameters.like("optimizer", "adamw mean");
    this.square = this.parameters.like("optimizer", "adamw square");
    list.forEach(({ name, tensor }, i) => {
      tensor.gradPlace = this.gradients.view(i, tensor.shape, "gradient");
      this.views[`exp_avg.${name}`] = this.mean.view(i, tensor.shape, "adamw");
      this.views[`exp_avg_sq.${name}`] = this.square.view(i, tensor.shape, "adamw");
    });
  }

  /** Brings gradients that lie elsewhere into their places, and clears the places of parameters without one. */
  private gather(): (i: number) => boolean {
    let found = 0;
    const { queue } = this.engine;
    const has = this.list.map(({ tensor }, i) => {
      const { grad, gradPlace: place } = tensor;
      if (grad && place) {
        found++;
        if (grad.storage === place.storage && grad.offset === place.offset) return true;
        if (!grad.isContiguous) this.engine.addTo(place, grad, true);
        else if (grad.size) {
          const range = ({ storage, offset, size }: Tensor) => ({ storage, offset: 4 * offset, size: 4 * size });
          queue.copy(range(grad), range(place), 4 * grad.size);
        }
        return true;
      }
      const { chunk, offset, size } = this.gradients.slots[i];
      const { storage } = this.gradients.chunks[chunk];
      if (size) queue.clear({ storage, offset: 4 * offset, size: 4 * size });
      return false;
    });
    if (!found) throw new EspalierError("adamw: no parameter has a gradient; call backward() before step().");
    return (i) => has[i];
  }

  /**
   * One step. Records launches and reads nothing back.
   * @param options.lr the rate of this step
   * @param options.clip largest global norm of the gradient: it is scaled by min(1, clip / (norm + 1e-6)); 0 clips nothing
   * @returns the norm before clipping, f32 []. When it is not finite, parameters and averages are left as they were.
   */
  step(options: { lr?: number; clip?: number } = {}): { norm: Tensor } {
    checkOptions("adamw.step", options, ["lr", "clip"]);
    const { lr = this.options.lr, clip = 0 } = options;
    rate("adamw.step", lr);
    within(
      "adamw.step",
      "clip",
      clip,
      clip >= 0 && Number.isFinite(clip),
      "a finite number from 0 up (0 clips nothing)",
    );
    checkHomes("adamw.step", this.parameters, this.list);
    for (const { name, tensor } of this.frozen)
      if (tensor.requiresGrad)
        throw new EspalierError(
          `adamw.step: parameter "${name}" was frozen when the optimizer was made; make it anew to train it.`,
        );
    const has = this.gather();
    const norm = globalNorm(this.gradients.chunks);
    this.steps++;
    const { betas, eps, weightDecay } = this.options;
    for (const { chunk, first, count } of this.parameters.runs(has))
      launchAdamW(
        this.parameters.chunks[chunk],
        this.gradients.chunks[chunk],
        this.mean.chunks[chunk],
        this.square.chunks[chunk],
        norm,
        {
          first,
          count,
          lr,
          betas,
          eps,
          weightDecay,
          t: this.steps,
          clip,
        },
      );
    return { norm };
  }

  /** Drops all gradients. */
  zeroGrad(): void {
    for (const { tensor } of this.list) {
      tensor.grad?.dispose();
      tensor.grad = undefined;
    }
  }

  /** The averages as `exp_avg.NAME` and `exp_avg_sq.NAME`, PyTorch's words, and the step count. */
  state(): OptimizerState {
    return { steps: this.steps, tensors: { ...this.views } };
  }

  /**
   * Takes up a state again.
   * @param source an open safetensors file, or tensors by name; every name of `state()` must be there, in its shape
   * @throws StateError naming what does not fit, before anything is overwritten
   */
  async load(steps: number, source: StateSource, prefix = ""): Promise<void> {
    within("adamw.load", "steps", steps, Number.isSafeInteger(steps) && steps >= 0, "a whole number from 0 up");
    await loadTensors(this.engine, this.views, source, { prefix });
    this.steps = steps;
  }

  /** Gives averages and gradients back. Parameters keep their values. */
  dispose(): void {
    for (const { tensor } of this.list) {
      if (!tensor.isDisposed) {
        tensor.grad?.dispose();
        tensor.grad = undefined;
      }
      tensor.gradPlace?.dispose();
      tensor.gradPlace = undefined;
    }
    for (const t of Object.values(this.views)) t.dispose();
    for (const flat of [this.parameters, this.gradients, this.mean, this.square]) flat.release();
  }
  [Symbol.dispose](): void {
    this.dispose();
  }
}

/** Settings of an average of weights. */
export interface EMAOptions {
  /** Share of the average that one update keeps. Default 0.9999. */
  decay?: number;
  /** Keep at most (1 + n) / (10 + n) in update n, counted from 0, so that the start is soon forgotten. Default false. */
  warmup?: boolean;
}

/**
 * An exponential moving average of trained parameters, in f32: average = decay · average + (1 - decay) · parameter,
 * one launch per flat buffer. It begins as an exact copy.
 */
export class EMA {
  readonly engine: Engine;
  /** The averages by parameter name. They belong to this object. */
  readonly params: Readonly<Record<string, Tensor>>;
  /** Updates so far. */
  updates = 0;
  private readonly list: Named[];
  private readonly options: Required<EMAOptions>;
  private readonly parameters: Flat;
  private readonly shadow: Flat;
  private inUse = false;

  /** @param parameters the same, in the same order, as the optimizer's: both then share the flat buffers. */
  constructor(parameters: Parameters, options: EMAOptions = {}) {
    checkOptions("ema", options, ["decay", "warmup"]);
    const { decay = 0.9999, warmup = false } = options;
    within("ema", "decay", decay, decay >= 0 && decay < 1, "in [0, 1)");
    this.options = { decay, warmup };
    this.list = trained("ema", parameters).list;
    this.engine = this.list[0].tensor.engine;
    this.parameters = Flat.over(
      this.list.map(({ tensor }) => tensor),
      "ema",
    );
    this.shadow = this.parameters.like("optimizer", "ema");
    this.shadow.copyFrom(this.parameters);
    this.params = Object.fromEntries(
      this.list.map(({ name, tensor }, i) => [name, this.shadow.view(i, tensor.shape, "ema")]),
    );
  }

  /** Takes in the parameters' values of now. Call it after each optimizer step. */
  update(): void {
    checkHomes("ema.update", this.parameters, this.list);
    const { decay, warmup } = this.options;
    const n = this.updates++;
    const keep = warmup ? Math.min(decay, (1 + n) / (10 + n)) : decay;
    for (const [k, shadow] of this.shadow.chunks.entries()) launchEma(shadow, this.parameters.chunks[k], keep);
  }

  /** True while the model computes with the averages. */
  get swapped(): boolean {
    return this.inUse;
  }

  /** Lets the model compute with the averages, or, called again, with its own weights. No number moves. */
  swap(): void {
    if (!this.inUse) checkHomes("ema.swap", this.parameters, this.list);
    this.inUse = !this.inUse;
    const to = this.inUse ? this.shadow : this.parameters;
    for (const { storage } of this.shadow.chunks) storage.owned.owner = this.inUse ? "parameters" : "optimizer";
    for (const [i, { tensor }] of this.list.entries())
      tensor.point(to.chunks[to.slots[i].chunk].storage, to.slots[i].offset);
  }

  /** Runs `f` while the model computes with the averages. */
  async use<T>(f: () => T | Promise<T>): Promise<T> {
    this.swap();
    try {
      return await f();
    } finally {
      this.swap();
    }
  }

  /** Update count and averages, for checkpoints. */
  state(): { updates: number; tensors: Readonly<Record<string, Tensor>> } {
    return { updates: this.updates, tensors: this.params };
  }

  /**
   * Takes up a state again.
   * @param source an open safetensors file, or tensors by name
   * @throws StateError naming what does not fit, before anything is overwritten
   */
  async load(updates: number, source: StateSource, prefix = ""): Promise<void> {
    within("ema.load", "updates", updates, Number.isSafeInteger(updates) && updates >= 0, "a whole number from 0 up");
    await loadTensors(this.engine, this.params, source, { prefix });
    this.updates = updates;
  }

  /** Gives the averages back; the model has its own weights again. */
  dispose(): void {
    if (this.inUse && this.list.every(({ tensor }) => !tensor.isDisposed)) this.swap();
    for (const t of Object.values(this.params)) t.dispose();
    this.shadow.release();
    this.parameters.release();
  }
  [Symbol.dispose](): void {
    this.dispose();
  }
}
