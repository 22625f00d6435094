import { suite } from "uvu";
import * as assert from "uvu/assert";
import { createEngine, Key, normal, type Tensor } from "../../engine/index.js";
import { SpatialAttention } from "../../model/vae/blocks.js";
import { vaeConfig } from "../../model/vae/config.js";
import { AutoencoderKL } from "../../model/vae/vae.js";
import { type Golden, golden } from "../golden.js";
import { near, relNorm } from "./compare.js";

const test = suite("vae");
const engine = await createEngine();
const weights = await golden("vae_weights");
const { tensors: io } = await golden("vae_io");
const { tensors: grads } = await golden("vae_grads");
const GOLDEN = JSON.parse(weights.metadata.cfg);
const config = vaeConfig({
  channels: GOLDEN.channels,
  layersPerBlock: GOLDEN.layers_per_block,
  groups: GOLDEN.groups,
  latentChannels: GOLDEN.latent,
});
const own: Record<string, Golden> = Object.fromEntries(
  Object.entries(weights.tensors).map(([name, t]) => [name.replace(/^weights\./, ""), t]),
);
const upload = (t: Golden) => engine.tensor(t.data, t.shape);

const vae = new AutoencoderKL(engine, config);
const report = await vae.loadStateDict(own);

test("the golden autoencoder: names, moments, latents, pictures, parts", async () => {
  assert.is(report.loaded.length, 124);
  const worst: string[] = [];
  const check = async (name: string, t: Tensor) => worst.push((await near(name, t, io[name], 2e-5)).toExponential(1));
  await engine.noGrad(async () => {
    const moments = vae.encode(upload(io["in.image"]));
    await check("out.mean", moments.mean);
    await check("out.logvar_clamped", moments.logvar);
    await check("out.latent_sample_scaled", vae.latent(moments, upload(io["in.eps"])));
    await check("out.decoded", vae.decode(upload(io["in.latent_scaled"])));
    const x = upload(io["piece.in"]);
    const [first, second] = vae.decoder.upBlocks;
    await check("piece.resnet_up1_0", second.resnets[0].forward(x));
    await check("piece.mid_attn", vae.decoder.midBlock.attentions[0].forward(x));
    await check("piece.upsample_up0", first.upsamplers[0].forward(x));
    await check(
      "piece.downsample_down0",
      vae.encoder.downBlocks[0].downsamplers[0].forward(upload(io["piece.down_in"])),
    );
  });
  console.log(`\n  abs ${worst.join(" ")}`);
});

test("every gradient of the golden autoencoder", async () => {
  const x = upload(io["in.image"]).setRequiresGrad();
  const z = upload(io["in.latent_scaled"]).setRequiresGrad();
  const latent = vae.latent(vae.encode(x), upload(io["in.eps"]));
  const loss = latent
    .mul(upload(io["in.rand_latent"]))
    .mean()
    .add(vae.decode(z).mul(upload(io["in.rand_image"])).mean());
  loss.backward();
  const worst = await near("grad_in.image", x.grad!, io["grad_in.image"], 1e-4, relNorm);
  await near("grad_in.latent_scaled", z.grad!, io["grad_in.latent_scaled"], 1e-4, relNorm);
  let most = worst;
  for (const [name, p] of vae.namedParameters()) {
    const expected = grads[`grad.${name}`];
    // Keys' shared part cancels in the softmax: the true gradient is 0.
    if (name.endsWith("to_k.bias")) await near(name, p.grad!, expected, 1e-7);
    else most = Math.max(most, await near(name, p.grad!, expected, 1e-4, relNorm));
  }
  vae.zeroGrad();
  console.log(`\n  norm ${most.toExponential(1)}`);
});

test.run();
