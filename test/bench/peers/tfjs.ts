// TensorFlow.js: eager ops, each in the form that its own kernels serve.
import { provideGpu } from "./gpu.js";
import { PACKAGES, requirePeer } from "./install.js";
import { ADAM, HEADS, type Inputs, type Peer, type Spec, STEPS, type Work } from "./protocol.js";

type Tensors = Record<string, any>;

/** Opens TensorFlow.js's WebGPU backend. */
export async function open(): Promise<Peer> {
  const adapter = await provideGpu();
  const tf = requirePeer("@tensorflow/tfjs");
  requirePeer("@tensorflow/tfjs-backend-webgpu");
  if (!(await tf.setBackend("webgpu"))) throw new Error("peers: tfjs finds no WebGPU");
  await tf.ready();
  return { adapter, version: PACKAGES["@tensorflow/tfjs"], prepare: (spec) => prepare(tf, spec) };
}

const upload = (tf: any, inputs: Inputs): Tensors =>
  Object.fromEntries(Object.entries(inputs).map(([name, { data, shape }]) => [name, tf.tensor(data, [...shape])]));

const gelu = (tf: any, x: any) =>
  tf.mul(
    tf.mul(x, 0.5),
    tf.add(1, tf.tanh(tf.mul(Math.sqrt(2 / Math.PI), tf.add(x, tf.mul(0.044715, tf.mul(x, tf.mul(x, x))))))),
  );

function norm(tf: any, x: any, weight: any, bias: any) {
  const { mean, variance } = tf.moments(x, -1, true);
  return tf.add(tf.mul(tf.mul(tf.sub(x, mean), tf.rsqrt(tf.add(variance, 1e-5))), weight), bias);
}

function attention(tf: any, q: any, k: any, v: any) {
  const scores = tf.mul(tf.matMul(q, k, false, true), 1 / Math.sqrt(q.shape.at(-1)));
  return tf.matMul(tf.softmax(scores), v);
}

function block(tf: any, x: any, w: Tensors) {
  const [B, N, C] = x.shape;
  const dense = (a: any, name: string) =>
    tf.add(tf.matMul(tf.reshape(a, [B * N, -1]), w[`${name}.weight`], false, true), w[`${name}.bias`]);
  const n1 = norm(tf, x, w["norm1.weight"], w["norm1.bias"]);
  const qkv = tf.transpose(tf.reshape(dense(n1, "qkv"), [B, N, 3, HEADS, C / HEADS]), [2, 0, 3, 1, 4]);
  const [q, k, v] = tf.unstack(qkv);
  const mixed = tf.transpose(attention(tf, q, k, v), [0, 2, 1, 3]);
  const x1 = tf.add(x, tf.reshape(dense(mixed, "proj"), x.shape));
  const n2 = norm(tf, x1, w["norm2.weight"], w["norm2.bias"]);
  return tf.add(x1, tf.reshape(dense(gelu(tf, dense(n2, "fc1")), "fc2"), x.shape));
}

function prepare(tf: any, { op, inputs }: Spec): Work | undefined {
  if (op === "stditStep") return undefined;
  const backend = tf.backend();
  const fence = () => {
    // What its own reads do before they submit; with nothing recorded it would fail.
    backend.endComputePassEncoder();
    if (backend.commandEncoder) backend.submitQueue();
    return backend.device.queue.onSubmittedWorkDone();
  };
  if (op === "blockStep") {
    const step = blockStep(tf, inputs);
    const losses = async () => {
      const values = new Float32Array(STEPS);
      for (let i = 0; i < STEPS; i++) {
        const loss = step();
        [values[i]] = await loss.data();
        loss.dispose();
      }
      return [values];
    };
    return { run: () => step().dispose(), fence, outputs: losses };
  }
  const t = upload(tf, inputs);
  const functions: Partial<Record<Spec["op"], () => any[]>> = {
    matmul: () => [tf.matMul(t.a, t.b)],
    softmax: () => [tf.softmax(t.x)],
    layerNorm: () => [norm(tf, t.x, t.weight, t.bias)],
    gelu: () => [gelu(tf, t.x)],
    attention: () => [attention(tf, t.q, t.k, t.v)],
    attentionGradients: () => tf.grads((q: any, k: any, v: any) => attention(tf, q, k, v))([t.q, t.k, t.v], t.dy),
    block: () => [block(tf, t.x, t)],
  };
  const f = functions[op]!;
  return {
    run: () => tf.dispose(tf.tidy(f)),
    fence,
    outputs: async () => {
      const list = tf.tidy(f);
      const data = await Promise.all(list.map((y: any) => y.data()));
      tf.dispose(list);
      return data;
    },
  };
}

function blockStep(tf: any, { x, target, ...weights }: Inputs): () => any {
  const [input, wanted] = [x, target].map(({ data, shape }) => tf.tensor(data, [...shape]));
  const w = Object.fromEntries(Object.entries(upload(tf, weights)).map(([name, t]) => [name, tf.variable(t, true)]));
  const { lr, beta1, beta2, eps } = ADAM;
  const optimizer = tf.train.adam(lr, beta1, beta2, eps);
  return () =>
    optimizer.minimize(() => tf.mean(tf.square(tf.sub(block(tf, input, w), wanted))), true, Object.values(w));
}
