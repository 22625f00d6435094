import source from "../../shaders/rotary.wgsl";
import { checkOptions, ShapeError } from "../errors.js";
import { kernel } from "../kernel.js";
import { needFloat, op, sameDType } from "../op.js";
import { collapse, denseStrides, expandStrides, show } from "../shape.js";
import { strided, type Tensor } from "../tensor.js";

interface Attrs {
  interleaved: boolean;
}

const pad3 = (list: readonly number[], fill: number): number[] => [
  ...Array<number>(3 - list.length).fill(fill),
  ...list,
];

/** Records y = x turned by the angles of the tables; `back` turns the other way. y is dense. */
function launchRotary(y: Tensor, x: Tensor, cos: Tensor, sin: Tensor, interleaved: boolean, back: boolean): void {
  const { engine } = y;
  const half = x.shape.at(-1)! / 2;
  const outer = x.shape.slice(0, -1);
  const lead = (t: Tensor) => expandStrides(t.shape.slice(0, -1), t.strides.slice(0, -1), outer);
  const walk = collapse(outer, [lead(x), lead(cos), lead(sin), denseStrides(x.shape).slice(0, -1)]);
  if (walk.shape.length > 3) {
    const whole = (t: Tensor): Tensor => {
      const shape = [...outer, t.shape.at(-1)!];
      return engine.copy(t.view(shape, expandStrides(t.shape, t.strides, shape), t.offset, "expand"));
    };
    launchRotary(y, engine.dense(x), whole(cos), whole(sin), interleaved, back);
    return;
  }
  // Steps from pair to pair, and from the first to the second of a pair; a half table serves both.
  const last = (t: Tensor, dense = false): [number, number] => {
    const step = dense ? 1 : t.strides.at(-1)!;
    if (t.shape.at(-1) === half) return [step, 0];
    return interleaved ? [2 * step, step] : [step, half * step];
  };
  const steps = [last(x), last(cos), last(sin), last(y, true)];
  const stride = (k: number) => [...pad3(walk.strides[k], 0), steps[k][0]];
  const n = x.size / 2;
  engine.launch(
    kernel("rotary", source, "rotate", { T: x.dtype, BACK: `${back}` }),
    { x: strided(x), cosine: strided(cos), sine: strided(sin), y },
    {
      n,
      shape: [...pad3(walk.shape, 1), half],
      offset: [x.offset, cos.offset, sin.offset, 0],
      second: steps.map((s) => s[1]),
      stride_x: stride(0),
      stride_cos: stride(1),
      stride_sin: stride(2),
      stride_y: stride(3),
    },
    Math.ceil(n / 64),
  );
}

const run = op<"x" | "cos" | "sin", Attrs>({
  name: "rotary",
  doc: "(y1, y2) = (x1 cos - x2 sin, x2 cos + x1 sin) for each pair of columns",
  link: "https://arxiv.org/abs/2104.09864",
  inputs: ["x", "cos", "sin"],
  strided: ["x", "cos", "sin"],
  stridedGrad: true,
  infer: ({ x, cos, sin }) => {
    const dtype = sameDType("rotary", x, cos, sin);
    needFloat("rotary", x);
    const d = x.shape.at(-1) ?? 0;
    if (d === 0 || d % 2 !== 0)
      throw new ShapeError(`rotary: x needs an even number of columns: got ${show(x.shape)}.`);
    for (const [name, t] of [
      ["cos", cos],
      ["sin", sin],
    ] as const) {
      const skip = x.rank - t.rank;
      const fits = skip >= 0 && t.rank > 0 && t.shape.slice(0, -1).every((n, i) => n === 1 || n === x.shape[i + skip]);
      if (!fits || (t.shape.at(-1) !== d && t.shape.at(-1) !== d / 2))
        throw new ShapeError(
          `rotary: ${name} ${show(t.shape)} does not fit x ${show(x.shape)}; it needs ${d / 2} or ${d} columns, and other axes that broadcast to x's.`,
        );
    }
    return { shape: x.shape, dtype };
  },
  forward: (c) => launchRotary(c.out, c.in.x, c.in.cos, c.in.sin, c.attrs.interleaved, false),
  saves: ["cos", "sin"],
  grad: {
    x: (c) => {
      const dx = c.engine.empty(c.spec.x.shape, c.dy.dtype, "rotary backward");
      launchRotary(dx, c.dy, c.in.cos, c.in.sin, c.attrs.interleaved, true);
      return dx;
    },
  },
});

/**
 * Turns pairs of columns of x [..., N, D] by angles given as tables, for rotary position embeddings. Pairs are the
 * columns i and i + D/2, as in Llama, or with `interleaved` the columns 2i and 2i + 1, as in the paper.
 * @param cos [..., N, D/2], or D wide with a value for each column; other axes broadcast to x's. The tables are constants:
 *   they get no gradient
 * @throws ShapeError when D is odd or a table does not fit
 */
export function rotary(x: Tensor, cos: Tensor, sin: Tensor, options: { interleaved?: boolean } = {}): Tensor {
  checkOptions("rotary", options, ["interleaved"]);
  return run({ x, cos, sin }, { interleaved: options.interleaved ?? false })[0];
}
