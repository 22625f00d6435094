import type { Engine, Tensor } from "../../engine/index.js";
import { vaeConfig } from "../../model/vae/config.js";
import { AutoencoderKL } from "../../model/vae/vae.js";
import type { Golden } from "../golden.js";

type File = { tensors: Record<string, Golden>; metadata: Readonly<Record<string, string>> };
export type VaeFiles = Record<"weights" | "io" | "grads", File>;

/** What the checks found. */
export interface VaeReport {
  checks: number;
  /** Largest error of each kind. */
  worst: Record<string, number>;
  failures: string[];
}

// The true gradient of a key's bias is 0: it moves all scores of a row alike.
const LIMIT = { value: 2e-5, gradient: 1e-4, zero: 1e-7 };

/** Sizes of the golden autoencoder, and its tensors by diffusers' names. */
export function goldenVae({ tensors, metadata }: File) {
  const { channels, layers_per_block: layersPerBlock, groups, latent: latentChannels } = JSON.parse(metadata.cfg);
  const weights = Object.fromEntries(
    Object.entries(tensors).map(([name, t]) => [name.replace(/^weights\./, ""), t] as const),
  );
  return { config: vaeConfig({ channels, layersPerBlock, groups, latentChannels }), weights };
}

/** Every stored output, layer and gradient of the golden autoencoder. Runs in Node and in a page: files come loaded. */
export async function checkVae(engine: Engine, { weights: file, io: { tensors: io }, grads }: VaeFiles) {
  const report: VaeReport = { checks: 0, worst: {}, failures: [] };
  const judge = async (kind: keyof typeof LIMIT, what: string, got: Tensor, { data, shape }: Golden) => {
    const values = await got.data();
    let [abs, d, n] = [0, 0, 0];
    for (let i = 0; i < data.length; i++) {
      abs = Math.max(abs, Math.abs(values[i] - data[i]));
      d += (values[i] - data[i]) ** 2;
      n += data[i] ** 2;
    }
    const off = kind === "gradient" ? Math.sqrt(d / n) : abs;
    report.checks++;
    report.worst[kind] = Math.max(report.worst[kind] ?? 0, off);
    if (`${got.shape}` !== `${shape}`) report.failures.push(`${what}: shape [${got.shape}], expected [${shape}]`);
    else if (!(off <= LIMIT[kind]))
      report.failures.push(`${what}: off by ${off.toExponential(2)}, limit ${LIMIT[kind]}`);
  };
  const upload = (name: string) => engine.tensor(io[name].data, io[name].shape);
  const { config, weights } = goldenVae(file);
  const vae = new AutoencoderKL(engine, config);
  await vae.loadStateDict(weights);

  const up = vae.decoder.upBlocks;
  const [attention] = vae.decoder.midBlock.attentions;
  const [down] = vae.encoder.downBlocks[0].downsamplers;
  const x = upload("in.image").setRequiresGrad();
  const z = upload("in.latent_scaled").setRequiresGrad();
  const moments = vae.encode(x);
  const latent = vae.latent(moments, upload("in.eps"));
  const decoded = vae.decode(z);
  const piece = upload("piece.in");
  const outputs: Record<string, Tensor> = {
    "out.mean": moments.mean,
    "out.logvar_clamped": moments.logvar,
    "out.latent_sample_scaled": latent,
    "out.decoded": decoded,
    ...engine.noGrad(() => ({
      "piece.resnet_up1_0": up[1].resnets[0].forward(piece),
      "piece.mid_attn": attention.forward(piece),
      "piece.upsample_up0": up[0].upsamplers[0].forward(piece),
      "piece.downsample_down0": down.forward(upload("piece.down_in")),
    })),
  };
  for (const [name, t] of Object.entries(outputs)) await judge("value", name, t, io[name]);

  const loss = latent
    .mul(upload("in.rand_latent"))
    .mean()
    .add(decoded.mul(upload("in.rand_image")).mean());
  loss.backward();
  await judge("gradient", "grad_in.image", x.grad!, io["grad_in.image"]);
  await judge("gradient", "grad_in.latent_scaled", z.grad!, io["grad_in.latent_scaled"]);
  for (const [name, p] of vae.namedParameters())
    await judge(name.endsWith("to_k.bias") ? "zero" : "gradient", name, p.grad!, grads.tensors[`grad.${name}`]);
  vae.dispose();
  return report;
}
