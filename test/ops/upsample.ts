import { permute, upsampleNearest } from "../../engine/index.js";
import type { Case, Nd, OpTest } from "./case.js";
import * as nd from "./nd.js";

const repeat = (x: Nd, scale: number): Nd =>
  nd.build(
    x.shape.map((n, i) => (i < x.shape.length - 2 ? n : n * scale)),
    (index) =>
      nd.at(
        x,
        index.map((v, i) => (i < index.length - 2 ? v : Math.floor(v / scale))),
      ),
  );
const up = (shape: readonly number[], scale: number): Case => ({
  name: `upsampleNearest [${shape}] by ${scale}`,
  inputs: { x: { shape } },
  grads: ["x"],
  run: ({ x }) => upsampleNearest(x, scale),
  oracle: ({ x }) => repeat(x, scale),
});

export const test: OpTest = {
  covers: ["upsampleNearest"],
  cases: [
    up([1, 1], 2),
    up([2, 3, 3, 4], 2),
    up([1, 2, 5, 13], 3),
    up([3, 2], 1),
    up([2, 4, 9], 2),
    {
      ...up([2, 3, 4], 2),
      name: "upsampleNearest of a permuted view",
      run: ({ x }) => upsampleNearest(permute(x, [2, 0, 1]), 2),
      oracle: ({ x }) => repeat(nd.permute(x, [2, 0, 1]), 2),
    },
    {
      ...up([1, 3], 2),
      name: "upsampleNearest of NaN and infinities",
      inputs: { x: { shape: [1, 3], values: [Number.NaN, Number.POSITIVE_INFINITY, -0] } },
      grads: undefined,
    },
  ],
  refusals: [
    {
      name: "upsampleNearest scale",
      run: (e) => upsampleNearest(e.ones([2, 2]), 1.5),
      message: /scale must be a whole number from 1: got 1.5/,
    },
    {
      name: "upsampleNearest rank",
      run: (e) => upsampleNearest(e.ones([2]), 2),
      message: /x is \[2\]; it needs at least two axes/,
    },
    {
      name: "upsampleNearest integers",
      run: (e) => upsampleNearest(e.ones([2, 2], "i32"), 2),
      message: /needs f32 or f16/,
    },
  ],
};
