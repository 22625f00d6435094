// y = (x - mean) · rstd · weight + bias with rstd = 1 / √(variance + eps): x is [rows, n], each row has its own mean.
//
// layerNorm: a row is the last axis. groupNorm: a row is a group of `per` channels with `inner` places each, and
// element j of row r belongs to channel (r % groups) · per + j / inner. rmsNorm: the mean is taken as 0.
// With x̂ = (x - mean) rstd and g = dy · weight the gradients are
//   dx = rstd (g - mean(g) - x̂ mean(g x̂)),  dweight = Σ dy x̂,  dbias = Σ dy  (rmsNorm has no mean(g)).
// Sums of squares are taken around a value of the row, not around 0: nothing cancels when the mean is far from 0.
// Entry points, forward and backward:
//   rows, rows_dx            n divides by 4: an invocation owns a row, in vec4s
//   group, group_dx          any n: a workgroup owns a row
//   moments, settle, apply   any n: `split` invocations share a row, in three launches (and _dx); moments4 and apply4
//                            where n divides by 4
//   channels, channels4      an invocation owns a channel (4 of them where inner is 1) of `chunk` of the batch's entries
// Limits assumed: 64 invocations, 512 bytes workgroup memory, 6 buffers.

alias T = f32; // param
const CENTER = 1u; // param
// Bit 0: there is a weight; bit 1: there is a bias. x stands in for the binding of a missing one.
const AFFINE = 3u; // param
// How 4 neighbours lie in channels: 0 one channel each, 1 all in one, 2 anyhow.
const PATTERN = 2u; // param
const WG = 64u; // param
const GROUP = 64u;

struct Params {
  rows: u32,
  n: u32,
  split: u32,
  groups: u32,
  per: u32,
  inner: u32,
  batch: u32,  // rows / groups
  chunk: u32,
  eps: f32,
  // For what a compiled function does to a result before it is stored: places of further tensors, and constants.
  extra: array<vec4<u32>, 4>,
  constants: array<vec4<u32>, 4>,
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<T>;
@group(0) @binding(1) var<storage, read> x4: array<vec4<T>>;
@group(0) @binding(2) var<storage, read> weight: array<vec4<T>>;
@group(0) @binding(3) var<storage, read> bias: array<vec4<T>>;
@group(0) @binding(3) var<storage, read> dy: array<T>;
@group(0) @binding(3) var<storage, read> dy4: array<vec4<T>>;
@group(0) @binding(4) var<storage, read_write> y: array<T>;
@group(0) @binding(4) var<storage, read_write> y4: array<vec4<T>>;
@group(0) @binding(4) var<storage, read_write> dx: array<T>;
@group(0) @binding(4) var<storage, read_write> dx4: array<vec4<T>>;
// (mean, rstd) of each row.
@group(0) @binding(5) var<storage, read_write> stats: array<vec2<f32>>;
@group(0) @binding(5) var<storage, read> known: array<vec2<f32>>;
// [rows, split] pairs of sums; backward's (mean(g), mean(g x̂)) of each row.
@group(0) @binding(6) var<storage, read_write> shares: array<vec2<f32>>;
@group(0) @binding(6) var<storage, read> gathered: array<vec2<f32>>;
@group(0) @binding(7) var<storage, read_write> means: array<vec2<f32>>;
@group(0) @binding(7) var<storage, read> mean_of: array<vec2<f32>>;
// [split, channels] sums of dy x̂ and dy.
@group(0) @binding(6) var<storage, read_write> dweight: array<f32>;
@group(0) @binding(7) var<storage, read_write> dbias: array<f32>;
@group(0) @binding(6) var<storage, read_write> dweight4: array<vec4<f32>>;
@group(0) @binding(7) var<storage, read_write> dbias4: array<vec4<f32>>;

fn across(v: vec4<f32>) -> f32 { return v.x + v.y + (v.z + v.w); }
fn channel(row: u32, j: u32) -> u32 { return row % p.groups * p.per + j / p.inner; }

fn scale(row: u32, j: u32) -> f32 {
  if ((AFFINE & 1u) == 0u) { return 1.0; }
  let c = channel(row, j);
  return f32(weight[c / 4u][c % 4u]);
}
fn shift(row: u32, j: u32) -> f32 {
  if ((AFFINE & 2u) == 0u) { return 0.0; }
  let c = channel(row, j);
  return f32(bias[c / 4u][c % 4u]);
}
fn scale4(row: u32, j: u32) -> vec4<f32> {
  if ((AFFINE & 1u) == 0u) { return vec4<f32>(1.0); }
  if (PATTERN == 0u) { return vec4<f32>(weight[j]); }
  if (PATTERN == 1u) { return vec4<f32>(scale(row, 4u * j)); }
  return vec4<f32>(scale(row, 4u * j), scale(row, 4u * j + 1u), scale(row, 4u * j + 2u), scale(row, 4u * j + 3u));
}
fn shift4(row: u32, j: u32) -> vec4<f32> {
  if ((AFFINE & 2u) == 0u) { return vec4<f32>(0.0); }
  if (PATTERN == 0u) { return vec4<f32>(bias[j]); }
  if (PATTERN == 1u) { return vec4<f32>(shift(row, 4u * j)); }
  return vec4<f32>(shift(row, 4u * j), shift(row, 4u * j + 1u), shift(row, 4u * j + 2u), shift(row, 4u * j + 3u));
}

// Four neighbours of a result, from column `column` of a row, element `at` of all.
fn keep(v: vec4<f32>, row: u32, column: u32, at: u32) { y4[at / 4u] = vec4<T>(v); } // param
fn keep_dx(v: vec4<f32>, row: u32, column: u32, at: u32) { dx4[at / 4u] = vec4<T>(v); } // param

// (mean, rstd) from the sums of x - origin and of its square. A variance that is not a number stays so.
fn settled(origin: f32, sums: vec2<f32>) -> vec2<f32> {
  let m = sums / f32(p.n);
  if (CENTER == 0u) { return vec2<f32>(0.0, inverseSqrt(m.y + p.eps)); }
  let variance = m.y - m.x * m.x;
  return vec2<f32>(origin + m.x, inverseSqrt(select(variance, 0.0, variance < 0.0) + p.eps));
}

@compute @workgroup_size(WG)
fn rows(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
  let row = (wg.y * groups.x + wg.x) * WG + lid;
  if (row >= p.rows) { return; }
  let width = p.n / 4u;
  let first = row * width;
  var origin = 0.0;
  if (CENTER == 1u) { origin = across(vec4<f32>(x4[first])) * 0.25; }
  var sum = vec4<f32>();
  var squares = vec4<f32>();
  for (var j = 0u; j < width; j++) {
    let d = vec4<f32>(x4[first + j]) - origin;
    sum += d;
    squares += d * d;
  }
  let s = settled(origin, vec2<f32>(across(sum), across(squares)));
  stats[row] = s;
  for (var j = 0u; j < width; j++) {
    keep((vec4<f32>(x4[first + j]) - s.x) * s.y * scale4(row, j) + shift4(row, j), row, 4u * j, 4u * (first + j));
  }
}

@compute @workgroup_size(WG)
fn rows_dx(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
  let row = (wg.y * groups.x + wg.x) * WG + lid;
  if (row >= p.rows) { return; }
  let width = p.n / 4u;
  let first = row * width;
  let s = known[row];
  var sum = vec4<f32>();
  var products = vec4<f32>();
  for (var j = 0u; j < width; j++) {
    let g = vec4<f32>(dy4[first + j]) * scale4(row, j);
    sum += g;
    products += g * (vec4<f32>(x4[first + j]) - s.x);
  }
  let mean = across(sum) / f32(p.n) * f32(CENTER);
  let lean = across(products) / f32(p.n) * s.y * s.y;
  for (var j = 0u; j < width; j++) {
    let g = vec4<f32>(dy4[first + j]) * scale4(row, j);
    keep_dx(s.y * (g - mean - (vec4<f32>(x4[first + j]) - s.x) * lean), row, 4u * j, 4u * (first + j));
  }
}

var<workgroup> sums: array<vec2<f32>, GROUP>;

fn meet(lid: u32) {
  workgroupBarrier();
  for (var span = GROUP / 2u; span > 0u; span /= 2u) {
    if (lid < span) { sums[lid] += sums[lid + span]; }
    workgroupBarrier();
  }
}

@compute @workgroup_size(GROUP)
fn group(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
  let row = wg.y * groups.x + wg.x;
  if (row >= p.rows) { return; }
  let first = row * p.n;
  var origin = 0.0;
  if (CENTER == 1u) { origin = f32(x[first]); }
  var own = vec2<f32>();
  for (var j = lid; j < p.n; j += GROUP) {
    let d = f32(x[first + j]) - origin;
    own += vec2<f32>(d, d * d);
  }
  sums[lid] = own;
  meet(lid);
  let s = settled(origin, sums[0]);
  if (lid == 0u) { stats[row] = s; }
  for (var j = lid; j < p.n; j += GROUP) {
    y[first + j] = T((f32(x[first + j]) - s.x) * s.y * scale(row, j) + shift(row, j));
  }
}

@compute @workgroup_size(GROUP)
fn group_dx(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
  let row = wg.y * groups.x + wg.x;
  if (row >= p.rows) { return; }
  let first = row * p.n;
  let s = known[row];
  var own = vec2<f32>();
  for (var j = lid; j < p.n; j += GROUP) {
    let g = f32(dy[first + j]) * scale(row, j);
    own += vec2<f32>(g, g * (f32(x[first + j]) - s.x) * s.y);
  }
  sums[lid] = own;
  meet(lid);
  let m = sums[0] / f32(p.n);
  for (var j = lid; j < p.n; j += GROUP) { dx[first + j] = T(slope(row, j, f32(x[first + j]), f32(dy[first + j]), s, m)); }
}
// dx of one value; m holds mean(g) and mean(g x̂).
fn slope(row: u32, j: u32, v: f32, g: f32, s: vec2<f32>, m: vec2<f32>) -> f32 {
  return s.y * (g * scale(row, j) - m.x * f32(CENTER) - (v - s.x) * s.y * m.y);
}

// Three launches for few long rows: shares of the sums, their total, and the result.
fn origin_of(row: u32, value: f32) -> f32 { return select(0.0, value, CENTER == 1u); }

@compute @workgroup_size(WG)
fn moments(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
  let i = (wg.y * groups.x + wg.x) * WG + lid;
  if (i >= p.rows * p.split) { return; }
  let row = i / p.split;
  let origin = origin_of(row, f32(x[row * p.n]));
  var own = vec2<f32>();
  for (var j = i % p.split; j < p.n; j += p.split) {
    let d = f32(x[row * p.n + j]) - origin;
    own += vec2<f32>(d, d * d);
  }
  shares[i] = own;
}
@compute @workgroup_size(WG)
fn moments4(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
  let i = (wg.y * groups.x + wg.x) * WG + lid;
  if (i >= p.rows * p.split) { return; }
  let row = i / p.split;
  let first = row * (p.n / 4u);
  let origin = origin_of(row, f32(x4[first].x));
  var sum = vec4<f32>();
  var squares = vec4<f32>();
  for (var j = i % p.split; j < p.n / 4u; j += p.split) {
    let d = vec4<f32>(x4[first + j]) - origin;
    sum += d;
    squares += d * d;
  }
  shares[i] = vec2<f32>(across(sum), across(squares));
}
fn total(row: u32) -> vec2<f32> {
  var all = vec2<f32>();
  for (var s = 0u; s < p.split; s++) { all += gathered[row * p.split + s]; }
  return all;
}
@compute @workgroup_size(WG)
fn settle(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
  let row = (wg.y * groups.x + wg.x) * WG + lid;
  if (row < p.rows) { stats[row] = settled(origin_of(row, f32(x[row * p.n])), total(row)); }
}
@compute @workgroup_size(WG)
fn apply(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
  let i = (wg.y * groups.x + wg.x) * WG + lid;
  if (i >= p.rows * p.split) { return; }
  let row = i / p.split;
  let s = known[row];
  for (var j = i % p.split; j < p.n; j += p.split) {
    let at = row * p.n + j;
    y[at] = T((f32(x[at]) - s.x) * s.y * scale(row, j) + shift(row, j));
  }
}
@compute @workgroup_size(WG)
fn apply4(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
  let i = (wg.y * groups.x + wg.x) * WG + lid;
  if (i >= p.rows * p.split) { return; }
  let row = i / p.split;
  let s = known[row];
  for (var j = i % p.split; j < p.n / 4u; j += p.split) {
    let at = row * (p.n / 4u) + j;
    y4[at] = vec4<T>((vec4<f32>(x4[at]) - s.x) * s.y * scale4(row, j) + shift4(row, j));
  }
}

@compute @workgroup_size(WG)
fn moments_dx(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
  let i = (wg.y * groups.x + wg.x) * WG + lid;
  if (i >= p.rows * p.split) { return; }
  let row = i / p.split;
  let s = known[row];
  var own = vec2<f32>();
  for (var j = i % p.split; j < p.n; j += p.split) {
    let at = row * p.n + j;
    let g = f32(dy[at]) * scale(row, j);
    own += vec2<f32>(g, g * (f32(x[at]) - s.x) * s.y);
  }
  shares[i] = own;
}
@compute @workgroup_size(WG)
fn settle_dx(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
  let row = (wg.y * groups.x + wg.x) * WG + lid;
  if (row < p.rows) { means[row] = total(row) / f32(p.n); }
}
@compute @workgroup_size(WG)
fn apply_dx(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
  let i = (wg.y * groups.x + wg.x) * WG + lid;
  if (i >= p.rows * p.split) { return; }
  let row = i / p.split;
  let s = known[row];
  let m = mean_of[row];
  for (var j = i % p.split; j < p.n; j += p.split) {
    let at = row * p.n + j;
    dx[at] = T(slope(row, j, f32(x[at]), f32(dy[at]), s, m));
  }
}

@compute @workgroup_size(WG)
fn channels(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
  let i = (wg.y * groups.x + wg.x) * WG + lid;
  let count = p.groups * p.per;
  if (i >= p.split * count) { return; }
  let c = i % count;
  let start = i / count * p.chunk;
  var own = vec2<f32>();
  for (var b = start; b < min(start + p.chunk, p.batch); b++) {
    let s = known[b * p.groups + c / p.per];
    let first = (b * count + c) * p.inner;
    for (var j = 0u; j < p.inner; j++) {
      let g = f32(dy[first + j]);
      own += vec2<f32>(g * (f32(x[first + j]) - s.x) * s.y, g);
    }
  }
  dweight[i] = own.x;
  dbias[i] = own.y;
}
@compute @workgroup_size(WG)
fn channels4(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
  let i = (wg.y * groups.x + wg.x) * WG + lid;
  let count = p.n / 4u;
  if (i >= p.split * count) { return; }
  let start = i / count * p.chunk;
  var at = start * count + i % count;
  var weighed = vec4<f32>();
  var sum = vec4<f32>();
  for (var row = start; row < min(start + p.chunk, p.rows); row++) {
    let s = known[row];
    let g = vec4<f32>(dy4[at]);
    weighed += g * (vec4<f32>(x4[at]) - s.x) * s.y;
    sum += g;
    at += count;
  }
  dweight4[i] = weighed;
  dbias4[i] = sum;
}
