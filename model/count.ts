import { outChannels, type STDiTConfig } from "./config.js";

/** Parameters of a model of this configuration, buffers not counted, without building it. */
export function parameterCount(c: STDiTConfig): number {
  const C = c.hidden;
  const values = c.patch[0] * c.patch[1] * c.patch[2];
  const linear = (inputs: number, outputs: number) => inputs * outputs + outputs;
  const attention = linear(C, 3 * C) + linear(C, C);
  const cross = linear(C, C) + linear(C, 2 * C) + linear(C, C);
  const caption = (channels: number) => linear(channels, C) + linear(C, C);
  const second = c.languageChannels > 0;
  const gates = { scalar: 1, head: c.heads, channel: C }[c.languageGate];
  const block =
    6 * C +
    2 * attention +
    cross +
    (second ? cross + gates : 0) +
    linear(C, c.mlpRatio * C) +
    linear(c.mlpRatio * C, C);
  const timestep = linear(256, C) + linear(C, C) + linear(C, 6 * C);
  const last = 2 * C + linear(C, values * outChannels(c));
  return (
    linear(c.inChannels * values, C) +
    timestep +
    caption(c.captionChannels) +
    (second ? caption(c.languageChannels) : 0) +
    c.depth * block +
    last
  );
}
