import source from "../../shaders/conv_lanes.wgsl";
import { kernel } from "../kernel.js";
import { sizeOf } from "../shape.js";
import { strided, type Tensor } from "../tensor.js";
import { LANES } from "./gemm.js";

/** A convolution without padding over three spatial axes. */
export interface Window {
  size: readonly number[];
  taps: readonly number[];
  stride: readonly number[];
  out: readonly number[];
}

/** Outputs that a workgroup owns; it owns 4 positions for each lane. */
const ROWS = 16;

/**
 * Records y = Σ weight · x + bias for dense x [items, channels, ...size], weight [outputs, channels, ...taps] and
 * y [items, outputs, ...out], without a matrix of columns. For adapters with subgroups of `LANES` lanes.
 */
export function launchDirect(y: Tensor, x: Tensor, weight: Tensor, bias: Tensor | undefined, window: Window): void {
  const { engine } = y;
  const [items, outputs] = y.shape;
  const positions = sizeOf(window.out);
  const across = Math.ceil(positions / (4 * LANES));
  const tiles = across * Math.ceil(outputs / ROWS);
  const four = (list: readonly number[]) => [...list, 0];
  const params = {
    outputs,
    positions,
    depth: x.shape[1] * sizeOf(window.taps),
    tiles,
    across,
    first: 0,
    offset: x.offset,
    item: x.shape[1] * sizeOf(window.size),
    has_bias: bias ? 1 : 0,
    size: four(window.size),
    taps: four(window.taps),
    stride: four(window.stride),
    out: four(window.out),
  };
  const k = kernel("conv_lanes", source, "lanes", { T: y.dtype, LANES, ROWS });
  const most = engine.limits.maxComputeWorkgroupsPerDimension;
  const wide = Math.min(tiles, most);
  for (let first = 0; first < items; first += most)
    engine.launch(k, { x: strided(x), w: weight, bias: bias ?? strided(x), y }, { ...params, first }, [
      wide,
      Math.ceil(tiles / wide),
      Math.min(most, items - first),
    ]);
}
