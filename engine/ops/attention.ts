import { isFloat } from "../dtype.js";
import { ConfigError, checkOptions, DTypeError, nearest, ShapeError } from "../errors.js";
import { type Backward, needFloat, op, sameDType } from "../op.js";
import { broadcast, denseStrides, type Shape, sameShape, show, sizeOf } from "../shape.js";
import type { Tensor } from "../tensor.js";
import {
  type Attention,
  type AttentionVariant,
  attentionVariants,
  type Gradients,
  launchAttention,
  launchGradients,
  launchMaskGradient,
} from "./attend.js";
import { to } from "./elementwise.js";
import { permute } from "./view.js";

export type { AttentionVariant } from "./attend.js";

const NAME = "scaledDotProductAttention";
type Name = "q" | "k" | "v" | "mask";

interface Attrs {
  lead: Shape;
  /** The output's axes in the order in which it lies in memory. */
  order: readonly number[];
  causal: boolean;
  scale: number;
  variant?: AttentionVariant;
}

const inverse = (order: readonly number[]): number[] => order.map((_, i) => order.indexOf(i));
/** A view with x's axis order[i] as its axis i. */
const reordered = (x: Tensor, order: readonly number[]): Tensor =>
  x.view(
    order.map((d) => x.shape[d]),
    order.map((d) => x.strides[d]),
    x.offset,
    NAME,
  );

/** Axes from the farthest apart in memory to the nearest, the last one last; repeated axes say nothing: row-major. */
function memoryOrder(t: Tensor): number[] {
  const axes = t.shape.map((_, i) => i);
  if (t.strides.some((s, i) => s === 0 && t.shape[i] > 1)) return axes;
  return [...axes.slice(0, -1).sort((a, b) => t.strides[b] - t.strides[a] || a - b), axes.length - 1];
}

/** Elements between gradients in one buffer: each may then be bound on its own. */
const aligned = (size: number): number => Math.ceil(size / 128) * 128;

/**
 * True when the tensors are equal parts of one dense whole, as queries, keys and values of one projection are. Then
 * views of the same strides over another buffer cover it without gaps and without overlaps.
 */
function arePieces(parts: readonly Tensor[]): boolean {
  const [{ shape, strides, storage }] = parts;
  const offsets = parts.map((t) => t.offset).sort((a, b) => a - b);
  const step = offsets[1] - offsets[0];
  if (parts.some((t) => t.storage !== storage || !sameShape(t.shape, shape) || !sameShape(t.strides, strides)))
    return false;
  if (offsets.some((o, i) => o !== offsets[0] + i * step)) return false;
  const axes = [...shape.map((n, i) => [n, strides[i]]), [parts.length, step]]
    .filter(([n]) => n > 1)
    .sort((a, b) => a[1] - b[1]);
  let size = 1;
  return axes.every(([n, stride]) => {
    const fits = stride === size;
    size *= n;
    return fits;
  });
}

/**
 * Tensors for the gradients of `parts`, in one buffer. Pieces of one whole get the same pieces of another, which `split`
 * hands on as it is; others lie one behind the other, each in the memory order of its part.
 */
function gradientsOf(parts: readonly Tensor[], lead: Shape): Tensor[] {
  const [{ engine, dtype }] = parts;
  const shapes = parts.map((t) => [...lead, ...t.shape.slice(-3)]);
  const places: { strides: readonly number[]; offset: number }[] = [];
  let size = 0;
  for (let i = 0; i < parts.length; ) {
    // All that are left, or this one and the next, or this one alone.
    const count =
      [parts.length - i, 2].find(
        (n) =>
          n > 1 &&
          i + n <= parts.length &&
          parts.slice(i, i + n).every((t, k) => sameShape(t.shape, shapes[i + k])) &&
          arePieces(parts.slice(i, i + n)),
      ) ?? 1;
    const some = parts.slice(i, i + count);
    if (count > 1) {
      const first = Math.min(...some.map((t) => t.offset));
      for (const t of some) places.push({ strides: t.strides, offset: size + t.offset - first });
    } else {
      const order =
        some[0].rank === shapes[i].length && some[0].rank <= 6 ? memoryOrder(some[0]) : shapes[i].map((_, d) => d);
      const dense = denseStrides(order.map((d) => shapes[i][d]));
      places.push({ strides: inverse(order).map((d) => dense[d]), offset: size });
    }
    size += aligned(some.reduce((n, _, k) => n + sizeOf(shapes[i + k]), 0));
    i += count;
  }
  const buffer = engine.empty([size], dtype, `${NAME} backward`);
  return places.map(({ strides, offset }, i) => buffer.view(shapes[i], strides, offset, `${NAME} backward`));
}

const operands = (c: Backward<Name, Attrs>): Attention => ({
  ...c.attrs,
  q: c.in.q,
  k: c.in.k,
  v: c.in.v,
  mask: c.spec.mask && c.in.mask,
});
const natural = (c: Backward<Name, Attrs>, t: Tensor): Tensor => reordered(t, inverse(c.attrs.order));
/** dq, dk and dv, the latter two only where they are wanted; what is launched also completes the row statistics. */
const gradients = (c: Backward<Name, Attrs>): Gradients =>
  c.once("gradients", () => {
    const [dq, dk, dv] = gradientsOf([c.in.q, c.in.k, c.in.v], c.attrs.lead);
    const to = { dq, dk, dv };
    launchGradients(operands(c), natural(c, c.out), natural(c, c.dy), c.saved.stats, to, c.needs.k || c.needs.v);
    return to;
  });

const run = op<Name, Attrs>({
  name: NAME,
  doc: "y = softmax(scale · q kᵀ + mask) v for each head, without the matrix of scores in memory",
  link: "https://arxiv.org/abs/2205.14135",
  inputs: ["q", "k", "v", "mask"],
  optional: ["mask"],
  strided: ["q", "k", "v", "mask"],
  stridedGrad: true,
  infer: ({ q, v }, { lead, order }) => {
    const shape = [...lead, ...q.shape.slice(-3, -1), v.shape.at(-1)!];
    return { shape: order.map((d) => shape[d]), dtype: q.dtype };
  },
  forward: (c) => {
    const { q, k, v, mask } = c.in;
    const stats = c.engine.empty([...c.attrs.lead, ...q.shape.slice(-3, -1), 2], "f32", NAME);
    launchAttention({ ...c.attrs, q, k, v, mask }, reordered(c.out, inverse(c.attrs.order)), stats);
    if (c.recording) c.save("stats", stats);
  },
  saves: ["q", "k", "v", "mask", "out"],
  grad: {
    q: (c) => gradients(c).dq,
    k: (c) => gradients(c).dk,
    v: (c) => gradients(c).dv,
    mask: (c) => {
      gradients(c);
      const dmask = c.engine.empty(
        [...c.attrs.lead, ...c.in.q.shape.slice(-3, -1), c.in.k.shape.at(-2)!],
        "f32",
        `${NAME} backward`,
      );
      launchMaskGradient(operands(c), natural(c, c.dy), c.saved.stats, dmask);
      return to(dmask, c.spec.mask.dtype);
    },
  },
});

/** Options of `scaledDotProductAttention`. */
export interface AttentionOptions {
  /**
   * Broadcasts to [..., H, N, L]. i32 or u32: 0 hides a key. f32 or f16: added to the scores, and -3e38 or less hides a
   * key; an added mask has a gradient.
   */
  mask?: Tensor;
  /** Row i sees keys 0 to i only, also where N and L differ. */
  causal?: boolean;
  /** Default D^(-1/2). */
  scale?: number;
  /** The kernels to use. Default: chosen by the adapter. */
  variant?: AttentionVariant;
}

function check(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | undefined): Shape {
  needFloat(NAME, q);
  sameDType(NAME, q, k, v);
  const shapes = `q ${show(q.shape)} · k ${show(k.shape)} · v ${show(v.shape)}`;
  for (const t of [q, k, v])
    if (t.rank < 3) throw new ShapeError(`${NAME}: operands need axes [..., heads, rows, columns]: got ${shapes}.`);
  if (q.shape.at(-1) !== k.shape.at(-1) || q.shape.at(-1) === 0)
    throw new ShapeError(
      `${NAME}: q and k differ in their columns: ${shapes}; their last axes must be equal and not 0.`,
    );
  if (k.shape.at(-2) !== v.shape.at(-2))
    throw new ShapeError(`${NAME}: k and v differ in their rows: ${shapes}; there must be one value for each key.`);
  const [h, shared] = [q.shape.at(-3)!, k.shape.at(-3)!];
  if (v.shape.at(-3) !== shared || shared === 0 || h % shared !== 0)
    throw new ShapeError(
      `${NAME}: heads do not fit: ${shapes}; k and v need the same number, and it must divide q's (${h}).`,
    );
  const lead = broadcast(NAME, q.shape.slice(0, -3), k.shape.slice(0, -3), v.shape.slice(0, -3));
  if (mask) {
    const target = [...lead, h, q.shape.at(-2)!, k.shape.at(-2)!];
    const skip = target.length - mask.rank;
    if (skip < 0 || mask.shape.some((n, i) => n !== 1 && n !== target[i + skip]))
      throw new ShapeError(`${NAME}: the mask ${show(mask.shape)} does not broadcast to ${show(target)} (${shapes}).`);
    if (mask.requiresGrad && !isFloat(mask.dtype))
      throw new DTypeError(`${NAME}: a mask of ${mask.dtype} has no gradient; use f32, which is added.`);
  }
  return lead;
}

/**
 * softmax(scale · q kᵀ + mask) v for each head: q [..., H, N, D], k [..., Hkv, L, D], v [..., Hkv, L, E] give
 * [..., H, N, E]. Leading axes broadcast; Hkv divides H, and each head of k and v serves H / Hkv neighbouring heads of q.
 * Sums are kept in f32 and no N x L matrix is stored, forward or backward. A row whose keys are all hidden gives 0, and
 * passes no gradient back.
 *
 * Views are read in place as long as the last axis is dense. The result lies in memory in the order of q's axes: for a q
 * that is a permuted [B, N, H, D], permuting the result back to [B, N, H, E] and reshaping it to [B, N, H · E] moves
 * nothing. The same holds for the gradients of q, k and v, and those of three pieces of one tensor, as `chunk` cuts
 * them, come back as pieces of one tensor: joining them moves nothing.
 * @throws ShapeError when sizes do not fit; DTypeError when dtypes differ
 */
export function scaledDotProductAttention(q: Tensor, k: Tensor, v: Tensor, options: AttentionOptions = {}): Tensor {
  checkOptions(NAME, options, ["mask", "causal", "scale", "variant"]);
  const { mask, causal = false, scale, variant } = options;
  if (variant !== undefined && !attentionVariants.includes(variant)) {
    const guess = nearest(variant, attentionVariants);
    throw new ConfigError(
      `${NAME}: unknown variant "${variant}"${guess ? `; did you mean "${guess}"?` : ";"} (${attentionVariants.join(", ")})`,
    );
  }
  const lead = check(q, k, v, mask);
  const rank = lead.length + 3;
  // Beyond three leading axes the kernels need them in an order that can be merged.
  const order = q.rank === rank && rank <= 6 ? memoryOrder(q) : Array.from({ length: rank }, (_, i) => i);
  // A mask of lower rank gets the missing axes, so that it can be walked like the others.
  const full = mask && (mask.rank < 3 ? mask.reshape([...Array<number>(3 - mask.rank).fill(1), ...mask.shape]) : mask);
  const y = run({ q, k, v, mask: full }, { lead, order, causal, scale: scale ?? q.shape.at(-1)! ** -0.5, variant })[0];
  return order.every((d, i) => d === i) ? y : permute(y, inverse(order));
}
