import { readFileSync } from "node:fs";
import { parseArgs } from "node:util";
import { ConfigError, nearest } from "../engine/errors.js";
import { type Config, parseConfig } from "./config.js";
import { type Leaf, leaves, wants } from "./schema.js";

/** One option as the help prints it. */
export interface OptionRow {
  /** Full name, such as "optim.lr"; the flag is `--optim.lr`. */
  path: string;
  /** Short flag, such as "lr", where no other section has an option of that name. */
  alias: string | undefined;
  /** What it takes, in words. */
  wants: string;
  /** Its default as text; empty where it follows from other options. */
  standard: string;
  doc: string;
}

const show = (value: unknown): string =>
  value === undefined ? "" : Array.isArray(value) ? value.join(",") : String(value);

/** Every option in order, with its flag, range, default and meaning. */
export function optionTable(): OptionRow[] {
  const names = [...leaves.keys()].map((path) => path.split(".")[1]);
  return Array.from(leaves, ([path, leaf]) => {
    const name = path.split(".")[1];
    return {
      path,
      alias: names.filter((other) => other === name).length === 1 ? name : undefined,
      wants: wants(leaf),
      standard: show(leaf.parse(undefined)),
      doc: leaf.description ?? "",
    };
  });
}

/** The option table as text for a terminal. */
export function helpText(): string {
  const rows = optionTable().map((row) => ({
    flag: `--${row.path}${row.alias === undefined ? "" : `, --${row.alias}`}`,
    text: `${row.doc}; ${row.wants}${row.standard === "" ? "" : ` [${row.standard}]`}`,
  }));
  const width = Math.max(...rows.map(({ flag }) => flag.length));
  return rows.map(({ flag, text }) => `  ${flag.padEnd(width)}  ${text}`).join("\n");
}

/**
 * The full name behind a flag; words may be joined by dashes, as in `--checkpoint-blocks`. Throws ConfigError for an
 * unknown one, with the nearest, and for an ambiguous short one.
 */
function resolveFlag(flag: string): string {
  const name = flag.replace(/-([a-z])/g, (_, letter: string) => letter.toUpperCase());
  if (leaves.has(name)) return name;
  const owners = [...leaves.keys()].filter((path) => path.endsWith(`.${name}`));
  if (owners.length === 1) return owners[0];
  if (owners.length > 1)
    throw new ConfigError(`flags: ambiguous: --${name}; say ${owners.map((path) => `--${path}`).join(" or ")}`);
  const table = optionTable();
  const guess = nearest(
    name,
    table.flatMap(({ path, alias }) => (alias === undefined ? [path] : [path, alias])),
  );
  throw new ConfigError(
    `flags: unknown option: --${flag}${guess === undefined ? "; --help lists them" : `; did you mean --${guess}?`}`,
  );
}

const isBoolean = (leaf: Leaf): boolean => wants(leaf) === "true or false";

/** A flag's text as the type that its option takes; text that is no such thing is passed on for parseConfig to refuse. */
function readValue(leaf: Leaf, text: string): unknown {
  const asNumber = (part: string) => (part.trim() === "" || Number.isNaN(Number(part)) ? part : Number(part));
  const takes = wants(leaf);
  if (takes === "text") return text;
  if (takes === "true or false") return text === "true" ? true : text === "false" ? false : text;
  if (/^\d+ values/.test(takes)) return text.split(",").map(asNumber);
  return asNumber(text);
}

/** What `parseFlags` found. */
export interface Flags {
  /** Options by section, to be checked by `parseConfig`. */
  config: Record<string, Record<string, unknown>>;
  /** The file of `--config FILE`. */
  file: string | undefined;
  help: boolean;
  /** Flags that the caller named in `others`. */
  others: Record<string, string | boolean>;
  /** Arguments that are no flags. */
  words: string[];
}

/**
 * Reads command-line flags: `--optim.lr 3e-3`, `--lr=3e-3`, `--resume`, `--no-resume`, `--model.patch 1,2,2`,
 * `--config FILE`, `--help`. `others` names further flags of the caller's own and whether they take a value.
 * Throws ConfigError for an unknown flag, with the nearest, and for a missing value.
 */
export function parseFlags(args: readonly string[], others: Record<string, "string" | "boolean"> = {}): Flags {
  const flags: Flags = { config: {}, file: undefined, help: false, others: {}, words: [] };
  const takesNone = (name: string) =>
    name === "help" ||
    (name in others ? others[name] === "boolean" : name !== "config" && isBoolean(leaves.get(resolveFlag(name))!));
  // parseArgs must know which flags stand alone before it sees them.
  const names = args.flatMap((arg) => /^--(?!no-)([^=]+)/.exec(arg)?.[1] ?? []);
  const options = Object.fromEntries(
    names.map((name) => [name, { type: takesNone(name) ? "boolean" : "string" } as const]),
  );
  const { tokens } = parseArgs({ args: [...args], options, strict: false, allowPositionals: true, tokens: true });
  for (const token of tokens) {
    if (token.kind === "positional") flags.words.push(token.value);
    if (token.kind !== "option") continue;
    let { name, value } = token;
    if (!token.rawName.startsWith("--"))
      throw new ConfigError(`flags: unknown option: ${token.rawName}; --help lists them`);
    if (name.startsWith("no-") && value === undefined) {
      name = name.slice(3);
      if (!takesNone(name)) throw new ConfigError(`flags: not a switch: --no-${name}; give --${name} VALUE`);
      value = "false";
    }
    if (value === undefined && takesNone(name)) value = "true";
    if (value === undefined) throw new ConfigError(`flags: value missing: --${name}; give --${name} VALUE`);
    if (name === "help") flags.help = true;
    else if (name === "config") flags.file = value;
    else if (name in others) flags.others[name] = others[name] === "boolean" ? value === "true" : value;
    else {
      const path = resolveFlag(name);
      const [section, key] = path.split(".");
      flags.config[section] ??= {};
      flags.config[section][key] = readValue(leaves.get(path)!, value);
    }
  }
  return flags;
}

/** Reads a JSON file of options by section. Throws ConfigError for one that is missing or not JSON. */
export function readConfigFile(path: string): unknown {
  let text: string;
  try {
    text = readFileSync(path, "utf8");
  } catch (cause) {
    throw new ConfigError(`config: file not readable: ${path}: ${(cause as Error).message}`, { cause });
  }
  try {
    return JSON.parse(text);
  } catch (cause) {
    throw new ConfigError(`config: file is not JSON: ${path}: ${(cause as Error).message}`, { cause });
  }
}

/** Options by section laid over one another; a later one wins. A layer that is no object stands for all, for parseConfig to refuse. */
export function mergeConfigs(...layers: unknown[]): unknown {
  const isObject = (value: unknown): value is Record<string, unknown> =>
    typeof value === "object" && value !== null && !Array.isArray(value);
  let merged: unknown = {};
  for (const layer of layers) {
    if (layer === undefined || !isObject(merged)) continue;
    if (!isObject(layer)) {
      merged = layer;
      continue;
    }
    const below = merged;
    const joined = Object.entries(layer).map(([key, value]) =>
      isObject(below[key]) && isObject(value) ? [key, { ...below[key], ...value }] : [key, value],
    );
    merged = { ...below, ...Object.fromEntries(joined) };
  }
  return merged;
}

/** The configuration of a command line: a preset, then the file of `--config`, then the flags. Throws ConfigError. */
export function configOf(flags: Flags, preset: unknown = {}): Config {
  return parseConfig(
    mergeConfigs(preset, flags.file === undefined ? undefined : readConfigFile(flags.file), flags.config),
  );
}
