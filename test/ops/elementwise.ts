import * as ops from "../../engine/index.js";
import { add, addcmul, type DType, mul, sub, type Tensor, where } from "../../engine/index.js";
import { binary, ternary, unary } from "../../engine/ops/elementwise.js";
import { binaryTable, type Row, ternaryTable, unaryTable } from "../../engine/ops/formulas.js";
import type { Case, Input, Nd, OpTest, Refusal } from "./case.js";
import * as nd from "./nd.js";

type Of1 = (x: number) => number;
type Of2 = (a: number, b: number) => number;
interface Sample1 {
  f: (...k: number[]) => Of1;
  /** Constants to try. */
  k?: number[][];
  /** Values where the slope exists. */
  values?: number[] | { low: number; high: number };
}

/** erf by its Maclaurin series, in float64; 1 beyond 5.9. */
function erf(x: number): number {
  if (Math.abs(x) > 5.9) return Math.sign(x);
  let [term, total] = [x, x];
  for (let n = 1; n < 160; n++) {
    term *= (-x * x) / n;
    total += term / (2 * n + 1);
  }
  return (total * 2) / Math.sqrt(Math.PI);
}
const sigmoid = (x: number) => 1 / (1 + Math.exp(-x));
const truth = (b: boolean) => (b ? 1 : 0);
const even = (x: number) => (Math.abs(x % 1) === 0.5 ? 2 * Math.round(x / 2) : Math.round(x));
const positive = { low: 0.2, high: 3 };
const corners = [-1.75, -1.25, -0.6, -0.25, 0.3, 0.75, 1.25];
const exponents = [[2], [3], [-1], [-2], [0], [1], [0.5], [2.5], [9], [-9]];
const compared = { k: [[0.75]], values: [-1.75, 0.75, 0.5, 0.75, 1] };

const unaryOracle: Record<keyof typeof unaryTable, Sample1> = {
  neg: { f: () => (x) => -x },
  abs: { f: () => Math.abs, values: corners },
  sign: { f: () => (x) => truth(x > 0) - truth(x < 0), values: [...corners, 0] },
  floor: { f: () => Math.floor, values: corners },
  ceil: { f: () => Math.ceil, values: corners },
  round: { f: () => even, values: [...corners, -2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 3.5] },
  exp: { f: () => Math.exp },
  log: { f: () => Math.log, values: positive },
  sqrt: { f: () => Math.sqrt, values: positive },
  rsqrt: { f: () => (x) => 1 / Math.sqrt(x), values: positive },
  square: { f: () => (x) => x * x },
  reciprocal: { f: () => (x) => 1 / x, values: positive },
  sin: { f: () => Math.sin, values: { low: -40, high: 40 } },
  cos: { f: () => Math.cos, values: { low: -40, high: 40 } },
  tanh: { f: () => Math.tanh },
  sigmoid: { f: () => sigmoid },
  relu: { f: () => (x) => Math.max(x, 0), values: corners },
  silu: { f: () => (x) => x * sigmoid(x) },
  softplus: { f: () => (x) => Math.max(x, 0) + Math.log1p(Math.exp(-Math.abs(x))) },
  erf: { f: () => erf },
  geluTanh: { f: () => (x) => 0.5 * x * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (x + 0.044715 * x ** 3))) },
  geluErf: { f: () => (x) => 0.5 * x * (1 + erf(x / Math.SQRT2)) },
  clamp: {
    f: (l, h) => (x) => Math.min(Math.max(x, l), h),
    k: [
      [-1, 1],
      [0.5, 0.5],
    ],
    values: corners,
  },
  addScalar: { f: (k) => (x) => x + k, k: [[0.75]] },
  subScalar: { f: (k) => (x) => x - k, k: [[0.75]] },
  mulScalar: { f: (k) => (x) => x * k, k: [[-0.75]] },
  divScalar: { f: (k) => (x) => x / k, k: [[-0.75]] },
  powScalar: { f: (k) => (x) => x ** k, k: exponents, values: positive },
  maximumScalar: { f: (k) => (x) => Math.max(x, k), k: [[0.5]], values: corners },
  minimumScalar: { f: (k) => (x) => Math.min(x, k), k: [[0.5]], values: corners },
  equalScalar: { f: (k) => (x) => truth(x === k), ...compared },
  lessScalar: { f: (k) => (x) => truth(x < k), ...compared },
  greaterScalar: { f: (k) => (x) => truth(x > k), ...compared },
  lessEqualScalar: { f: (k) => (x) => truth(x <= k), ...compared },
  greaterEqualScalar: { f: (k) => (x) => truth(x >= k), ...compared },
  logicalNot: { f: () => (x) => truth(x === 0), values: [0, 1, 0.5, -0] },
};
const binaryOracle: Record<keyof typeof binaryTable, Of2> = {
  add: (a, b) => a + b,
  sub: (a, b) => a - b,
  mul: (a, b) => a * b,
  div: (a, b) => a / b,
  pow: (a, b) => a ** b,
  maximum: Math.max,
  minimum: Math.min,
  equal: (a, b) => truth(a === b),
  less: (a, b) => truth(a < b),
  greater: (a, b) => truth(a > b),
  lessEqual: (a, b) => truth(a <= b),
  greaterEqual: (a, b) => truth(a >= b),
  logicalAnd: (a, b) => truth(a !== 0 && b !== 0),
  logicalOr: (a, b) => truth(a !== 0 || b !== 0),
};
const ternaryOracle: Record<keyof typeof ternaryTable, (x: number, a: number, b: number) => number> = {
  where: (x, a, b) => (x !== 0 ? a : b),
  addcmul: (x, a, b) => x + a * b,
  lerp: (x, end, weight) => x + weight * (end - x),
};

const rowsOf = <T extends Record<string, Row>>(table: T) => Object.entries(table) as [keyof T & string, Row][];
const { NaN: nan, POSITIVE_INFINITY: inf } = Number;
const edges = [
  nan,
  inf,
  -inf,
  0,
  1,
  -1,
  1e-30,
  -1e-30,
  1e30,
  -1e30,
  88,
  89,
  -89,
  -100,
  12.5,
  -12.5,
  3e38,
  -3e38,
  0.5,
  2,
];
/** The result as f32 holds it: what overflows there is infinite. */
const rounded =
  (f: (...v: number[]) => number) =>
  (...v: number[]) =>
    Math.fround(f(...v.map(Math.fround)));
/** Rows of the tables differ in nothing but their formula: half storage and u32 are tried on some of each kind. */
const halves = [
  "neg",
  "exp",
  "rsqrt",
  "silu",
  "geluTanh",
  "mulScalar",
  "greaterScalar",
  "add",
  "div",
  "maximum",
  "equal",
];
const unsigned = [
  "square",
  "clamp",
  "divScalar",
  "lessScalar",
  "logicalNot",
  "sub",
  "div",
  "maximum",
  "greater",
  "logicalAnd",
];
const farOut = ["tanh", "sigmoid", "silu", "softplus", "erf", "geluTanh", "geluErf"];

function unaryCases(): Case[] {
  const list: Case[] = [];
  for (const [name, row] of rowsOf(unaryTable)) {
    const { f, k, values } = unaryOracle[name];
    for (const constants of k ?? [[]]) {
      const label = `${name}${constants.length ? ` ${constants}` : ""}`;
      const run = ({ x }: Record<string, Tensor>) => unary[name](x, ...constants);
      const oracle = ({ x }: Record<string, Nd>) => nd.map(f(...constants), x);
      const spec: Input = { shape: [12], values };
      list.push({
        name: label,
        inputs: { x: spec },
        run,
        oracle,
        grads: row.grad ? ["x"] : undefined,
        gradTolerance: 3e-5,
        f16: halves.includes(name),
      });
      // Sine far out is bounded, not exact.
      const at =
        name === "sin" || name === "cos" ? edges.filter((v) => !(Math.abs(v) > 1e5) || !Number.isFinite(v)) : edges;
      list.push({
        name: `${label} at the edges`,
        f16: false,
        inputs: { x: { shape: [at.length], values: at } },
        run,
        oracle: ({ x }) => nd.map(rounded(f(...constants)), x),
        tolerance: 1e-5,
      });
      if (farOut.includes(name))
        for (const values of [
          [-1e4, -300, -40, -9, 9, 40, 300, 1e4],
          [-1e20, -1e20, 1e20, 1e20],
        ])
          list.push({
            name: `${label}, slope at ${values.at(-1)}`,
            f16: false,
            inputs: { x: { shape: [values.length], values } },
            run,
            oracle,
            grads: ["x"],
          });
      for (const dtype of ["i32", "u32"] as DType[]) {
        if (row.types === undefined || (dtype === "u32" && !unsigned.includes(name))) continue;
        const whole = name === "clamp" ? [1, 4] : constants.map(() => 3);
        list.push({
          name: `${label} of ${dtype}`,
          inputs: {
            x: { shape: [8], dtype, values: dtype === "i32" ? [-7, -3, -1, 0, 1, 3, 5, 8] : [0, 3, 4, 5, 6, 7, 9, 2] },
          },
          run: ({ x }) => unary[name](x, ...whole),
          oracle: ({ x }) => nd.map((v) => wrap(f(...whole)(v), dtype), x),
        });
      }
    }
  }
  return list;
}

/** What integer arithmetic makes of a real result. */
const wrap = (v: number, dtype: DType) => (dtype === "u32" ? Math.trunc(v) >>> 0 : Math.trunc(v) | 0);

function binaryCases(): Case[] {
  const list: Case[] = [];
  for (const [name, row] of rowsOf(binaryTable)) {
    const f = binaryOracle[name];
    const run = ({ a, b }: Record<string, Tensor>) => binary[name](a, b);
    const oracle = ({ a, b }: Record<string, Nd>) => nd.map(f, a, b);
    const apart = name === "maximum" || name === "minimum" || row.result !== undefined;
    const values = name === "pow" || name === "div" ? positive : undefined;
    const grads = row.grad ? ["a", "b"] : undefined;
    list.push({
      name: `${name}, broadcast both ways`,
      grads,
      run,
      oracle,
      gradTolerance: 4e-5,
      f16: halves.includes(name),
      inputs: {
        a: { shape: [2, 1, 4], values: apart ? [-2, 0, 1, 2, -1, 0.5, 1, 3] : values },
        b: { shape: [3, 1], values: apart ? [0.25, 1.5, -0.5] : values },
      },
    });
    const pairs = edges.flatMap((a) => [nan, inf, -inf, 0, 1, -2, 1e30].map((b) => [a, b]));
    // 1 to a NaN or an infinity is 1 in C and NaN in JavaScript; -0 to an odd power keeps its sign only in C.
    const fair =
      name === "pow" ? pairs.filter(([a, b]) => Number.isFinite(b) && a !== -inf && Math.abs(b) < 10) : pairs;
    list.push({
      name: `${name} at the edges`,
      f16: false,
      run,
      oracle: ({ a, b }) => nd.map(rounded(f as (...v: number[]) => number), a, b),
      tolerance: 1e-5,
      inputs: {
        a: { shape: [fair.length], values: fair.map((p) => p[0]) },
        b: { shape: [fair.length], values: fair.map((p) => p[1]) },
      },
    });
    if (row.types === "any")
      for (const dtype of ["i32", ...(unsigned.includes(name) ? ["u32"] : [])] as DType[])
        list.push({
          name: `${name} of ${dtype}`,
          run,
          oracle: ({ a, b }) => nd.map((x, y) => wrap(f(x, y), dtype), a, b),
          inputs: {
            a: { shape: [2, 3], dtype, values: dtype === "i32" ? [-7, 3, 0, 5, 2, -1] : [7, 3, 0, 5, 2, 1] },
            b: { shape: [3], dtype, values: [2, 3, 5] },
          },
        });
  }
  for (const name of ["maximum", "minimum"] as const)
    list.push({
      name: `${name}: equal values share the gradient`,
      f16: false,
      inputs: { a: { shape: [3], values: [1, 2, 3] }, dy: { shape: [3], values: [1, 2, 4] } },
      run: ({ a, dy }) => {
        const [x, y] = [a.detach().setRequiresGrad(), a.mul(1).detach().setRequiresGrad()];
        binary[name](x, y).backward(dy);
        return x.grad!.mul(10).add(y.grad!);
      },
      oracle: ({ dy }) => nd.map((g) => 10 * (g / 2) + g / 2, dy),
    });
  list.push({
    name: "pow of negative bases",
    f16: false,
    grads: ["a"],
    inputs: { a: { shape: [4, 1], values: [-2, -0.5, -1, -3] }, b: { shape: [5], values: [2, 3, -3, 0, 10] } },
    run: ({ a, b }) => ops.pow(a, b),
    oracle: ({ a, b }) => nd.map((x, e) => x ** e, a, b),
    gradTolerance: 1e-4,
  });
  return list;
}

function ternaryCases(): Case[] {
  const list: Case[] = [];
  for (const [name, row] of rowsOf(ternaryTable)) {
    const mask: Input = { shape: [3, 1], dtype: "u32", values: [0, 1, 7] };
    list.push({
      name: `${name}, broadcast three ways`,
      grads: Object.keys(row.grad!),
      inputs: { x: name === "where" ? mask : { shape: [3, 1] }, a: { shape: [2, 1, 5] }, b: { shape: [5] } },
      run: (t) => ternary[name](t.x, t.a, t.b),
      oracle: ({ x, a, b }) => nd.map(ternaryOracle[name] as (...v: number[]) => number, x, a, b),
    });
  }
  for (const dtype of ["i32", "u32"] as DType[])
    list.push({
      name: `addcmul of ${dtype}`,
      inputs: {
        x: { shape: [4], dtype, values: { low: 0, high: 9 } },
        a: { shape: [3, 1], dtype, values: { low: 0, high: 9 } },
        b: { shape: [4], dtype, values: { low: 0, high: 9 } },
      },
      run: ({ x, a, b }) => addcmul(x, a, b),
      oracle: ({ x, a, b }) => nd.map((p, q, r) => p + q * r, x, a, b),
    });
  list.push({
    name: "where with an i32 condition picks integers",
    inputs: {
      x: { shape: [4], dtype: "i32", values: [-1, 0, 1, 0] },
      a: { shape: [4], dtype: "u32", values: [1, 2, 3, 4] },
      b: { shape: [1], dtype: "u32", values: [9] },
    },
    run: ({ x, a, b }) => where(x, a, b),
    oracle: ({ x, a, b }) => nd.map((c, p, q) => (c ? p : q), x, a, b),
  });
  list.push({
    name: "where hides a NaN of the other branch",
    f16: false,
    inputs: {
      x: { shape: [2], dtype: "u32", values: [1, 0] },
      a: { shape: [2], values: [3, nan] },
      b: { shape: [2], values: [inf, 4] },
    },
    run: ({ x, a, b }) => where(x, a, b),
    oracle: () => ({ shape: [2], data: Float64Array.of(3, 4) }),
  });
  return list;
}

/** Every wrapper that takes a tensor or a number. */
function numbers(): Case[] {
  const list: Case[] = [];
  const names = [
    "add",
    "sub",
    "mul",
    "div",
    "pow",
    "maximum",
    "minimum",
    "equal",
    "less",
    "greater",
    "lessEqual",
    "greaterEqual",
  ] as const;
  for (const name of names)
    list.push({
      name: `${name} with a number`,
      inputs: { x: { shape: [6], values: [0.3, 1.5, 2.5, 0.75, 2, 3] } },
      run: ({ x }) => x[name](1.5),
      oracle: ({ x }) => nd.map((v) => binaryOracle[name](v, 1.5), x),
    });
  list.push(
    {
      name: "gelu is the tanh form",
      inputs: { x: { shape: [5] } },
      run: ({ x }) => x.gelu(),
      oracle: ({ x }) => nd.map(unaryOracle.geluTanh.f(), x),
      grads: ["x"],
    },
    {
      name: "gelu none is the erf form",
      inputs: { x: { shape: [5] } },
      run: ({ x }) => x.gelu("none"),
      oracle: ({ x }) => nd.map(unaryOracle.geluErf.f(), x),
      grads: ["x"],
    },
    {
      name: "u32 wraps below zero",
      inputs: { x: { shape: [2], dtype: "u32", values: [0, 5] } },
      run: ({ x }) => sub(x, 1),
      oracle: () => ({ shape: [2], data: Float64Array.of(2 ** 32 - 1, 4) }),
    },
    {
      name: "large u32 constants keep their bits",
      inputs: { x: { shape: [2], dtype: "u32", values: [1, 4294967295] } },
      run: ({ x }) => x.equal(4294967295),
      oracle: () => ({ shape: [2], data: Float64Array.of(0, 1) }),
    },
    {
      name: "negative i32 constants",
      inputs: { x: { shape: [3], dtype: "i32", values: [-5, 0, 5] } },
      run: ({ x }) => x.maximum(-2).mul(-3),
      oracle: () => ({ shape: [3], data: Float64Array.of(6, 0, -15) }),
    },
    {
      name: "a value used twice",
      inputs: { x: { shape: [5] } },
      run: ({ x }) => add(mul(x, x), x),
      oracle: ({ x }) => nd.map((v) => v * v + v, x),
      grads: ["x"],
    },
  );
  return list;
}

const refusals: Refusal[] = [
  {
    name: "shapes that do not broadcast",
    run: (e) => add(e.ones([2, 3]), e.ones([4])),
    message: /add: shapes do not broadcast: \[2, 3\] · \[4\]/,
  },
  {
    name: "dtypes that differ",
    run: (e) => mul(e.ones([2]), e.ones([2], "i32")),
    message: /mul: dtypes differ: f32 · i32; convert one/,
  },
  { name: "exp of integers", run: (e) => e.ones([2], "i32").exp(), message: /exp: needs f32 or f16: got i32/ },
  { name: "neg of u32", run: (e) => e.ones([2], "u32").neg(), message: /neg: needs f32, f16 or i32: got u32/ },
  {
    name: "a fraction with integers",
    run: (e) => e.ones([2], "i32").mul(0.5),
    message: /mulScalar: 0.5 is no i32 number/,
  },
  {
    name: "a negative number with u32",
    run: (e) => e.ones([2], "u32").less(-1),
    message: /lessScalar: -1 is no u32 number; use a whole number from 0/,
  },
  {
    name: "a float condition",
    run: (e) => where(e.ones([2]), e.ones([2]), e.ones([2])),
    message: /where: the condition must be u32 or i32: got f32; compare it first/,
  },
  {
    name: "clamp with bounds the wrong way round",
    run: (e) => e.ones([2]).clamp(2, 1),
    message: /clamp: the bounds are no range: 2 to 1/,
  },
  {
    name: "gelu of an unknown kind",
    run: (e) => e.ones([2]).gelu("erf" as "none"),
    message: /gelu: unknown approximation "erf"/,
  },
  {
    name: "a missing operand",
    run: (e) => add(e.ones([2]), undefined as unknown as Tensor),
    message: /add: input "b" is missing/,
  },
  {
    name: "use after dispose",
    run: (e) => {
      const x = e.ones([2]);
      x.dispose();
      return add(x, 1);
    },
    message: /addScalar: uses a tensor after it was freed: \[2\] f32 from contiguous/,
  },
];

export const test: OpTest = {
  covers: [
    ...Object.keys(unaryTable),
    ...Object.keys(binaryTable),
    ...Object.keys(ternaryTable),
    "contiguous",
    "to",
    "toInteger",
  ],
  cases: [...unaryCases(), ...binaryCases(), ...ternaryCases(), ...numbers()],
  refusals,
};
