import type { SamplerName } from "../../model/pipeline.js";
import type { Ask, Deed, Film, ModelNote, Tell } from "./messages.js";
import { Player } from "./player.js";

const at = <T extends HTMLElement>(id: string) => document.getElementById(id) as T;
const [form, prompt, notes] = [at<HTMLFormElement>("form"), at<HTMLTextAreaElement>("prompt"), at("notes")];
const [guidance, steps, seed] = ["guidance", "steps", "seed"].map((id) => at<HTMLInputElement>(id));
const [sampler, file, slider] = [
  at<HTMLSelectElement>("sampler"),
  at<HTMLInputElement>("file"),
  at<HTMLInputElement>("step"),
];
const [sampleButton, cancelButton, playButton] = ["sample", "cancel", "play"].map((id) => at<HTMLButtonElement>(id));
const [canvas, progress] = [at<HTMLCanvasElement>("clip"), at<HTMLProgressElement>("progress")];
const player = new Player(canvas, at<HTMLCanvasElement>("strip"), at("mark"));

/** Bytes of films that are kept to look back at; the oldest go first. */
const KEPT = 256 << 20;
/** Milliseconds that typing must pause before a prompt is read. */
const PAUSE = 250;

/** A request for a clip, and what has come of it. */
interface Run {
  id: number;
  prompt: string;
  steps: number;
  began: number;
  /** When the first step came: those after it take a like time, it has to compile shaders too. */
  first?: number;
  films: Map<number, Film>;
}

let worker = hire();
let model: ModelNote | undefined;
/** What was opened last, or is to be opened again when that failed. */
let wanted: string | File | undefined;
let opening = false;
let run: Run | undefined;
/** The run whose clip is on the screen goes on. */
let sampling = false;
let runs = 0;

const ask = (message: Ask) => worker.postMessage(message);

function hire(): Worker {
  const hired = new Worker(new URL("worker.js", import.meta.url), { type: "module" });
  hired.onmessage = ({ data }: MessageEvent<Tell>) => take(data);
  hired.onerror = (event) => {
    event.preventDefault();
    hired.terminate();
    worker = hire();
    model = undefined;
    fail("start", "Error", event.message || "The page's worker could not be loaded; reload the page.");
    refresh();
  };
  return hired;
}

const say = (text: string) => {
  at("said").textContent = text;
};

/** Brings buttons and bars in line with what is going on. */
function refresh(): void {
  sampleButton.disabled = !model || opening || sampling;
  cancelButton.disabled = !sampling;
  sampler.disabled = !model;
  if (!sampling && !opening) at("left").textContent = "";
}

const seconds = (ms: number) => {
  const s = ms / 1000;
  if (s < 10) return `${s.toFixed(1)} s`;
  return s < 60 ? `${Math.round(s)} s` : `${Math.floor(s / 60)} min ${Math.round(s % 60)} s`;
};

function take(tell: Tell): void {
  if (tell.kind === "adapter") {
    const { name, kind, faster } = tell.adapter;
    const note =
      kind === "software" ? `: a software adapter, which computes on the CPU and is slow. Faster: ${faster}.` : ".";
    at("adapter").textContent = `GPU: ${name}${note}`;
    if (!opening && !model) say("Open a model to begin");
  } else if (tell.kind === "opening") {
    say(`Opening ${tell.name}`);
    progress.value = tell.share;
    at("left").textContent = `${Math.round(100 * tell.share)} %`;
  } else if (tell.kind === "opened") {
    opening = false;
    progress.value = 0;
    introduce(tell.model);
    say("Ready");
  } else if (tell.kind === "read") {
    if (tell.prompt === prompt.value) annotate(tell.warnings, tell.refusal);
  } else if (tell.kind === "step") {
    if (sampling && tell.run === run?.id) advance(run, tell.step, tell.film);
  } else if (tell.kind === "done") {
    if (sampling && tell.run === run?.id) {
      sampling = false;
      say(`Done in ${seconds(performance.now() - run.began)}`);
    }
  } else if (tell.kind === "lost") {
    [sampling, opening] = [false, tell.again];
    model = undefined;
    const next = tell.again
      ? "It is being taken again, and the model with it."
      : "It was lost too often to try on: close other programs that use it, then try again.";
    show("The GPU was lost", next, !tell.again);
    say("The GPU was lost");
  } else if (tell.kind === "recovered") {
    opening = false;
    show("The GPU was lost", "It is back, and the model too: sample again.", false);
    say("Ready again");
  } else fail(tell.during, tell.error, tell.message);
  refresh();
}

function fail(during: Deed, error: string, message: string): void {
  opening = false;
  progress.value = 0;
  if (during === "sample") sampling = false;
  // That the GPU was lost has been told already, when the model is gone too.
  if (error === "DeviceLostError" && !model) return;
  if (during === "sample" && message.startsWith("prompt")) {
    annotate([], message);
    say("The prompt cannot be used");
    prompt.focus();
    return;
  }
  if (error === "NoAdapterError") show("No GPU for this page", message, true);
  else if (during === "open") show("That model could not be opened", message, false);
  else show(during === "sample" ? "Sampling stopped" : "The page could not start", message, during === "start");
  say(model ? "Ready" : "No model is open");
}

function show(title: string, text: string, again: boolean): void {
  at("fault-title").textContent = title;
  at("fault-text").textContent = text;
  at("again").hidden = !again;
  at("fault").hidden = false;
}

function open(from: string | File): void {
  at("fault").hidden = true;
  [wanted, opening, sampling] = [from, true, false];
  ask({ kind: "open", from });
  refresh();
}

function introduce(note: ModelNote): void {
  const { name, parameters, frames, height, width, samplers, captions } = note;
  const chosen = sampler.value as SamplerName;
  model = note;
  at("model").textContent = name;
  at("about").textContent =
    `${parameters.toLocaleString("en")} parameters, clips of ${frames} frames, ${width} × ${height}`;
  sampler.replaceChildren(...samplers.map((value) => new Option(value)));
  if (samplers.includes(chosen)) sampler.value = chosen;
  const chips = captions.map((caption) => {
    const chip = document.createElement("button");
    chip.type = "button";
    chip.textContent = caption;
    chip.onclick = () => {
      prompt.value = caption;
      ask({ kind: "read", prompt: caption });
    };
    return chip;
  });
  at("captions").replaceChildren(...chips);
  if (prompt.value === "") prompt.value = captions[0] ?? "";
  if (prompt.value !== "") ask({ kind: "read", prompt: prompt.value });
}

/** Shows what a prompt means to the model. */
function annotate(warnings: string[], refusal?: string): void {
  const lines = (refusal === undefined ? warnings : [refusal]).map((text) => {
    const line = document.createElement("li");
    const plain = text.replace(/^prompt(?: \d+)?: /, "");
    line.textContent = `${plain[0].toUpperCase()}${plain.slice(1)}`;
    line.className = refusal === undefined ? "warning" : "refusal";
    return line;
  });
  notes.replaceChildren(...lines);
  prompt.setAttribute("aria-invalid", String(refusal !== undefined));
}

function sample(): void {
  if (sampleButton.disabled) return;
  at("fault").hidden = true;
  run = { id: ++runs, prompt: prompt.value, steps: steps.valueAsNumber, began: performance.now(), films: new Map() };
  sampling = true;
  progress.value = 0;
  say("Sampling");
  at("left").textContent = "";
  ask({ kind: "read", prompt: run.prompt });
  ask({
    kind: "sample",
    run: run.id,
    wish: {
      prompt: run.prompt,
      guidance: guidance.valueAsNumber,
      steps: run.steps,
      seed: seed.valueAsNumber,
      sampler: sampler.value as SamplerName,
    },
  });
  refresh();
}

function cancel(): void {
  if (!sampling || !run) return;
  ask({ kind: "cancel" });
  sampling = false;
  say(`Cancelled after step ${latest(run)} of ${run.steps}`);
  refresh();
}

const [first, latest] = [(of: Run) => Math.min(...of.films.keys()), (of: Run) => Math.max(0, ...of.films.keys())];

function advance(of: Run, step: number, film: Film): void {
  const now = performance.now();
  // A person who looks back at an earlier step stays there.
  const follows = of.films.size === 0 || slider.valueAsNumber === latest(of);
  of.films.set(step, film);
  while (of.films.size > 1 && of.films.size * film.pixels.length > KEPT) of.films.delete(first(of));
  of.first ??= now;
  const each = (now - of.first) / Math.max(1, step - 1);
  progress.value = step / of.steps;
  if (step > 1 && step < of.steps) at("left").textContent = `${seconds(each * (of.steps - step))} left`;
  slider.max = String(of.steps);
  if (follows) slider.valueAsNumber = step;
  slider.disabled = playButton.disabled = false;
  look();
}

/** Puts the step that the slider names on the screen; one that is not there yet, or no more, gives way to the nearest. */
function look(): void {
  if (!run || run.films.size === 0) return;
  const step = Math.min(Math.max(slider.valueAsNumber, first(run)), latest(run));
  slider.valueAsNumber = step;
  player.show(run.films.get(step)!);
  at("blank").hidden = true;
  at("place").textContent = `${step} of ${run.steps}`;
  canvas.dataset.step = String(step);
  canvas.setAttribute("aria-label", `${run.prompt}, as believed after step ${step} of ${run.steps}`);
}

function play(on: boolean): void {
  player.playing = on;
  playButton.textContent = on ? "Pause" : "Play";
}

form.onsubmit = (event) => {
  event.preventDefault();
  sample();
};
prompt.onkeydown = (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  form.requestSubmit();
};
let pause: number | undefined;
prompt.oninput = () => {
  clearTimeout(pause);
  pause = window.setTimeout(() => ask({ kind: "read", prompt: prompt.value }), PAUSE);
};
document.onkeydown = (event) => {
  if (event.key === "Escape") cancel();
};
guidance.oninput = () => {
  at("weight").textContent = guidance.valueAsNumber.toFixed(1);
};
slider.oninput = look;
cancelButton.onclick = cancel;
playButton.onclick = () => play(!player.playing);
at("shuffle").onclick = () => {
  seed.valueAsNumber = crypto.getRandomValues(new Uint32Array(1))[0];
};
at("dismiss").onclick = () => {
  at("fault").hidden = true;
};
at("again").onclick = () => {
  at("fault").hidden = true;
  say("Starting…");
  if (wanted === undefined) ask({ kind: "start" });
  else open(wanted);
};
file.onchange = () => {
  const [picked] = file.files!;
  if (picked) open(picked);
  // The same file, mended, may be picked again.
  file.value = "";
};
document.ondragover = (event) => {
  if (!event.dataTransfer?.types.includes("Files")) return;
  event.preventDefault();
  document.body.classList.add("over");
};
document.ondragleave = (event) => {
  if (event.relatedTarget === null) document.body.classList.remove("over");
};
document.ondrop = (event) => {
  document.body.classList.remove("over");
  const [dropped] = event.dataTransfer?.files ?? [];
  if (!dropped) return;
  event.preventDefault();
  open(dropped);
};

play(!matchMedia("(prefers-reduced-motion: reduce)").matches);
guidance.dispatchEvent(new Event("input"));
const { path } = (await (await fetch("checkpoint.json")).json()) as { path: string | null };
if (path !== null) open(path);
else ask({ kind: "start" });
refresh();
