import { ConfigError } from "../../engine/errors.js";
import { parseArguments } from "../arguments.js";
import { PRESETS } from "../presets.js";

const usage = `Usage: espalier start [options]      (npm start -- [options])

The demonstration. A trained base model ships with Espalier: it knows 24 things on plain backgrounds. It is opened, grown,
and given a language branch, none of which changes what it does; then it goes on with 6 new things on two-coloured
backgrounds, is asked for combinations that it never saw, and its clips are judged. Writes report.html.
Interrupted, it goes on where it was when started again.

  --minutes X      time to take, sampling included [5; 4 with --from-scratch]
  --blocks N       new blocks, by insertion [0: the language branch alone]
  --steps N        training steps instead of those that fit the time
  --batch-size N   clips of a training step [16, or the preset's]
  --clips N        clips to sample and judge [48; 24 with --compare]; without --from-scratch and --compare, losses are
                   measured on twice as many
  --sample-steps N steps of the sampler for each clip [16]
  --out FOLDER     [runs/start, and runs/start-2 … once that is finished]
  --seed N         [42]
  --adapter NAME   hardware, lavapipe, swiftshader, or part of a GPU's name

  --from-scratch   train a small model from nothing instead, on what the adapter's speed allows
  --preset NAME    ${PRESETS.map((p) => p.name).join(", ")}; default: the largest that fits the time (--from-scratch)

  --compare        go on from the base in seven ways instead: vanilla, LoRA, insert, prefix, suffix, new blocks only,
                   language branch; at equal samples and at equal compute (an hour on two cores)`;

export async function run(args: string[]): Promise<number> {
  const { values, words, help } = parseArguments("start", args, {
    minutes: "number",
    blocks: "whole",
    preset: "text",
    steps: "whole",
    "batch-size": "whole",
    clips: "whole",
    "sample-steps": "whole",
    out: "text",
    seed: "whole",
    adapter: "text",
    "from-scratch": "switch",
    compare: "switch",
  });
  if (help) {
    console.log(usage);
    return 0;
  }
  if (words.length) throw new ConfigError(`start: takes no arguments beside options: got ${words.join(" ")}`);
  const given = values as { minutes?: number; blocks?: number; steps?: number; clips?: number; seed?: number } & {
    out?: string;
    adapter?: string;
    preset?: string;
    "batch-size"?: number;
    "sample-steps"?: number;
    "from-scratch"?: boolean;
    compare?: boolean;
  };
  const { minutes = given["from-scratch"] ? 4 : 5, seed = 42, steps, clips, out, adapter } = given;
  const { "batch-size": batchSize, "sample-steps": sampleSteps } = given;
  for (const [name, count] of Object.entries({ steps, clips, "batch-size": batchSize, "sample-steps": sampleSteps }))
    if (count === 0) throw new ConfigError(`start: --${name} must be 1 or more: got 0`);
  if (sampleSteps !== undefined && sampleSteps > 1000)
    throw new ConfigError(`start: --sample-steps must be at most 1000: got ${sampleSteps}`);
  if (!(minutes > 0)) throw new ConfigError(`start: --minutes must be above 0: got ${minutes}`);
  const preset = given.preset === undefined ? undefined : PRESETS.find((p) => p.name === given.preset);
  if (given.preset !== undefined && !preset)
    throw new ConfigError(`start: unknown preset "${given.preset}" (${PRESETS.map((p) => p.name).join(", ")})`);
  if (given["from-scratch"] && given.compare)
    throw new ConfigError("start: --from-scratch and --compare are two demonstrations; take one");
  if (preset && !given["from-scratch"])
    throw new ConfigError(`start: --preset ${preset.name} has no use without --from-scratch`);
  if (given.blocks !== undefined && (given["from-scratch"] || given.compare))
    throw new ConfigError("start: --blocks has no use with --from-scratch or --compare");
  if (given.minutes !== undefined && given.compare)
    throw new ConfigError("start: --minutes has no use with --compare; give --steps");
  const options = { minutes, seed, steps, clips, batchSize, sampleSteps, out, adapter };
  if (given["from-scratch"]) return (await import("../demo/scratch.js")).scratch({ ...options, preset });
  if (given.compare) return (await import("../demo/compare.js")).compareMethods(options);
  return (await import("../demo/continual.js")).continual({ ...options, blocks: given.blocks ?? 0 });
}
