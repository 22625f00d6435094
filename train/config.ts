import type { z } from "zod";
import { ConfigError, nearest } from "../engine/errors.js";
import { type Config, leaves, type Sampler, schema, sections, valueAt, wants } from "./schema.js";

export type { Config, ConfigInput, Sampler } from "./schema.js";

function unknownKey(path: string): string {
  const [section, name] = path.split(".");
  const inSection = name !== undefined && section in sections;
  const known = inSection
    ? Object.keys(sections[section as keyof typeof sections].shape).map((leaf) => `${section}.${leaf}`)
    : name === undefined
      ? Object.keys(sections)
      : [...leaves.keys()];
  const last = name ?? section;
  const namesake = [...leaves.keys()].find((leaf) => leaf.endsWith(`.${last}`));
  const names = [...leaves.keys()].map((leaf) => leaf.split(".")[1]);
  const guess = namesake ?? nearest(path, known) ?? nearest(last, names);
  return `unknown key "${path}"; ${guess === undefined ? `known are ${known.join(", ")}` : `did you mean "${guess}"?`}`;
}

function textOf(issue: z.core.$ZodIssue, input: unknown): string[] {
  const path = issue.path.map(String);
  if (issue.code === "unrecognized_keys") return issue.keys.map((key) => unknownKey([...path, key].join(".")));
  const leaf = leaves.get(path.slice(0, 2).join("."));
  const value = valueAt(input, issue.path.slice(0, 2));
  const given = typeof value === "number" ? String(value) : JSON.stringify(value);
  if (leaf === undefined) return [`${path.join(".") || "it"} is not an object: ${given}; give options by section`];
  return [`${path.slice(0, 2).join(".")} not allowed: ${given}; give ${wants(leaf)}`];
}

/** Rules that tie options together; each broken one gives a text. `wasSet` tells an option set to other than its default. */
function crossRules(config: Config, wasSet: (path: string) => boolean): string[] {
  const { data, replay, codec, text, model, grow, language, lora, objective, optim, train, sample } = config;
  const broken: string[] = [];
  const rule = (holds: boolean, text: string) => holds || broken.push(text);
  const unused = (path: string, when: boolean, reason: string) =>
    rule(!(when && wasSet(path)), `${path} has no use: ${reason}; leave it out`);

  rule(
    data.kind === "world" || data.path !== undefined,
    `data.path missing: data.kind is ${data.kind}; say where it lies`,
  );
  unused("data.path", data.kind === "world", "data.kind is world");
  unused("data.world", data.kind !== "world", `data.kind is ${data.kind}`);
  unused("data.frameInterval", data.kind === "world", "data.kind is world");
  unused("data.flip", data.kind === "world", "data.kind is world");
  unused("data.variants", data.kind === "world", "data.kind is world");
  for (const path of ["codec.patch", "codec.channels", "codec.alsoFit"])
    unused(path, codec.kind !== "pca", `codec.kind is ${codec.kind}`);

  const replays = replay.fraction > 0;
  unused("replay.clips", !replays, "replay.fraction is 0");
  unused("replay.folder", !replays, "replay.fraction is 0");
  rule(
    !replays || (replay.clips === undefined) !== (replay.folder === undefined),
    "replay needs one source: set either replay.clips or replay.folder",
  );
  rule(replay.fraction < 1, "replay.fraction takes everything: at 1 nothing new is seen; lower it");

  const begins = model.from === undefined;
  const bySource = "model.from decides it";
  for (const path of leaves.keys())
    if (/^(codec|objective|model)\./.test(path) && !["model.from", "codec.vae"].includes(path))
      unused(path, !begins, bySource);
  rule(
    !begins || codec.kind !== "vae" || codec.vae !== undefined,
    "codec.vae missing: codec.kind is vae; say where the autoencoder lies",
  );
  unused("codec.vae", begins && codec.kind !== "vae", `codec.kind is ${codec.kind}`);
  unused("text.bits", text.t5 === undefined, "text.t5 is not set");
  unused("text.weights", text.t5 === undefined, "text.t5 is not set");
  unused("text.llm", begins, "there is no model.from, whose branch would read it");
  unused("model.captionChannels", begins && text.t5 !== undefined, "text.t5 decides it");
  rule(grow.mode === "none" || !begins, "grow.mode needs a model: set model.from to the file that is to grow");
  rule(grow.mode === "none" || grow.blocks !== undefined, "grow.blocks missing: how many new blocks?");
  unused("grow.blocks", grow.mode === "none", "grow.mode is none");
  const speaks = language.encoder !== "none";
  rule(!speaks || !begins, "language.encoder needs a model: set model.from to the file that gets the branch");
  for (const path of leaves.keys())
    if (path.startsWith("language.") && path !== "language.encoder") unused(path, !speaks, "language.encoder is none");
  unused("text.llm", speaks, "language.encoder says where the new branch's lies");
  rule(lora.pattern === undefined || !begins, "lora.pattern needs a model: set model.from to the file to adapt");
  unused("lora.rank", lora.pattern === undefined, "lora.pattern is not set");
  unused("lora.alpha", lora.pattern === undefined, "lora.pattern is not set");
  rule(
    train.scope === "all" || grow.mode !== "none" || speaks || !begins,
    "train.scope new has nothing new: grow the model or add a language branch",
  );
  rule(
    train.scope === "all" || lora.pattern === undefined,
    "train.scope has no use: with lora.pattern only adapters learn; leave it out",
  );
  const dropped = (train.conditionDropout ?? 0) + (train.languageDropout ?? 0);
  rule(
    dropped <= 1,
    `train.conditionDropout and train.languageDropout are shares of one whole: together ${dropped}; lower them`,
  );
  rule(
    begins || data.kind !== "world" || replay.clips !== data.world,
    `replay.clips is what is trained already: ${replay.clips}; name the earlier clips`,
  );

  const most = 3 * codec.patch ** 2;
  rule(
    codec.channels <= most || codec.kind !== "pca",
    `codec.channels too many: ${codec.channels} of ${most} values in a square of side ${codec.patch}; lower it to ${most}`,
  );
  const square = codec.kind === "pca" ? codec.patch : 1;
  const multiple = (n: number, of: number) =>
    `give a multiple of ${of}, such as ${Math.max(of, Math.round(n / of) * of)}`;
  // An autoencoder and a model that are there already say themselves what they take.
  const sized = begins && codec.kind !== "vae";
  for (const side of new Set([square * model.patch[1], square * model.patch[2]]))
    rule(
      !sized || data.size % side === 0,
      `data.size not divisible: ${data.size} by ${side} (codec.patch ${square} x model.patch ${side / square}); ${multiple(data.size, side)}`,
    );
  rule(
    data.frames % model.patch[0] === 0,
    `data.frames not divisible: ${data.frames} by model.patch ${model.patch[0]}; ${multiple(data.frames, model.patch[0])}`,
  );
  rule(
    model.hidden % model.heads === 0,
    `model.hidden not divisible: ${model.hidden} by ${model.heads} heads; ${multiple(model.hidden, model.heads)}`,
  );
  rule(
    model.hidden % 4 === 0,
    `model.hidden not divisible: ${model.hidden} by 4 (sines and cosines of rows and columns); ${multiple(model.hidden, 4)}`,
  );
  const mlp = model.hidden * model.mlpRatio;
  rule(
    Number.isInteger(mlp),
    `model.mlpRatio gives no whole width: ${model.hidden} x ${model.mlpRatio} = ${mlp}; ${Math.round(mlp) / model.hidden} would`,
  );

  unused("objective.flowShift", objective.kind !== "flow", `objective.kind is ${objective.kind}`);
  rule(
    !objective.learnSigma || objective.kind === "iddpm",
    `objective.learnSigma needs kind iddpm: objective.kind is ${objective.kind}; set it to false`,
  );
  rule(
    !objective.variational || objective.learnSigma,
    "objective.variational needs learned variances: objective.learnSigma is false; set both or none",
  );

  unused("optim.warmupSteps", optim.schedule === "constant", "optim.schedule is constant");
  unused("optim.decayFraction", optim.schedule !== "linear-decay", `optim.schedule is ${optim.schedule}`);
  const falls = optim.schedule === "cosine" || optim.schedule === "linear-decay";
  unused("optim.finalFraction", !falls, `optim.schedule is ${optim.schedule}`);

  const fits = objective.kind === "flow" ? ["euler", "heun"] : ["ddpm", "ddim", "dpm-solver++"];
  rule(
    !begins || fits.includes(sample.sampler!),
    `sample.sampler does not fit the objective: ${sample.sampler} with objective.kind ${objective.kind}; take ${fits.join(" or ")}`,
  );
  unused(
    "sample.eta",
    sample.sampler !== "ddim" && (begins || sample.sampler !== undefined),
    `sample.sampler is ${sample.sampler}`,
  );
  const channels = codec.kind === "pca" ? codec.channels : 3;
  rule(
    sample.cfgChannels === "all" || !sized || sample.cfgChannels <= channels,
    `sample.cfgChannels too many: ${sample.cfgChannels} of ${channels} latent channels; give "all" or up to ${channels}`,
  );
  rule(
    optim.schedule === "constant" || !wasSet("optim.warmupSteps") || optim.warmupSteps < train.steps,
    `optim.warmupSteps too many: ${optim.warmupSteps} of ${train.steps} steps; lower it`,
  );
  return broken;
}

/**
 * Checks a configuration and fills in its defaults. Throws ConfigError naming every key that is unknown (with the
 * nearest), every value out of range and every rule broken between options.
 */
export function parseConfig(input: unknown = {}): Config {
  const refuse = (lines: string[]) =>
    new ConfigError(
      lines.length === 1 ? `config: ${lines[0]}` : `config: ${lines.length} errors\n  ${lines.join("\n  ")}`,
    );
  const result = schema.safeParse(input);
  if (!result.success) throw refuse(result.error.issues.flatMap((issue) => textOf(issue, input)));
  const { data } = result;
  const { sample, model, objective } = data;
  // Of a model that is gone on from, its own objective decides when it is open.
  const usual: Sampler | undefined = model.from ? undefined : objective.kind === "flow" ? "euler" : "ddim";
  const sampler = sample.sampler ?? usual;
  const config: Config = { ...data, sample: { ...sample, ...(sampler && { sampler }) } };
  const standard = schema.parse({});
  const wasSet = (path: string) => {
    const given = valueAt(input, path.split("."));
    return given !== undefined && JSON.stringify(given) !== JSON.stringify(valueAt(standard, path.split(".")));
  };
  const broken = crossRules(config, wasSet);
  if (broken.length > 0) throw refuse(broken);
  return config;
}

/** A configuration as aligned lines, one section after another; `*` marks what differs from the default. */
export function describe(config: Config): string {
  const standard = parseConfig();
  const show = (value: unknown) => (Array.isArray(value) ? value.join(",") : String(value));
  const rows = [...leaves.keys()].flatMap((path) => {
    const value = valueAt(config, path.split("."));
    if (value === undefined) return [];
    const mark = show(value) === show(valueAt(standard, path.split("."))) ? " " : "*";
    return [{ path, text: `${mark} ${show(value)}` }];
  });
  const width = Math.max(...rows.map(({ path }) => path.length));
  return rows.map(({ path, text }) => `${path.padEnd(width)} ${text}`).join("\n");
}
