import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { type Config, parseConfig } from "./config.js";
import { duration } from "./progress.js";
import { PLOT_SCRIPT } from "./report/plot.js";
import { STYLE } from "./report/style.js";
import { leaves, sections, valueAt } from "./schema.js";

/** Numbers by step. */
export interface Curve {
  step: ArrayLike<number>;
  loss: ArrayLike<number>;
}

/** One caption's clips, as encoded pictures (animated WebP or GIF, or PNG). */
export interface ReportClip {
  caption: string;
  sampled: Uint8Array;
  /** A real clip of the same caption. */
  real?: Uint8Array;
  /** What the judges say, such as { colour: true, motion: false }. */
  verdict?: Readonly<Record<string, boolean>>;
}

/** Clips to compare: each row one caption, made in several ways. */
export interface ReportFilms {
  title: string;
  note?: string;
  rows: readonly { caption: string; films: readonly { label: string; picture: Uint8Array }[] }[];
}

/** Numbers or words in rows. Cells that are numbers, or texts that begin with a digit, are set to the right. */
export interface ReportTable {
  title: string;
  note?: string;
  head: readonly string[];
  rows: readonly (readonly (string | number)[])[];
}

/** How often one judge was satisfied. */
export interface JudgeScore {
  name: string;
  right: number;
  of: number;
  /** What it looks at and how. */
  doc?: string;
}

/** Everything that a report shows. Empty lists leave their part out. */
export interface ReportData {
  title: string;
  /** A sentence or two under the title. */
  lead?: string;
  /** Large numbers at the top, such as { label: "samples a second", value: "52" }. */
  tiles?: readonly { label: string; value: string }[];
  loss: Curve;
  /** Loss on clips that are never trained on. */
  heldOut?: Curve;
  clips: readonly ReportClip[];
  films?: readonly ReportFilms[];
  tables?: readonly ReportTable[];
  judges: readonly JudgeScore[];
  config: Config;
  /** The GPU and what it can do, by name. */
  adapter: Readonly<Record<string, string | number>>;
  timings: readonly { name: string; seconds: number }[];
  warnings: readonly string[];
}

const ESCAPES: Readonly<Record<string, string>> = {
  "&": "&amp;",
  "<": "&lt;",
  ">": "&gt;",
  '"': "&quot;",
  "'": "&#39;",
};

/** Text as HTML that shows it. */
function html(text: unknown): string {
  return String(text).replace(/[&<>"']/g, (c) => ESCAPES[c]);
}

/** Encoded picture bytes as an address that holds them. */
function dataUri(bytes: Uint8Array): string {
  const head = String.fromCharCode(...bytes.subarray(0, 12));
  const type = head.startsWith("RIFF") ? "webp" : head.startsWith("GIF8") ? "gif" : "png";
  return `data:image/${type};base64,${Buffer.from(bytes).toString("base64")}`;
}

/** JSON that may stand inside a script element. */
function scriptJson(value: unknown): string {
  return JSON.stringify(value).replace(/</g, "\\u003c");
}

/**
 * A curve smoothed over about `span` values: an exponential average run both ways, so that it does not trail behind.
 * Values that are no finite numbers are passed over.
 */
export function smooth(values: ArrayLike<number>, span: number): number[] {
  const decay = 1 - 1 / Math.max(1, span / 2);
  const sums = new Float64Array(values.length);
  const weights = new Float64Array(values.length);
  for (const backwards of [false, true]) {
    let sum = 0;
    let weight = 0;
    for (let k = 0; k < values.length; k++) {
      const i = backwards ? values.length - 1 - k : k;
      // Each side has the values before its own; the second adds the middle one too.
      const add = (value: number) => {
        if (!Number.isFinite(value)) return;
        sum += value;
        weight += 1;
      };
      sum *= decay;
      weight *= decay;
      if (backwards) add(values[i]);
      sums[i] += sum;
      weights[i] += weight;
      if (!backwards) add(values[i]);
    }
  }
  return Array.from(sums, (sum, i) => (weights[i] === 0 ? Number.NaN : sum / weights[i]));
}

/** The columns of the plot: every step that either curve knows, and null where one knows nothing. */
function columns(loss: Curve, heldOut: Curve | undefined): (number | null)[][] {
  const finite = (value: number | undefined) => (value !== undefined && Number.isFinite(value) ? value : null);
  const smoothed = smooth(loss.loss, Math.max(1, loss.loss.length / 25));
  const at = new Map<number, { raw?: number; smooth?: number; held?: number }>();
  for (let i = 0; i < loss.step.length; i++) at.set(loss.step[i], { raw: loss.loss[i], smooth: smoothed[i] });
  for (let i = 0; i < (heldOut?.step.length ?? 0); i++)
    at.set(heldOut!.step[i], { ...at.get(heldOut!.step[i]), held: heldOut!.loss[i] });
  const rows = [...at].sort(([a], [b]) => a - b);
  const list = [
    rows.map(([step]) => step),
    rows.map(([, row]) => finite(row.raw)),
    rows.map(([, row]) => finite(row.smooth)),
  ];
  return heldOut === undefined ? list : [...list, rows.map(([, row]) => finite(row.held))];
}

function section(title: string, body: string, note = ""): string {
  if (body === "") return "";
  return `<section><h2>${html(title)}${note === "" ? "" : ` <small>${html(note)}</small>`}</h2>${body}</section>`;
}

function judgeTable(judges: readonly JudgeScore[]): string {
  if (judges.length === 0) return "";
  const rows = judges.map(({ name, right, of, doc }) => {
    const share = of === 0 ? 0 : (100 * right) / of;
    return `<tr><td>${html(name)}${doc === undefined ? "" : `<div class="quiet">${html(doc)}</div>`}</td><td class="number">${right} of ${of}</td><td class="number">${share.toFixed(0)} %</td><td><div class="bar"><i style="width:${share.toFixed(1)}%"></i></div></td></tr>`;
  });
  return `<table><thead><tr><th>judge</th><th class="number">right</th><th></th><th></th></tr></thead><tbody>${rows.join("")}</tbody></table>`;
}

function clipFigure({ caption, sampled, real, verdict = {} }: ReportClip): string {
  const film = (bytes: Uint8Array, label: string) =>
    `<div><img src="${dataUri(bytes)}" alt="${html(`${caption} (${label})`)}"><span>${label}</span></div>`;
  const chips = Object.entries(verdict).map(
    ([name, right]) => `<span class="chip${right ? "" : " wrong"}">${html(name)}</span>`,
  );
  return `<figure><div class="films">${film(sampled, "sampled")}${real === undefined ? "" : film(real, "real")}</div><figcaption>${html(caption)}</figcaption>${chips.length === 0 ? "" : `<div class="chips">${chips.join("")}</div>`}</figure>`;
}

function filmGrid({ rows }: ReportFilms): string {
  const figures = rows.map(({ caption, films }) => {
    const list = films.map(
      ({ label, picture }) =>
        `<div><img src="${dataUri(picture)}" alt="${html(`${caption} (${label})`)}"><span>${html(label)}</span></div>`,
    );
    return `<figure><div class="films row">${list.join("")}</div><figcaption>${html(caption)}</figcaption></figure>`;
  });
  return `<div class="rows">${figures.join("")}</div>`;
}

function plainTable({ head, rows }: ReportTable): string {
  if (rows.length === 0) return "";
  const isNumber = (cell: string | number) => typeof cell === "number" || /^[-+]?\d/.test(cell);
  const right = head.map((_, i) => rows.every((row) => row[i] === "" || isNumber(row[i])));
  const cell = (tag: string, text: string | number, i: number) =>
    `<${tag}${right[i] ? ' class="number"' : ""}>${html(text)}</${tag}>`;
  const body = rows.map((row) => `<tr>${row.map((text, i) => cell("td", text, i)).join("")}</tr>`);
  return `<div class="scroll"><table><thead><tr>${head.map((text, i) => cell("th", text, i)).join("")}</tr></thead><tbody>${body.join("")}</tbody></table></div>`;
}

function timingTable(timings: readonly { name: string; seconds: number }[]): string {
  if (timings.length === 0) return "";
  const longest = Math.max(...timings.map(({ seconds }) => seconds), 1e-9);
  const text = (s: number) => (s < 10 ? `${s.toPrecision(2)}s` : duration(s));
  const rows = timings.map(
    ({ name, seconds }) =>
      `<tr><td>${html(name)}</td><td class="number">${text(seconds)}</td><td><div class="bar"><i style="width:${((100 * seconds) / longest).toFixed(1)}%"></i></div></td></tr>`,
  );
  return `<table><tbody>${rows.join("")}</tbody></table>`;
}

function adapterTable(adapter: Readonly<Record<string, string | number>>): string {
  const rows = Object.entries(adapter).map(
    ([key, value]) => `<tr><td class="quiet">${html(key)}</td><td>${html(value)}</td></tr>`,
  );
  return rows.length === 0 ? "" : `<table><tbody>${rows.join("")}</tbody></table>`;
}

function optionLists(config: Config): string {
  const standard = parseConfig();
  const show = (value: unknown) => (Array.isArray(value) ? value.join(", ") : String(value));
  const lists = Object.keys(sections).map((name) => {
    const rows = [...leaves.keys()].flatMap((path) => {
      const [of, option] = path.split(".");
      const value = valueAt(config, [of, option]);
      if (of !== name || value === undefined) return [];
      const changed = show(value) !== show(valueAt(standard, [of, option]));
      return [`<dt>${option}</dt><dd${changed ? ' class="changed"' : ""}>${html(show(value))}</dd>`];
    });
    return `<div><h3>${name}</h3><dl>${rows.join("")}</dl></div>`;
  });
  return `<div class="options">${lists.join("")}</div>`;
}

/** uPlot's own file of its package, which the page carries inside. */
function uplotFile(name: string): string {
  const path = createRequire(import.meta.url).resolve(`uplot/dist/${name}`);
  return readFileSync(path, "utf8").replace(/<\/(script|style)/gi, "<\\/$1");
}

/**
 * A run's report as one HTML file that needs nothing else: loss curve, sampled clips beside real ones, judges, timings,
 * adapter, options, warnings. It follows the reader's light or dark setting and fits a phone.
 */
export function renderReport(data: ReportData): string {
  const { title, lead = "", tiles = [], loss, heldOut, clips, judges, adapter, timings, warnings } = data;
  const { films = [], tables = [] } = data;
  const values = columns(loss, heldOut);
  const known = values
    .slice(1)
    .flat()
    .filter((value) => value !== null);
  // A curve over decades is readable on a logarithmic scale only; one that touches 0 has none.
  const log = known.length > 0 && Math.min(...known) > 0 && Math.max(...known) / Math.min(...known) > 20;
  const plot = known.length === 0 ? "" : '<div id="loss" role="img" aria-label="loss by step"></div>';
  const tileList = tiles.map(
    ({ label, value }) => `<div class="tile"><b>${html(value)}</b><span>${html(label)}</span></div>`,
  );
  const warningList = warnings.map((text) => `<li>${html(text)}</li>`);
  const judged = judges.length === 0 ? "" : `of ${Math.max(...judges.map(({ of }) => of))} clips`;
  const side = (first: string, second: string) =>
    first === "" || second === "" ? first + second : `<div class="pair"><div>${first}</div><div>${second}</div></div>`;
  return `<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>${html(title)}</title>
<style>${uplotFile("uPlot.min.css")}${STYLE}</style></head>
<body><main>
<h1>${html(title)}</h1>
<p class="lead">${html(lead)}</p>
${tileList.length === 0 ? "" : `<div class="tiles">${tileList.join("")}</div>`}
${warningList.length === 0 ? "" : `<section class="warnings"><ul>${warningList.join("")}</ul></section>`}
${films.map((f) => section(f.title, filmGrid(f), f.note)).join("\n")}
${tables.map((t) => section(t.title, plainTable(t), t.note)).join("\n")}
${section("Sampled clips", clips.length === 0 ? "" : `<div class="clips">${clips.map(clipFigure).join("")}</div>`, clips.some(({ real }) => real !== undefined) ? "beside a real clip of the same caption" : "")}
${side(section("Judges", judgeTable(judges), judged), section("Time", timingTable(timings)))}
${section("Loss", plot, log ? "logarithmic" : "")}
${section("Adapter", adapterTable(adapter))}
${section("Options", optionLists(data.config), "green: not the default")}
<footer>Made by Espalier.</footer>
</main>
${plot === "" ? "" : `<script type="application/json" id="curves">${scriptJson({ values, log })}</script><script>${uplotFile("uPlot.iife.min.js")}</script><script>${PLOT_SCRIPT}</script>`}
</body></html>
`;
}
