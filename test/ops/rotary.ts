import { permute, rotary, slice, type Tensor } from "../../engine/index.js";
import type { Case, Nd, OpTest } from "./case.js";
import * as nd from "./nd.js";
import { cut } from "./slice.js";

const oracle = (x: Nd, cos: Nd, sin: Nd, interleaved = false): Nd => {
  const d = x.shape.at(-1)!;
  return nd.build(x.shape, (index) => {
    const c = index.at(-1)!;
    const outer = index.slice(0, -1);
    const isFirst = interleaved ? c % 2 === 0 : c < d / 2;
    const partner = interleaved ? (isFirst ? c + 1 : c - 1) : isFirst ? c + d / 2 : c - d / 2;
    const pair = interleaved ? Math.floor(c / 2) : c % (d / 2);
    const table = (t: Nd) => nd.at(t, [...outer, t.shape.at(-1) === d ? c : pair]);
    return nd.at(x, index) * table(cos) + (isFirst ? -1 : 1) * nd.at(x, [...outer, partner]) * table(sin);
  });
};

const make = (name: string, x: readonly number[], table: readonly number[], interleaved = false): Case => ({
  name,
  inputs: { x: { shape: x }, cos: { shape: table }, sin: { shape: table } },
  grads: ["x"],
  run: (t) => rotary(t.x, t.cos, t.sin, { interleaved }),
  oracle: (t) => oracle(t.x, t.cos, t.sin, interleaved),
});
const heads = (t: Tensor): Tensor => permute(t, [0, 2, 1, 3]);

export const test: OpTest = {
  covers: ["rotary"],
  cases: [
    make("rotary with half tables", [2, 3, 5, 8], [5, 4]),
    make("rotary with a value for each column", [2, 3, 4], [3, 4]),
    make("rotary of neighbours", [2, 3, 6], [3, 3], true),
    make("rotary of neighbours with a value for each column", [3, 6], [3, 6], true),
    make("rotary of one pair", [1, 2], [1, 1]),
    make("rotary with a table for each sample", [2, 2, 3, 4], [2, 1, 3, 2]),
    make("rotary with tables that repeat along every second of six axes", [2, 2, 2, 2, 2, 4], [1, 2, 1, 2, 1, 2]),
    {
      name: "rotary of a permuted, sliced view",
      grads: ["x"],
      inputs: { x: { shape: [2, 5, 3, 8] }, cos: { shape: [5, 2, 2] }, sin: { shape: [5, 4] } },
      run: ({ x, cos, sin }) =>
        rotary(slice(heads(x), 3, 0, 8, 2), slice(cos, 1, 1, 2).reshape([5, 2]), slice(sin, 1, 1, 4, 2)),
      oracle: ({ x, cos, sin }) =>
        oracle(
          cut(nd.permute(x, [0, 2, 1, 3]), 3, 0, 4, 2),
          nd.reshape(cut(cos, 1, 1, 1), [5, 2]),
          cut(sin, 1, 1, 2, 2),
        ),
    },
  ],
  refusals: [
    {
      name: "rotary of odd columns",
      run: (e) => rotary(e.ones([2, 3]), e.ones([2, 1]), e.ones([2, 1])),
      message: /rotary: x needs an even number of columns: got \[2, 3\]/,
    },
    {
      name: "rotary with another table",
      run: (e) => rotary(e.ones([2, 3, 4]), e.ones([3, 3]), e.ones([3, 2])),
      message: /rotary: cos \[3, 3\] does not fit x \[2, 3, 4\]; it needs 2 or 4 columns/,
    },
    {
      name: "rotary with a misspelt option",
      run: (e) => rotary(e.ones([2, 4]), e.ones([2, 2]), e.ones([2, 2]), { interleave: true } as object),
      message: /unknown option "interleave"; did you mean "interleaved"/,
    },
  ],
};
