import { createEngine } from "../../engine/index.js";
import { openLanguage } from "../../model/text/language.js";
import { golden } from "../golden.js";
import { checkLlama } from "../model/llama-checks.js";
import type { CheckReport } from "../model/stdit-checks.js";

/** The golden Llama on the page's adapter. */
export async function run(): Promise<CheckReport & { adapter: string }> {
  const engine = await createEngine();
  const report = await checkLlama(engine, await golden("llama", "files/test/goldens"));
  engine.destroy();
  return { ...report, adapter: engine.info.name };
}

/** Vectors of a caption by the embedded language model, which the page fetches. */
export async function caption(text: string): Promise<number[]> {
  const engine = await createEngine();
  const encoder = await openLanguage(engine, "files/model/text/language.safetensors");
  const { embeddings } = await encoder.encode([text]);
  engine.destroy();
  return Array.from(embeddings);
}
