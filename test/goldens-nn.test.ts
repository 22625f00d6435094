import { suite } from "uvu";
import * as assert from "uvu/assert";
import type { Tensor } from "../engine/index.js";
import * as ops from "../engine/index.js";
import { golden } from "./golden.js";

const test = suite("goldens ops_nn and ops_tensor: norms, activations, broadcasting and reductions");
const engine = await ops.createEngine();

type Run = (t: Record<string, Tensor>) => Tensor;
interface Check {
  run: Run;
  /** Largest |difference| / (1 + |expected|) where it is not the file's own 1e-6. */
  tolerance?: number;
}
/** The files allow adapters 10 times their tolerance where e^x, or the order of a sum, decides. */
const GPU = 1e-5;

const nn: Record<string, Check> = {
  exp: { run: ({ x }) => x.exp(), tolerance: GPU },
  gated_residual: { run: ({ x, gate, h }) => ops.addcmul(x, gate, h) },
  t2i_modulate: { run: ({ x, shift, scale }) => ops.addcmul(shift, ops.layerNorm(x, { eps: 1e-6 }), scale.add(1)) },
  gelu_erf: { run: ({ x }) => ops.gelu(x, "none") },
  gelu_tanh: { run: ({ x }) => ops.gelu(x) },
  "groupnorm_32g_eps1e-6": {
    run: ({ x, w, b }) => ops.groupNorm(x, 32, { weight: w, bias: b, eps: 1e-6 }),
    tolerance: GPU,
  },
  "groupnorm_4g_eps1e-5": { run: ({ x, w, b }) => ops.groupNorm(x, 4, { weight: w, bias: b }), tolerance: GPU },
  "layernorm_affine_eps1e-5": { run: ({ x, w, b }) => ops.layerNorm(x, { weight: w, bias: b, eps: 1e-5 }) },
  layernorm_large_offset: { run: ({ x }) => ops.layerNorm(x, { eps: 1e-6 }), tolerance: 2e-4 },
  "layernorm_noaffine_eps1e-6": { run: ({ x }) => ops.layerNorm(x, { eps: 1e-6 }) },
  linear_bias: { run: ({ x, w, b }) => ops.linear(x, w, b), tolerance: GPU },
  log_softmax_last: { run: ({ x }) => ops.logSoftmax(x) },
  "rmsnorm_eps1e-6": { run: ({ x, w }) => ops.rmsNorm(x, { weight: w, eps: 1e-6 }) },
  sigmoid: { run: ({ x }) => x.sigmoid() },
  silu: { run: ({ x }) => x.silu() },
  sin_cos: { run: ({ x }) => ops.cat([x.sin(), x.cos()], 0) },
  softmax_dim1: { run: ({ x }) => ops.softmax(x, 1) },
  softmax_large_logits: { run: ({ x }) => ops.softmax(x) },
  softmax_last: { run: ({ x }) => ops.softmax(x) },
  tanh: { run: ({ x }) => x.tanh() },
};

const reductions: Record<string, Check> = {
  add_bcast: { run: ({ a, b }) => a.add(b) },
  add_bcast_vec: { run: ({ a, b }) => a.add(b) },
  div_bcast: { run: ({ a, b }) => a.div(b), tolerance: GPU },
  mul_bcast_both: { run: ({ a, b }) => a.mul(b), tolerance: GPU },
  sub_bcast_scalarlike: { run: ({ a, b }) => a.sub(b), tolerance: GPU },
  pow2: { run: ({ a }) => a.pow(2) },
  rsqrt: { run: ({ a }) => a.rsqrt() },
  max_last_keep: { run: ({ a }) => a.max(-1, true) },
  mean_dims123: { run: ({ a }) => a.mean([1, 2, 3]) },
  mean_last_keep: { run: ({ a }) => a.mean(-1, true) },
  mse_mean: { run: ({ a, b }) => ops.mse(a, b).reshape([1]) },
  sum_all: { run: ({ a }) => a.sum().reshape([1]), tolerance: GPU },
  sum_dim1_keep: { run: ({ a }) => a.sum(1, true) },
  sum_dims02: { run: ({ a }) => a.sum([0, 2]), tolerance: GPU },
  var_last_keep_biased: { run: ({ a }) => a.variance(-1, true, 0) },
};

for (const [file, checks] of [
  ["ops_nn", nn],
  ["ops_tensor", reductions],
] as const) {
  const { tensors } = await golden(file);
  const upload = (key: string) => engine.tensor(tensors[key].data as Float32Array, tensors[key].shape);
  for (const [name, { run, tolerance = 1e-6 }] of Object.entries(checks))
    test(`${file} ${name}`, async () => {
      const keys = Object.keys(tensors).filter((k) => k.startsWith(`${name}/`));
      const inputs = Object.fromEntries(
        keys
          .filter((k) => k.startsWith(`${name}/in.`))
          .map((k) => [k.slice(name.length + 4), upload(k).setRequiresGrad()]),
      );
      const y = run(inputs);
      await near(y, `${name}/out`, tolerance);
      y.backward(upload(`${name}/g`));
      const grads = keys.filter((k) => k.startsWith(`${name}/grad.`));
      assert.ok(grads.length > 0, `${name} has gradients`);
      for (const k of grads) await near(inputs[k.slice(name.length + 6)].grad!, k, tolerance);
    });
  if (file === "ops_nn")
    test("ops_nn has no case without a check", () => {
      const names = new Set(Object.keys(tensors).map((k) => k.split("/")[0]));
      assert.equal(
        [...names].filter((n) => !(n in nn)),
        [],
      );
    });

  async function near(got: Tensor, key: string, tolerance: number): Promise<void> {
    const expected = tensors[key];
    assert.equal([...got.shape], [...expected.shape], key);
    const actual = await got.data();
    for (let i = 0; i < actual.length; i++) {
      const error = Math.abs(actual[i] - expected.data[i]) / (1 + Math.abs(expected.data[i]));
      assert.ok(
        error <= tolerance,
        `${key}[${i}]: got ${actual[i]}, expected ${expected.data[i]} (off by ${error.toExponential(1)})`,
      );
    }
  }
}
test.after(() => engine.destroy());
test.run();
