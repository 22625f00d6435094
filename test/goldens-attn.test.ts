import { suite } from "uvu";
import * as assert from "uvu/assert";
import type { Tensor } from "../engine/index.js";
import * as ops from "../engine/index.js";
import { golden } from "./golden.js";

const test = suite("goldens ops_attn and ops_tensor: attention, rotary embeddings, moving and picking elements");
const engine = await ops.createEngine();

/** Largest |difference| / (1 + |expected|): 10 times the file's 1e-6, where e^x and the order of a sum decide. */
const SUMS = 1e-5;

interface Check {
  run(t: Record<string, Tensor>): Tensor;
  tolerance?: number;
}
const sdpa = ops.scaledDotProductAttention;

/** cos and sin of position * 10000^(-2i / columns), as [positions, columns / 2]. */
function tables(positions: number, columns: number): [Tensor, Tensor] {
  const angles = Float64Array.from(
    { length: (positions * columns) / 2 },
    (_, n) => Math.floor((2 * n) / columns) * 1e4 ** ((-2 * (n % (columns / 2))) / columns),
  );
  const shape = [positions, columns / 2];
  return [engine.tensor(angles.map(Math.cos), shape), engine.tensor(angles.map(Math.sin), shape)];
}

const attention: Record<string, Check> = {
  sdpa_plain: { run: ({ q, k, v }) => sdpa(q, k, v), tolerance: SUMS },
  sdpa_headdim72: { run: ({ q, k, v }) => sdpa(q, k, v), tolerance: SUMS },
  sdpa_keymask: { run: ({ q, k, v, m }) => sdpa(q, k, v, { mask: m.reshape([3, 1, 1, 7]) }), tolerance: SUMS },
  sdpa_additive_bias: { run: ({ q, k, v, bias }) => sdpa(q, k, v, { mask: bias }), tolerance: SUMS },
  sdpa_causal: { run: ({ q, k, v }) => sdpa(q, k, v, { causal: true }), tolerance: SUMS },
  rope_rotate_half: { run: ({ x }) => ops.rotary(x, ...tables(7, 8)) },
  rope_interleaved: { run: ({ x }) => ops.rotary(x, ...tables(7, 8), { interleaved: true }) },
};

const moves: Record<string, Check> = {
  cat_dim1: { run: ({ a, b }) => ops.cat([a, b], 1), tolerance: 0 },
  chunk6_like: {
    run: ({ a }) => {
      const pieces = ops.chunk(a, 6, 1);
      return pieces[0].mul(pieces[1]).add(pieces[5]);
    },
  },
  embedding_gather: { run: ({ w, idx }) => ops.embedding(w, idx) },
  permute_reshape_spatial_to_temporal: {
    run: ({ a }) => a.reshape([2, 3, 4, 5]).permute([0, 2, 1, 3]).reshape([8, 3, 5]),
    tolerance: 0,
  },
  repeat_kv: { run: ({ a }) => ops.expand(a.unsqueeze(2), [2, 3, 2, 5, 4]).reshape([2, 6, 5, 4]) },
  slice: { run: ({ a }) => ops.slice(a, 1, 1, 4), tolerance: 0 },
  where_mask: { run: ({ m, a, b }) => ops.where(m.to("u32"), a, b) },
};

for (const [file, checks] of [
  ["ops_attn", attention],
  ["ops_tensor", moves],
] as const) {
  const { tensors } = await golden(file);
  const upload = (key: string): Tensor => {
    const { data, shape } = tensors[key];
    const t = engine.tensor(data, shape);
    return data instanceof Float32Array ? t.setRequiresGrad() : t;
  };
  for (const [name, { run, tolerance = 1e-6 }] of Object.entries(checks))
    test(`${file} ${name}`, async () => {
      const keys = Object.keys(tensors).filter((k) => k.startsWith(`${name}/`));
      const inputs = Object.fromEntries(
        keys.filter((k) => k.startsWith(`${name}/in.`)).map((k) => [k.slice(name.length + 4), upload(k)]),
      );
      const y = run(inputs);
      await near(y, `${name}/out`, tolerance);
      y.backward(upload(`${name}/g`));
      const grads = keys.filter((k) => k.startsWith(`${name}/grad.`));
      assert.ok(grads.length > 0, `${name} has gradients`);
      for (const k of grads) await near(inputs[k.slice(name.length + 6)].grad!, k, tolerance);
      if (name === "sdpa_keymask")
        for (const t of [inputs.k, inputs.v]) await exactlyZero(t.grad!, tensors[`${name}/in.m`].data);
    });
  if (file === "ops_attn")
    test("ops_attn has no case without a check", () => {
      const names = new Set(Object.keys(tensors).map((k) => k.split("/")[0]));
      assert.equal(
        [...names].filter((n) => !(n in attention)),
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

/** Keys [B, H, L, D] that the mask [B, L] hides get a gradient of 0, not a small one. */
async function exactlyZero(grad: Tensor, mask: ArrayLike<number>): Promise<void> {
  const [, heads, l, d] = grad.shape;
  const values = await grad.data();
  let hidden = 0;
  values.forEach((v, n) => {
    const key = Math.floor(n / d) % l;
    const sample = Math.floor(n / (heads * l * d));
    if (mask[sample * l + key] !== 0) return;
    hidden++;
    assert.is(Math.abs(v), 0, `gradient of hidden key ${key} of sample ${sample}`);
  });
  assert.ok(hidden > 0, "the mask hides keys");
}

test.after(() => engine.destroy());
test.run();
