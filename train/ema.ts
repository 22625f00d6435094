import { checkOptions, type Engine, Flat, launchEma, type Tensor } from "../engine/index.js";
import { loadTensors, type StateSource } from "../model/state.js";
import { checkHomes, type Named, oncePerCall, type Parameters, trained, within } from "./trained.js";

/** Settings of an average of weights. */
export interface EMAOptions {
  /** Share of the average that one update keeps. Default 0.9999; 0 keeps no copy: the average is the weights. */
  decay?: number;
  /** Keep at most (1 + n) / (10 + n) in update n, counted from 0, so that the start is soon forgotten. Default false. */
  warmup?: boolean;
}

/**
 * An exponential moving average of trained parameters, in f32: average = decay · average + (1 - decay) · parameter,
 * one launch per flat buffer. It begins as an exact copy. With a decay of 0 it is the parameters, and takes no memory.
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
  /** f32 [2]: what an update keeps and what it takes. Written before each: it changes while warming up. */
  private readonly shares: Tensor;
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
    const tensors = this.list.map(({ tensor }) => tensor);
    this.shadow = decay === 0 ? Flat.over(tensors, "ema") : this.parameters.like("optimizer", "ema");
    if (this.isCopy) this.shadow.copyFrom(this.parameters);
    this.shares = this.engine.empty([2], "f32", "ema shares", "optimizer").keep();
    this.params = Object.fromEntries(
      this.list.map(({ name, tensor }, i) => [name, this.shadow.view(i, tensor.shape, "ema")]),
    );
  }

  private get isCopy(): boolean {
    return this.shadow !== this.parameters;
  }

  /** Takes in the parameters' values of now. Call it after each optimizer step; in a compiled function, once. */
  update(): void {
    checkHomes("ema.update", this.parameters, this.list);
    const { decay, warmup } = this.options;
    oncePerCall("ema.update", this.engine, this);
    this.engine.eachCall(() => {
      const n = this.updates++;
      const keep = warmup ? Math.min(decay, (1 + n) / (10 + n)) : decay;
      this.engine.write(this.shares, new Uint8Array(Float32Array.of(keep, 1 - keep).buffer));
    });
    if (!this.isCopy) return;
    for (const [k, shadow] of this.shadow.chunks.entries()) launchEma(shadow, this.parameters.chunks[k], this.shares);
  }

  /** True while the model computes with the averages. */
  get swapped(): boolean {
    return this.inUse;
  }

  /** Lets the model compute with the averages, or, called again, with its own weights. No number moves. */
  swap(): void {
    if (!this.inUse) checkHomes("ema.swap", this.parameters, this.list);
    this.inUse = !this.inUse;
    if (!this.isCopy) return;
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
    this.shares.dispose();
    this.shadow.release();
    this.parameters.release();
  }
  [Symbol.dispose](): void {
    this.dispose();
  }
}
