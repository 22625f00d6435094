import { mkdir } from "node:fs/promises";
import { join } from "node:path";
import { ConfigError, createEngine } from "../../engine/index.js";
import { openModel } from "../../model/checkpoint.js";
import { type Pipeline, type SampleRequest, type SamplerName, sample } from "../../model/pipeline.js";
import { encoderOf } from "../../model/text/open.js";
import { parseArguments } from "../arguments.js";
import { wordTable } from "../data/assets.js";
import { clipsOf } from "../evaluate.js";
import { writeAnimatedWebp, writeContactSheet, writeGif, writeMp4 } from "../media.js";
import { Progress } from "../progress.js";
import { adapterLine } from "./adapter.js";

const usage = `Usage: espalier sample MODEL.safetensors "PROMPT" ["PROMPT" …] [options]

Samples one clip a prompt and writes it as animated WebP, GIF and, where ffmpeg is installed, MP4.

  --out FOLDER     where to write [samples]
  --steps N        sampling steps [16]
  --guidance X     weight of the prompt; 1 guides nothing [1.5]
  --sampler NAME   euler or heun for flow models; ddim, dpm-solver++ or ddpm for others
  --cfg-channels N how many latent channels are guided [all]
  --eta X          noise added at each step by ddim, 0 to 1 [0]
  --seed N         decides the noise [0]
  --frames N       frames of the clip [as trained]
  --size N         height and width in pixels [as trained]
  --fps N          frames a second of the files [8]
  --adapter NAME   hardware, lavapipe, swiftshader, or part of a GPU's name`;

/** A file name that says what the clip shows. */
const slug = (prompt: string) =>
  prompt
    .toLowerCase()
    .replace(/[^\p{L}\p{N}]+/gu, "-")
    .replace(/^-|-$/g, "")
    .slice(0, 60) || "clip";

export async function run(args: string[]): Promise<number> {
  const { values, words, help } = parseArguments("sample", args, {
    out: "text",
    steps: "whole",
    guidance: "number",
    sampler: "text",
    "cfg-channels": "whole",
    eta: "number",
    seed: "whole",
    frames: "whole",
    size: "whole",
    fps: "number",
    adapter: "text",
  });
  if (help) {
    console.log(usage);
    return 0;
  }
  const [file, ...prompts] = words;
  if (file === undefined)
    throw new ConfigError(
      'sample: no model given; espalier sample MODEL.safetensors "an ox moving left on a blue background"',
    );
  if (prompts.length === 0)
    throw new ConfigError(`sample: no prompt given; espalier sample ${file} "an ox moving left on a blue background"`);
  const engine = await createEngine({ adapter: values.adapter as string | undefined });
  try {
    console.error(adapterLine(engine));
    const loaded = await openModel(engine, file);
    if (!loaded.codec || !loaded.objective)
      throw new ConfigError(`sample: ${file} holds no codec or objective; a model that espalier train wrote has both`);
    const text = await encoderOf(loaded, wordTable);
    const encoded = await text.encode(prompts);
    for (const warning of encoded.warnings) console.error(`prompt: ${warning}`);
    const pipeline: Pipeline = { model: loaded.model, codec: loaded.codec, objective: loaded.objective, text };
    const request: SampleRequest = {
      prompts,
      steps: values.steps as number | undefined,
      guidance: values.guidance as number | undefined,
      sampler: values.sampler as SamplerName | undefined,
      cfgChannels: values["cfg-channels"] as number | undefined,
      eta: values.eta as number | undefined,
      seed: values.seed as number | undefined,
      frames: values.frames as number | undefined,
      height: values.size as number | undefined,
      width: values.size as number | undefined,
    };
    const out = (values.out as string | undefined) ?? "samples";
    await mkdir(out, { recursive: true });
    const bar = new Progress({ total: request.steps ?? 16, label: "sample" });
    const { video, shape } = await sample(pipeline, request, { onStep: (p) => bar.update(p.step) }).finally(() =>
      bar.stop(),
    );
    const clips = clipsOf(video, shape);
    const fps = values.fps as number | undefined;
    let noMp4: string | undefined;
    for (const [i, clip] of clips.entries()) {
      const base = join(
        out,
        `${slug(prompts[i])}-${request.seed ?? 0}${prompts.indexOf(prompts[i]) === i ? "" : `-${i}`}`,
      );
      await writeAnimatedWebp(`${base}.webp`, clip, { fps });
      await writeGif(`${base}.gif`, clip, { fps });
      const mp4 = await writeMp4(`${base}.mp4`, clip, { fps });
      if (!mp4.written) noMp4 = mp4.reason;
      console.log(`${base}.webp  ${prompts[i]}`);
    }
    if (clips.length > 1) await writeContactSheet(join(out, "sheet.png"), clips);
    if (noMp4) console.error(`no MP4: ${noMp4}`);
    loaded.dispose();
    return 0;
  } finally {
    engine.destroy();
  }
}
