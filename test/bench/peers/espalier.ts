import {
  add,
  chunk,
  createEngine,
  type Engine,
  gelu,
  layerNorm,
  linear,
  matmul,
  mse,
  scaledDotProductAttention,
  softmax,
  type Tensor,
} from "../../../engine/index.js";
import { STDiT } from "../../../model/index.js";
import { AdamW } from "../../../train/index.js";
import { watch } from "./gpu.js";
import { STDIT } from "./model.js";
import { ADAM, HEADS, type HostTensor, type Inputs, type Peer, type Spec, STEPS, type Work } from "./protocol.js";

/** Opens Espalier on the adapter that it takes by itself. */
export async function open(): Promise<Peer> {
  const engine = await createEngine();
  watch(engine.device);
  return { adapter: engine.info.description, version: "", prepare: (spec) => prepare(engine, spec) };
}

const upload = (engine: Engine, { data, shape }: HostTensor) => engine.tensor(data, shape).keep();
const tensors = (engine: Engine, inputs: Inputs): Record<string, Tensor> =>
  Object.fromEntries(Object.entries(inputs).map(([name, host]) => [name, upload(engine, host)]));

/** Turns a function into one that can be called again and again: compiled, or in a scope. */
type Ready = <T extends Tensor | Tensor[]>(f: () => T) => () => T;

function prepare(engine: Engine, { op, inputs, eager }: Spec): Work {
  const ready: Ready = <T>(f: () => T) =>
    eager ? () => engine.scope(f as () => never) as T : (engine.compile(f as () => never) as () => T);
  const fence = () => {
    engine.submit();
    return engine.device.queue.onSubmittedWorkDone();
  };
  const read = async (list: Tensor[]) => {
    const data = await Promise.all(list.map((t) => t.data()));
    for (const t of list) t.dispose();
    return data as Float32Array[];
  };
  if (op === "blockStep" || op === "stditStep") {
    const step = op === "blockStep" ? blockStep(engine, ready, inputs) : stditStep(engine, ready, inputs);
    const run = () => step().dispose();
    const losses = async () => {
      const values = new Float32Array(STEPS);
      for (let i = 0; i < STEPS; i++) {
        const loss = step();
        values[i] = await loss.item();
        loss.dispose();
      }
      return [values];
    };
    return { run, fence, outputs: losses };
  }
  const t = tensors(engine, inputs);
  if (op === "attentionGradients") {
    const leaves = [t.q, t.k, t.v];
    for (const leaf of leaves) leaf.setRequiresGrad();
    const gradients = ready(() => {
      scaledDotProductAttention(t.q, t.k, t.v).backward(t.dy);
      return leaves.map((leaf) => {
        const { grad } = leaf;
        leaf.grad = undefined;
        return grad!;
      });
    });
    const run = () => {
      for (const g of gradients()) g.dispose();
    };
    return { run, fence, outputs: async () => read(gradients()) };
  }
  const functions: Partial<Record<Spec["op"], () => Tensor>> = {
    matmul: () => matmul(t.a, t.b),
    softmax: () => softmax(t.x),
    layerNorm: () => layerNorm(t.x, { weight: t.weight, bias: t.bias }),
    gelu: () => gelu(t.x),
    attention: () => scaledDotProductAttention(t.q, t.k, t.v),
    block: () => block(t.x, t),
  };
  const f = functions[op];
  if (!f) throw new Error(`espalier: no case computes ${op}`);
  const once = ready(() => engine.noGrad(f));
  return { run: () => once().dispose(), fence, outputs: async () => read([once()]) };
}

/** A transformer block: x [B, N, C]. Weights lie [out, in]. */
function block(x: Tensor, w: Record<string, Tensor>): Tensor {
  const [B, N, C] = x.shape;
  const dense = (a: Tensor, name: string) => linear(a, w[`${name}.weight`], w[`${name}.bias`]);
  const norm = (a: Tensor, name: string) => layerNorm(a, { weight: w[`${name}.weight`], bias: w[`${name}.bias`] });
  const qkv = dense(norm(x, "norm1"), "qkv").reshape([B, N, 3, HEADS, C / HEADS]); // [B, N, 3, h, d]
  const [q, k, v] = chunk(qkv, 3, 2).map((part) => part.squeeze(2).permute([0, 2, 1, 3])); // [B, h, N, d] each
  const mixed = scaledDotProductAttention(q, k, v).permute([0, 2, 1, 3]).reshape([B, N, C]); // [B, N, C]
  const x1 = add(x, dense(mixed, "proj")); // [B, N, C]
  return add(x1, dense(gelu(dense(norm(x1, "norm2"), "fc1")), "fc2")); // [B, N, C]
}

/** The training step of `loss` over leaves, by Adam. */
function trainingStep(ready: Ready, leaves: Record<string, Tensor>, loss: () => Tensor): () => Tensor {
  const { lr, beta1, beta2, eps } = ADAM;
  const optimizer = new AdamW(leaves, { lr, betas: [beta1, beta2], eps, weightDecay: 0 });
  return ready(() => {
    const value = loss();
    value.backward();
    optimizer.step();
    optimizer.zeroGrad();
    return value.detach();
  });
}

function blockStep(engine: Engine, ready: Ready, { x, target, ...weights }: Inputs): () => Tensor {
  const w = tensors(engine, weights);
  for (const leaf of Object.values(w)) leaf.setRequiresGrad();
  const [input, wanted] = [upload(engine, x), upload(engine, target)];
  return trainingStep(ready, w, () => mse(block(input, w), wanted));
}

function stditStep(engine: Engine, ready: Ready, { x, target, code, y, ...weights }: Inputs): () => Tensor {
  const model = new STDiT(engine, STDIT);
  for (const [name, t] of model.namedParameters()) {
    const { data } = weights[name];
    engine.write(t, new Uint8Array(data.buffer, data.byteOffset, data.byteLength));
  }
  const [input, wanted, codes, caption] = [x, target, code, y].map((host) => upload(engine, host));
  const loss = () => mse(model.forward(input, codes, caption), wanted);
  return trainingStep(ready, Object.fromEntries(model.namedParameters()), loss);
}
