import { EspalierError, nearest } from "../engine/index.js";

/** Each command loads its own code, so that `--help` answers at once. */
const commands: Record<string, { summary: string; load: () => Promise<{ run(args: string[]): Promise<number> }> }> = {
  start: {
    summary: "the demonstration: train a small model on the embedded clips, sample it, judge it, write a report",
    load: () => import("./commands/start.js"),
  },
  train: {
    summary: "train a model on composed clips, a folder or a CSV of videos",
    load: () => import("./commands/train.js"),
  },
  grow: {
    summary: "add blocks or a language branch to a trained model without changing its outputs",
    load: () => import("./commands/grow.js"),
  },
  sample: { summary: "sample clips of a checkpoint from prompts", load: () => import("./commands/sample.js") },
  encode: {
    summary: "encode captions and clips once, into a cache that training reads",
    load: () => import("./commands/encode.js"),
  },
  inspect: {
    summary: "what a safetensors file holds: tensors, metadata, growth, gates, adapters",
    load: () => import("./commands/inspect.js"),
  },
  tune: {
    summary: "time kernels' variants on this adapter and keep the fastest",
    load: () => import("./commands/tune.js"),
  },
  doctor: {
    summary: "which adapters are here, what they can do, and what to install for more",
    load: () => import("./commands/doctor.js"),
  },
};

function usage(): string {
  const rows = Object.entries(commands).map(([name, c]) => `  ${name.padEnd(8)} ${c.summary}`);
  return `espalier: train and sample video diffusion transformers on WebGPU\n\nUsage: espalier COMMAND [options]   (espalier COMMAND --help for its options)\n\n${rows.join("\n")}`;
}

async function main(args: string[]): Promise<number> {
  const [name, ...rest] = args;
  if (name === undefined || name === "--help" || name === "-h" || name === "help") {
    console.log(usage());
    return name === undefined ? 2 : 0;
  }
  const command = Object.hasOwn(commands, name) ? commands[name] : undefined;
  if (!command) {
    const guess = nearest(name, Object.keys(commands));
    console.error(
      `espalier: unknown command "${name}"${guess ? `; did you mean "${guess}"?` : ""} (${Object.keys(commands).join(", ")})`,
    );
    return 2;
  }
  return (await command.load()).run(rest);
}

// Errors that we throw on purpose speak for themselves; anything else is a fault of ours and shows where.
main(process.argv.slice(2)).then(
  (code) => {
    process.exitCode = code;
    // A GPU that was lost or a pipe that stays open must not keep a finished command alive.
    setTimeout(() => process.exit(code), 2000).unref();
  },
  (error: unknown) => {
    console.error(error instanceof EspalierError ? `\n${error.message}` : error);
    process.exit(1);
  },
);
