import source from "../../shaders/gather.wgsl";
import { computeType } from "../dtype.js";
import type { Engine } from "../engine.js";
import { DTypeError, ShapeError } from "../errors.js";
import { kernel } from "../kernel.js";
import { op, sameDType } from "../op.js";
import { axis, type Shape, show, sizeOf } from "../shape.js";
import type { Tensor } from "../tensor.js";
import { slice } from "./slice.js";
import { reshape } from "./view.js";
import { launchElementwise } from "./walk.js";

const WG = 64;

/** Sizes of [outer, n, inner] around one axis. */
const around = (shape: Shape, dim: number) => ({
  outer: sizeOf(shape.slice(0, dim)),
  n: shape[dim],
  inner: sizeOf(shape.slice(dim + 1)),
});

function checkIndex(name: string, index: Tensor): void {
  if (index.dtype !== "i32" && index.dtype !== "u32")
    throw new DTypeError(`${name}: the index must be i32 or u32: got ${index.dtype}; convert it with to("i32").`);
}

/** Sizes of the index must be those of `shape`, but for the axis; smaller ones leave the rest of `shape` alone. */
function checkFit(name: string, what: string, shape: Shape, index: Tensor, dim: number): void {
  if (index.rank !== shape.length || index.shape.some((size, i) => i !== dim && size > shape[i]))
    throw new ShapeError(
      `${name}: the index does not fit ${what}: ${show(index.shape)} on ${show(shape)} along axis ${dim}; it needs as many axes, none but that one larger.`,
    );
}

/** Adds src into y, [outer, n, inner], at the places that the index names. */
function addAt(
  engine: Engine,
  y: Tensor,
  index: Tensor,
  src: Tensor,
  sizes: { n: number; m: number; inner: number },
  varies: boolean,
): void {
  const k = kernel("gather", source, "add", { T: y.dtype, C: computeType(y.dtype), I: index.dtype, WG });
  engine.launch(k, { src, index, y }, { count: src.size, ...sizes, varies: varies ? 1 : 0 }, Math.ceil(src.size / WG));
}

const gatherRun = op<"x" | "index", { dim: number }>({
  name: "gather",
  doc: "y[…, j, …] = x[…, index[…, j, …], …] along one axis",
  inputs: ["x", "index"],
  infer: ({ x, index }) => ({ shape: index.shape, dtype: x.dtype }),
  saves: (needs) => (needs.x ? ["index"] : []),
  forward: (c) => {
    const { x, index } = c.in;
    const { n, inner } = around(x.shape, c.attrs.dim);
    const k = kernel("gather", source, "pick", { T: x.dtype, C: computeType(x.dtype), I: index.dtype, WG });
    c.engine.launch(
      k,
      { x, index, y: c.out },
      { count: c.out.size, n, m: index.shape[c.attrs.dim], inner, varies: 1 },
      Math.ceil(c.out.size / WG),
    );
  },
  grad: { x: (c) => scatterAdd(c.engine.zeros(c.spec.x.shape, c.dy.dtype), c.attrs.dim, c.in.index, c.dy) },
});

/**
 * Picks along one axis by index, as torch.gather: y has the index's shape. An index outside the axis picks 0.
 * @param index i32 or u32 with as many axes as x
 */
export function gather(x: Tensor, dim: number, index: Tensor): Tensor {
  const at = axis("gather", x.shape, dim);
  checkIndex("gather", index);
  checkFit("gather", "x", x.shape, index, at);
  let part = x;
  // Where the index covers less of another axis, only that part of x is read.
  for (let d = 0; d < x.rank; d++)
    if (d !== at && index.shape[d] < x.shape[d]) part = slice(part, d, 0, index.shape[d]);
  return gatherRun({ x: part, index }, { dim: at })[0];
}

const scatterRun = op<"x" | "index" | "src", { dim: number }>({
  name: "scatterAdd",
  doc: "y = x, then y[…, index[…, j, …], …] += src[…, j, …] along one axis",
  inputs: ["x", "index", "src"],
  infer: ({ x, src }) => ({ shape: x.shape, dtype: sameDType("scatterAdd", x, src) }),
  saves: (needs) => (needs.src ? ["index"] : []),
  forward: (c) => {
    const { x, index, src } = c.in;
    launchElementwise(c.out, "x", ["x"], [x]);
    const { n, inner } = around(x.shape, c.attrs.dim);
    if (src.size) addAt(c.engine, c.out, index, src, { n, m: index.shape[c.attrs.dim], inner }, true);
  },
  grad: { x: (c) => c.dy, src: (c) => gather(c.dy, c.attrs.dim, c.in.index) },
});

/**
 * Adds src to x at the places that the index names along one axis, as torch.scatter_add, in a fixed order of sums. An
 * index outside the axis adds nothing. Index and src have one shape, which is x's but for the axis.
 */
export function scatterAdd(x: Tensor, dim: number, index: Tensor, src: Tensor): Tensor {
  const at = axis("scatterAdd", x.shape, dim);
  checkIndex("scatterAdd", index);
  if (show(index.shape) !== show(src.shape))
    throw new ShapeError(
      `scatterAdd: index and src must have one shape: got ${show(index.shape)} and ${show(src.shape)}.`,
    );
  if (index.rank !== x.rank || index.shape.some((size, i) => i !== at && size !== x.shape[i]))
    throw new ShapeError(
      `scatterAdd: src does not fit x: ${show(src.shape)} on ${show(x.shape)} along axis ${at}; all other sizes must be equal.`,
    );
  return scatterRun({ x, index, src }, { dim: at })[0];
}

const embeddingRun = op<"weight" | "index">({
  name: "embedding",
  doc: "y[…, :] = weight[index[…], :]",
  inputs: ["weight", "index"],
  infer: ({ weight, index }) => ({ shape: [...index.shape, weight.shape[1]], dtype: weight.dtype }),
  saves: (needs) => (needs.weight ? ["index"] : []),
  forward: (c) => {
    const { weight, index } = c.in;
    const [n, inner] = weight.shape;
    const k = kernel("gather", source, "pick", { T: weight.dtype, C: computeType(weight.dtype), I: index.dtype, WG });
    c.engine.launch(
      k,
      { x: weight, index, y: c.out },
      { count: c.out.size, n, m: index.size, inner, varies: 0 },
      Math.ceil(c.out.size / WG),
    );
  },
  grad: {
    weight: (c) => {
      const { shape, dtype } = c.spec.weight;
      const dw = c.engine.zeros(shape, dtype);
      const [n, inner] = shape;
      if (c.dy.size)
        addAt(
          c.engine,
          dw,
          c.in.index,
          reshape(c.dy, [c.in.index.size, inner]),
          { n, m: c.in.index.size, inner },
          false,
        );
      return dw;
    },
  },
});

/**
 * Rows of a table by index: weight [V, D] and index […] give […, D]. An index outside the table gives a row of zeros.
 * @param index i32 or u32
 */
export function embedding(weight: Tensor, index: Tensor): Tensor {
  checkIndex("embedding", index);
  if (weight.rank !== 2) throw new ShapeError(`embedding: the table must be [V, D]: got ${show(weight.shape)}.`);
  return embeddingRun({ weight, index }, {})[0];
}
