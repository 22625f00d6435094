// onnxruntime-node: its WebGPU provider, and its CPU provider as the yardstick. It runs forward passes only, uploads its
// inputs and reads its results back on every run, and waits inside its native call.
import { cpus } from "node:os";
import { turned } from "./host.js";
import { PACKAGES, requirePeer } from "./install.js";
import { encodeModel, type Graph, type Node } from "./onnx.js";
import { HEADS, type HostTensor, type Inputs, type Peer, type Spec, type Work } from "./protocol.js";

/** Opens one provider. */
export async function open(provider: "webgpu" | "cpu"): Promise<Peer> {
  const ort = requirePeer("onnxruntime-node");
  if (!ort.listSupportedBackends().some(({ name }: { name: string }) => name === provider))
    throw new Error(`peers: onnxruntime-node has no ${provider} provider on this platform`);
  return {
    adapter: provider === "cpu" ? `${cpus().length} threads` : "its own choice",
    version: PACKAGES["onnxruntime-node"],
    prepare: (spec) => prepare(ort, provider, spec),
  };
}

async function prepare(ort: any, provider: string, { op, inputs }: Spec): Promise<Work | undefined> {
  const graph = graphs[op]?.(inputs);
  if (!graph) return undefined;
  const session = await ort.InferenceSession.create(encodeModel(graph), {
    executionProviders: [provider],
    logSeverityLevel: 3,
    // Threads that spin between runs would take the cores from the next engine.
    extra: {
      session: {
        intra_op: { allow_spinning: "0" },
        inter_op: { allow_spinning: "0" },
        ...(provider === "webgpu" && { disable_cpu_ep_fallback: "1" }),
      },
    },
  });
  const feeds = Object.fromEntries(
    Object.keys(graph.inputs).map((name) => [name, new ort.Tensor("float32", inputs[name].data, inputs[name].shape)]),
  );
  return {
    run: () => session.run(feeds),
    fence: async () => undefined,
    outputs: async () => {
      const results = await session.run(feeds);
      return graph.outputs.map((name) => results[name].data);
    },
  };
}

const shapes = (inputs: Inputs, names: string[]) => Object.fromEntries(names.map((name) => [name, inputs[name].shape]));
const node = (op: string, inputs: string[], outputs: string[], attributes?: Node["attributes"]): Node => ({
  op,
  inputs,
  outputs,
  attributes,
});
const scalar = (value: number): HostTensor => ({ shape: [], data: new Float32Array([value]) });
const layer = (x: string, norm: string, y: string) =>
  node("LayerNormalization", [x, `${norm}.weight`, `${norm}.bias`], [y], { axis: -1, epsilon: { float: 1e-5 } });

/** softmax(scale q kᵀ) v; kᵀ is given as `kT`. Its fused op, MultiHeadAttention, gives other numbers. */
const attend = (q: string, kT: string, v: string, y: string) => [
  node("MatMul", [q, kT], ["products"]),
  node("Mul", ["products", "scale"], ["scores"]),
  node("Softmax", ["scores"], ["shares"], { axis: -1 }),
  node("MatMul", ["shares", v], [y]),
];

const one =
  (op: string, names: string[], attributes?: Node["attributes"]) =>
  (inputs: Inputs): Graph => ({
    nodes: [node(op, names, ["result"], attributes)],
    inputs: shapes(inputs, names),
    outputs: ["result"],
    initializers: {},
  });

const graphs: Partial<Record<Spec["op"], (inputs: Inputs) => Graph>> = {
  matmul: one("MatMul", ["a", "b"]),
  softmax: one("Softmax", ["x"], { axis: -1 }),
  layerNorm: one("LayerNormalization", ["x", "weight", "bias"], { axis: -1, epsilon: { float: 1e-5 } }),
  gelu: one("Gelu", ["x"], { approximate: "tanh" }),
  attention: (inputs) => ({
    nodes: [node("Transpose", ["k"], ["kT"], { perm: [0, 1, 3, 2] }), ...attend("q", "kT", "v", "result")],
    inputs: shapes(inputs, ["q", "k", "v"]),
    outputs: ["result"],
    initializers: { scale: scalar(1 / Math.sqrt(inputs.q.shape[3])) },
  }),
  block: ({ x, ...weights }) => {
    const [B, N, C] = x.shape;
    const d = C / HEADS;
    const list = (...values: number[]) => ({ shape: [values.length], data: BigInt64Array.from(values, BigInt) });
    const dense = (from: string, name: string, to: string) => [
      node("MatMul", [from, `${name}.weight`], [`${name}.product`]),
      node("Add", [`${name}.product`, `${name}.bias`], [to]),
    ];
    const layers = Object.entries(weights).map(([name, host]) => [name, turned(host)] as const);
    return {
      nodes: [
        layer("x", "norm1", "n1"),
        ...dense("n1", "qkv", "joined"),
        node("Reshape", ["joined", "split"], ["parts"]),
        node("Split", ["parts"], ["q5", "k5", "v5"], { axis: 2, num_outputs: 3 }),
        ...["q", "k", "v"].flatMap((name) => [
          node("Squeeze", [`${name}5`, "two"], [`${name}4`]),
          node("Transpose", [`${name}4`], [`${name}h`], { perm: name === "k" ? [0, 2, 3, 1] : [0, 2, 1, 3] }),
        ]),
        ...attend("qh", "kh", "vh", "heads"),
        node("Transpose", ["heads"], ["apart"], { perm: [0, 2, 1, 3] }),
        node("Reshape", ["apart", "whole"], ["mixed"]),
        ...dense("mixed", "proj", "a"),
        node("Add", ["x", "a"], ["x1"]),
        layer("x1", "norm2", "n2"),
        ...dense("n2", "fc1", "hidden"),
        node("Gelu", ["hidden"], ["active"], { approximate: "tanh" }),
        ...dense("active", "fc2", "m"),
        node("Add", ["x1", "m"], ["result"]),
      ],
      inputs: { x: x.shape },
      outputs: ["result"],
      initializers: {
        ...Object.fromEntries(layers),
        scale: scalar(d ** -0.5),
        split: list(B, N, 3, HEADS, d),
        two: list(2),
        whole: list(B, N, C),
      },
    };
  },
};
