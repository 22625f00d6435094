import { formPrompts } from "../../model/text/form.js";
import { OpenAIRecaptioner } from "../../model/text/openai.js";
import { RuleRecaptioner } from "../../model/text/recaption.js";

/** Prompts as short and long captions, by the rules. */
export const rules = (prompts: string[]) => formPrompts(prompts, "SL", new RuleRecaptioner());

/** What an endpoint answers, or the error's text. */
export const ask = (url: string, prompts: string[]) =>
  new OpenAIRecaptioner({ url, model: "m", retries: 0, timeout: 2000 })
    .expand(prompts)
    .catch((error: Error) => [error.name, error.message]);
