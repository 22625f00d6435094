import { createEngine } from "../../engine/index.js";
import { golden } from "../golden.js";
import { checkVae, type VaeReport } from "../model/vae-checks.js";

/** The autoencoder of the golden files on the page's adapter. */
export async function run(): Promise<VaeReport & { adapter: string }> {
  const engine = await createEngine();
  const names = ["vae_weights", "vae_io", "vae_grads"];
  const [weights, io, grads] = await Promise.all(names.map((name) => golden(name, "files")));
  const report = await checkVae(engine, { weights, io, grads });
  engine.destroy();
  return { ...report, adapter: engine.info.name };
}
