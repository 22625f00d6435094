import text from "../../shaders/anomaly.wgsl";
import { isFloat } from "../dtype.js";
import type { Engine } from "../engine.js";
import { EspalierError } from "../errors.js";
import { kernel } from "../kernel.js";
import { registry } from "../op.js";
import { type Shape, show } from "../shape.js";
import type { Tensor } from "../tensor.js";

/** The first op whose result held an infinite value or a NaN. */
export interface Finding {
  /** Name of the op, with " backward" where a gradient was. */
  op: string;
  module: string;
  shape: Shape;
  dtype: string;
  toString(): string;
}

const NONE = 0xffffffff;

/**
 * Looks at every result of every op, forward and backward, while it is on. One number on the GPU holds the first that
 * was not finite: nothing is read back until `check()`. Values do not change.
 */
export class Anomaly {
  private readonly first: Tensor;
  private made: Omit<Finding, "toString">[] = [];

  constructor(private readonly engine: Engine) {
    if (engine.anomalyHook) throw new EspalierError("anomaly: already on; stop() the other one first.");
    this.first = engine.tensor([NONE], [1], "u32").keep();
    engine.anomalyHook = (tensors, op) => this.look(tensors, op);
  }

  private look(tensors: readonly (Tensor | undefined)[], op: string): void {
    // A view shows values that were looked at when they were made.
    if (registry.get(op)?.view) return;
    for (const x of tensors) {
      if (!x || !isFloat(x.dtype) || !x.isContiguous || x.size === 0) continue;
      const number = this.made.length;
      this.made.push({ op, module: this.engine.modulePath, shape: x.shape, dtype: x.dtype });
      this.engine.launch(
        kernel("anomaly", text, "check", { T: x.dtype }),
        { x, first: this.first },
        { n: x.size, number },
        Math.ceil(x.size / 256),
      );
    }
  }

  /** The first op since the last check that made a value which is not finite, if any. Waits for the GPU. */
  async check(): Promise<Finding | undefined> {
    const [number] = await this.first.data();
    const found = this.made[number];
    this.made = [];
    this.engine.write(this.first, new Uint8Array(Uint32Array.of(NONE).buffer));
    if (!found) return undefined;
    return {
      ...found,
      toString: () =>
        `anomaly: first value that is not finite: made by ${found.op} ${show(found.shape)} ${found.dtype}${found.module ? `\n  in ${found.module}` : ""}`,
    };
  }

  /** Turns it off. */
  stop(): void {
    this.engine.anomalyHook = undefined;
    this.first.dispose();
  }
  [Symbol.dispose](): void {
    this.stop();
  }
}

/** Turns anomaly mode on: `const watch = inspect.anomaly(engine); …; console.log(`${await watch.check()}`); watch.stop()`. */
export const anomaly = (engine: Engine): Anomaly => new Anomaly(engine);
