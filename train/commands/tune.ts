import { clearTuning, createEngine, keepTuning, tune, tuneReport } from "../../engine/index.js";
import { parseArguments } from "../arguments.js";
import { adapterLine } from "./adapter.js";

const usage = `Usage: espalier tune [--adapter NAME] [--only WORD] [--rounds N]
       espalier tune --clear [--adapter NAME]

Times the variants of kernels that have some (matrix products, quantised layers) on this adapter, for typical shapes, and
keeps the fastest: training and sampling take them from then on. Nothing else should run meanwhile. Without it a table by
the adapter's class decides, so this is never needed. Numbers do not change beyond rounding.

  --adapter NAME  hardware, lavapipe, swiftshader, or part of a GPU's name
  --only WORD     only shape classes that hold this word; what is kept of others stays
  --rounds N      rounds in which variants take turns [5]
  --clear         forgets what was kept for the adapter

ESPALIER_TUNING=off leaves what was kept unused.`;

export async function run(args: string[]): Promise<number> {
  const { values, help } = parseArguments("tune", args, {
    adapter: "text",
    only: "text",
    rounds: "whole",
    clear: "switch",
  });
  if (help) {
    console.log(usage);
    return 0;
  }
  const engine = await createEngine({ adapter: values.adapter as string | undefined });
  try {
    console.log(adapterLine(engine));
    if (values.clear) {
      const place = await clearTuning(engine.info);
      console.log(place === undefined ? "nothing was kept for this adapter" : `forgotten: ${place}`);
      return 0;
    }
    const began = performance.now();
    const line = (text: string) => process.stderr.isTTY && process.stderr.write(`\r\x1b[2K${text}`);
    const results = await tune(engine, {
      only: values.only as string | undefined,
      ...(values.rounds !== undefined && { rounds: values.rounds as number }),
      progress: (done, all, shown) => line(`${done + 1} of ${all}: ${shown}`),
    });
    line("");
    console.log(tuneReport(results));
    const changed = results.filter((r) => r.way !== r.usual).length;
    console.log(
      `${results.length} shape classes in ${((performance.now() - began) / 1000).toFixed(1)} s; ${changed} take another variant than the usual one. gain: over the second best; the usual one stays unless another is 3% faster, in four of five rounds`,
    );
    const place = await keepTuning(engine.info, engine.tuning);
    console.log(place === undefined ? "nothing can be kept here: the cache cannot be written" : `kept in ${place}`);
    return place === undefined ? 1 : 0;
  } finally {
    engine.destroy();
  }
}
