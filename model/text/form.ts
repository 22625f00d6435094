import { ConfigError, nearest } from "../../engine/errors.js";
import type { Recaptioner } from "./recaption.js";

/** How much of a caption an encoder reads: the short one, a long one, or the short one followed by the long. */
export type PromptForm = "S" | "L" | "SL";

/** The forms by name. */
export const PROMPT_FORMS: readonly PromptForm[] = ["S", "L", "SL"];

/**
 * A form by its name.
 * @throws ConfigError for a name that is none
 */
export function promptForm(name: string): PromptForm {
  const found = PROMPT_FORMS.find((form) => form === name);
  if (found !== undefined) return found;
  const guess = nearest(name, PROMPT_FORMS);
  throw new ConfigError(
    `prompt form: must be S, L or SL: ${JSON.stringify(name)} was given; ${guess ? `did you mean "${guess}"?` : "S is the short caption"}`,
  );
}

/** A caption in a form. "SL" is the short caption as a sentence of its own, then the long one; equal ones stand once. */
export function inForm(form: PromptForm, short: string, long: string): string {
  if (form === "S") return short;
  if (form === "L") return long;
  const [first, rest] = [short.trim(), long.trim()];
  if (rest === "" || rest === first) return first;
  return `${/[.!?…]["')\]]*$/.test(first) ? first : `${first}.`} ${rest}`;
}

/**
 * Prompts in a form. With "S" the recaptioner is never asked.
 * @throws what the recaptioner throws
 */
export async function formPrompts(
  prompts: readonly string[],
  form: PromptForm,
  recaptioner: Recaptioner,
  signal?: AbortSignal,
): Promise<string[]> {
  if (form === "S") return [...prompts];
  const long = await recaptioner.expand([...prompts], signal);
  return prompts.map((short, i) => inForm(form, short, long[i]));
}
