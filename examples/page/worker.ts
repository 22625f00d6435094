import { createEngine, type Engine, EspalierError } from "../../engine/index.js";
import { openModel } from "../../model/checkpoint.js";
import { type Pipeline, sampleClips, samplersOf, videoShape } from "../../model/pipeline.js";
import type { TextEncoder } from "../../model/text/encoder.js";
import { encoderOf } from "../../model/text/open.js";
import { CAPTIONS } from "./captions.js";
import { filmOf } from "./film.js";
import type { Ask, Deed, Tell, Wish } from "./messages.js";

// All that the GPU does is asked for here, so that the page stays alive whatever a model costs.
const port = globalThis as unknown as {
  postMessage(message: Tell, transfer?: Transferable[]): void;
  onmessage: (event: MessageEvent<Ask>) => void;
};
const tell = (message: Tell, transfer?: Transferable[]) => port.postMessage(message, transfer);

/** A GPU that is lost so often in a row is not taken again unasked. */
const LOSSES = 3;

let engine: Engine | undefined;
let pipeline: (Pipeline & { dispose(): void }) | undefined;
/** What the pipeline was opened from: a lost GPU takes the model with it. */
let source: string | File | undefined;
let running: AbortController | undefined;
let losses = 0;

/** Tasks that use the GPU run one after the other. */
let last: Promise<void> = Promise.resolve();
function inTurn(during: Deed, task: () => Promise<void>): void {
  last = last.then(task).catch((error: Error) => {
    // Whoever stopped a run knows that it did.
    if (error.name === "AbortedError") return;
    if (!(error instanceof EspalierError)) console.error(error);
    tell({ kind: "failed", during, error: error.name, message: error.message });
  });
}

/** The engine, made when there is none. */
async function alive(): Promise<Engine> {
  if (engine) return engine;
  const made = await createEngine();
  engine = made;
  const { name, kind, faster } = made.info;
  tell({ kind: "adapter", adapter: { name, kind, faster } });
  made.device.lost.then(lose);
  return made;
}

/** The GPU is gone, and all tensors with it: takes it again and opens the model again. */
function lose(): void {
  engine = undefined;
  pipeline = undefined;
  running?.abort("the GPU was lost");
  const again = ++losses < LOSSES;
  tell({ kind: "lost", again });
  if (!again) return;
  inTurn("start", async () => {
    await alive();
    if (source !== undefined) await open(source);
    tell({ kind: "recovered" });
  });
}

async function wordTable(): Promise<Uint8Array> {
  const answer = await fetch("model/text/words.bin");
  if (!answer.ok)
    throw new EspalierError(
      `text: no word vectors: model/text/words.bin answered ${answer.status}; serve it beside the page.`,
    );
  return new Uint8Array(await answer.arrayBuffer());
}

/** Opens a model; the one before stays until this one is whole. */
async function open(from: string | File): Promise<void> {
  const on = await alive();
  const name = typeof from === "string" ? decodeURIComponent(from.split("/").at(-1)!) : from.name;
  tell({ kind: "opening", name, share: 0 });
  const loaded = await openModel(on, from, {
    onProgress: (done, total) => tell({ kind: "opening", name, share: done / total }),
  });
  try {
    const { model, codec, objective, dispose } = loaded;
    if (!codec || !objective)
      throw new EspalierError(
        `model file: ${name} holds no ${codec ? "objective" : "codec"}; a model that "espalier train" wrote has both.`,
      );
    const text = await encoderOf(loaded, wordTable);
    const next = { model, codec, objective, text, dispose };
    const [, , frames, height, width] = videoShape(next, { prompts: [""] });
    const parameters = model.namedParameters().reduce((sum, [, p]) => sum + p.size, 0);
    const captions = await knownCaptions(text);
    pipeline?.dispose();
    pipeline = next;
    source = from;
    const samplers = samplersOf(objective);
    tell({ kind: "opened", model: { name, parameters, frames, height, width, samplers, captions } });
  } catch (error) {
    loaded.dispose();
    throw error;
  }
}

async function knownCaptions(text: TextEncoder): Promise<string[]> {
  // Together they fail when one has no known word at all, so each is tried alone.
  const known = CAPTIONS.map(async (caption) => (await text.encode([caption])).unknown.length === 0);
  const settled = await Promise.allSettled(known);
  return CAPTIONS.filter((_, i) => settled[i].status === "fulfilled" && settled[i].value);
}

/** Tells what a prompt means to the model. Needs no GPU, so it does not wait for one. */
async function read(prompt: string): Promise<void> {
  if (!pipeline) return;
  try {
    const { warnings } = await pipeline.text.encode([prompt]);
    tell({ kind: "read", prompt, warnings });
  } catch (error) {
    tell({ kind: "read", prompt, warnings: [], refusal: (error as Error).message });
  }
}

async function sample(run: number, { prompt, ...rest }: Wish, signal: AbortSignal): Promise<void> {
  await alive();
  if (!pipeline) throw new EspalierError("sample: no model is open; open one first.");
  const request = { prompts: [prompt], ...rest };
  const shape = videoShape(pipeline, request);
  for await (const { step, steps, video } of sampleClips(pipeline, request, signal)) {
    const film = filmOf(await video(), shape);
    tell({ kind: "step", run, step, steps, film }, [film.pixels.buffer]);
  }
  losses = 0;
  tell({ kind: "done", run });
}

port.onmessage = ({ data }) => {
  if (data.kind === "read") return void read(data.prompt);
  running?.abort("cancelled");
  running = undefined;
  if (data.kind === "start") inTurn("start", async () => void (await alive()));
  if (data.kind === "open") inTurn("open", () => open(data.from));
  if (data.kind === "sample") {
    const { run, wish } = data;
    running = new AbortController();
    const { signal } = running;
    inTurn("sample", () => sample(run, wish, signal));
  }
};
