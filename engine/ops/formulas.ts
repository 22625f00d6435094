import type { DType } from "../dtype.js";

/**
 * An elementwise op in WGSL expressions. `y` reads the inputs by name and constants K0 … K3; each entry of `grad` gives
 * the gradient of one input from dy, the inputs and y, and is all that backward reads.
 */
export interface Row {
  doc: string;
  y: string;
  grad?: Record<string, string>;
  link?: string;
  /** "any": integers too; "signed": i32 too. Default: floats only. */
  types?: "any" | "signed";
  /** Result dtype when it is not the operands'. */
  result?: DType;
  /** The first operand is an integer condition, the others share a dtype. */
  mixed?: boolean;
}

const gelu = "https://arxiv.org/abs/1606.08415";

/** One operand `x`, constants K0 and K1. */
export const unaryTable = {
  neg: { doc: "y = -x", y: "-x", grad: { x: "-dy" }, types: "signed" },
  abs: { doc: "y = |x|; slope 0 at 0", y: "abs(x)", grad: { x: "dy * sign(x)" }, types: "signed" },
  sign: { doc: "y = -1, 0 or 1", y: "sign(x)", types: "signed" },
  floor: { doc: "y = largest integer <= x", y: "floor(x)" },
  ceil: { doc: "y = smallest integer >= x", y: "ceil(x)" },
  round: { doc: "y = nearest integer, halves to even", y: "round(x)" },
  exp: { doc: "y = e^x", y: "safe_exp(x)", grad: { x: "dy * y" } },
  log: { doc: "y = ln x", y: "safe_log(x)", grad: { x: "dy / x" } },
  sqrt: { doc: "y = x^(1/2)", y: "sqrt(x)", grad: { x: "dy * 0.5 / y" } },
  rsqrt: { doc: "y = x^(-1/2)", y: "inverseSqrt(x)", grad: { x: "-0.5 * dy * y * y * y" } },
  square: { doc: "y = x²", y: "x * x", grad: { x: "2.0 * dy * x" }, types: "any" },
  reciprocal: { doc: "y = 1 / x", y: "1.0 / x", grad: { x: "-dy * y * y" } },
  sin: { doc: "y = sin x", y: "sine(x)", grad: { x: "dy * cosine(x)" } },
  cos: { doc: "y = cos x", y: "cosine(x)", grad: { x: "-dy * sine(x)" } },
  tanh: { doc: "y = tanh x", y: "safe_tanh(x)", grad: { x: "dy * (1.0 - y * y)" } },
  sigmoid: { doc: "y = 1 / (1 + e^-x)", y: "sigmoid(x)", grad: { x: "dy * y * (1.0 - y)" } },
  relu: {
    doc: "y = max(x, 0); slope 0 at 0",
    y: "select(x, 0, x < 0)",
    grad: { x: "select(0.0, dy, x > 0.0)" },
    types: "signed",
  },
  silu: {
    doc: "y = x sigmoid(x)",
    y: "silu(x)",
    grad: { x: "dy * silu_slope(x)" },
    link: "https://arxiv.org/abs/1702.03118",
  },
  softplus: { doc: "y = ln(1 + e^x)", y: "softplus(x)", grad: { x: "dy * sigmoid(x)" } },
  erf: { doc: "y = erf x", y: "erf(x)", grad: { x: "dy * erf_slope(x)" } },
  geluTanh: {
    doc: "y = x/2 (1 + tanh(√(2/π)(x + 0.044715 x³)))",
    y: "gelu_tanh(x)",
    grad: { x: "dy * gelu_tanh_slope(x)" },
    link: gelu,
  },
  geluErf: { doc: "y = x/2 (1 + erf(x/√2))", y: "gelu_erf(x)", grad: { x: "dy * gelu_erf_slope(x)" }, link: gelu },
  clamp: {
    doc: "y = min(max(x, K0), K1); slope 1 at the bounds",
    y: "select(select(x, K0, x < K0), K1, x > K1)",
    grad: { x: "select(0.0, dy, x >= K0 && x <= K1)" },
    types: "any",
  },
  addScalar: { doc: "y = x + K0", y: "x + K0", grad: { x: "dy" }, types: "any" },
  subScalar: { doc: "y = x - K0", y: "x - K0", grad: { x: "dy" }, types: "any" },
  mulScalar: { doc: "y = x · K0", y: "x * K0", grad: { x: "dy * K0" }, types: "any" },
  divScalar: { doc: "y = x / K0; integers truncate", y: "x / K0", grad: { x: "dy / K0" }, types: "any" },
  powScalar: { doc: "y = x^K0", y: "power(x, K0)", grad: { x: "dy * power_slope(x, K0)" } },
  maximumScalar: {
    doc: "y = max(x, K0); slope 1 at K0",
    y: "select(x, K0, x < K0)",
    grad: { x: "select(0.0, dy, x >= K0)" },
    types: "any",
  },
  minimumScalar: {
    doc: "y = min(x, K0); slope 1 at K0",
    y: "select(x, K0, x > K0)",
    grad: { x: "select(0.0, dy, x <= K0)" },
    types: "any",
  },
  equalScalar: { doc: "y = x == K0", y: "select(0u, 1u, x == K0)", types: "any", result: "u32" },
  lessScalar: { doc: "y = x < K0", y: "select(0u, 1u, x < K0)", types: "any", result: "u32" },
  greaterScalar: { doc: "y = x > K0", y: "select(0u, 1u, x > K0)", types: "any", result: "u32" },
  lessEqualScalar: { doc: "y = x <= K0", y: "select(0u, 1u, x <= K0)", types: "any", result: "u32" },
  greaterEqualScalar: { doc: "y = x >= K0", y: "select(0u, 1u, x >= K0)", types: "any", result: "u32" },
  logicalNot: { doc: "y = x is zero", y: "select(0u, 1u, x == 0)", types: "any", result: "u32" },
} satisfies Record<string, Row>;

/** Two operands `a` and `b` that broadcast. */
export const binaryTable = {
  add: { doc: "y = a + b", y: "a + b", grad: { a: "dy", b: "dy" }, types: "any" },
  sub: { doc: "y = a - b", y: "a - b", grad: { a: "dy", b: "-dy" }, types: "any" },
  mul: { doc: "y = a · b", y: "a * b", grad: { a: "dy * b", b: "dy * a" }, types: "any" },
  div: { doc: "y = a / b; integers truncate", y: "a / b", grad: { a: "dy / b", b: "-dy * (a / b / b)" }, types: "any" },
  pow: {
    doc: "y = a^b",
    y: "power(a, b)",
    grad: { a: "dy * power_slope(a, b)", b: "select(dy * power(a, b) * safe_log(a), 0.0, a == 0.0 && b >= 0.0)" },
  },
  maximum: {
    doc: "y = max(a, b); equal values share the gradient",
    y: "select(b, a, a > b || unordered(a))",
    grad: {
      a: "dy * select(select(0.0, 0.5, a == b), 1.0, a > b)",
      b: "dy * select(select(0.0, 0.5, a == b), 1.0, b > a)",
    },
    types: "any",
  },
  minimum: {
    doc: "y = min(a, b); equal values share the gradient",
    y: "select(b, a, a < b || unordered(a))",
    grad: {
      a: "dy * select(select(0.0, 0.5, a == b), 1.0, a < b)",
      b: "dy * select(select(0.0, 0.5, a == b), 1.0, b < a)",
    },
    types: "any",
  },
  equal: { doc: "y = a == b", y: "select(0u, 1u, a == b)", types: "any", result: "u32" },
  less: { doc: "y = a < b", y: "select(0u, 1u, a < b)", types: "any", result: "u32" },
  greater: { doc: "y = a > b", y: "select(0u, 1u, a > b)", types: "any", result: "u32" },
  lessEqual: { doc: "y = a <= b", y: "select(0u, 1u, a <= b)", types: "any", result: "u32" },
  greaterEqual: { doc: "y = a >= b", y: "select(0u, 1u, a >= b)", types: "any", result: "u32" },
  logicalAnd: {
    doc: "y = a and b, zero is false",
    y: "select(0u, 1u, !(a == 0) && !(b == 0))",
    types: "any",
    result: "u32",
  },
  logicalOr: {
    doc: "y = a or b, zero is false",
    y: "select(0u, 1u, !(a == 0) || !(b == 0))",
    types: "any",
    result: "u32",
  },
} satisfies Record<string, Row>;

/** Three operands `x`, `a`, `b` that broadcast. */
export const ternaryTable = {
  where: {
    doc: "y = x ? a : b",
    y: "select(b, a, x != 0)",
    grad: { a: "select(0.0, dy, x != 0)", b: "select(dy, 0.0, x != 0)" },
    types: "any",
    mixed: true,
  },
  addcmul: { doc: "y = x + a · b", y: "x + a * b", grad: { x: "dy", a: "dy * b", b: "dy * a" }, types: "any" },
  lerp: {
    doc: "y = x + b (a - x)",
    y: "x + b * (a - x)",
    grad: { x: "dy * (1.0 - b)", a: "dy * b", b: "dy * (a - x)" },
  },
} satisfies Record<string, Row>;
