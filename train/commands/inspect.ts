import { ConfigError } from "../../engine/errors.js";
import type { STDiTConfig } from "../../model/config.js";
import { describeGrowth } from "../../model/growth.js";
import { openSafetensors, type Safetensors } from "../../model/safetensors.js";
import { parseArguments } from "../arguments.js";
import { type AdapterGroup, type Inspection, inspectFile } from "../inspection.js";

const usage = `Usage: espalier inspect FILE [--names] [--json]

Shows what a safetensors file holds: tensors in groups ("blocks.*" stands for all blocks), shapes, types and bytes, what
its metadata says, which blocks are copies of which (starred), the gates of a language branch, and adapters (LoRA). FILE
is any safetensors file, or the index (.safetensors.index.json) of one in shards; no GPU is needed, and only headers and
gates are read. PyTorch's pickles (.pth, .pt, .bin, .ckpt) are programs: they are refused, with the line that converts them.

  --names   one row for every tensor
  --json    the same as JSON, for other programs`;

const count = (n: number) => n.toLocaleString("en");
const size = (n: number) => {
  const unit = ["B", "KiB", "MiB", "GiB", "TiB"];
  const power = Math.min(unit.length - 1, Math.floor(Math.log2(Math.max(1, n)) / 10));
  return power === 0 ? `${n} B` : `${(n / 2 ** (10 * power)).toFixed(1)} ${unit[power]}`;
};
const list = (shape: readonly number[]) => `[${shape.join(", ")}]`;

/** Rows in columns; those named are set to the right. */
function table(rows: string[][], right: readonly number[] = []): string[] {
  const widths = rows[0]?.map((_, c) => Math.max(...rows.map((r) => r[c].length))) ?? [];
  return rows.map((r) =>
    `  ${r.map((cell, c) => (right.includes(c) ? cell.padStart(widths[c]) : cell.padEnd(widths[c]))).join("  ")}`.trimEnd(),
  );
}

const named = (info: object) =>
  Object.entries(info)
    .filter(([key, value]) => key !== "type" && (typeof value !== "object" || value === null))
    .map(([key, value]) => `${key} ${value}`)
    .join(", ");

/** A metadata entry in a line; lists and objects inside are counted, not shown. */
function aboutText(value: unknown): string {
  if (typeof value !== "object" || value === null) {
    const text = String(value);
    return text.length > 160 ? `${text.slice(0, 160)}… (${count(text.length)} characters)` : text;
  }
  if (Array.isArray(value)) return `a list of ${value.length}`;
  const inner = Object.entries(value)
    .filter(([, v]) => typeof v === "object" && v !== null)
    .map(([key, v]) => (Array.isArray(v) ? `${key} of ${count(v.length)}` : `${key} {…}`));
  const type = (value as { type?: unknown }).type;
  return [...(type === undefined ? [] : [String(type)]), named(value), ...inner].filter((t) => t !== "").join(", ");
}

function configText(c: STDiTConfig): string {
  const branch = c.languageChannels
    ? `; language branch: ${c.languageChannels} channels, up to ${c.languageLength} tokens, a gate a ${{ scalar: "block", head: "head", channel: "channel" }[c.languageGate]}`
    : "";
  return `STDiT: ${c.depth} blocks, width ${c.hidden}, ${c.heads} heads, patch ${c.patch.join(" x ")}, latent ${c.inChannels} x ${c.frames} x ${c.latent.join(" x ")}${c.predSigma ? ", variances learned" : ""}, captions ${c.maxLength} x ${c.captionChannels}${branch}`;
}

function gatesText(gates: Inspection["gates"]): string[] {
  const digits = (v: number) => v.toFixed(4).replace(/^-0\.0000$/, "0.0000");
  const row = ({ block, values }: (typeof gates)[number]) => {
    if (values.length <= 16) return [`${block}`, values.map(digits).join(" ")];
    const mean = values.reduce((a, b) => a + b, 0) / values.length;
    const [least, most] = values.reduce(([a, b], v) => [Math.min(a, v), Math.max(b, v)], [1, -1]);
    return [`${block}`, `${digits(least)} to ${digits(most)}, mean ${digits(mean)} (${values.length})`];
  };
  const closed = gates.every((g) => g.values.every((v) => v === 0));
  const note = closed ? " (all 0: the branch adds nothing yet)" : "";
  return [`gates, tanh of alpha by block${note}`, ...table(gates.map(row), [0])];
}

function adaptersText(groups: readonly AdapterGroup[], metadata: Inspection["metadata"]): string[] {
  const { lora_alpha: alpha } = (metadata.lora ?? {}) as { lora_alpha?: number };
  return groups.flatMap(({ layers, count: n, rank, values }) => [
    `adapters (LoRA) on ${n} layer${n === 1 ? "" : "s"}: rank ${rank}${alpha === undefined ? "" : `, alpha ${alpha}`}, ${count(values)} values`,
    ...layers.map((layer) => `  ${layer}`),
  ]);
}

/** Shown elsewhere, or for programs alone. */
const SHOWN = ["model", "growth", "lora"];

/** What `inspectFile` found, as text. */
export function describeInspection(i: Inspection, file?: Safetensors): string {
  const lines = [i.file, `  ${count(i.tensors)} tensors, ${count(i.values)} values, ${size(i.bytes)}`];
  for (const d of i.dtypes)
    lines.push(`  ${d.dtype.padEnd(5)} ${count(d.tensors)} tensors, ${count(d.values)} values, ${size(d.bytes)}`);
  for (const warning of i.warnings) lines.push(`  warning: ${warning}`);
  if (i.config) {
    const n = i.parameters!;
    lines.push("", "model", `  ${configText(i.config)}`);
    const large = n >= 1e7 ? `, ${(n / 1e9).toFixed(3)}e9 = ${(n / 2 ** 30).toFixed(3)} x 2^30` : "";
    lines.push(`  ${count(n)} parameters${large}`);
  }
  if (i.foreign) {
    const what = i.foreign === "PixArt" ? "PixArt-alpha, which a STDiT can begin from" : "the STDiT of Open-Sora 1.0";
    lines.push("", "model", `  ${what}: espalier grow makes a model file of it`);
  }
  const about = Object.entries(i.metadata).filter(([key]) => !(SHOWN.includes(key) && (key !== "model" || i.config)));
  if (about.length) lines.push("", "metadata", ...table(about.map(([key, value]) => [key, aboutText(value)])));
  if (i.config && (i.metadata.growth === undefined || i.growth)) {
    const drawn = describeGrowth({ config: i.config, growth: i.growth });
    lines.push("", "blocks", ...drawn.split("\n").map((line) => `  ${line}`));
  } else if (i.blocks) lines.push("", "blocks", `  ${i.blocks}`);
  if (i.gates.length) lines.push("", ...gatesText(i.gates));
  if (i.adapters.length) lines.push("", ...adaptersText(i.adapters, i.metadata));
  const rows = file
    ? Array.from(file.tensors, ([name, t]) => [name, list(t.shape), t.dtype, size(t.end - t.begin)])
    : i.groups.map((g) => [
        g.name,
        `${g.times > 1 ? `${g.times} x ` : ""}${list(g.shape)}`,
        g.dtype,
        count(g.values),
        size(g.bytes),
      ]);
  lines.push("", "tensors", ...table(rows, file ? [3] : [3, 4]));
  return lines.join("\n");
}

export async function run(args: string[]): Promise<number> {
  const { values, words, help } = parseArguments("inspect", args, { names: "switch", json: "switch" });
  if (help) {
    console.log(usage);
    return 0;
  }
  if (words.length !== 1)
    throw new ConfigError(
      words.length
        ? `inspect: takes one file: got ${words.join(", ")}`
        : "inspect: no file given; espalier inspect FILE",
    );
  const file = await openSafetensors(words[0]);
  try {
    const found = await inspectFile(file);
    const names = values.names === true;
    if (values.json) {
      const all = names && {
        names: Array.from(file.tensors, ([name, t]) => ({ name, shape: t.shape, dtype: t.dtype })),
      };
      console.log(JSON.stringify({ ...found, ...all }, null, 2));
    } else console.log(describeInspection(found, names ? file : undefined));
    return 0;
  } finally {
    await file.close();
  }
}
