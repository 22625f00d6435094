// Espalier and its peers in turns, on the same adapter, from the same numbers.
import { type Expected, type PeerCase, peerCases } from "./cases.js";
import { Client } from "./client.js";
import { reseed } from "./host.js";
import { installPeers } from "./install.js";
import { type Spec, WAITINGS, type Waiting } from "./protocol.js";
import { Comparison, EAGER, type Entry, OURS, type Row, YARDSTICK } from "./table.js";

/** The WebGPU engines, and the yardstick on the CPU, which is no rival. */
export const PEERS = ["jax-js", "tfjs", "ort webgpu", YARDSTICK] as const;

export interface PeerOptions {
  /** Beside Espalier. Default all. */
  peers?: readonly (typeof PEERS)[number][];
  rounds: number;
  /** What is timed at once takes at least about this long. */
  milliseconds: number;
  /** Cases whose name holds one of these; none: all. */
  words: readonly string[];
  adapter?: string;
  /** Told what is going on; "" when it is over. */
  say(text: string): void;
}

/** Largest |got - expected| over the largest |expected|; infinite for results of another form. */
export function errorOf(got: readonly Float32Array[], expected: readonly Expected[]): number {
  if (got.length !== expected.length) return Number.POSITIVE_INFINITY;
  let worst = 0;
  for (const [i, { at, values }] of expected.entries()) {
    let [off, scale] = [0, 0];
    for (const [k, place] of at.entries()) {
      // Math.max keeps a NaN, and a NaN is within no limit.
      off = Math.max(off, Math.abs(got[i][place] - values[k]));
      scale = Math.max(scale, Math.abs(values[k]));
    }
    worst = Math.max(worst, off / scale);
  }
  return worst;
}

/** How far losses are from those of a reference, in units of how far these fell. */
export function lossesDiffer(got: Float32Array, reference: Float32Array): number {
  const fell = Math.abs(reference[0] - reference[reference.length - 1]);
  return Math.max(...Array.from(reference, (v, i) => Math.abs(got[i] - v))) / fell;
}

/** Most that losses may differ so: gradients or an optimizer that are wrong differ by a tenth or more. */
const FALL = 2e-3;

const isTraining = ({ op }: PeerCase) => op.endsWith("Step");

/**
 * Prepares a case in every engine and compares what they give with what is right. Of training only the first loss is
 * known in float64; those after it are compared with Espalier's own without its compiler.
 */
async function check(of: PeerCase, clients: readonly Client[], say: (text: string) => void): Promise<Entry[]> {
  reseed(1);
  const inputs = of.inputs();
  const expected = of.expected(inputs);
  const entries: Entry[] = [];
  let reference: Float32Array | undefined;
  const add = async (client: Client, engine: string, eager = false) => {
    say(`check ${of.name}: ${engine}`);
    const entry: Entry = {
      engine,
      client,
      key: `${of.name} ${engine}`,
      firstMs: 0,
      runs: 1,
      times: { idle: [], await: [] },
    };
    try {
      const spec: Spec = { op: of.op, inputs, eager };
      const { outputs, firstMs } = await client.prepare(entry.key, spec);
      if (!outputs) return;
      entry.firstMs = firstMs;
      entry.error = errorOf(outputs, expected);
      if (!(entry.error <= (of.limit ?? 2e-5))) entry.wrong = `off by ${entry.error.toExponential(0)}`;
      if (isTraining(of)) {
        reference ??= outputs[0];
        const differ = lossesDiffer(outputs[0], reference);
        if (!(differ <= FALL)) entry.wrong ??= `its losses differ by ${differ.toExponential(0)} of their fall`;
      }
    } catch (error) {
      entry.wrong = `failed: ${(error as Error).message.split("\n")[0]}`;
      entry.failed = true;
    }
    entries.push(entry);
  };
  for (const client of clients) {
    if (client.name === OURS && isTraining(of)) await add(client, EAGER, true);
    await add(client, client.name);
  }
  return entries;
}

/** Milliseconds of one run; undefined, with the entry marked, where it fails. */
async function time(entry: Entry, waiting: Waiting): Promise<number | undefined> {
  if (entry.failed) return undefined;
  try {
    return (await entry.client.time(entry.key, entry.runs, waiting)) / entry.runs;
  } catch (error) {
    entry.failed = true;
    entry.wrong = `failed while it was timed: ${(error as Error).message.split("\n")[0]}`;
    return undefined;
  }
}

/** Chooses how many runs of each engine are timed together. */
async function calibrate({ entries }: Row, milliseconds: number): Promise<void> {
  for (const entry of entries) {
    await time(entry, "idle");
    const ms = await time(entry, "idle");
    if (ms !== undefined) entry.runs = Math.max(1, Math.min(50, Math.ceil(milliseconds / ms)));
  }
}

/**
 * Installs the peers where they are missing, checks what all engines compute, and times them in turns whose order
 * rotates from round to round.
 * @throws Error when no case has such a name, when the peers cannot be installed, or when Espalier does not start
 */
export async function comparePeers(options: PeerOptions): Promise<Comparison> {
  const { peers = PEERS, rounds, milliseconds, words, adapter, say } = options;
  const cases = peerCases.filter(
    ({ name }) => words.length === 0 || words.some((w) => name.toLowerCase().includes(w.toLowerCase())),
  );
  if (cases.length === 0)
    throw new Error(
      `no case is called ${words.join(" or ")}; with --peers there are ${peerCases.map(({ name }) => name).join(" · ")}`,
    );
  if (peers.length) await installPeers(say);
  const clients: Client[] = [];
  const absent: string[] = [];
  try {
    for (const name of [OURS, ...peers]) {
      if (name === "ort webgpu" && (adapter ?? process.env.ESPALIER_ADAPTER)) {
        absent.push(`${name}: it takes an adapter of its own choice, so it is left out where one is asked for`);
        continue;
      }
      say(`starting ${name}`);
      try {
        clients.push(await Client.start(name, adapter));
      } catch (error) {
        if (name === OURS) throw error;
        absent.push((error as Error).message.split("\n")[0]);
      }
    }
    const rows: Row[] = [];
    for (const of of cases) rows.push({ of, entries: await check(of, clients, say) });
    for (const row of rows) {
      say(`calibrate ${row.of.name}`);
      await calibrate(row, milliseconds);
    }
    for (let round = 0; round < rounds; round++)
      for (const { of, entries } of rows)
        for (const waiting of WAITINGS)
          for (let turn = 0; turn < entries.length; turn++) {
            const entry = entries[(turn + round) % entries.length];
            say(`round ${round + 1} of ${rounds}: ${of.name}: ${entry.engine}`);
            const ms = await time(entry, waiting);
            if (ms !== undefined) entry.times[waiting].push(ms);
          }
    const engines = clients.map(({ name, version, adapter }) => ({ name, version, adapter }));
    return new Comparison(rows, engines, absent, rounds);
  } finally {
    say("");
    for (const client of clients) client.stop();
  }
}
