import { expand, permute, reshape } from "../../engine/index.js";
import type { OpTest } from "./case.js";
import * as nd from "./nd.js";

export const test: OpTest = {
  covers: ["reshape", "permute", "expand"],
  cases: [
    {
      name: "reshape",
      inputs: { x: { shape: [2, 3, 4] } },
      run: ({ x }) => reshape(x, [6, -1]),
      oracle: ({ x }) => nd.reshape(x, [6, 4]),
      grads: ["x"],
    },
    {
      name: "reshape of a permuted view copies",
      grads: ["x"],
      inputs: { x: { shape: [2, 3, 4] } },
      run: ({ x }) => reshape(permute(x, [2, 0, 1]), [4, 6]),
      oracle: ({ x }) => nd.reshape(nd.permute(x, [2, 0, 1]), [4, 6]),
    },
    {
      name: "permute",
      inputs: { x: { shape: [2, 3, 5] } },
      run: ({ x }) => permute(x, [2, 0, -2]),
      oracle: ({ x }) => nd.permute(x, [2, 0, 1]),
      grads: ["x"],
    },
    {
      name: "permute of seven axes",
      inputs: { x: { shape: [2, 3, 2, 3, 2, 2, 3] } },
      run: ({ x }) => permute(x, [0, 6, 1, 4, 2, 5, 3]),
      oracle: ({ x }) => nd.permute(x, [0, 6, 1, 4, 2, 5, 3]),
      grads: ["x"],
      f16: false,
    },
    {
      name: "expand",
      inputs: { x: { shape: [3, 1] } },
      run: ({ x }) => expand(x, [2, -1, 5]),
      oracle: ({ x }) => nd.build([2, 3, 5], (i) => nd.at(x, i)),
      grads: ["x"],
    },
  ],
  refusals: [
    {
      name: "reshape to another size",
      run: (e) => reshape(e.ones([2, 3]), [4, 2]),
      message: /reshape: \[2, 3\] \(6 elements\) does not fit \[4, 2\]/,
    },
    {
      name: "permute with an axis twice",
      run: (e) => permute(e.ones([2, 3]), [0, 0]),
      message: /no order of the axes/,
    },
    {
      name: "expand of a size that is not 1",
      run: (e) => expand(e.ones([2, 3]), [4, 3]),
      message: /cannot be repeated/,
    },
  ],
};
