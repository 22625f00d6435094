// Norms over the last axis for processors that run a subgroup's lanes as one vector instruction: names and formulas are
// those of norm.wgsl.
//
// A workgroup is one subgroup and owns ROWS rows, one after the other: its lanes share a row, and read neighbours. Where a
// lane owns a row instead, every load touches as many places of memory as there are lanes.
// Limits assumed: subgroups of exactly LANES lanes, n divides by 4, 6 buffers.
enable subgroups;

alias T = f32; // param
const CENTER = 1u; // param
// Bit 0: there is a weight; bit 1: there is a bias. x stands in for the binding of a missing one.
const AFFINE = 3u; // param
const LANES = 8u; // param
const ROWS = 8u; // param

struct Params {
  rows: u32,
  n: u32,
  eps: f32,
  // For what a compiled function does to a result before it is stored: places of further tensors, and constants.
  extra: array<vec4<u32>, 4>,
  constants: array<vec4<u32>, 4>,
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x4: array<vec4<T>>;
@group(0) @binding(2) var<storage, read> weight: array<vec4<T>>;
@group(0) @binding(3) var<storage, read> bias: array<vec4<T>>;
@group(0) @binding(3) var<storage, read> dy4: array<vec4<T>>;
@group(0) @binding(4) var<storage, read_write> y4: array<vec4<T>>;
@group(0) @binding(4) var<storage, read_write> dx4: array<vec4<T>>;
// (mean, rstd) of each row.
@group(0) @binding(5) var<storage, read_write> stats: array<vec2<f32>>;
@group(0) @binding(5) var<storage, read> known: array<vec2<f32>>;

// Four neighbours of a result, from column `column` of a row, element `at` of all.
fn keep(v: vec4<f32>, row: u32, column: u32, at: u32) { y4[at / 4u] = vec4<T>(v); } // param
fn keep_dx(v: vec4<f32>, row: u32, column: u32, at: u32) { dx4[at / 4u] = vec4<T>(v); } // param

fn across(v: vec4<f32>) -> f32 { return v.x + v.y + (v.z + v.w); }
fn scaled(v: vec4<f32>, j: u32) -> vec4<f32> {
  if ((AFFINE & 1u) == 0u) { return v; }
  return v * vec4<f32>(weight[j]);
}
fn shifted(v: vec4<f32>, j: u32) -> vec4<f32> {
  if ((AFFINE & 2u) == 0u) { return v; }
  return v + vec4<f32>(bias[j]);
}

@compute @workgroup_size(LANES)
fn rows(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let width = p.n / 4u;
  let start = (wg.y * groups.x + wg.x) * ROWS;
  for (var row = start; row < min(start + ROWS, p.rows); row++) {
    let first = row * width;
    var origin = 0.0;
    if (CENTER == 1u) { origin = across(vec4<f32>(x4[first])) * 0.25; }
    var sum = vec4<f32>();
    var squares = vec4<f32>();
    for (var j = lane; j < width; j += LANES) {
      let d = vec4<f32>(x4[first + j]) - origin;
      sum += d;
      squares += d * d;
    }
    let m = vec2<f32>(subgroupAdd(across(sum)), subgroupAdd(across(squares))) / f32(p.n);
    // A variance that is not a number stays so.
    let variance = select(m.y, m.y - m.x * m.x, CENTER == 1u);
    let mean = select(0.0, origin + m.x, CENTER == 1u);
    let rstd = inverseSqrt(select(variance, 0.0, variance < 0.0) + p.eps);
    if (lane == 0u) { stats[row] = vec2<f32>(mean, rstd); }
    for (var j = lane; j < width; j += LANES) {
      keep(shifted(scaled((vec4<f32>(x4[first + j]) - mean) * rstd, j), j), row, 4u * j, 4u * (first + j));
    }
  }
}

@compute @workgroup_size(LANES)
fn rows_dx(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let width = p.n / 4u;
  let start = (wg.y * groups.x + wg.x) * ROWS;
  for (var row = start; row < min(start + ROWS, p.rows); row++) {
    let first = row * width;
    let s = known[row];
    var sum = vec4<f32>();
    var products = vec4<f32>();
    for (var j = lane; j < width; j += LANES) {
      let g = scaled(vec4<f32>(dy4[first + j]), j);
      sum += g;
      products += g * (vec4<f32>(x4[first + j]) - s.x);
    }
    let mean = subgroupAdd(across(sum)) / f32(p.n) * f32(CENTER);
    let lean = subgroupAdd(across(products)) / f32(p.n) * s.y * s.y;
    for (var j = lane; j < width; j += LANES) {
      let g = scaled(vec4<f32>(dy4[first + j]), j);
      keep_dx(s.y * (g - mean - (vec4<f32>(x4[first + j]) - s.x) * lean), row, 4u * j, 4u * (first + j));
    }
  }
}
