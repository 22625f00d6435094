import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type Browser, chromium } from "playwright-core";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { parseConfig } from "../../train/config.js";
import { encodeAnimatedWebp, encodeGif } from "../../train/media.js";
import { type ReportData, renderReport, smooth } from "../../train/report.js";
import { findChromium } from "../browser/chromium.js";

const test = suite("report");
let browser: Browser;
let folder = "";
test.before(async () => {
  folder = await mkdtemp(join(tmpdir(), "report-"));
  const { executablePath, args, env } = await findChromium();
  browser = await chromium.launch({ executablePath, args, env, headless: false });
});
test.after(async () => {
  await browser?.close();
  await rm(folder, { recursive: true });
});

const clip = { video: new Float32Array(3 * 2 * 8 * 8).fill(0.3), frames: 2, height: 8, width: 8 };
const odd = `</script><b>"ox" & 'frog'</b>`;

async function example(): Promise<ReportData> {
  const step = Array.from({ length: 300 }, (_, i) => i + 1);
  const loss = step.map((s) => (s === 7 ? Number.NaN : Math.exp(-s / 60) + 0.01));
  return {
    title: `A run ${odd}`,
    lead: odd,
    tiles: [{ label: odd, value: "98 %" }],
    loss: { step, loss },
    heldOut: { step: [100, 250.5], loss: [0.4, 0.2] },
    clips: [
      {
        caption: odd,
        sampled: await encodeAnimatedWebp(clip),
        real: encodeGif(clip),
        verdict: { colour: true, [odd]: false },
      },
      { caption: "an ox", sampled: encodeGif(clip) },
    ],
    films: [{ title: odd, note: odd, rows: [{ caption: odd, films: [{ label: odd, picture: encodeGif(clip) }] }] }],
    tables: [
      {
        title: "Losses",
        head: ["method", odd],
        rows: [
          [odd, 0.25],
          ["vanilla", "12 %"],
        ],
      },
    ],
    judges: [
      { name: "colour", right: 47, of: 48, doc: odd },
      { name: odd, right: 0, of: 0 },
    ],
    config: parseConfig({ run: { out: `runs/${odd}` } }),
    adapter: { name: odd, "largest binding": "128 MiB" },
    timings: [
      { name: odd, seconds: 0.25 },
      { name: "training", seconds: 200 },
    ],
    warnings: [odd],
  };
}

test("smoothing follows a line without trailing, and passes over NaN", () => {
  const line = smooth(
    Float64Array.from({ length: 201 }, (_, i) => i),
    20,
  );
  assert.ok(Math.abs(line[100] - 100) < 1e-6, `${line[100]}`);
  for (const value of smooth([3, Number.NaN, 3], 10)) assert.ok(Math.abs(value - 3) < 1e-12);
  assert.equal(smooth([1, 2, 3], 1), [1, 2, 3]);
  assert.ok(Number.isNaN(smooth([Number.NaN], 4)[0]));
});

test("one file that loads nothing, fits a phone, draws its curves and shows odd text as text", async () => {
  const path = join(folder, "report.html");
  await writeFile(path, renderReport(await example()));
  for (const [width, scheme] of [
    [390, "dark"],
    [1440, "light"],
  ] as const) {
    const page = await browser.newPage({ viewport: { width, height: 844 }, colorScheme: scheme });
    const faults: string[] = [];
    page.on("console", (message) => faults.push(message.text()));
    page.on("pageerror", (error) => faults.push(String(error)));
    page.on("request", (request) => {
      if (!/^(file|data):/.test(request.url())) faults.push(request.url());
    });
    await page.goto(`file://${path}`);
    await page.waitForSelector("#loss canvas");
    const seen = await page.evaluate(() => {
      const canvas = document.querySelector<HTMLCanvasElement>("#loss canvas")!;
      const pixels = canvas.getContext("2d")!.getImageData(0, 0, canvas.width, canvas.height).data;
      const images = [...document.images].map((image) => [image.complete, image.naturalWidth]);
      return {
        overflow: document.documentElement.scrollWidth - innerWidth,
        drawn: pixels.filter((_, i) => i % 4 === 3 && pixels[i] > 0).length,
        images,
        bold: document.querySelectorAll("b:not(.tile b)").length,
        text: document.querySelector("main")!.textContent,
        ground: getComputedStyle(document.body).backgroundColor,
        series: document.querySelectorAll("#loss .u-series").length,
      };
    });
    assert.equal(faults, []);
    assert.ok(seen.overflow <= 0, `${seen.overflow} pixels too wide at ${width}`);
    assert.ok(seen.drawn > 1000, `${seen.drawn} pixels drawn`);
    assert.equal(seen.images, [
      [true, 160],
      [true, 160],
      [true, 160],
      [true, 160],
    ]);
    assert.is(seen.bold, 0, "no caption becomes markup");
    assert.is(seen.text.split(odd).length - 1, 17, "each odd text is shown");
    for (const part of ["47 of 48", "98 %", "0 of 0", "3m 20s", "128 MiB", "0.25s"])
      assert.ok(seen.text.includes(part), part);
    assert.is(seen.ground, scheme === "dark" ? "rgb(18, 22, 20)" : "rgb(246, 247, 244)");
    assert.is(seen.series, 4, "step, each step, smoothed, held out");
    await page.close();
  }
});

test("a run that never logged or sampled still has a report", async () => {
  const none = {
    loss: { step: [], loss: [] },
    heldOut: undefined,
    clips: [],
    films: [],
    tables: [],
    judges: [],
    timings: [],
    warnings: [],
    tiles: [],
    adapter: {},
  };
  const page = await browser.newPage();
  await page.setContent(renderReport({ ...(await example()), ...none, title: "Stopped" }));
  assert.equal(
    await page.evaluate(() => [...document.querySelectorAll("h2")].map((h) => h.firstChild?.textContent?.trim())),
    ["Options"],
  );
  assert.is(await page.evaluate(() => document.scripts.length), 0);
  await page.close();
});

test.run();
