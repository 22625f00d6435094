import { outChannels, type STDiTConfig } from "./config.js";

/**
 * Floating-point operations of one forward pass over one clip, 2 for each multiply-add: linears and attention products,
 * no elementwise work. A training step costs three times that for each clip.
 * @param latent frames, rows and columns of the latent
 * @param captionLength L
 */
export function forwardFlops(c: STDiTConfig, latent: readonly [number, number, number], captionLength: number): number {
  const C = c.hidden;
  const [pt, ph, pw] = c.patch;
  const [T, S] = [latent[0] / pt, (latent[1] / ph) * (latent[2] / pw)];
  const N = T * S;
  const L = captionLength;
  const values = pt * ph * pw;
  const linear = (rows: number, inputs: number, outputs: number) => 2 * rows * inputs * outputs;
  const attention = (rows: number, keys: number) => 2 * 2 * rows * keys * C;
  const block =
    2 * (linear(N, C, 3 * C) + linear(N, C, C)) +
    attention(N, S) +
    attention(N, T) +
    linear(N, C, C) +
    linear(L, C, 2 * C) +
    linear(N, C, C) +
    attention(N, L) +
    2 * linear(N, C, c.mlpRatio * C);
  const rest =
    linear(N, c.inChannels * values, C) +
    linear(1, 256, C) +
    linear(1, C, C) +
    linear(1, C, 6 * C) +
    linear(L, c.captionChannels, C) +
    linear(L, C, C) +
    linear(N, C, values * outChannels(c));
  return c.depth * block + rest;
}
