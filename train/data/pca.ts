import { ConfigError, DataError } from "../../engine/errors.js";
import { symmetricEigen } from "./eigen.js";

/** A linear codec of square RGB patches: z_j = basis_j . (patch - mean) / scale_j. */
export interface PatchBasis {
  /** Side of a patch in pixels; a patch is a vector in the order row, column, channel. */
  patch: number;
  channels: number;
  /** [patch * patch * 3] */
  mean: Float32Array;
  /** [patch * patch * 3, channels] row-major; columns are orthonormal. */
  basis: Float32Array;
  /** [channels] */
  scale: Float32Array;
}

/** A fitted basis and how well it keeps the clips that it was fitted to. */
export interface PatchFit extends PatchBasis {
  /** Part of the variance that the channels hold, 0..1. */
  explained: number;
  /** Peak signal to noise ratio of clamped reconstructions in dB, peak 2 (values in [-1, 1]). */
  psnr: number;
}

/** Size of a [3, T, H, W] clip. */
export interface ClipShape {
  frames: number;
  height: number;
  width: number;
}

function checkPatch(patch: number, { height, width }: ClipShape): void {
  if (height % patch !== 0 || width % patch !== 0)
    throw new ConfigError(
      `pca: height and width must divide by the patch: ${height} x ${width} by ${patch}; take a size that does`,
    );
}

/** Calls `each` with every patch of a clip (one reused vector, in the order row, column, channel) and its place. */
function forPatches(
  video: Float32Array,
  { frames, height, width }: ClipShape,
  patch: number,
  each: (vector: Float64Array, t: number, row: number, column: number) => void,
): void {
  const vector = new Float64Array(patch * patch * 3);
  for (let t = 0; t < frames; t++)
    for (let row = 0; row < height / patch; row++)
      for (let column = 0; column < width / patch; column++) {
        let k = 0;
        for (let y = row * patch; y < (row + 1) * patch; y++)
          for (let x = column * patch; x < (column + 1) * patch; x++)
            for (let c = 0; c < 3; c++) vector[k++] = video[((c * frames + t) * height + y) * width + x];
        each(vector, t, row, column);
      }
}

/**
 * Fits a patch basis by principal components, half-whitened: scale_j = sqrt(sd_j * mean(sd)), so that the
 * channels' variances average 1 but keep the square root of their natural ratio (strong channels stay strong).
 * @param videos [3, T, H, W] each, values in [-1, 1]
 * @throws DataError without clips, ConfigError for a patch or a number of channels that does not fit
 */
export function fitPatches(videos: readonly Float32Array[], shape: ClipShape, patch = 4, channels = 8): PatchFit {
  const n = patch * patch * 3;
  checkPatch(patch, shape);
  if (!Number.isInteger(channels) || channels < 1 || channels > n)
    throw new ConfigError(`pca: channels must be 1..${n} for patches of ${patch} x ${patch}: ${channels}; 8 is usual`);
  if (videos.length === 0)
    throw new DataError("pca: clips are needed to fit the codec: none was given; give some hundred");
  const mean = new Float64Array(n);
  const moments = new Float64Array(n * n);
  let count = 0;
  for (const video of videos)
    forPatches(video, shape, patch, (vector) => {
      count++;
      for (let i = 0; i < n; i++) {
        const x = vector[i];
        mean[i] += x;
        for (let j = 0; j <= i; j++) moments[i * n + j] += x * vector[j];
      }
    });
  for (let i = 0; i < n; i++) mean[i] /= count;
  const covariance = new Float64Array(n * n);
  let total = 0;
  for (let i = 0; i < n; i++) {
    for (let j = 0; j <= i; j++) {
      const value = moments[i * n + j] / count - mean[i] * mean[j];
      covariance[i * n + j] = value;
      covariance[j * n + i] = value;
    }
    total += covariance[i * n + i];
  }
  const { values, vectors } = symmetricEigen(covariance, n);
  const sd = Array.from(values.subarray(0, channels), (v) => Math.sqrt(Math.max(v, 0)));
  const meanSd = sd.reduce((a, b) => a + b, 0) / channels;
  if (!(sd[channels - 1] > 0))
    throw new DataError(
      `pca: the clips vary too little for ${channels} channels: channel ${sd.findIndex((s) => !(s > 0))} is constant; give more varied clips or fewer channels`,
    );
  const fit: PatchFit = {
    patch,
    channels,
    mean: Float32Array.from(mean),
    basis: new Float32Array(n * channels),
    scale: Float32Array.from(sd, (s) => Math.sqrt(s * meanSd)),
    explained: 0,
    psnr: 0,
  };
  for (let j = 0; j < channels; j++) for (let i = 0; i < n; i++) fit.basis[i * channels + j] = vectors[j * n + i];
  fit.explained = values.subarray(0, channels).reduce((a, b) => a + b, 0) / total;
  let error = 0;
  for (const video of videos) {
    const again = reconstruct(video, shape, fit);
    for (let i = 0; i < video.length; i++) error += (video[i] - again[i]) ** 2;
  }
  fit.psnr = 10 * Math.log10((4 * videos.length * videos[0].length) / error);
  return fit;
}

/** What is left of a clip after encoding and decoding, clamped to [-1, 1]: [3, T, H, W]. Whitening cancels out. */
export function reconstruct(
  video: Float32Array,
  shape: ClipShape,
  { patch, channels, mean, basis }: PatchBasis,
): Float32Array {
  checkPatch(patch, shape);
  const { frames, height, width } = shape;
  const n = patch * patch * 3;
  const out = new Float32Array(video.length);
  const z = new Float64Array(channels);
  forPatches(video, shape, patch, (vector, t, row, column) => {
    z.fill(0);
    for (let i = 0; i < n; i++) {
      const x = vector[i] - mean[i];
      for (let j = 0; j < channels; j++) z[j] += x * basis[i * channels + j];
    }
    for (let i = 0; i < n; i++) {
      let value = mean[i];
      for (let j = 0; j < channels; j++) value += z[j] * basis[i * channels + j];
      const c = i % 3;
      const x = column * patch + (Math.floor(i / 3) % patch);
      const y = row * patch + Math.floor(i / 3 / patch);
      out[((c * frames + t) * height + y) * width + x] = Math.max(-1, Math.min(1, value));
    }
  });
  return out;
}
