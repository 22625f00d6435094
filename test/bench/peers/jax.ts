// jax-js: everything under jit. Its arrays are owned: a use consumes them, `.ref` keeps them.
import { pathToFileURL } from "node:url";
import { provideGpu } from "./gpu.js";
import { turned } from "./host.js";
import { PACKAGES, requirePeer } from "./install.js";
import { BATCH, STDIT } from "./model.js";
import { ADAM, HEADS, type HostTensor, type Inputs, type Peer, type Spec, STEPS, type Work } from "./protocol.js";

type Arrays = Record<string, any>;

/** Opens jax-js's WebGPU backend. */
export async function open(): Promise<Peer> {
  const adapter = await provideGpu();
  // Both builds are in the package; this one shares its modules with the backend that is loaded on demand.
  const file = requirePeer.resolve("@jax-js/jax").replace(/index\.cjs$/, "index.js");
  const jax: any = await import(pathToFileURL(file).href);
  if (!(await jax.init("webgpu")).includes("webgpu")) throw new Error("peers: jax-js finds no WebGPU");
  jax.defaultDevice("webgpu");
  return { adapter, version: PACKAGES["@jax-js/jax"], prepare: (spec) => new JaxCase(jax).prepare(spec) };
}

class JaxCase {
  private readonly np: any;
  private readonly nn: any;

  constructor(private readonly jax: any) {
    this.np = jax.numpy;
    this.nn = jax.nn;
  }

  private upload({ data, shape }: HostTensor) {
    return this.np.array(data).reshape([...shape]);
  }
  private uploadAll(inputs: Inputs): Arrays {
    // Weights of layers lie [in, out] in jax.
    const layout = (name: string, host: HostTensor) => (name.endsWith(".weight") ? turned(host) : host);
    return Object.fromEntries(Object.entries(inputs).map(([name, host]) => [name, this.upload(layout(name, host))]));
  }

  async prepare({ op, inputs }: Spec): Promise<Work> {
    const { jax } = this;
    const fence = () => jax.getWebGPUDevice().queue.onSubmittedWorkDone();
    // Reading the buffer's handle dispatches what is pending; the array itself is freed with it.
    const issue = (y: any) => y.gpuBufferSync();
    if (op === "blockStep" || op === "stditStep") {
      const { x, target, code, y, space, time, ...weights } = inputs;
      const given = op === "blockStep" ? { x, target } : { x, target, code, y, space, time };
      const step = this.trainingStep(this.uploadAll(weights), this.uploadAll(given as Inputs), (w, data) =>
        op === "blockStep" ? this.block(data.x, w) : this.stdit(data, w),
      );
      const losses = async () => {
        const values = new Float32Array(STEPS);
        for (let i = 0; i < STEPS; i++) values[i] = (await step().data())[0];
        return [values];
      };
      return { run: () => issue(step()), fence, outputs: losses };
    }
    const t = this.uploadAll(inputs);
    const args = (names: string[]) => names.map((name) => t[name].ref);
    const functions: Record<string, () => any[]> = {
      matmul: this.jitted(["a", "b"], args, (a, b) => [this.np.matmul(a, b)]),
      softmax: this.jitted(["x"], args, (x) => [this.nn.softmax(x, -1)]),
      layerNorm: this.jitted(["x", "weight", "bias"], args, (x, w, b) => [this.norm(x, w, b, 1e-5)]),
      gelu: this.jitted(["x"], args, (x) => [this.nn.gelu(x, { approximate: true })]),
      attention: this.jitted(["q", "k", "v"], args, (q, k, v) => [
        this.attention("bhnd,bhmd->bhnm", "bhnm,bhmd->bhnd", q, k, v),
      ]),
      attentionGradients: this.jitted(["q", "k", "v", "dy"], args, (q, k, v, dy) => {
        const f = (q: any, k: any, v: any) => this.attention("bhnd,bhmd->bhnm", "bhnm,bhmd->bhnd", q, k, v);
        const [y, pull] = jax.vjp(f, [q, k, v]);
        y.dispose();
        const gradients = pull(dy);
        pull.dispose();
        return gradients;
      }),
      block: (() => {
        const { x, ...w } = t;
        const f = jax.jit((x: any, w: Arrays) => [this.block(x, w)]);
        return () => f(x.ref, jax.tree.ref(w));
      })(),
    };
    const f = functions[op];
    return {
      run: () => f().forEach(issue),
      fence,
      outputs: () => Promise.all(f().map((y) => y.data())),
    };
  }

  private jitted(names: string[], args: (names: string[]) => any[], f: (...arrays: any[]) => any[]): () => any[] {
    const compiled = this.jax.jit(f);
    return () => compiled(...args(names));
  }

  private norm(x: any, weight: any, bias: any, eps: number) {
    return this.nn.standardize(x, -1, { epsilon: eps }).mul(weight).add(bias);
  }

  private dense(x: any, w: Arrays, name: string) {
    return this.np.matmul(x, w[`${name}.weight`]).add(w[`${name}.bias`]);
  }

  /** "ab,bc->ac" with axes as numbers, since jax-js reads the text with iterator methods that Node 20 lacks. */
  private einsum(formula: string, a: any, b: any) {
    const [left, right, out] = formula.split(/,|->/).map((axes) => [...axes].map((c) => c.charCodeAt(0) - 97));
    return this.np.einsum(a, left, b, right, out);
  }

  /** Scores and mix are two einsums, which read any layout in place. */
  private attention(scores: string, mix: string, q: any, k: any, v: any) {
    const scale = 1 / Math.sqrt(q.shape.at(-1));
    return this.einsum(mix, this.nn.softmax(this.einsum(scores, q, k).mul(scale), -1), v);
  }

  /** Parts of the last axis but two, which is cut away. */
  private parts(x: any, count: number): any[] {
    const shape = x.shape;
    const axis = shape.length - 3;
    const pieces = this.np.split(x, count, axis);
    return pieces.map((p: any) => p.reshape([...shape.slice(0, axis), ...shape.slice(-2)]));
  }

  private block(x: any, w: Arrays) {
    const [B, N, C] = x.shape;
    const n1 = this.norm(x.ref, w["norm1.weight"], w["norm1.bias"], 1e-5);
    const [q, k, v] = this.parts(this.dense(n1, w, "qkv").reshape([B, N, 3, HEADS, C / HEADS]), 3);
    const mixed = this.attention("bnhd,bmhd->bhnm", "bhnm,bmhd->bnhd", q, k, v).reshape([B, N, C]);
    const x1 = x.add(this.dense(mixed, w, "proj"));
    const n2 = this.norm(x1.ref, w["norm2.weight"], w["norm2.bias"], 1e-5);
    return x1.add(this.dense(this.nn.gelu(this.dense(n2, w, "fc1"), { approximate: true }), w, "fc2"));
  }

  private stdit(data: Arrays, w: Arrays) {
    const { np, nn } = this;
    const { hidden: C, depth, inChannels, frames: T, maxLength: L } = STDIT;
    const [B, S, d] = [BATCH, 16, C / HEADS];
    const patches = data.x
      .reshape([B, inChannels, T, 4, 2, 4, 2])
      .transpose([0, 2, 3, 5, 1, 4, 6])
      .reshape([B, T, S, inChannels * 4]);
    let x = this.dense(patches, w, "x_embedder.proj").add(data.space);
    const silu = (a: any) => nn.silu(a);
    const gelu = (a: any) => nn.gelu(a, { approximate: true });
    const t = this.dense(silu(this.dense(data.code, w, "t_embedder.mlp.0")), w, "t_embedder.mlp.2");
    const t6 = this.dense(silu(t.ref), w, "t_block.1").reshape([B, 6, C]);
    const y = this.dense(gelu(this.dense(data.y, w, "y_embedder.y_proj.fc1")), w, "y_embedder.y_proj.fc2");
    const plain = (a: any) => nn.standardize(a, -1, { epsilon: 1e-6 });
    const self = (a: any, name: string, scores: string, mix: string) => {
      const [q, k, v] = this.parts(this.dense(a, w, `${name}.qkv`).reshape([B, T, S, 3, HEADS, d]), 3);
      return this.dense(this.attention(scores, mix, q, k, v).reshape([B, T, S, C]), w, `${name}.proj`);
    };
    for (let i = 0; i < depth; i++) {
      const at = `blocks.${i}`;
      const rows = t6.ref.add(w[`${at}.scale_shift_table`]);
      const [shift1, scale1, gate1, shift2, scale2, gate2] = np
        .split(rows, 6, 1)
        .map((row: any) => row.reshape([B, 1, 1, C]));
      const z = plain(x.ref).mul(scale1.add(1)).add(shift1);
      x = x.add(gate1.ref.mul(self(z, `${at}.attn`, "btnhd,btmhd->bthnm", "bthnm,btmhd->btnhd")));
      const zt = i === 0 ? x.ref.add(data.time.reshape([1, T, 1, C])) : x.ref;
      x = x.add(gate1.mul(self(zt, `${at}.attn_temp`, "bnshd,bmshd->bshnm", "bshnm,bmshd->bnshd")));
      const q = this.dense(x.ref, w, `${at}.cross_attn.q_linear`).reshape([B, T * S, HEADS, d]);
      const kv = this.dense(y.ref, w, `${at}.cross_attn.kv_linear`).reshape([B, L, 2, HEADS, d]);
      const [k, v] = this.parts(kv, 2);
      const mixed = this.attention("bnhd,bmhd->bhnm", "bhnm,bmhd->bnhd", q, k, v).reshape([B, T, S, C]);
      x = x.add(this.dense(mixed, w, `${at}.cross_attn.proj`));
      const zm = plain(x.ref).mul(scale2.add(1)).add(shift2);
      x = x.add(gate2.mul(this.dense(gelu(this.dense(zm, w, `${at}.mlp.fc1`)), w, `${at}.mlp.fc2`)));
    }
    t6.dispose();
    y.dispose();
    const rows = t.reshape([B, 1, C]).add(w["final_layer.scale_shift_table"]);
    const [shift, scale] = np.split(rows, 2, 1).map((row: any) => row.reshape([B, 1, 1, C]));
    const out = this.dense(plain(x).mul(scale.add(1)).add(shift), w, "final_layer.linear");
    return out
      .reshape([B, T, 4, 4, 2, 2, inChannels])
      .transpose([0, 6, 1, 2, 4, 3, 5])
      .reshape([B, inChannels, T, 8, 8]);
  }

  /** Forward, backward and Adam in one jitted function; parameters and averages are replaced by its results. */
  private trainingStep(weights: Arrays, data: Arrays, model: (w: Arrays, data: Arrays) => any): () => any {
    const { jax, np } = this;
    const { lr, beta1, beta2, eps } = ADAM;
    const names = Object.keys(weights);
    const { target, ...given } = data;
    const zeros = () => Object.fromEntries(names.map((name) => [name, np.zeros(weights[name].shape)]));
    let state = { w: weights, m: zeros(), v: zeros(), rates: np.array(new Float32Array([1, 1])) };
    const loss = (w: Arrays, given: Arrays, target: any) => np.square(model(w, given).sub(target)).mean();
    const step = jax.jit((state: any, given: Arrays, target: any) => {
      const [value, gradients] = jax.valueAndGrad(loss)(jax.tree.ref(state.w), given, target);
      // The two powers β₁ᵗ and β₂ᵗ.
      const rates = state.rates.mul(np.array([beta1, beta2]));
      const [r1, r2] = np.split(rates.ref, 2, 0);
      const [c1, c2] = [np.reciprocal(np.subtract(1, r1)), np.reciprocal(np.subtract(1, r2))];
      const next: any = { w: {}, m: {}, v: {}, rates };
      for (const name of names) {
        const g = gradients[name];
        const shape = g.shape;
        const ones = shape.map(() => 1);
        const m = state.m[name].mul(beta1).add(g.ref.mul(1 - beta1));
        const v = state.v[name].mul(beta2).add(np.square(g).mul(1 - beta2));
        const root = np.sqrt(v.ref.mul(c2.ref.reshape(ones))).add(eps);
        next.w[name] = state.w[name].sub(m.ref.mul(c1.ref.reshape(ones)).mul(lr).div(root));
        next.m[name] = m;
        next.v[name] = v;
      }
      c1.dispose();
      c2.dispose();
      return [value, next];
    });
    return () => {
      const [value, next] = step(state, jax.tree.ref(given), target.ref);
      state = next;
      // Every result is dispatched, the loss too, without waiting for any.
      for (const leaf of jax.tree.leaves(next)) leaf.ref.gpuBufferSync();
      return value;
    };
  }
}
