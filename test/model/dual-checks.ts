import { addcmul, type Engine, exp, Key, type Tensor } from "../../engine/index.js";
import type { STDiTConfig } from "../../model/config.js";
import { ddpmNumbers, pMeanVariance } from "../../model/diffusion/ddpm.js";
import { guided } from "../../model/diffusion/guidance.js";
import { addLanguage } from "../../model/language.js";
import { diffusionTables, linearBetas } from "../../model/schedule.js";
import { STDiT } from "../../model/stdit.js";
import type { Golden } from "../golden.js";
import type { CheckReport } from "./stdit-checks.js";

type File = { tensors: Record<string, Golden>; metadata: Readonly<Record<string, string>> };

// The file's own limits for f32 are 2e-5 absolute (1e-5 more where timestep codes are computed exactly, as here), 1e-5
// relative for gradients, 1e-4 on a GPU; guidance multiplies what outputs are off by 12.5.
const LIMIT = { table: 1e-7, output: 3e-5, gradient: 1e-4, zero: 1e-8, guided: 1e-4, loop: 1e-4, bits: 0 };
type Kind = keyof typeof LIMIT;

const BRANCH = /cross_attn_llm|y_embedder_llm|gate_llm/;

function norms(got: ArrayLike<number>, expected: ArrayLike<number>): { abs: number; rel: number } {
  let [abs, d, n] = [0, 0, 0];
  for (let i = 0; i < expected.length; i++) {
    abs = Math.max(abs, Math.abs(got[i] - expected[i]));
    d += (got[i] - expected[i]) ** 2;
    n += expected[i] ** 2;
  }
  return { abs, rel: Math.sqrt(d / n) };
}

/**
 * The small STDiT with a language branch of the golden file: outputs with gates at 0 and not, one a block and one a
 * channel, every gradient, guidance by two captions and sampling with it. Runs in Node and in a page: the file comes
 * loaded.
 */
export async function checkDual(engine: Engine, { tensors, metadata }: File): Promise<CheckReport> {
  const report: CheckReport = { checks: 0, worst: {}, failures: [] };
  const judge = (kind: Kind, what: string, got: ArrayLike<number>, expected: ArrayLike<number>) => {
    const { abs, rel } = norms(got, expected);
    const off = kind === "gradient" || kind === "loop" ? rel : abs;
    report.checks++;
    report.worst[kind] = Math.max(report.worst[kind] ?? 0, off);
    if (got.length !== expected.length)
      report.failures.push(`${what}: ${got.length} values, expected ${expected.length}`);
    else if (!(off <= LIMIT[kind]))
      report.failures.push(`${what}: off by ${off.toExponential(2)}, limit ${LIMIT[kind]}`);
  };
  const stored = (name: string) => tensors[name].data;
  const upload = (name: string) => engine.tensor(tensors[name].data, tensors[name].shape);
  const values = async (t: Tensor) => {
    const numbers = await t.data();
    t.dispose();
    return numbers;
  };

  const cfg = JSON.parse(metadata.cfg);
  const plain: Partial<STDiTConfig> = {
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
  };
  const branch = { channels: cfg.llm_dim, maxLength: cfg.L_llm };
  const weights = Object.fromEntries(
    Object.entries(tensors)
      .filter(([name]) => name.startsWith("weights."))
      .map(([name, t]) => [name.slice(8), t]),
  );
  const part = (wanted: (name: string) => boolean) =>
    Object.fromEntries(Object.entries(weights).filter(([name]) => wanted(name)));

  const [x, y, second] = ["in.x", "in.y", "in.y_llm"].map((name) => upload(name).setRequiresGrad());
  const [mask, secondMask] = ["in.mask", "in.mask_llm"].map(upload);
  const random = upload("in.loss_rand");
  const t = stored("in.timestep");
  const language = { y: second, mask: secondMask };
  const forward = (model: STDiT) => engine.noGrad(() => engine.scope(() => model.forward(x, t, y, mask, { language }))); // [B, 8, T, H, W]

  // Gates at 0: the base, to the last bit, and of the branch the gates alone get a gradient.
  const base = new STDiT(engine, plain);
  judge("table", "pos_embed", await base.posEmbed.data(), stored("weights.pos_embed"));
  judge("table", "pos_embed_temporal", await base.posEmbedTemporal.data(), stored("weights.pos_embed_temporal"));
  await base.loadStateDict(part((name) => !BRANCH.test(name)));
  const before = await values(engine.noGrad(() => engine.scope(() => base.forward(x, t, y, mask))));
  judge("output", "gate0.out", before, stored("gate0.out"));
  const fresh = await addLanguage(base, { ...branch, key: Key.from(1) });
  await fresh.loadStateDict(
    part((name) => name.startsWith("y_embedder_llm")),
    { strict: false },
  );
  judge("bits", "gate0.out beside the base", await values(forward(fresh)), before);
  const loss0 = fresh.forward(x, t, y, mask, { language }).mul(random).mean();
  judge("output", "gate0.loss", await loss0.data(), stored("gate0.loss"));
  loss0.backward();
  for (const [name, p] of fresh.namedParameters()) {
    if (!BRANCH.test(name)) continue;
    const got = (await p.grad!.data()) as Float32Array;
    if (name.endsWith("gate_llm")) judge("gradient", `gate0.grad.${name}`, got, stored(`gate0.grad.${name}`));
    else judge("bits", `${name} at gate 0`, got, new Float32Array(got.length));
  }
  fresh.dispose();
  base.dispose();

  const config = { ...plain, languageChannels: cfg.llm_dim, languageLength: cfg.L_llm };
  const model = new STDiT(engine, config);
  await model.loadStateDict(weights);
  for (const input of [x, y, second]) input.grad = undefined;
  const out = model.forward(x, t, y, mask, { language }); // [B, 8, T, H, W]
  judge("output", "out", await out.data(), stored("out"));
  const loss = out.mul(random).mean();
  judge("output", "loss", await loss.data(), stored("loss"));
  loss.backward();
  for (const [name, input] of Object.entries({ x, y, y_llm: second }))
    judge("gradient", `grad_in.${name}`, await input.grad!.data(), stored(`grad_in.${name}`));
  const parameters = model.namedParameters();
  const grads = Object.keys(tensors).filter((name) => name.startsWith("grad."));
  if (parameters.length !== grads.length)
    report.failures.push(`${parameters.length} parameters, expected ${grads.length}`);
  for (const [name, p] of parameters) {
    const expected = tensors[`grad.${name}`]?.data;
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

  // What guidance combines: nulls keep the masks of what they stand for.
  const ones = [1, 1];
  for (const [name, drop, dropSecond] of [
    ["e_t5_llm", undefined, undefined],
    ["e_t5_null", undefined, ones],
    ["e_null_null", ones, ones],
  ] as const) {
    const e = engine.noGrad(() =>
      engine.scope(() => model.forward(x, t, y, mask, { drop, language: { ...language, drop: dropSecond } })),
    ); // [B, 8, T, H, W]
    judge("output", name, await values(e), stored(name));
  }

  // Guidance goes from a sample to its own time, so that samples are guided one by one.
  const scales = { scale: 7, languageScale: 12.5 };
  const row = (source: Tensor, b: number) => source.slice(0, b, b + 1).detach();
  for (const [name, cfgChannels] of [
    ["cfg2.model_output_all4", "all"],
    ["cfg2.model_output_first3", 3],
  ] as const) {
    const got: number[] = [];
    for (let b = 0; b < t.length; b++) {
      const one = { y: row(second, b), mask: row(secondMask, b) };
      const predict = guided(model, row(y, b), row(mask, b), { ...scales, cfgChannels, language: one });
      got.push(...(await values(engine.noGrad(() => predict(row(x, b), t[b])))));
    }
    judge("guided", name, got, stored(name));
    if (cfgChannels === "all") {
      const half = got.length / t.length / 2;
      const eps = got.filter((_, i) => i % (2 * half) < half);
      judge("guided", "cfg2.eps_all4", eps, stored("cfg2.eps_all4"));
    }
  }

  // Ancestral sampling in 5 steps with stored noise.
  const tables = diffusionTables(linearBetas(), 5);
  const predict = guided(model, y.detach(), mask, { ...scales, language: { y: second.detach(), mask: secondMask } });
  const noise = upload("loop.noise"); // [5, B, C, T, H, W]
  let z = upload("loop.z"); // [B, C, T, H, W]
  for (let i = 4; i >= 0; i--) {
    const next = engine.noGrad(() =>
      engine.scope(() => {
        const { mean, logVariance } = pMeanVariance(ddpmNumbers(tables, i), z, predict(z, tables.timestepMap[i]));
        return i === 0 ? mean : addcmul(mean, exp(logVariance.mul(0.5)), noise.slice(0, 4 - i, 5 - i).squeeze(0));
      }),
    ); // [B, C, T, H, W]
    z.dispose();
    z = next;
  }
  judge("loop", "loop.samples", await z.data(), stored("loop.samples"));
  model.dispose();

  // One gate a channel.
  const channels = new STDiT(engine, { ...config, languageGate: "channel" });
  const gates = Object.keys(tensors).filter((name) => name.startsWith("channel_gate.blocks."));
  await channels.loadStateDict({
    ...weights,
    ...Object.fromEntries(gates.map((name) => [name.slice("channel_gate.".length), tensors[name]])),
  });
  judge("output", "channel_gate.out", await values(forward(channels)), stored("channel_gate.out"));
  channels.dispose();
  return report;
}
