import { parseArgs } from "node:util";
import { ConfigError, nearest } from "../engine/errors.js";

/** What an option of a command takes; "list" is text, and the option may come several times. */
export type Takes = "text" | "number" | "whole" | "switch" | "list";

export interface Arguments {
  values: Record<string, string | number | boolean | undefined>;
  /** Of options that may come several times, in order. */
  lists: Record<string, string[]>;
  /** Arguments that are no options. */
  words: string[];
  help: boolean;
}

/**
 * Reads a command's own few options; `--help` is always one.
 * @throws ConfigError for an unknown option (with the nearest), a missing value, or a value of the wrong kind
 */
export function parseArguments(
  command: string,
  args: readonly string[],
  takes: Readonly<Record<string, Takes>>,
): Arguments {
  const known: Record<string, Takes> = { ...takes, help: "switch" };
  const options = Object.fromEntries(
    Object.entries(known).map(([name, kind]) => [name, { type: kind === "switch" ? "boolean" : "string" } as const]),
  );
  const { tokens } = parseArgs({ args: [...args], options, strict: false, allowPositionals: true, tokens: true });
  const values: Arguments["values"] = {};
  const lists: Arguments["lists"] = {};
  const words: string[] = [];
  for (const token of tokens) {
    if (token.kind === "positional") words.push(token.value);
    if (token.kind !== "option") continue;
    const { name, rawName, value } = token;
    const kind = Object.hasOwn(known, name) ? known[name] : undefined;
    if (kind === undefined || !rawName.startsWith("--")) {
      const guess = nearest(name, Object.keys(known));
      throw new ConfigError(
        `${command}: unknown option ${rawName}${guess ? `; did you mean --${guess}?` : ""} (${Object.keys(known)
          .map((k) => `--${k}`)
          .join(", ")})`,
      );
    }
    if (kind === "switch") {
      values[name] = true;
      continue;
    }
    if (value === undefined) throw new ConfigError(`${command}: --${name} needs a value`);
    if (kind === "list") {
      lists[name] = [...(lists[name] ?? []), value];
      continue;
    }
    const number = Number(value);
    if (
      kind !== "text" &&
      (value.trim() === "" ||
        !Number.isFinite(number) ||
        (kind === "whole" && (!Number.isInteger(number) || number < 0)))
    )
      throw new ConfigError(
        `${command}: --${name} takes ${kind === "whole" ? "a whole number from 0" : "a number"}: got "${value}"`,
      );
    values[name] = kind === "text" ? value : number;
  }
  return { values, lists, words, help: values.help === true };
}
