import { add, ConfigError, cat, checkOptions, OutOfMemoryError, split, sub, type Tensor } from "../../engine/index.js";
import { timestepCodes } from "../embed.js";
import type { LanguageCall, STDiT } from "../stdit.js";
import type { Predict } from "./walk.js";

/**
 * How the outputs of one prediction are run: all in one batch (1), each by itself (3), or in one batch as long as that
 * fits the engine's budget and what the adapter binds at once ("auto").
 */
export type GuidanceParts = "auto" | 1 | 3;

/** Options of `guided`. */
export interface GuidanceOptions {
  /** How far to go beyond the unconditional prediction: 0 ignores the caption, 1 is plain, 1.5 to 7 are usual. */
  scale?: number;
  /** The second captions, for models with a language branch; they need them. */
  language?: Pick<LanguageCall, "y" | "mask">;
  /** The same for the second caption, beyond the prediction with the first alone; default `scale`. */
  languageScale?: number;
  /** How many channels, from the first, are guided; the others stay the conditional ones. Default "all" latent channels. */
  cfgChannels?: number | "all";
  /** Default "auto". Less memory, more time, the same numbers. */
  parts?: GuidanceParts;
}

/** Which captions a prediction sees: none, the first alone, or all that the model reads. */
type Seen = "none" | "text" | "all";

/** @throws ConfigError for a scale that is no finite number from 0 */
export function checkScale(name: string, scale: number): void {
  if (!(typeof scale === "number" && scale >= 0 && Number.isFinite(scale)))
    throw new ConfigError(`guidance: the ${name} must be a number from 0: got ${scale}; 1 is plain.`);
}

/** The model's predictions for one noisy latent, by what they see. */
function predictions(model: STDiT, y: Tensor, mask: Tensor | undefined, language: GuidanceOptions["language"]) {
  const flat = (t: Tensor) => (t.rank === 4 ? t.squeeze(1) : t); // [B, L, D]
  // Dense also when alone: kernels may add in another order for a view, and parts would then differ by rounding.
  const join = (list: Tensor[]) => (list.length === 1 ? model.engine.dense(list[0]) : cat(list, 0));
  const captions = flat(y); // [B, L, D]
  const second = language && flat(language.y); // [B, L', D']
  /** [B, out, T, H, W] for each of `seen`, from one run; `code` is the time's, [B, 256]. */
  const run = (seen: readonly Seen[], x: Tensor, code: Tensor): Tensor[] => {
    const [B] = x.shape;
    const nulls = model.yEmbedder.nullCaption(B, captions.shape[1]).to(captions.dtype); // [B, L, D]
    const given = join(seen.map((s) => (s === "none" ? nulls : captions))); // [nB, L, D]
    const call = second && {
      language: {
        y: join(
          seen.map((s) =>
            s === "all" ? second : model.yEmbedderLlm!.nullCaption(B, second.shape[1]).to(second.dtype),
          ),
        ), // [nB, L', D']
        mask: language!.mask,
      },
    };
    const times = join(seen.map(() => code)); // [nB, 256]
    const out = model.forward(join(seen.map(() => x)), times, given, mask, call); // [nB, out, T, H, W]
    return seen.length === 1 ? [out] : split(out, Array<number>(seen.length).fill(B), 0);
  };
  return (seen: readonly Seen[], x: Tensor, code: Tensor) => model.engine.scope(() => run(seen, x, code));
}

/**
 * Classifier-free guidance (Ho and Salimans, https://arxiv.org/abs/2207.12598): u + scale (c - u) of the outputs with
 * the captions and with the null caption. With a second caption, in the manner of InstructPix2Pix
 * (https://arxiv.org/abs/2211.09800): e(0, 0) + scale (e(c, 0) - e(0, 0)) + languageScale (e(c, l) - e(c, 0)).
 *
 * All outputs come from one run over the repeated batch, or from several; those whose weight is 0 are left out. A null
 * caption sees the mask of the caption that it stands for, as dropped captions do in training. Learned variances and
 * channels that are not guided are those of the output that sees every caption.
 *
 * The whole is one compiled function for all times, unless hooks watch the model. `dispose` gives its memory back.
 * @param y captions [B, L, D] or [B, 1, L, D]
 * @param mask [B, L], zero where a caption has no token
 * @throws ConfigError for a scale that is no number from 0, or second captions that the model lacks or does not read
 */
export function guided(model: STDiT, y: Tensor, mask: Tensor | undefined, options: GuidanceOptions = {}): Predict {
  checkOptions("guidance", options, ["scale", "language", "languageScale", "cfgChannels", "parts"]);
  const { scale = 1, language, languageScale = scale, cfgChannels = "all", parts = "auto" } = options;
  const { inChannels, languageChannels } = model.config;
  checkScale("scale", scale);
  checkScale("language scale", languageScale);
  if (!languageChannels && (language || options.languageScale !== undefined))
    throw new ConfigError(
      "guidance: the model has no language branch: a second caption or its scale was given; leave them out.",
    );
  if (languageChannels && !language)
    throw new ConfigError(
      "guidance: the model has a language branch: no second captions were given; pass language: { y, mask }.",
    );
  if (cfgChannels !== "all" && !(Number.isInteger(cfgChannels) && cfgChannels >= 1 && cfgChannels <= inChannels))
    throw new ConfigError(`guidance: cfgChannels must be "all" or 1 to ${inChannels}: got ${cfgChannels}.`);
  if (parts !== "auto" && parts !== 1 && parts !== 3)
    throw new ConfigError(`guidance: parts must be "auto", 1 or 3: got ${JSON.stringify(parts)}.`);
  const channels = cfgChannels === "all" ? inChannels : cfgChannels;
  // The sum as e(c, l) languageScale + e(c, 0) (scale - languageScale) + e(0, 0) (1 - scale) shows what has no weight.
  const weighed: Seen[] = [
    ...(languageScale !== 0 ? (["all"] as const) : []),
    ...(scale !== languageScale ? (["text"] as const) : []),
    ...(scale !== 1 ? (["none"] as const) : []),
  ];
  const predict = predictions(model, y, mask, language);
  const rest = (model.config.predSigma ? 2 : 1) * inChannels - channels;
  const seen: Seen[] = rest > 0 && !weighed.includes("all") ? ["all", ...weighed] : weighed;
  const guide = (apart: boolean, x: Tensor, code: Tensor): Tensor => {
    const found = apart ? seen.flatMap((s) => predict([s], x, code)) : predict(seen, x, code); // [B, out, T, H, W] each
    if (seen.length === 1) return found[0]; // [B, out, T, H, W]
    const of = (s: Seen) => split(found[seen.indexOf(s)], [channels, rest], 1); // [B, channels, …], [B, rest, …]
    const [first, ...further] = [...weighed].reverse(); // from what sees least
    let g = of(first)[0]; // [B, channels, T, H, W]
    let before = g;
    for (const s of further) {
      const [next] = of(s); // [B, channels, T, H, W]
      g = add(g, sub(next, before).mul(s === "all" ? languageScale : scale)); // [B, channels, T, H, W]
      before = next;
    }
    return rest === 0 ? g : cat([g, of("all")[1]], 1); // [B, out, T, H, W]
  };
  const { engine } = model;
  const compiled = engine.compile(guide);
  let apart = parts === 3;
  const predictor = (x: Tensor, timestep: number): Tensor => {
    const evaluate = model.isWatched ? guide : compiled;
    const code = timestepCodes(engine, Array<number>(x.shape[0]).fill(timestep)); // [B, 256]
    try {
      return evaluate(apart, x, code); // [B, out, T, H, W]
    } catch (error) {
      if (apart || parts === 1 || seen.length === 1 || !(error instanceof OutOfMemoryError)) throw error;
      apart = true;
      return evaluate(apart, x, code); // [B, out, T, H, W]
    } finally {
      code.dispose();
    }
  };
  return Object.assign(predictor, { dispose: () => compiled.dispose() });
}
