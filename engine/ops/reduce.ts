import source from "../../shaders/reduce.wgsl";
import { computeType } from "../dtype.js";
import { kernel } from "../kernel.js";
import { op } from "../op.js";
import { axes, type Shape, sizeOf } from "../shape.js";
import type { Tensor } from "../tensor.js";
import { expand, reshape } from "./view.js";

const sumRun = op<"x", { dims: readonly number[] }>({
  name: "sum",
  doc: "y = Σ x over the given axes (kept with size 1)",
  inputs: ["x"],
  infer: ({ x }, { dims }) => ({ shape: x.shape.map((n, i) => (dims.includes(i) ? 1 : n)), dtype: x.dtype }),
  forward: (c) => {
    const { x } = c.in;
    let from = x;
    let shape = [...x.shape];
    // Runs of neighbouring axes are reduced one after another, from the last.
    const dims = [...c.attrs.dims];
    while (dims.length) {
      const end = dims.pop()!;
      let start = end;
      while (dims.at(-1) === start - 1) start = dims.pop()!;
      const [outer, reduced, inner] = [sizeOf(shape.slice(0, start)), sizeOf(shape.slice(start, end + 1)), sizeOf(shape.slice(end + 1))];
      shape = shape.map((n, i) => (i >= start && i <= end ? 1 : n));
      const to = dims.length ? c.engine.empty(shape, x.dtype, "sum") : c.out;
      const k = kernel("reduce", source, "sum", { T: x.dtype, C: computeType(x.dtype) });
      c.engine.launch(k, { x: from, y: to }, { outer, reduced, inner }, Math.ceil((outer * inner) / 64));
      from = to;
    }
  },
  stridedGrad: true,
  grad: { x: (c) => expand(c.dy, c.spec.x.shape) },
});

/** Sum over axes (all when left out). */
export function sum(x: Tensor, dims?: number | readonly number[], keepdim = false): Tensor {
  const list = axes("sum", x.shape, dims);
  const y = list.length ? sumRun({ x }, { dims: list })[0] : x;
  return keepdim ? y : reshape(y, x.shape.filter((_, i) => !list.includes(i)));
}

/** Undoes broadcasting: sums over the axes along which `shape` was repeated. */
export function sumTo(x: Tensor, shape: Shape): Tensor {
  const lead = x.rank - shape.length;
  const dims = x.shape.flatMap((n, i) => (i < lead || (shape[i - lead] === 1 && n !== 1) ? [i] : []));
  return reshape(sum(x, dims, true), shape);
}
