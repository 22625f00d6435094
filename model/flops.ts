import { outChannels, type STDiTConfig } from "./config.js";

/**
 * Floating-point operations of one forward pass over one clip, 2 for each multiply-add: linears and attention products,
 * no elementwise work. A training step costs three times that for each clip.
 * @param latent frames, rows and columns of the latent
 * @param captionLength L
 * @param languageLength L of the second caption, for models that read one
 */
export function forwardFlops(
  c: STDiTConfig,
  latent: readonly [number, number, number],
  captionLength: number,
  languageLength = c.languageLength,
): number {
  const C = c.hidden;
  const [pt, ph, pw] = c.patch;
  const [T, S] = [latent[0] / pt, (latent[1] / ph) * (latent[2] / pw)];
  const N = T * S;
  const L = captionLength;
  const values = pt * ph * pw;
  const linear = (rows: number, inputs: number, outputs: number) => 2 * rows * inputs * outputs;
  const attention = (rows: number, keys: number) => 2 * 2 * rows * keys * C;
  const cross = (keys: number) => 2 * linear(N, C, C) + linear(keys, C, 2 * C) + attention(N, keys);
  const embed = (keys: number, channels: number) => linear(keys, channels, C) + linear(keys, C, C);
  const second = c.languageChannels > 0;
  const block =
    2 * (linear(N, C, 3 * C) + linear(N, C, C)) +
    attention(N, S) +
    attention(N, T) +
    cross(L) +
    (second ? cross(languageLength) : 0) +
    2 * linear(N, C, c.mlpRatio * C);
  const rest =
    linear(N, c.inChannels * values, C) +
    linear(1, 256, C) +
    linear(1, C, C) +
    linear(1, C, 6 * C) +
    embed(L, c.captionChannels) +
    (second ? embed(languageLength, c.languageChannels) : 0) +
    linear(N, C, values * outChannels(c));
  return c.depth * block + rest;
}
