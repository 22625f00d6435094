import source from "../../shaders/random.wgsl";
import { type DType, isFloat } from "../dtype.js";
import type { Engine } from "../engine.js";
import { checkOptions, DTypeError, EspalierError } from "../errors.js";
import { kernel, type Params, type Settings } from "../kernel.js";
import { needFloat, op } from "../op.js";
import { Key } from "../random/key.js";
import { checkShape, type Shape, sizeOf } from "../shape.js";
import type { Tensor } from "../tensor.js";

const philox = "https://doi.org/10.1145/2063384.2063405";

interface Draw {
  engine: Engine;
  key: Key;
  shape: Shape;
  dtype: DType;
  /** Further uniform members of the entry point. */
  params: Params;
}

/** Blocks of four numbers, one an invocation. */
const groups = (n: number): number => Math.ceil(n / 256);

function needKey(subject: string, key: Key): void {
  if (!(key instanceof Key))
    throw new EspalierError(
      `${subject}: needs a key: got ${key === undefined ? "nothing" : typeof key}; take engine.key() or Key.from(seed), and split it.`,
    );
}

/** Defines an op that draws a tensor: it has no input, so its attributes name the engine. */
function source4(name: string, doc: string, entry: string, out: string) {
  const run = op<never, Draw>({
    name,
    doc,
    link: philox,
    inputs: [],
    infer: (_, { shape, dtype }) => ({ shape, dtype }),
    forward: (c) => {
      const n = sizeOf(c.attrs.shape);
      const settings: Settings = out === "y" ? { T: c.attrs.dtype } : {};
      c.engine.launch(
        kernel("random", source, entry, settings),
        { [out]: c.out },
        { n, key: c.attrs.key, ...c.attrs.params },
        groups(n),
      );
    },
  });
  return (engine: Engine, key: Key, shape: Shape, dtype: DType, params: Params): Tensor => {
    needKey(name, key);
    checkShape(name, shape);
    return run({}, { engine, key, shape, dtype, params })[0];
  };
}

const drawBits = source4("randomBits", "y = 32 random bits", "draw_bits", "y_bits");
const drawUniform = source4("uniform", "y ~ U[low, high)", "draw_uniform", "y");
const drawNormal = source4("normal", "y ~ N(mean, std²)", "draw_normal", "y");
const drawWhole = source4("randint", "y ~ whole numbers of [low, high)", "draw_whole", "y_whole");

function needReal(subject: string, values: Record<string, number>, dtype: DType): void {
  for (const [name, value] of Object.entries(values))
    if (!Number.isFinite(value)) throw new EspalierError(`${subject}: ${name} must be a finite number: got ${value}.`);
  if (!isFloat(dtype))
    throw new DTypeError(`${subject}: draws f32 or f16: got ${dtype}; draw f32 and convert it with to("${dtype}").`);
}

/** u32 [shape]: the words of Philox 4x32-10 under the key, in order. */
export function randomBits(engine: Engine, key: Key, shape: Shape): Tensor {
  return drawBits(engine, key, shape, "u32", {});
}

/** Numbers spread evenly over [low, high), default [0, 1), in steps of (high - low) / 2^24. */
export function uniform(
  engine: Engine,
  key: Key,
  shape: Shape,
  options: { low?: number; high?: number; dtype?: DType } = {},
): Tensor {
  checkOptions("uniform", options, ["low", "high", "dtype"]);
  const { low = 0, high = 1, dtype = "f32" } = options;
  needReal("uniform", { low, high }, dtype);
  if (low > high) throw new EspalierError(`uniform: low must not exceed high: got [${low}, ${high}).`);
  return drawUniform(engine, key, shape, dtype, { low, span: high - low });
}

/** Numbers of the normal distribution, default mean 0 and standard deviation 1; none lies further than 6.7 std away. */
export function normal(
  engine: Engine,
  key: Key,
  shape: Shape,
  options: { mean?: number; std?: number; dtype?: DType } = {},
): Tensor {
  checkOptions("normal", options, ["mean", "std", "dtype"]);
  const { mean = 0, std = 1, dtype = "f32" } = options;
  needReal("normal", { mean, std }, dtype);
  if (std < 0) throw new EspalierError(`normal: std must not be negative: got ${std}.`);
  return drawNormal(engine, key, shape, dtype, { low: mean, span: std });
}

/** i32 [shape]: whole numbers of [low, high), each as likely as the others within (high - low) / 2^32. */
export function randint(engine: Engine, key: Key, shape: Shape, low: number, high: number): Tensor {
  for (const [name, value, limit] of [
    ["low", low, 2 ** 31 - 1],
    ["high", high, 2 ** 31],
  ] as const)
    if (!Number.isInteger(value) || value < -(2 ** 31) || value > limit)
      throw new EspalierError(`randint: ${name} must be a whole number of 32 bits: got ${value}.`);
  if (low >= high || high - low >= 2 ** 32)
    throw new EspalierError(`randint: [${low}, ${high}) must hold 1 to 2^32 - 1 whole numbers.`);
  return drawWhole(engine, key, shape, "i32", { first: low, range: high - low });
}

interface Dropout {
  p: number;
  key: Key;
}

/** The mask is a function of the key, so backward draws it again instead of keeping it. */
function launchDropout(from: Tensor, to: Tensor, { p, key }: Dropout): void {
  const threshold = Math.min(2 ** 32 - 1, Math.round(p * 2 ** 32));
  const scale = p < 1 ? 1 / (1 - p) : 0;
  from.engine.launch(
    kernel("random", source, "dropout", { T: from.dtype }),
    { x: from, y: to },
    { n: from.size, key, threshold, scale },
    groups(from.size),
  );
}

const dropoutRun = op<"x", Dropout>({
  name: "dropout",
  doc: "y = 0 with probability p, else x / (1 - p)",
  link: "https://jmlr.org/papers/v15/srivastava14a.html",
  inputs: ["x"],
  infer: ({ x }) => {
    needFloat("dropout", x);
    return { shape: x.shape, dtype: x.dtype };
  },
  forward: (c) => launchDropout(c.in.x, c.out, c.attrs),
  grad: {
    x: (c) => {
      const dx = c.engine.empty(c.spec.x.shape, c.spec.x.dtype, "dropout backward");
      launchDropout(c.dy, dx, c.attrs);
      return dx;
    },
  },
});

/** Zeroes each value with probability p and divides the others by 1 - p; the key decides which. */
export function dropout(x: Tensor, p: number, key: Key): Tensor {
  if (!(p >= 0 && p <= 1)) throw new EspalierError(`dropout: p must lie in [0, 1]: got ${p}.`);
  needKey("dropout", key);
  return dropoutRun({ x }, { p, key })[0];
}
