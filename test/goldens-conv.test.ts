import { suite } from "uvu";
import * as assert from "uvu/assert";
import type { Tensor } from "../engine/index.js";
import * as ops from "../engine/index.js";
import { golden } from "./golden.js";

const test = suite("goldens ops_conv and ops_tensor: convolutions, patches, products");
const engine = await ops.createEngine();
/** What both files allow: the largest |difference|, for sums in another order. */
const TOLERANCE = 1e-5;

type Run = (t: Record<string, Tensor>) => Tensor;

const convolutions: Record<string, Run> = {
  avgpool2: ({ x }) => x.reshape([2, 3, 2, 2, 3, 2]).mean([3, 5]),
  conv2d_1x1: ({ x, w, b }) => ops.conv2d(x, w, b),
  conv2d_3x3_s1_p1: ({ x, w, b }) => ops.conv2d(x, w, b, { padding: 1 }),
  conv2d_3x3_s2_p1: ({ x, w, b }) => ops.conv2d(x, w, b, { stride: 2, padding: 1 }),
  conv2d_3x3_s2_pad_right_bottom: ({ x, w, b }) =>
    ops.conv2d(x, w, b, {
      stride: 2,
      padding: [
        [0, 1],
        [0, 1],
      ],
    }),
  conv2d_patchify_2x2: ({ x, w, b }) => ops.conv2d(x, w, b, { stride: 2 }),
  conv3d_patchify_1x2x2: ({ x, w, b }) => ops.conv3d(x, w, b, { stride: [1, 2, 2] }),
  conv3d_patchify_2x2x2: ({ x, w, b }) => ops.conv3d(x, w, b, { stride: 2 }),
  unpatchify_1x2x2: ({ x }) =>
    x.reshape([2, 3, 2, 4, 1, 2, 2, 8]).permute([0, 7, 1, 4, 2, 5, 3, 6]).reshape([2, 8, 3, 4, 8]),
  upsample_nearest_2x: ({ x }) => ops.upsampleNearest(x, 2),
};
const products: Record<string, Run> = {
  matmul_2d: ({ a, b }) => ops.matmul(a, b),
  matmul_batched: ({ a, b }) => ops.matmul(a, b),
  matmul_broadcast_batch: ({ a, b }) => ops.matmul(a, b),
  matmul_broadcast_lhs2d: ({ a, b }) => ops.matmul(a, b),
  matmul_k72: ({ a, b }) => ops.matmul(a, b),
  matmul_transposed_b: ({ a, b }) => ops.matmul(a, b, { transposeB: true }),
};

for (const [file, checks] of [
  ["ops_conv", convolutions],
  ["ops_tensor", products],
] as const) {
  const { tensors } = await golden(file);
  const load = (key: string) => engine.tensor(tensors[key].data as Float32Array, tensors[key].shape);
  const compare = async (what: string, got: Tensor, key: string) => {
    const expected = tensors[key];
    assert.equal(got.shape, expected.shape, what);
    const values = await got.data();
    const worst = Math.max(...Array.from(expected.data, (e, i) => Math.abs(e - values[i])));
    assert.ok(worst <= TOLERANCE, `${what} is off by ${worst}`);
  };
  for (const [name, run] of Object.entries(checks))
    test(name, async () => {
      const inputs: Record<string, Tensor> = {};
      for (const key of Object.keys(tensors))
        if (key.startsWith(`${name}/in.`)) inputs[key.slice(name.length + 4)] = load(key).setRequiresGrad();
      const y = run(inputs);
      await compare("out", y, `${name}/out`);
      y.backward(load(`${name}/g`));
      for (const [key, t] of Object.entries(inputs))
        await compare(`gradient of ${key}`, t.grad!, `${name}/grad.${key}`);
    });
}

test.after(() => engine.destroy());
test.run();
