import { ConfigError } from "../../engine/errors.js";
import type { LoraConfig } from "../lora.js";

/** The part of PEFT's configuration that says which adapters there are. */
const fields = ({ rank, alpha, targets }: LoraConfig) => ({ r: rank, lora_alpha: alpha, target_modules: targets });

/** PEFT's adapter_config.json for the adapters of a model. */
export const peftConfig = (config: LoraConfig) => ({
  peft_type: "LORA",
  task_type: null,
  base_model_name_or_path: null,
  inference_mode: true,
  ...fields(config),
  lora_dropout: 0,
  bias: "none",
  fan_in_fan_out: false,
  init_lora_weights: true,
  modules_to_save: null,
  use_dora: false,
  use_rslora: false,
});

/** What a model file says of the model's adapters. */
export const encodeLora = (config: LoraConfig): string => JSON.stringify(fields(config));

export type Fields = Record<string, unknown>;

/** The object that a JSON text holds. @throws ConfigError */
export function parseFields(text: string, where: string): Fields {
  let json: unknown;
  try {
    json = JSON.parse(text);
  } catch (cause) {
    throw new ConfigError(`lora: ${where} is no JSON: ${(cause as Error).message}.`, { cause });
  }
  if (typeof json !== "object" || json === null || Array.isArray(json))
    throw new ConfigError(`lora: ${where} is no object: ${text.slice(0, 60)}.`);
  return json as Fields;
}

/** A number above 0 of an object. @throws ConfigError */
export function positive(json: Fields, name: string, where: string): number {
  const value = json[name];
  if (typeof value !== "number" || !(value > 0) || !Number.isFinite(value))
    throw new ConfigError(`lora: ${where}: ${name} must be a number above 0: got ${JSON.stringify(value)}.`);
  return value;
}

/**
 * Reads what `encodeLora` wrote.
 * @throws ConfigError for text that is no such JSON
 */
export function decodeLora(text: string, file: string): LoraConfig {
  const where = `metadata "lora" of ${file}`;
  const json = parseFields(text, where);
  const targets = json.target_modules;
  if (!Array.isArray(targets) || !targets.length || !targets.every((t) => typeof t === "string"))
    throw new ConfigError(`lora: ${where}: target_modules must list layers: got ${JSON.stringify(targets)}.`);
  return { rank: positive(json, "r", where), alpha: positive(json, "lora_alpha", where), targets };
}
