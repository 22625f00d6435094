// y = softmax(x) = e^(x - m) / Σ e^(x - m) along one axis, m the largest x; or its logarithm; or with a mask.
//
// A row is the n values of x along the axis: row r starts at (r / inner) · n · inner + r % inner and steps by inner.
// The mask broadcasts to x: row r's values start at the sum of r's places along mask_shape times mask_stride and step by
// mask_step. Backward: dx = y (dy - Σ dy y), and for the logarithm dx = dy - e^y Σ dy.
// Entry points, forward and backward:
//   rows, rows_dx      inner is 1 and n divides by 4: an invocation owns a row, in vec4s
//   scalar, scalar_dx  any sizes: an invocation owns a row
//   group, group_dx    any sizes: a workgroup owns a row
// One pass finds the largest value and the sum: the sum is scaled down when a larger value turns up.
// Limits assumed: 64 invocations, 512 bytes workgroup memory.

alias T = f32; // param
alias M = f32; // param
const LOG = 0u; // param
const MASK = 0u; // param
const WG = 64u; // param
const GROUP = 64u;
// MASK: no mask (x stands in for its binding), a condition (zero hides), numbers to add.
const CONDITION = 1u;
const ADDED = 2u;

struct Params {
  rows: u32,
  n: u32,
  inner: u32,
  hidden: f32,  // -infinity, for which WGSL has no literal
  mask_offset: u32,
  mask_step: u32,
  mask_shape: vec4<u32>,
  mask_stride: vec4<u32>,
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<T>;
@group(0) @binding(2) var<storage, read> mask: array<M>;
@group(0) @binding(3) var<storage, read_write> y: array<T>;
@group(0) @binding(1) var<storage, read> x4: array<vec4<T>>;
@group(0) @binding(3) var<storage, read_write> y4: array<vec4<T>>;
// Backward: binding 1 is y, binding 2 dy, binding 3 dx.
@group(0) @binding(1) var<storage, read> out: array<T>;
@group(0) @binding(2) var<storage, read> dy: array<T>;
@group(0) @binding(3) var<storage, read_write> dx: array<T>;
@group(0) @binding(1) var<storage, read> out4: array<vec4<T>>;
@group(0) @binding(2) var<storage, read> dy4: array<vec4<T>>;
@group(0) @binding(3) var<storage, read_write> dx4: array<vec4<T>>;

// The lowest f32: below it is only -infinity, which contributes nothing.
const LOWEST = -3.4028234e38;

fn is_nan(v: f32) -> bool { return (bitcast<u32>(v) & 0x7fffffffu) > 0x7f800000u; }
// Some adapters make a number of e^NaN.
fn weight(v: f32, m: f32) -> f32 {
  let d = v - m;
  return select(exp(d), d, is_nan(d));
}

fn row_start(r: u32) -> u32 { return r / p.inner * p.n * p.inner + r % p.inner; }
fn mask_start(r: u32) -> u32 {
  let z = r / p.mask_shape.w;
  let q = z / p.mask_shape.z;
  let s = q / p.mask_shape.y;
  let place = vec4<u32>(s, q - s * p.mask_shape.y, z - q * p.mask_shape.z, r - z * p.mask_shape.w) * p.mask_stride;
  return p.mask_offset + place.x + place.y + place.z + place.w;
}
// x with the mask in it; what a condition hides becomes -infinity.
fn masked(v: f32, at: u32) -> f32 {
  if (MASK == CONDITION) { return select(v, p.hidden, mask[at] == M(0)); }
  if (MASK == ADDED) { return v + f32(mask[at]); }
  return v;
}

// What turns a value into y: (m, factor) with y = e^(x - m) · factor, or (m, ln Σ) with y = x - m - ln Σ.
fn scale_of(m: f32, total: f32) -> vec2<f32> {
  if (LOG == 1u) { return vec2<f32>(m, select(log(total), total / total, is_nan(total) || total == 0.0)); }
  // A row that is masked as a whole gives 0.
  if (MASK != 0u && total == 0.0) { return vec2<f32>(m, 0.0); }
  return vec2<f32>(m, 1.0 / total);
}
fn result(v: f32, scale: vec2<f32>) -> f32 {
  if (LOG == 1u) { return v - scale.x - scale.y; }
  return exp(v - scale.x) * scale.y;
}

@compute @workgroup_size(WG)
fn rows(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
  let r = (wg.y * groups.x + wg.x) * WG + lid;
  if (r >= p.rows) { return; }
  let width = p.n / 4u;
  let first = r * width;
  let start = mask_start(r);
  var m = LOWEST;
  var total = 0.0;
  for (var j = 0u; j < width; j++) {
    let v = value4(vec4<f32>(x4[first + j]), start, j);
    let larger = max(max(m, max(v.x, v.y)), max(v.z, v.w));
    total = total * exp(m - larger) + weight(v.x, larger) + weight(v.y, larger) + weight(v.z, larger) + weight(v.w, larger);
    m = larger;
  }
  let scale = scale_of(m, total);
  for (var j = 0u; j < width; j++) {
    let v = value4(vec4<f32>(x4[first + j]), start, j);
    y4[first + j] = vec4<T>(T(result(v.x, scale)), T(result(v.y, scale)), T(result(v.z, scale)), T(result(v.w, scale)));
  }
}
fn value4(v: vec4<f32>, start: u32, j: u32) -> vec4<f32> {
  if (MASK == 0u) { return v; }
  let at = start + 4u * j * p.mask_step;
  return vec4<f32>(masked(v.x, at), masked(v.y, at + p.mask_step), masked(v.z, at + 2u * p.mask_step), masked(v.w, at + 3u * p.mask_step));
}

@compute @workgroup_size(WG)
fn scalar(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
  let r = (wg.y * groups.x + wg.x) * WG + lid;
  if (r >= p.rows) { return; }
  let first = row_start(r);
  let start = mask_start(r);
  var m = LOWEST;
  var total = 0.0;
  for (var j = 0u; j < p.n; j++) {
    let v = masked(f32(x[first + j * p.inner]), start + j * p.mask_step);
    let larger = max(m, v);
    total = total * exp(m - larger) + weight(v, larger);
    m = larger;
  }
  let scale = scale_of(m, total);
  for (var j = 0u; j < p.n; j++) {
    let at = first + j * p.inner;
    y[at] = T(result(masked(f32(x[at]), start + j * p.mask_step), scale));
  }
}

var<workgroup> largest: array<f32, GROUP>;
var<workgroup> sums: array<f32, GROUP>;

@compute @workgroup_size(GROUP)
fn group(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
  let r = wg.y * groups.x + wg.x;
  if (r >= p.rows) { return; }
  let first = row_start(r);
  let start = mask_start(r);
  var m = LOWEST;
  var total = 0.0;
  for (var j = lid; j < p.n; j += GROUP) {
    let v = masked(f32(x[first + j * p.inner]), start + j * p.mask_step);
    let larger = max(m, v);
    total = total * exp(m - larger) + weight(v, larger);
    m = larger;
  }
  largest[lid] = m;
  sums[lid] = total;
  workgroupBarrier();
  for (var span = GROUP / 2u; span > 0u; span /= 2u) {
    if (lid < span) {
      let larger = max(largest[lid], largest[lid + span]);
      sums[lid] = sums[lid] * exp(largest[lid] - larger) + sums[lid + span] * exp(largest[lid + span] - larger);
      largest[lid] = larger;
    }
    workgroupBarrier();
  }
  let scale = scale_of(largest[0], sums[0]);
  for (var j = lid; j < p.n; j += GROUP) {
    let at = first + j * p.inner;
    y[at] = T(result(masked(f32(x[at]), start + j * p.mask_step), scale));
  }
}

// What a row's sum adds up, and dx of one value.
fn term(v: f32, g: f32) -> f32 { return select(v * g, g, LOG == 1u); }
fn slope(v: f32, g: f32, total: f32) -> f32 {
  if (LOG == 1u) { return g - exp(v) * total; }
  return v * (g - total);
}

@compute @workgroup_size(WG)
fn rows_dx(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
  let r = (wg.y * groups.x + wg.x) * WG + lid;
  if (r >= p.rows) { return; }
  let width = p.n / 4u;
  let first = r * width;
  var total = 0.0;
  for (var j = 0u; j < width; j++) {
    let v = vec4<f32>(out4[first + j]);
    let g = vec4<f32>(dy4[first + j]);
    total += term(v.x, g.x) + term(v.y, g.y) + term(v.z, g.z) + term(v.w, g.w);
  }
  for (var j = 0u; j < width; j++) {
    let v = vec4<f32>(out4[first + j]);
    let g = vec4<f32>(dy4[first + j]);
    dx4[first + j] = vec4<T>(T(slope(v.x, g.x, total)), T(slope(v.y, g.y, total)), T(slope(v.z, g.z, total)), T(slope(v.w, g.w, total)));
  }
}

@compute @workgroup_size(WG)
fn scalar_dx(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
  let r = (wg.y * groups.x + wg.x) * WG + lid;
  if (r >= p.rows) { return; }
  let first = row_start(r);
  var total = 0.0;
  for (var j = 0u; j < p.n; j++) { total += term(f32(out[first + j * p.inner]), f32(dy[first + j * p.inner])); }
  for (var j = 0u; j < p.n; j++) {
    let at = first + j * p.inner;
    dx[at] = T(slope(f32(out[at]), f32(dy[at]), total));
  }
}

@compute @workgroup_size(GROUP)
fn group_dx(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
  let r = wg.y * groups.x + wg.x;
  if (r >= p.rows) { return; }
  let first = row_start(r);
  var total = 0.0;
  for (var j = lid; j < p.n; j += GROUP) { total += term(f32(out[first + j * p.inner]), f32(dy[first + j * p.inner])); }
  sums[lid] = total;
  workgroupBarrier();
  for (var span = GROUP / 2u; span > 0u; span /= 2u) {
    if (lid < span) { sums[lid] += sums[lid + span]; }
    workgroupBarrier();
  }
  for (var j = lid; j < p.n; j += GROUP) {
    let at = first + j * p.inner;
    dx[at] = T(slope(f32(out[at]), f32(dy[at]), sums[0]));
  }
}
