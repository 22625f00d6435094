import { AbortedError, ConfigError, checkOptions, EspalierError } from "../../engine/errors.js";
import { checkPrompts } from "./encoder.js";
import type { Recaptioner } from "./recaption.js";
import { fnv1a } from "./table.js";

/** A recaptioning endpoint that cannot be reached, refuses, or answers nonsense. */
export class RecaptionError extends EspalierError {
  override name = "RecaptionError";
  /** Of the answer; undefined where there was none. */
  readonly status: number | undefined;
  /** Milliseconds after which the server would be asked again, where it says. */
  readonly retryAfter: number | undefined;
  constructor(message: string, options: ErrorOptions & { status?: number; retryAfter?: number } = {}) {
    super(message, options);
    this.status = options.status;
    this.retryAfter = options.retryAfter;
  }
}

/** Options of `OpenAIRecaptioner`. */
export interface OpenAIOptions {
  /** Where the endpoint is: its whole address, or its base up to `/v1`. There is no default: nothing is called unasked. */
  url: string;
  /** The model to ask for, by the endpoint's own name. */
  model: string;
  /** Sent as a bearer token; none by default. It appears in no message. */
  key?: string;
  /** What the model is told to do. */
  system?: string;
  /** Milliseconds for one answer; default 60,000. */
  timeout?: number;
  /** How often an answer is asked for again after no answer, a timeout, status 429 or 5xx; default 2. */
  retries?: number;
}

const OPTIONS = [
  "url",
  "model",
  "key",
  "system",
  "timeout",
  "retries",
] as const satisfies readonly (keyof OpenAIOptions)[];

const SYSTEM =
  "You expand captions of short video clips. Rewrite the caption you are given as one longer caption of two to four " +
  "sentences: say what the subject is, what it does and in which direction, and what the background is, above and below. " +
  "Keep every fact, invent none, and keep colours and directions exactly. Answer with the caption alone.";

/** Requests in flight at a time: enough for a server that batches, little enough for one that does not. */
const AT_ONCE = 4;
/** The first wait before another try, in milliseconds; it doubles each time. */
const WAIT = 500;
/** A server that asks for a longer wait than this is not waited for. */
const LONGEST_WAIT = 30_000;

/** The whole address of the chat endpoint. */
function endpointOf(given: unknown): string {
  const refuse = (what: string) =>
    new ConfigError(
      `recaption: url ${what}: ${JSON.stringify(given)} was given; name the endpoint, such as http://localhost:8080/v1`,
    );
  if (typeof given !== "string" || !URL.canParse(given)) throw refuse("must be an address");
  const url = new URL(given);
  if (url.protocol !== "http:" && url.protocol !== "https:") throw refuse("must be http or https");
  // fetch refuses such addresses, and they would put the password into messages.
  if (url.username !== "" || url.password !== "")
    throw new ConfigError(
      "recaption: url must hold no user or password: one was given; give the key by itself (option key)",
    );
  const path = url.pathname.replace(/\/+$/, "");
  if (!path.endsWith("/chat/completions")) url.pathname = `${path === "" ? "/v1" : path}/chat/completions`;
  return url.href;
}

/** The caption in an answer's JSON. */
function captionIn(body: unknown): { text: string; cut: boolean } | undefined {
  const choice = (body as { choices?: { message?: { content?: unknown }; finish_reason?: unknown }[] } | null)
    ?.choices?.[0];
  const content = choice?.message?.content;
  const text = Array.isArray(content)
    ? content.map((part: { text?: unknown } | null) => (typeof part?.text === "string" ? part.text : "")).join("")
    : content;
  if (choice === undefined || (typeof text !== "string" && text !== null)) return undefined;
  // Some models think aloud first.
  const said = (text ?? "").replace(/^\s*<think>[\s\S]*?<\/think>/, "").trim();
  return { text: /^"[^"]*"$/.test(said) ? said.slice(1, -1).trim() : said, cut: choice.finish_reason === "length" };
}

const shorten = (text: string) => {
  const plain = text.trim().replace(/\s+/g, " ");
  return plain === "" ? "nothing" : plain.length > 200 ? `${plain.slice(0, 200)}…` : plain;
};

/** Rests so long, unless the signal comes first. */
function wait(ms: number, signal: AbortSignal): Promise<void> {
  return new Promise((resolve, reject) => {
    const stop = () => {
      clearTimeout(timer);
      reject(signal.reason);
    };
    const timer = setTimeout(() => {
      signal.removeEventListener("abort", stop);
      resolve();
    }, ms);
    if (signal.aborted) stop();
    else signal.addEventListener("abort", stop, { once: true });
  });
}

/** A recaptioner that asks a language model over HTTP: any server with OpenAI's `/v1/chat/completions`. */
export class OpenAIRecaptioner implements Recaptioner {
  readonly name: string;
  readonly fingerprint: string;
  private readonly endpoint: string;
  private readonly options: Required<Omit<OpenAIOptions, "key" | "url">> & Pick<OpenAIOptions, "key">;

  /** @throws ConfigError for an address that is none, a missing model, or an option out of range */
  constructor(options: OpenAIOptions) {
    checkOptions("recaption", options, OPTIONS);
    this.endpoint = endpointOf(options.url);
    const { model, key, system = SYSTEM, timeout = 60_000, retries = 2 } = options;
    if (typeof model !== "string" || model === "")
      throw new ConfigError(
        `recaption: model must be named: ${JSON.stringify(model)} was given; take a name that ${new URL("models", this.endpoint.replace(/chat\/completions$/, "")).href} lists`,
      );
    // fetch would refuse it in a message that holds it.
    if (key !== undefined && !/^[\x21-\x7e]+$/.test(key))
      throw new ConfigError(
        "recaption: key must be printable ASCII without spaces: the one given is not; copy it again",
      );
    if (!(timeout > 0 && Number.isFinite(timeout)))
      throw new ConfigError(`recaption: timeout must be milliseconds above 0: ${timeout}; 60000 is usual`);
    if (!(Number.isInteger(retries) && retries >= 0))
      throw new ConfigError(`recaption: retries must be a whole number from 0: ${retries}; 2 is usual`);
    this.options = { model, key, system, timeout, retries };
    this.name = `${model} at ${this.endpoint}`;
    const hash = fnv1a(new globalThis.TextEncoder().encode(system), 0);
    this.fingerprint = `openai/1 ${model} ${hash.toString(16).padStart(8, "0")}`;
  }

  /**
   * Asks for each distinct prompt once. One failure ends the rest.
   * @throws RecaptionError saying what went wrong where, AbortedError where the signal says so, ConfigError for a prompt
   *   that is empty
   */
  async expand(prompts: string[], signal?: AbortSignal): Promise<string[]> {
    checkPrompts(prompts);
    const ended = new AbortController();
    const either = signal ? AbortSignal.any([signal, ended.signal]) : ended.signal;
    const distinct = [...new Set(prompts)];
    const long = new Map<string, string>();
    let next = 0;
    const work = async () => {
      while (next < distinct.length) {
        const prompt = distinct[next++];
        long.set(prompt, await this.ask(prompt, either));
      }
    };
    try {
      await Promise.all(Array.from({ length: Math.min(AT_ONCE, distinct.length) }, work));
    } catch (error) {
      if (signal?.aborted) throw new AbortedError("recaption: stopped while captions were asked for", { cause: error });
      throw error;
    } finally {
      ended.abort();
    }
    return prompts.map((prompt) => long.get(prompt) as string);
  }

  private async ask(prompt: string, signal: AbortSignal): Promise<string> {
    for (let turn = 0; ; turn++) {
      signal.throwIfAborted();
      try {
        return await this.once(prompt, signal);
      } catch (error) {
        if (signal.aborted || turn >= this.options.retries || !(error instanceof RecaptionError)) throw error;
        const { status, retryAfter: ms = WAIT * 2 ** turn } = error;
        const again = status === undefined || status === 429 || status >= 500;
        if (!again || ms > LONGEST_WAIT) throw error;
        await wait(ms, signal);
      }
    }
  }

  private async once(prompt: string, signal: AbortSignal): Promise<string> {
    const { model, key, system, timeout } = this.options;
    const { endpoint } = this;
    const late = AbortSignal.timeout(timeout);
    let response: Response;
    let text: string;
    try {
      response = await fetch(endpoint, {
        method: "POST",
        headers: { "Content-Type": "application/json", ...(key && { Authorization: `Bearer ${key}` }) },
        body: JSON.stringify({
          model,
          messages: [
            { role: "system", content: system },
            { role: "user", content: prompt },
          ],
          temperature: 0,
          stream: false,
        }),
        signal: AbortSignal.any([signal, late]),
      });
      text = await response.text();
    } catch (cause) {
      if (signal.aborted) throw cause;
      if (late.aborted)
        throw new RecaptionError(
          `recaption: no answer in time: ${endpoint} took more than ${timeout} ms; give a longer timeout, or a faster model than ${model}`,
          { cause },
        );
      const reason = cause instanceof Error ? (cause.cause as Error | undefined)?.message || cause.message : cause;
      throw new RecaptionError(
        `recaption: not reachable: ${endpoint}: ${reason}; check that the server runs, that its address is right and, in a browser, that it and the page's policy let the page ask it`,
        { cause },
      );
    }
    const { status } = response;
    if (!response.ok) {
      const hint =
        status === 401 || status === 403
          ? key
            ? "it does not take the key that was given"
            : "it wants a key; give one"
          : status === 404
            ? `check the address, and that it has the model ${model}`
            : status === 429
              ? "it is asked too often; wait, or ask another"
              : status >= 500
                ? "the server has a fault of its own; look at its log"
                : "it does not take such a request";
      const seconds = Number(response.headers.get("retry-after") ?? Number.NaN);
      throw new RecaptionError(
        `recaption: refused: ${endpoint} answered ${status} (${shorten(key ? text.replaceAll(key, "…") : text)}); ${hint}`,
        {
          status,
          retryAfter: Number.isFinite(seconds) ? seconds * 1000 : undefined,
        },
      );
    }
    let body: unknown;
    try {
      body = JSON.parse(text);
    } catch (cause) {
      throw new RecaptionError(
        `recaption: the answer is not JSON: ${endpoint} gave ${shorten(text)}; is it an OpenAI-compatible endpoint?`,
        { status, cause },
      );
    }
    const caption = captionIn(body);
    if (caption === undefined)
      throw new RecaptionError(
        `recaption: the answer holds no choices[0].message.content: ${endpoint} gave ${shorten(text)}; is it an OpenAI-compatible endpoint?`,
        { status },
      );
    if (caption.text === "")
      throw new RecaptionError(
        `recaption: the answer is empty: ${model} made nothing of ${JSON.stringify(prompt)}; try another model or another system text`,
        { status },
      );
    if (caption.cut)
      throw new RecaptionError(
        `recaption: the answer was cut off: ${model} ran out of tokens at "…${caption.text.slice(-40)}"; let the server give it more`,
        { status },
      );
    return caption.text;
  }
}
