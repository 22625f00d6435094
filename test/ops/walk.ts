import {
  add,
  contiguous,
  type DType,
  type Engine,
  expand,
  launchElementwise,
  mul,
  permute,
  slice,
  type Tensor,
  to,
} from "../../engine/index.js";
import type { Case, Input, OpTest } from "./case.js";
import * as nd from "./nd.js";

/** Runs f and throws unless its launches took the entry point named. */
function takes(engine: Engine, entry: string, f: () => Tensor): Tensor {
  const seen: string[] = [];
  const observe = (launch: { kernel: { entry: string } }) => {
    seen.push(launch.kernel.entry);
    return undefined;
  };
  engine.queue.observers.add(observe);
  try {
    const y = f();
    if (`${seen}` !== entry) throw new Error(`took ${seen} instead of ${entry}`);
    return y;
  } finally {
    engine.queue.observers.delete(observe);
  }
}

const turned = (...dims: number[]): Input["view"] => ({
  engine: (t) => permute(t, dims),
  oracle: (x) => nd.permute(x, dims),
});
const from = (start: number): Input["view"] => ({
  engine: (t) => slice(t, 0, start, t.shape[0]),
  oracle: (x) => nd.build([x.shape[0] - start, ...x.shape.slice(1)], (i) => nd.at(x, [i[0] + start, ...i.slice(1)])),
});

function paths(): Case[] {
  const list: Case[] = [];
  const pair = (entry: string, what: string, a: Input, b: Input, grads = true) =>
    list.push({
      name: `${entry}: ${what}`,
      inputs: { a, b },
      grads: grads ? ["a", "b"] : undefined,
      run: (t, engine) => takes(engine, entry, () => mul(t.a, t.b)),
      oracle: (x) => nd.map((p, q) => p * q, x.a, x.b),
    });
  const reversed = [8, 7, 6, 5, 4, 3, 2, 1].map((d) => d - 1);
  pair("flat", "one value", { shape: [] }, { shape: [] });
  pair("flat", "63 values, a tail of 3", { shape: [63] }, { shape: [63] });
  pair("flat", "many values", { shape: [50, 83] }, { shape: [50, 83] }, false);
  pair("rows", "a vector over rows", { shape: [3, 8] }, { shape: [8] });
  pair("rows", "a column", { shape: [3, 8] }, { shape: [3, 1] });
  pair("rows", "one value over all", { shape: [12] }, { shape: [] });
  pair("rows", "outer product", { shape: [2, 1, 4] }, { shape: [3, 1] });
  pair("rows", "many rows", { shape: [300, 12] }, { shape: [12] }, false);
  pair("rows", "few long rows", { shape: [2, 4100] }, { shape: [4100] }, false);
  pair(
    "rows",
    "a permuted view that keeps its last axis",
    { shape: [3, 2, 4], view: turned(1, 0, 2) },
    { shape: [2, 3, 4] },
  );
  pair("rows", "a slice at a multiple of 4", { shape: [5, 8], view: from(2) }, { shape: [3, 8] });
  pair("general", "odd rows", { shape: [3, 5] }, { shape: [5] });
  pair("general", "a transposed view", { shape: [4, 8], view: turned(1, 0) }, { shape: [8, 4] });
  pair("general", "a slice at an odd place", { shape: [7], view: from(3) }, { shape: [4] });
  pair("general", "three axes reversed", { shape: [3, 5, 2], view: turned(2, 1, 0) }, { shape: [2, 5, 3] });
  pair("general", "many odd rows", { shape: [300, 13], view: turned(1, 0) }, { shape: [300] }, false);
  pair(
    "deep",
    "five axes reversed",
    { shape: [2, 3, 2, 3, 2], view: turned(4, 3, 2, 1, 0) },
    { shape: [2, 3, 2, 3, 2] },
  );
  pair(
    "deep",
    "eight axes reversed",
    { shape: [2, 2, 3, 2, 2, 2, 2, 3], view: turned(...reversed) },
    { shape: [2, 2, 2, 2, 3, 2, 1] },
    false,
  );
  // Strides of 0 next to each other merge: nine axes stay few.
  list.push({
    name: "nine axes that merge",
    inputs: { x: { shape: [1, 1, 1, 3, 1, 1, 1, 1, 1] } },
    run: ({ x }) => contiguous(expand(x, [2, 2, 2, 3, 2, 1, 2, 1, 2])),
    oracle: ({ x }) => nd.build([2, 2, 2, 3, 2, 1, 2, 1, 2], (i) => nd.at(x, i)),
    grads: ["x"],
  });
  list.push({
    name: "the tail of a short tensor leaves its neighbours alone",
    inputs: { x: { shape: [65] } },
    f16: false,
    run: ({ x }, engine) => takesTail(engine, x),
    oracle: ({ x }) => nd.build([130], (i) => (i[0] < 65 ? x.data[i[0]] : 7)),
  });
  return list;
}

/** Writes 65 values through a view into a tensor of 130 sevens. */
function takesTail(engine: Engine, x: Tensor): Tensor {
  const y = engine.full([130], 7);
  const head = y.view([65], [1], 0, "head");
  launchElementwise(head, "x", ["x"], [x]);
  head.dispose();
  return y;
}

function casts(): Case[] {
  const list: Case[] = [];
  const values = [-3.7, -1, -0.2, 0, 0.9, 2.5, 100];
  for (const dtype of ["i32", "u32"] as DType[]) {
    list.push(
      {
        name: `f32 to ${dtype} truncates`,
        f16: false,
        inputs: { x: { shape: [7], values: dtype === "u32" ? values.map(Math.abs) : values } },
        run: ({ x }) => to(x, dtype),
        oracle: ({ x }) => nd.map(Math.trunc, x),
      },
      {
        name: `${dtype} to f32`,
        inputs: { x: { shape: [3, 5], dtype, values: { low: 0, high: 1000 } } },
        run: ({ x }) => to(x, "f32"),
        oracle: ({ x }) => x,
      },
    );
  }
  list.push(
    {
      name: "i32 to u32 and back keeps the bits",
      inputs: { x: { shape: [3], dtype: "i32", values: [-1, 0, 7] } },
      run: ({ x }) => to(to(x, "u32"), "i32"),
      oracle: ({ x }) => x,
    },
    {
      name: "to its own dtype is itself",
      f16: false,
      inputs: { x: { shape: [3] } },
      run: ({ x }) => to(x, "f32").mul(2),
      oracle: ({ x }) => nd.map((v) => 2 * v, x),
      grads: ["x"],
    },
    {
      name: "to f32 and onward",
      inputs: { x: { shape: [2, 3], view: turned(1, 0) } },
      run: ({ x }) => to(x, "f32").mul(3),
      oracle: ({ x }) => nd.map((v) => 3 * v, x),
      grads: ["x"],
    },
    {
      name: "contiguous of a view",
      inputs: { x: { shape: [3, 4, 2], view: turned(2, 0, 1) } },
      run: ({ x }) => contiguous(x),
      oracle: ({ x }) => x,
      grads: ["x"],
    },
    {
      name: "contiguous of integers",
      inputs: { x: { shape: [3, 4], dtype: "i32", values: { low: -9, high: 9 }, view: turned(1, 0) } },
      run: ({ x }) => contiguous(x),
      oracle: ({ x }) => x,
    },
    { name: "nothing at all", inputs: { x: { shape: [0, 3] } }, run: ({ x }) => add(x, x), oracle: ({ x }) => x },
  );
  return list;
}

export const test: OpTest = {
  covers: ["contiguous", "to", "toInteger"],
  cases: [...paths(), ...casts()],
  refusals: [
    {
      name: "nine axes that do not merge",
      run: (e) => contiguous(permute(e.ones([2, 2, 2, 2, 2, 2, 2, 2, 2]), [8, 7, 6, 5, 4, 3, 2, 1, 0])),
      message: /more than 8 axes that cannot be merged/,
    },
    { name: "a dtype nobody knows", run: (e) => to(e.ones([2]), "f64" as DType), message: /to: unknown dtype "f64"/ },
  ],
};
