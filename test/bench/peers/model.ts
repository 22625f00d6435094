// The video transformer of the training case: its sizes, its inputs, and its loss in float64.
import { posTable1d, posTable2d, type STDiTConfig, timestepCode } from "../../../model/index.js";
import { block, geluTanh, layerNorm, linear, type Numbers } from "../plain.js";
import { draw } from "./host.js";
import { HEADS, type HostTensor, type Inputs } from "./protocol.js";

/** Depth 4, hidden 128, 16 frames of 16 tokens. */
export const STDIT = {
  inChannels: 4,
  predSigma: false,
  hidden: 128,
  depth: 4,
  heads: HEADS,
  patch: [1, 2, 2],
  frames: 16,
  latent: [8, 8],
  captionChannels: 64,
  maxLength: 16,
  spaceScale: 1,
} as const satisfies Partial<STDiTConfig>;
export const BATCH = 4;

const { hidden: C, depth, inChannels, frames: T, captionChannels: D, maxLength: L } = STDIT;
const S = 16;
const VALUES = inChannels * 4;

/** Weights by their checkpoint names, [out, in]. None is zero, so that every part counts. */
function weights(): Inputs {
  const out: Inputs = {};
  const dense = (name: string, inputs: number, outputs: number) => {
    out[`${name}.weight`] = draw([outputs, inputs], inputs ** -0.5);
    out[`${name}.bias`] = draw([outputs], 0.02);
  };
  dense("x_embedder.proj", VALUES, C);
  dense("t_embedder.mlp.0", 256, C);
  dense("t_embedder.mlp.2", C, C);
  dense("t_block.1", C, 6 * C);
  dense("y_embedder.y_proj.fc1", D, C);
  dense("y_embedder.y_proj.fc2", C, C);
  for (let i = 0; i < depth; i++) {
    const at = `blocks.${i}`;
    out[`${at}.scale_shift_table`] = draw([6, C], C ** -0.5);
    dense(`${at}.attn.qkv`, C, 3 * C);
    dense(`${at}.attn.proj`, C, C);
    dense(`${at}.attn_temp.qkv`, C, 3 * C);
    dense(`${at}.attn_temp.proj`, C, C);
    dense(`${at}.cross_attn.q_linear`, C, C);
    dense(`${at}.cross_attn.kv_linear`, C, 2 * C);
    dense(`${at}.cross_attn.proj`, C, C);
    dense(`${at}.mlp.fc1`, C, 4 * C);
    dense(`${at}.mlp.fc2`, 4 * C, C);
  }
  out["final_layer.scale_shift_table"] = draw([2, C], C ** -0.5);
  dense("final_layer.linear", C, VALUES);
  return out;
}

const host = (data: Float32Array, shape: number[]): HostTensor => ({ data, shape });

/** Everything that the step reads: data, the codes of its times, position tables, weights. */
export function stditInputs(): Inputs {
  const times = Float32Array.from({ length: BATCH }, (_, i) => 100 + 200 * i);
  return {
    x: draw([BATCH, inChannels, T, 8, 8]),
    target: draw([BATCH, inChannels, T, 8, 8]),
    code: host(timestepCode(times), [BATCH, 256]),
    y: draw([BATCH, L, D]),
    space: host(posTable2d(C, 4, 4, STDIT.spaceScale), [S, C]),
    time: host(posTable1d(C, T), [T, C]),
    ...weights(),
  };
}

const silu = (x: number) => x / (1 + Math.exp(-x));

/** The mean squared error of the step's first forward pass, in float64. */
export function stditLoss(inputs: Inputs): number {
  const at = (name: string): Numbers => inputs[name].data;
  const dense = (x: Numbers, name: string) => {
    const weight = inputs[`${name}.weight`];
    return linear(x, weight.data, at(`${name}.bias`), weight.shape[1]);
  };
  // Token (b, t, gh, gw) holds values (channel, ph, pw) of a patch of 2 x 2; the same order, with the channel last, comes out.
  const place = (b: number, t: number, s: number, c: number, p: number) =>
    (((b * inChannels + c) * T + t) * 8 + 2 * (s >> 2) + (p >> 1)) * 8 + 2 * (s & 3) + (p & 1);
  const tokens = BATCH * T * S;
  const patches = new Float64Array(tokens * VALUES);
  const wanted = new Float64Array(tokens * VALUES);
  for (let n = 0; n < tokens; n++)
    for (let c = 0; c < inChannels; c++)
      for (let p = 0; p < 4; p++) {
        const from = place(Math.floor(n / (T * S)), Math.floor(n / S) % T, n % S, c, p);
        patches[n * VALUES + c * 4 + p] = at("x")[from];
        wanted[n * VALUES + p * inChannels + c] = at("target")[from];
      }
  let x: Float64Array = dense(patches, "x_embedder.proj").map((v, i) => v + at("space")[i % (S * C)]);
  const t = dense(dense(at("code"), "t_embedder.mlp.0").map(silu), "t_embedder.mlp.2");
  const isScale = (row: number) => (row === 1 || row === 4 ? 1 : 0);
  const t6 = dense(t.map(silu), "t_block.1").map((v, i) => v + isScale(Math.floor(i / C) % 6));
  const y = dense(dense(at("y"), "y_embedder.y_proj.fc1").map(geluTanh), "y_embedder.y_proj.fc2");
  for (let i = 0; i < depth; i++) {
    const prefix = `blocks.${i}.`;
    const own = Object.entries(inputs).filter(([name]) => name.startsWith(prefix));
    const w = Object.fromEntries(own.map(([name, { data }]) => [name.slice(prefix.length), data as Numbers]));
    const time = i === 0 ? at("time") : undefined;
    x = block(x, y, t6, w, { B: BATCH, T, S, L, C, heads: HEADS }, time);
  }
  const rows = at("final_layer.scale_shift_table");
  const modulated = layerNorm(x, C, 1e-6).map((v, i) => {
    const [c, own] = [i % C, t[Math.floor(i / (T * S * C)) * C + (i % C)]];
    return own + rows[c] + v * (1 + own + rows[C + c]);
  });
  const out = dense(modulated, "final_layer.linear");
  return out.reduce((sum, v, i) => sum + (v - wanted[i]) ** 2, 0) / out.length;
}
