import type { Engine, Tensor } from "../../engine/index.js";
import { posTable1d, posTable2d } from "../../model/embed.js";
import { STDiT } from "../../model/stdit.js";

/** A tensor of a golden file, on the host. */
interface Stored {
  shape: readonly number[];
  data: Float32Array | Float64Array | Int32Array;
}
type File = { tensors: Record<string, Stored>; metadata: Readonly<Record<string, string>> };

/** What the checks found. */
export interface CheckReport {
  checks: number;
  /** Largest error of each kind. */
  worst: Record<string, number>;
  failures: string[];
}

// The files' own limits for f32 are 2e-5 absolute (1e-5 more where timestep codes are computed exactly, as here) and
// 1e-5 relative for gradients, 1e-4 on a GPU.
const LIMIT = { table: 1e-7, activation: 3e-5, gradient: 1e-4, zero: 1e-8 };

/** Checkpoint path to the path of fields. */
const camel = (path: string) => path.replace(/_([a-z])/g, (_, l: string) => l.toUpperCase());

/**
 * The small STDiT of the golden files: every stored activation, output, input gradient and parameter gradient. Runs in
 * Node and in a page: files come loaded.
 */
export async function checkSTDiT(
  engine: Engine,
  files: { weights: File; io: File; grads: File },
): Promise<CheckReport> {
  const report: CheckReport = { checks: 0, worst: {}, failures: [] };
  const judge = (kind: keyof typeof LIMIT, what: string, got: ArrayLike<number>, expected: ArrayLike<number>) => {
    let [abs, d, n] = [0, 0, 0];
    for (let i = 0; i < expected.length; i++) {
      abs = Math.max(abs, Math.abs(got[i] - expected[i]));
      d += (got[i] - expected[i]) ** 2;
      n += expected[i] ** 2;
    }
    const off = kind === "gradient" ? Math.sqrt(d / n) : abs;
    report.checks++;
    report.worst[kind] = Math.max(report.worst[kind] ?? 0, off);
    if (got.length !== expected.length)
      report.failures.push(`${what}: ${got.length} values, expected ${expected.length}`);
    else if (!(off <= LIMIT[kind]))
      report.failures.push(`${what}: off by ${off.toExponential(2)}, limit ${LIMIT[kind]}`);
  };
  const io = files.io.tensors;
  const cfg = JSON.parse(files.io.metadata.cfg);
  const model = new STDiT(engine, {
    inChannels: 4,
    predSigma: true,
    hidden: cfg.hidden,
    depth: cfg.depth,
    heads: cfg.heads,
    frames: cfg.input_size[0],
    latent: cfg.input_size.slice(1),
    captionChannels: cfg.cap,
    maxLength: cfg.L,
    spaceScale: cfg.space_scale,
    timeScale: cfg.time_scale,
  });
  const weights = Object.fromEntries(
    Object.entries(files.weights.tensors).map(([name, t]) => [name.replace(/^weights\./, ""), t]),
  );
  judge("table", "pos_embed", await model.posEmbed.data(), weights.pos_embed.data);
  judge("table", "pos_embed_temporal", await model.posEmbedTemporal.data(), weights.pos_embed_temporal.data);
  await model.loadStateDict(weights);

  const upload = (name: string) => engine.tensor(io[name].data as Float32Array, io[name].shape);
  const [x, y] = [upload("in.x").setRequiresGrad(), upload("in.y").setRequiresGrad()];
  const mask = upload("in.mask");
  const t = io["in.timestep"].data;

  const outputs = new Map<string, Tensor>();
  const hooks: (() => void)[] = [];
  for (const name of Object.keys(io).filter((key) => key.startsWith("act.")))
    hooks.push(
      model.hook(camel(name.slice(4)), (_, output: Tensor) => {
        outputs.set(name, output.detach().keep());
      }),
    );
  const out = model.forward(x, t, y, mask);
  for (const off of hooks) off();
  judge("activation", "out", await out.data(), io.out.data);
  for (const [name, output] of outputs) {
    // The reference walks temporal attention place by place.
    const aligned = name.endsWith("attn_temp") ? output.permute([0, 2, 1, 3]) : output;
    judge("activation", name, await aligned.data(), io[name].data);
  }
  const wanted = Object.keys(io).filter((key) => key.startsWith("act.")).length;
  if (outputs.size !== wanted) report.failures.push(`${outputs.size} activations, expected ${wanted}`);

  const loss = out.mul(upload("in.loss_rand")).mean();
  judge("activation", "loss", await loss.data(), io.loss.data);
  loss.backward();
  judge("gradient", "grad_in.x", await x.grad!.data(), io["grad_in.x"].data);
  judge("gradient", "grad_in.y", await y.grad!.data(), io["grad_in.y"].data);
  const parameters = model.namedParameters();
  const grads = files.grads.tensors;
  if (parameters.length !== Object.keys(grads).length)
    report.failures.push(`${parameters.length} parameters, expected ${Object.keys(grads).length}`);
  for (const [name, p] of parameters) {
    const expected = grads[`grad.${name}`]?.data;
    if (!expected || !p.grad) {
      report.failures.push(`${name}: no gradient ${expected ? "computed" : "stored"}`);
      continue;
    }
    const got = await p.grad.data();
    // Softmax does not change when all keys move by one vector, so the keys' biases have no gradient but rounding.
    const C = cfg.hidden;
    const keys = name.endsWith("qkv.bias") ? [C, 2 * C] : name.endsWith("kv_linear.bias") ? [0, C] : [0, 0];
    const rest = (a: ArrayLike<number>) => Array.from(a).filter((_, i) => i < keys[0] || i >= keys[1]);
    judge("gradient", name, rest(got), rest(expected));
    if (keys[1]) judge("zero", `${name} (keys)`, got.slice(keys[0], keys[1]), expected.slice(keys[0], keys[1]));
  }

  const { nomask, dropped } = engine.noGrad(() =>
    engine.scope(() => ({
      nomask: model.forward(x, t, y),
      dropped: model.forward(x, t, y, mask, { drop: [0, 1] }),
    })),
  );
  judge("activation", "out_nomask", await nomask.data(), io.out_nomask.data);
  judge("activation", "out_null_sample1", await dropped.data(), io.out_null_sample1.data);
  model.dispose();
  return report;
}

/** Position tables of other grids than a model's own, against the formula that the file states. */
export function checkTables(tensors: Record<string, Stored>): CheckReport {
  const report: CheckReport = { checks: 0, worst: {}, failures: [] };
  for (const [name, { data }] of Object.entries(tensors)) {
    const two = /^pos2d\.h(\d+)_(\d+)x(\d+)_s([\d.]+)(_first4_last4)?$/.exec(name);
    const one = /^pos1d\.h(\d+)_T(\d+)_s([\d.]+)$/.exec(name);
    if (!two && !one) continue;
    const scale = (text: string) => (text === "0.667" ? 2 / 3 : Number(text));
    let table = two
      ? posTable2d(Number(two[1]), Number(two[2]), Number(two[3]), scale(two[4]))
      : posTable1d(Number(one![1]), Number(one![2]), scale(one![3]));
    if (two?.[5]) {
      const four = 4 * Number(two[1]);
      table = Float32Array.of(...table.subarray(0, four), ...table.subarray(table.length - four));
    }
    const off = table.reduce((worst, v, i) => Math.max(worst, Math.abs(v - data[i])), 0);
    report.checks++;
    report.worst.table = Math.max(report.worst.table ?? 0, off);
    if (!(off <= LIMIT.table) || table.length !== data.length) report.failures.push(`${name}: off by ${off}`);
  }
  return report;
}
