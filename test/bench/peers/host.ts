import type { HostTensor } from "./protocol.js";

let state = 1;
/** mulberry32: the same numbers in every run. */
function next(): number {
  state = (state + 0x6d2b79f5) | 0;
  let t = Math.imul(state ^ (state >>> 15), 1 | state);
  t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
  return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
}

/** Normal numbers times `scale`, the next ones of a fixed sequence. */
export function draw(shape: readonly number[], scale = 1): HostTensor {
  const data = new Float32Array(shape.reduce((a, b) => a * b, 1));
  for (let i = 0; i < data.length; i++)
    data[i] = scale * Math.sqrt(-2 * Math.log(1 - next())) * Math.cos(2 * Math.PI * next());
  return { data, shape };
}

/** Starts the sequence anew. */
export function reseed(seed: number): void {
  state = seed;
}

/** A layer's weight [out, in] as [in, out]; anything else as it is. */
export function turned(host: HostTensor): HostTensor {
  if (host.shape.length !== 2) return host;
  const [outputs, inputs] = host.shape;
  const data = Float32Array.from(host.data, (_, i) => host.data[(i % outputs) * inputs + Math.floor(i / outputs)]);
  return { data, shape: [inputs, outputs] };
}
