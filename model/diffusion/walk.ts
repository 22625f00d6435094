import { AbortedError, slice, type Tensor } from "../../engine/index.js";

/** A model as samplers use it. */
export interface Predict {
  /** The output for a noisy latent at a time of the 0 … 999 scale. */
  (x: Tensor, timestep: number): Tensor;
  /** Gives back what it keeps between calls. A sampler calls it at its end; a later call of the predictor makes it anew. */
  dispose?(): void;
}

/**
 * One step of a sampler. `x0` and `eps` (what the model believes is data and noise) are freed when the next step begins,
 * `x` when it is done, and everything when the loop is left early. After the last step `x` is the caller's to dispose.
 * Copy what must live longer; `keep()` does not help.
 */
export interface Step {
  /** From 0. */
  i: number;
  steps: number;
  /** The time at which the model was asked, on the 0 … 999 scale. */
  t: number;
  /** The latent after this step, [B, C, T, H, W]. */
  x: Tensor;
  x0: Tensor;
  eps: Tensor;
}

type Values = Pick<Step, "x" | "x0" | "eps">;

/** A number of a formula: on the host, or [1] on the GPU, where one compiled formula serves all its values. */
export type Factor = number | Tensor;

/** A part of a sampler's step, compiled: the same formula in every step, with that step's numbers. */
type Formula<A extends readonly unknown[], R> = (numbers: readonly number[], ...inputs: A) => R;

/** The memory and the interruptions of a sampler's loop, so that samplers hold nothing but their formulas. */
export class Walk {
  private last: Step | undefined;
  private i = 0;
  private readonly compiled: { dispose(): void }[] = [];

  constructor(
    private readonly name: string,
    private readonly start: Tensor,
    private readonly steps: number,
    private readonly signal: AbortSignal | undefined,
    private readonly predict: Predict,
  ) {
    start.check(name);
  }

  /**
   * Compiles a formula of the sampler's own. What changes from step to step must come as numbers, or as inputs.
   * @param f gets the numbers as factors, [1] each, and the inputs
   */
  formula<A extends readonly unknown[], R extends Partial<Values>>(
    f: (numbers: readonly Tensor[], ...inputs: A) => R,
  ): Formula<A, R> {
    const { engine } = this.start;
    const step = engine.compile(
      (all: Tensor, ...inputs: A) =>
        f(
          Array.from({ length: all.size }, (_, k) => slice(all, 0, k, k + 1)),
          ...inputs,
        ) as any,
    );
    this.compiled.push(step);
    return (numbers, ...inputs) => step(engine.tensor(Float32Array.from(numbers)), ...inputs);
  }

  /**
   * Runs one step: `f` gets the present latent and the step before, and everything it makes but its result is freed.
   * Waits for the GPU, so that progress is real and an abort takes effect within one step.
   * @throws AbortedError when the signal says so
   */
  async step(t: number, f: (x: Tensor, before: Step | undefined) => Values): Promise<Step> {
    const { engine } = this.start;
    try {
      if (this.signal?.aborted)
        throw new AbortedError(
          `${this.name}: stopped before step ${this.i + 1} of ${this.steps}: ${this.signal.reason ?? "the signal was aborted"}.`,
        );
      const values = engine.noGrad(() => engine.scope(() => f(this.last?.x ?? this.start, this.last) as any)) as Values;
      this.free(true);
      this.last = { i: this.i++, steps: this.steps, t, ...values };
      await engine.finish();
      return this.last;
    } catch (error) {
      this.free(true);
      throw error;
    }
  }

  private free(latent: boolean): void {
    for (const t of [this.last?.x0, this.last?.eps, latent ? this.last?.x : undefined])
      if (t && t !== this.start) t.dispose();
    if (latent) this.last = undefined;
  }

  /**
   * Call when the loop is left in whatever way: the latent stays only when the last step was done. What was compiled for
   * the loop goes.
   */
  end(): void {
    this.predict.dispose?.();
    for (const step of this.compiled.splice(0)) step.dispose();
    this.free(this.i < this.steps);
    this.last = undefined;
  }
}

/** Runs a sampler to its end and returns the last latent, which is the caller's to dispose. */
export async function finalLatent(sampler: AsyncIterable<Step>): Promise<Tensor> {
  let x: Tensor | undefined;
  for await (const step of sampler) x = step.x;
  return x!;
}
