import type { LlamaConfig } from "./config.js";

/**
 * Angle of each pair of columns per position, [headDim / 2], in float64: theta^(-2i / headDim), changed as the scaling
 * says. Sources: https://arxiv.org/abs/2104.09864 (rotary), https://arxiv.org/abs/2306.15595 (linear); dynamic and
 * llama3 as Hugging Face transformers computes them (modeling_rope_utils).
 * @param length tokens of the text: "dynamic" depends on it
 */
export function ropeFrequencies(
  { headDim, theta, ropeScaling: s, maxPositions }: LlamaConfig,
  length: number,
): Float64Array {
  // NTK: a larger base leaves the shortest wave alone and stretches the longest by the wanted ratio.
  const base =
    s.type === "dynamic"
      ? theta *
        ((s.factor * Math.max(length, maxPositions)) / maxPositions - (s.factor - 1)) ** (headDim / (headDim - 2))
      : theta;
  const plain = Float64Array.from({ length: headDim / 2 }, (_, i) => base ** ((-2 * i) / headDim));
  if (s.type === "linear") return plain.map((f) => f / s.factor);
  if (s.type !== "llama3") return plain;
  return plain.map((f) => {
    const turns = (s.originalMaxPositions * f) / (2 * Math.PI); // full turns over the original length
    if (turns > s.highFreqFactor) return f;
    if (turns < s.lowFreqFactor) return f / s.factor;
    const blend = (turns - s.lowFreqFactor) / (s.highFreqFactor - s.lowFreqFactor);
    return ((1 - blend) * f) / s.factor + blend * f;
  });
}

/** Cosines and sines of positions 0 to length - 1, each [length, headDim / 2] row by row. Computed in float64. */
export function ropeTables(config: LlamaConfig, length: number): { cos: Float32Array; sin: Float32Array } {
  const frequencies = ropeFrequencies(config, length);
  const half = frequencies.length;
  const cos = new Float32Array(length * half);
  const sin = new Float32Array(length * half);
  for (let p = 0; p < length; p++)
    for (let i = 0; i < half; i++) {
      cos[p * half + i] = Math.cos(p * frequencies[i]);
      sin[p * half + i] = Math.sin(p * frequencies[i]);
    }
  return { cos, sin };
}
