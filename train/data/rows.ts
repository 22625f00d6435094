import { readdir, readFile, stat } from "node:fs/promises";
import { extname, isAbsolute, join } from "node:path";
import { DataError } from "../../engine/errors.js";

/** A clip on disk and what it shows. */
export interface Row {
  path: string;
  caption: string;
  /** Frames that a still image stacks in a column. */
  frames?: number;
}

/** What had to be left out, counted, with the first reasons in words. */
export class Skips {
  count = 0;
  readonly reasons: string[] = [];
  private static readonly kept = 5;

  add(reason: string): void {
    this.count++;
    if (this.reasons.length < Skips.kept) this.reasons.push(reason);
  }

  /** "3 skipped: captions.jsonl line 2: no caption …; …", or "" where nothing was. */
  toString(): string {
    if (this.count === 0) return "";
    const more = this.count > this.reasons.length ? `; and ${this.count - this.reasons.length} more` : "";
    return `${this.count} skipped: ${this.reasons.join("; ")}${more}`;
  }
}

/** Files that ffmpeg reads; others go to the image decoder. */
export const VIDEO_ENDINGS = [".mp4", ".mkv", ".webm", ".mov", ".avi", ".m4v", ".mpg", ".mpeg", ".ts", ".ogv", ".flv"];

const exists = (path: string) =>
  stat(path).then(
    (s) => s.isFile(),
    () => false,
  );

/** Cells of a CSV text: quotes may hold commas, line breaks and doubled quotes (RFC 4180). */
export function parseCsv(text: string): string[][] {
  const rows: string[][] = [];
  let row: string[] = [];
  let cell = "";
  let quoted = false;
  const endRow = () => {
    row.push(cell);
    if (row.length > 1 || row[0] !== "") rows.push(row);
    row = [];
    cell = "";
  };
  for (let i = 0; i < text.length; i++) {
    const ch = text[i];
    if (quoted) {
      if (ch === '"' && text[i + 1] === '"') cell += text[++i];
      else if (ch === '"') quoted = false;
      else cell += ch;
    } else if (ch === '"' && cell === "") quoted = true;
    else if (ch === ",") {
      row.push(cell);
      cell = "";
    } else if (ch === "\n") endRow();
    else if (ch !== "\r") cell += ch;
  }
  endRow();
  return rows;
}

function fromJsonLines(text: string, folder: string, skips: Skips): Row[] {
  const rows: Row[] = [];
  text.split("\n").forEach((line, i) => {
    if (line.trim() === "") return;
    const where = `captions.jsonl line ${i + 1}`;
    let given: Record<string, unknown>;
    try {
      given = JSON.parse(line);
    } catch {
      skips.add(`${where}: not JSON: ${line.slice(0, 60)}`);
      return;
    }
    if (typeof given !== "object" || given === null || typeof given.file !== "string" || given.file === "") {
      skips.add(`${where}: no "file"`);
      return;
    }
    const caption = [given.text, given.caption, given.name].find((c) => typeof c === "string" && c.trim() !== "");
    if (caption === undefined) {
      skips.add(`${where}: no "text", "caption" or "name" for ${given.file}`);
      return;
    }
    const { frames } = given;
    if (frames !== undefined && !(Number.isInteger(frames) && (frames as number) > 0)) {
      skips.add(`${where}: "frames" must be a whole number from 1: ${JSON.stringify(frames)}`);
      return;
    }
    rows.push({
      path: isAbsolute(given.file) ? given.file : join(folder, given.file),
      caption: caption as string,
      frames: frames as number | undefined,
    });
  });
  return rows;
}

function fromCsv(text: string, name: string, folder: string, skips: Skips): Row[] {
  const [header, ...lines] = parseCsv(text);
  const pathAt = header?.indexOf("path") ?? -1;
  const textAt = header?.indexOf("text") ?? -1;
  if (pathAt < 0 || textAt < 0)
    throw new DataError(
      `data: the first line must name the columns path and text: ${name} has ${header?.join(", ") || "nothing"}; add the line "path,text"`,
    );
  const rows: Row[] = [];
  lines.forEach((cells, i) => {
    const path = cells[pathAt] ?? "";
    const caption = cells[textAt] ?? "";
    if (path === "" || caption.trim() === "") skips.add(`${name} row ${i + 1}: no ${path === "" ? "path" : "text"}`);
    else rows.push({ path: isAbsolute(path) ? path : join(folder, path), caption });
  });
  return rows;
}

/** Videos that have their caption in a text file of the same name beside them. */
async function fromSidecars(folder: string, skips: Skips): Promise<Row[]> {
  const rows: Row[] = [];
  for (const file of (await readdir(folder)).sort()) {
    if (!VIDEO_ENDINGS.includes(extname(file).toLowerCase())) continue;
    const sidecar = `${file.slice(0, -extname(file).length)}.txt`;
    const caption = await readFile(join(folder, sidecar), "utf8").catch(() => "");
    if (caption.trim() === "") skips.add(`${file}: no caption in ${sidecar}`);
    else rows.push({ path: join(folder, file), caption: caption.trim() });
  }
  return rows;
}

/**
 * Lists clips with captions: of a CSV file with columns path and text, or of a folder with captions.jsonl
 * (file, and text, caption or name), or else of a folder of videos with a .txt each. Paths are relative to the folder.
 * Bad lines and missing files are skipped and counted.
 * @throws DataError when the place cannot be read, or nothing usable is left
 */
export async function listRows(place: string, skips: Skips): Promise<Row[]> {
  const about = await stat(place).catch(() => undefined);
  if (about === undefined)
    throw new DataError(`data: the set must exist: there is nothing at ${place}; give a folder or a CSV file`);
  let listed: Row[];
  if (about.isFile()) listed = fromCsv(await readFile(place, "utf8"), place, join(place, ".."), skips);
  else if (await exists(join(place, "captions.jsonl")))
    listed = fromJsonLines(await readFile(join(place, "captions.jsonl"), "utf8"), place, skips);
  else listed = await fromSidecars(place, skips);
  const rows: Row[] = [];
  for (const row of listed)
    if (await exists(row.path)) rows.push(row);
    else skips.add(`${row.path}: missing`);
  if (rows.length === 0)
    throw new DataError(
      skips.count === 0
        ? `data: the set is empty: no clips are listed in ${place}; a folder needs captions.jsonl or videos with a .txt each, a CSV the columns path,text`
        : `data: no clip of the set can be used: ${skips}; correct them in ${place}`,
    );
  return rows;
}
