import source from "../../shaders/loss.wgsl";
import { isFloat } from "../dtype.js";
import { checkOptions, DTypeError, EspalierError, ShapeError } from "../errors.js";
import { kernel } from "../kernel.js";
import { needFloat, op, sameDType } from "../op.js";
import { sameShape, show } from "../shape.js";
import type { Tensor } from "../tensor.js";
import { launchReduce } from "./reduction.js";
import { launchElementwise } from "./walk.js";

const mseRun = op<"x" | "target">({
  name: "mse",
  doc: "y = mean((x - target)²)",
  inputs: ["x", "target"],
  strided: ["x", "target"],
  infer: ({ x, target }) => {
    const dtype = sameDType("mse", x, target);
    needFloat("mse", x);
    if (!sameShape(x.shape, target.shape))
      throw new ShapeError(
        `mse: shapes differ: x ${show(x.shape)} · target ${show(target.shape)}; they must be equal, nothing is broadcast.`,
      );
    if (x.size === 0) throw new ShapeError(`mse: ${show(x.shape)} holds no values; a mean needs at least one.`);
    return { shape: [], dtype };
  },
  forward: (c) => {
    const { x, target } = c.in;
    const squares = c.engine.empty(x.shape, "f32", "mse");
    launchElementwise(squares, "(x - t) * (x - t)", ["x", "t"], [x, target]);
    launchReduce(squares, c.out, { outer: 1, reduced: x.size, inner: 1 }, "sum", 1 / x.size);
    squares.dispose();
  },
  saves: ["x", "target"],
  grad: Object.fromEntries(
    (["x", "target"] as const).map((of) => [
      of,
      (c) => {
        const { x, target } = c.in;
        const dx = c.engine.empty(x.shape, x.dtype, "mse backward");
        launchElementwise(
          dx,
          "dy * K0 * (x - t)",
          ["dy", "x", "t"],
          [c.dy, x, target],
          [(of === "x" ? 2 : -2) / x.size],
        );
        return dx;
      },
    ]),
  ),
});

interface Ignoring {
  ignored?: number;
}
const settings = (x: Tensor, target: Tensor, { ignored }: Ignoring) => ({
  T: x.dtype,
  I: target.dtype,
  HAS_IGNORED: ignored === undefined ? 0 : 1,
});

const crossEntropyRun = op<"x" | "target", Ignoring>({
  name: "crossEntropy",
  doc: "y = mean over rows of ln Σ e^x - x[target]",
  inputs: ["x", "target"],
  infer: ({ x, target }) => {
    needFloat("crossEntropy", x);
    if (isFloat(target.dtype))
      throw new DTypeError(
        `crossEntropy: labels must be i32 or u32: got ${target.dtype}; convert them with to("i32").`,
      );
    if (x.rank !== 2 || !sameShape(target.shape, [x.shape[0]]) || x.size === 0)
      throw new ShapeError(
        `crossEntropy: needs logits [N, C] and labels [N]: got ${show(x.shape)} · ${show(target.shape)}; reshape them.`,
      );
    return { shape: [], dtype: x.dtype };
  },
  forward: (c) => {
    const { x, target } = c.in;
    const [rows, classes] = x.shape;
    const losses = c.engine.empty([rows, 2], "f32", "crossEntropy");
    const norms = c.engine.empty([rows, 2], "f32", "crossEntropy");
    const totals = c.engine.empty([2], "f32", "crossEntropy");
    const params = { rows, classes, ignored: c.attrs.ignored ?? 0 };
    c.engine.launch(
      kernel("loss", source, "rows", settings(x, target, c.attrs)),
      { x, labels: target, losses, norms },
      params,
      Math.ceil(rows / 64),
    );
    launchReduce(losses, totals, { outer: 1, reduced: rows, inner: 2 }, "sum");
    const [total, count] = [totals.view([], [], 0, "crossEntropy"), totals.view([], [], 1, "crossEntropy")];
    launchElementwise(c.out, "t / n", ["t", "n"], [total, count]);
    if (!c.recording) return;
    const counted = c.engine.empty([], "f32", "crossEntropy");
    launchElementwise(counted, "n", ["n"], [count]);
    c.save("norms", norms);
    c.save("counted", counted);
  },
  saves: ["x", "target"],
  grad: {
    x: (c) => {
      const { x, target } = c.in;
      const [rows, classes] = x.shape;
      const dx = c.engine.empty(x.shape, x.dtype, "crossEntropy backward");
      c.engine.launch(
        kernel("loss", source, "rows_dx", settings(x, target, c.attrs)),
        { x, labels: target, known: c.saved.norms, dy: c.dy, counted: c.saved.counted, dx },
        { rows, classes, ignored: c.attrs.ignored ?? 0 },
        Math.ceil(rows / 64),
      );
      return dx;
    },
  },
});

/** Mean squared difference of two tensors of one shape. */
export function mse(x: Tensor, target: Tensor): Tensor {
  return mseRun({ x, target }, {})[0];
}

/**
 * Mean cross entropy of logits [N, C] against labels [N] (i32 or u32). Rows with the label `ignoreIndex` are left out
 * of the mean; when none is left the loss is NaN. A label outside 0 … C-1 makes the loss NaN.
 */
export function crossEntropy(logits: Tensor, target: Tensor, options: { ignoreIndex?: number } = {}): Tensor {
  checkOptions("crossEntropy", options, ["ignoreIndex"]);
  const { ignoreIndex: ignored } = options;
  if (ignored !== undefined && !Number.isInteger(ignored))
    throw new EspalierError(`crossEntropy: ignoreIndex must be a whole number: got ${ignored}.`);
  return crossEntropyRun({ x: logits, target }, { ignored })[0];
}
