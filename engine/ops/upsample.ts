import source from "../../shaders/upsample.wgsl";
import { ShapeError } from "../errors.js";
import { kernel } from "../kernel.js";
import { needFloat, op } from "../op.js";
import { show } from "../shape.js";
import type { Tensor } from "../tensor.js";

const run = op<"x", { scale: number }>({
  name: "upsampleNearest",
  doc: "y[..., v, u] = x[..., v / scale, u / scale]",
  inputs: ["x"],
  infer: ({ x }, { scale }) => {
    needFloat("upsampleNearest", x);
    return { shape: [...x.shape.slice(0, -2), ...x.shape.slice(-2).map((n) => n * scale)], dtype: x.dtype };
  },
  forward: (c) => {
    const { x } = c.in;
    const k = kernel("upsample", source, "repeat", { T: x.dtype });
    c.engine.launch(
      k,
      { x, y: c.out },
      { n: x.size, width: x.shape.at(-1)!, scale: c.attrs.scale },
      Math.ceil(x.size / 64),
    );
  },
  grad: {
    x: (c) => {
      const { shape, dtype } = c.spec.x;
      const dx = c.engine.empty(shape, dtype, "upsampleNearest backward");
      const k = kernel("upsample", source, "gather", { T: dtype });
      c.engine.launch(
        k,
        { dy: c.dy, dx },
        { n: dx.size, width: shape.at(-1)!, scale: c.attrs.scale },
        Math.ceil(dx.size / 64),
      );
      return dx;
    },
  },
});

/**
 * Repeats every value of x [..., H, W] scale x scale times: [..., H · scale, W · scale].
 * @throws ShapeError when x has fewer than two axes or the scale is not a whole number from 1
 */
export function upsampleNearest(x: Tensor, scale: number): Tensor {
  if (!Number.isInteger(scale) || scale < 1)
    throw new ShapeError(`upsampleNearest: scale must be a whole number from 1: got ${scale}.`);
  if (x.rank < 2) throw new ShapeError(`upsampleNearest: x is ${show(x.shape)}; it needs at least two axes.`);
  return run({ x }, { scale })[0];
}
