import { forwardFlops } from "../../model/flops.js";
import type { STDiT } from "../../model/stdit.js";
import type { Config } from "../config.js";
import type { Setup } from "../setup.js";

/** Floating-point operations of one training step. */
export function stepFlops({ model, text, language }: Setup, { train }: Config): number {
  const { frames, latent } = model.config;
  return 3 * train.batchSize * forwardFlops(model.config, [frames, ...latent], text.maxLength, language?.maxLength);
}

/** tanh(alpha) of each block's language gate; the mean size of it where a block has several. */
export async function gatesOf(model: STDiT): Promise<string[]> {
  const gates: string[] = [];
  for (const { gateLlm } of model.blocks) {
    if (!gateLlm) continue;
    const values = Array.from(await gateLlm.data(), Math.tanh);
    const size = values.reduce((sum, v) => sum + Math.abs(v), 0) / values.length;
    gates.push((values.length === 1 ? values[0] : size).toFixed(3));
  }
  return gates;
}
