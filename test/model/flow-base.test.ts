import { suite } from "uvu";
import * as assert from "uvu/assert";
import { createEngine, type Tensor } from "../../engine/index.js";
import { modelEntries, openModel, saveModel } from "../../model/checkpoint.js";
import { Flow } from "../../model/diffusion/flow.js";
import { guided } from "../../model/diffusion/guidance.js";
import { euler } from "../../model/diffusion/ode.js";
import { memorySink, openSafetensors, writeSafetensors } from "../../model/safetensors.js";
import { flowTimes } from "../../model/schedule.js";
import { golden } from "../golden.js";
import { near, relNorm, worstAbs } from "./compare.js";

const test = suite("flow-base");
const engine = await createEngine();
const FILE = "test/goldens/flow-base.safetensors";
const loaded = await openModel(engine, FILE);
const { model, codec, objective } = loaded;
const { tensors: s, metadata } = await golden("flow_base_sample");
const { tensors: g } = await golden("flow_base_train");
const upload = ({ shape, data }: { shape: readonly number[]; data: ArrayLike<number> }): Tensor =>
  engine.tensor(data as Float32Array, shape);
/** The file's limit for everything sampled. */
const LIMIT = 1e-4;

test("the file says what it is", () => {
  assert.is(model.countParameters(), 857_984);
  assert.equal(model.config.latent, [8, 8]);
  assert.is(model.config.predSigma, false);
  assert.instance(objective, Flow);
  assert.is((objective as Flow).shift, 4);
  assert.is(codec!.channels, 8);
  assert.is(loaded.text.info!.pad, "<pad>");
});

test("its captions encode to the vectors it was trained with", async () => {
  const encoded = await loaded.text.encoder!.encode(JSON.parse(metadata.captions));
  assert.equal(encoded.shape, [4, 16, 64]);
  assert.equal([...encoded.mask], [...s.mask.data]);
  const real = (data: ArrayLike<number>) => Array.from(data).filter((_, i) => s.mask.data[Math.floor(i / 64)]);
  assert.is(worstAbs(real(encoded.embeddings), real(s.text.data)), 0);
  assert.equal(encoded.unknown, []);
});

test("the four clips, step by step", async () => {
  const [noise, text, mask] = [upload(s.noise), upload(s.text), upload(s.mask)];
  await near("grid", flowTimes(12, 4), s.u, 1e-12);
  const predict = guided(model, text, mask, { scale: 1.5 });
  const off: string[] = [];
  const check = async (what: string, got: Tensor | ArrayLike<number>, name: string) => {
    off.push(`${what} ${(await near(what, got, s[name], LIMIT, relNorm)).toExponential(1)}`);
  };
  let x: Tensor = noise;
  for await (const step of euler(predict, noise, { steps: 12 })) {
    x = step.x;
    if (`step${step.i + 1}.x` in s) await check(`x ${step.i + 1}`, x, `step${step.i + 1}.x`);
  }
  for (const i of [0, 1, 11]) {
    const t = Array<number>(4).fill(1000 * s.u.data[i]);
    const at = upload(s[`step${i}.x`]);
    await check(
      `conditional ${i}`,
      engine.noGrad(() => model.forward(at, t, text, mask)),
      `step${i}.cond`,
    );
    await check(
      `unconditional ${i}`,
      engine.noGrad(() => model.forward(at, t, model.yEmbedder.nullCaption(4), mask)),
      `step${i}.uncond`,
    );
  }
  await check("latent", x, "latent");
  await check(
    "video",
    engine.noGrad(() => codec!.decode(x)),
    "video",
  );
  console.log(`\n  ${off.join(", ")}`);
  x.dispose();
});

test("one training step: latents, loss and gradients", async () => {
  const off: Record<string, number> = {};
  const video = upload(g.pixels);
  const latent = codec!.encode(video);
  off.latent = await near("latent", latent, g.latent, 1e-5, relNorm);
  const times = objective!.times(g.u0.data);
  off.u = await near("u", times, g.u, 1e-6);
  const sample = { x0: upload(g.latent), eps: upload(g.eps), times };
  const xt = objective!.noise(sample);
  off.xt = await near("xt", xt, g.xt, 1e-6, relNorm);
  const out = model.forward(xt, objective!.timesteps(times), upload(g.text), upload(g.mask));
  off.out = await near("out", out, g.out, LIMIT, relNorm);
  const { loss, parts } = objective!.loss(out, sample);
  off.loss = await near("loss", loss, { data: g.loss.data }, 1e-5);
  off.samples = await near("loss by sample", parts.mse, { data: g["loss.per_sample"].data }, 1e-5);
  loss.backward();
  const own = Object.fromEntries(model.namedParameters());
  const names = Object.keys(g).filter((n) => n.startsWith("grad."));
  const outside = Object.keys(own).filter((n) => !/^blocks\.[12]\./.test(n));
  assert.equal(names.map((n) => n.slice(5)).sort(), outside.sort());
  for (const name of names) {
    const C = model.config.hidden;
    const keys = name.endsWith("qkv.bias") ? [C, 2 * C] : name.endsWith("kv_linear.bias") ? [0, C] : [0, 0];
    // The keys' biases have no gradient but rounding.
    const rest = (a: ArrayLike<number>) => Array.from(a).filter((_, i) => i < keys[0] || i >= keys[1]);
    const grad = await own[name.slice(5)].grad!.data();
    off.gradients = Math.max(
      off.gradients ?? 0,
      await near(name, rest(grad), { data: rest(g[name].data) }, LIMIT, relNorm),
    );
    for (const [i, v] of grad.entries())
      if (i >= keys[0] && i < keys[1]) assert.ok(Math.abs(v) < 1e-7, `${name}[${i}] is ${v}`);
  }
  console.log(
    `\n  ${Object.entries(off)
      .map(([k, v]) => `${k} ${v.toExponential(1)}`)
      .join(", ")}`,
  );
  model.zeroGrad();
});

test("written again: the same tensors and the same meaning", async () => {
  const before = await openSafetensors(FILE);
  const vectors = { shape: [67, 64], data: await before.float32("text.vectors") };
  const sink = memorySink();
  const text = loaded.text.info as { words: string[] };
  await saveModel(sink, { model, codec, objective, text, vectors, metadata: { licence: loaded.metadata.licence } });
  const after = await openSafetensors(sink.bytes());
  assert.equal([...after.tensors.keys()].sort(), [...before.tensors.keys()].sort());
  for (const name of before.tensors.keys())
    assert.equal((await after.tensor(name)).data, (await before.tensor(name)).data, name);
  for (const key of ["objective", "codec", "text", "licence"]) assert.is(after.metadata[key].length > 0, true);
  const again = await openModel(engine, after);
  assert.equal(again.model.config, model.config);
  assert.equal(again.text.info, loaded.text.info);
  assert.ok(again.text.encoder);
  again.dispose();
  await before.close();
});

test("averaged weights are written in the place of the model's own", async () => {
  const name = "final_layer.linear.bias";
  const average = engine.full([32], 7);
  const { entries, metadata: strings } = modelEntries({ model, weights: { [name]: average } });
  assert.equal(Object.keys(strings), ["model"]);
  const entry = entries.find((e) => e.name === name)!;
  for await (const bytes of entry.data as AsyncIterable<Uint8Array>)
    assert.ok(new Float32Array(bytes.slice().buffer).every((v) => v === 7));
  assert.throws(
    () => modelEntries({ model, weights: { "final_layer.linear.bais": average } }),
    /weight "final_layer\.linear\.bais" \[32\] is none of the model/,
  );
  assert.throws(() => modelEntries({ model, metadata: { model: "{}" } }), /metadata "model" is written already/);
  average.dispose();
});

test("files that are no such model are refused, and leave no memory behind", async () => {
  const live = engine.memory().live;
  const refuse = async (change: (m: Record<string, string>, names: Map<string, string>) => void, message: RegExp) => {
    const sink = memorySink();
    const file = await openSafetensors(FILE);
    const strings = { ...file.metadata };
    const names = new Map(Array.from(file.tensors.keys(), (n) => [n, n]));
    change(strings, names);
    const entries = await Promise.all(
      Array.from(names, async ([from, to]) => ({ ...(await file.tensor(from)), name: to })),
    );
    await file.close();
    await writeSafetensors(sink, entries, strings);
    try {
      await openModel(engine, sink.bytes());
    } catch (error) {
      assert.match((error as Error).message, message);
      assert.is(engine.memory().live, live);
      return;
    }
    assert.unreachable(`did not throw ${message}`);
  };
  await refuse((m) => delete m.model, /holds no configuration/);
  await refuse(
    (m) => (m.model = m.model.replace('"hidden": 96', '"hidden": 64')),
    /x_embedder\.proj\.weight is \[96, 8, 1, 2, 2\], the model's is \[64, 8, 1, 2, 2\]/,
  );
  await refuse((m) => (m.objective = '{"type": "flaw"}'), /objective: unknown type "flaw"/);
  await refuse((m) => (m.codec = '{"type": "vq"}'), /codec: unknown type "vq"/);
  await refuse((m) => (m.codec = "{"), /metadata "codec" of .* is no JSON/);
  await refuse((_, n) => n.delete("codec.scale"), /no such tensor: "codec\.scale"/);
  await refuse(
    (_, n) => n.set("t_block.1.bias", "t_block.1.bais"),
    /unexpected: t_block\.1\.bais \(did you mean t_block\.1\.bias\?\)/,
  );
});

test.after(() => {
  loaded.dispose();
  engine.destroy();
});
test.run();
