// y[o, i] = finish(merge over r of x[o, r, i]): x is [outer, reduced, inner], y is [outer, inner].
//
// Long reductions are cut into `split` shares: y is then [outer, split, inner] and a second launch merges the shares.
// Entry points:
//   columns  inner divides by 4: an invocation owns 4 neighbouring columns of a share of `chunk` consecutive rows
//   rows     inner is 1, reduced divides by 4: an invocation owns a share of a row, every split-th vec4 of it
//   scalar   any sizes: an invocation owns one element of y and every split-th value
//   group    inner is 1: a workgroup owns a row; invocations walk it side by side and meet in workgroup memory
//   argmax   any sizes, split 1: an invocation owns one element of `index`
// Limits assumed: 256 invocations, 1 KiB workgroup memory.

alias T = f32; // param
alias TY = f32; // param
// Type to compute with: f32 for f16 storage.
alias C = f32; // param
const WG = 64u; // param
const GROUP = 256u;

struct Params {
  outer: u32,
  reduced: u32,
  inner: u32,
  split: u32,
  chunk: u32,  // rows of a share, for `columns`
  start: u32,  // bits of merge's neutral value
  scale: f32,  // what a mean multiplies by
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<T>;
@group(0) @binding(2) var<storage, read_write> y: array<TY>;
@group(0) @binding(1) var<storage, read> x4: array<vec4<T>>;
@group(0) @binding(2) var<storage, read_write> y4: array<vec4<TY>>;
@group(0) @binding(2) var<storage, read_write> index: array<i32>;

fn is_nan(v: f32) -> bool { return (bitcast<u32>(v) & 0x7fffffffu) > 0x7f800000u; }
fn unordered(v: C) -> bool { return is_nan(v); } // param
fn merge(a: C, b: C) -> C { return a + b; } // param
fn finish(v: C) -> C { return v; } // param

fn merge4(a: vec4<C>, b: vec4<C>) -> vec4<C> {
  return vec4<C>(merge(a.x, b.x), merge(a.y, b.y), merge(a.z, b.z), merge(a.w, b.w));
}
fn across(v: vec4<C>) -> C { return merge(merge(v.x, v.y), merge(v.z, v.w)); }

@compute @workgroup_size(WG)
fn columns(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
  let i = (wg.y * groups.x + wg.x) * WG + lid;
  let width = p.inner / 4u;
  if (i >= p.outer * p.split * width) { return; }
  let o = i / (p.split * width);
  let first = (i / width) % p.split * p.chunk;
  let last = min(first + p.chunk, p.reduced);
  var at = (o * p.reduced + first) * width + i % width;
  var total = vec4<C>(bitcast<C>(p.start));
  for (var r = first; r < last; r++) {
    total = merge4(total, vec4<C>(x4[at]));
    at += width;
  }
  y4[i] = vec4<TY>(TY(finish(total.x)), TY(finish(total.y)), TY(finish(total.z)), TY(finish(total.w)));
}

@compute @workgroup_size(WG)
fn rows(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
  let i = (wg.y * groups.x + wg.x) * WG + lid;
  if (i >= p.outer * p.split) { return; }
  let width = p.reduced / 4u;
  let first = i / p.split * width;
  var total = vec4<C>(bitcast<C>(p.start));
  for (var r = i % p.split; r < width; r += p.split) { total = merge4(total, vec4<C>(x4[first + r])); }
  y[i] = TY(finish(across(total)));
}

@compute @workgroup_size(WG)
fn scalar(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
  let i = (wg.y * groups.x + wg.x) * WG + lid;
  if (i >= p.outer * p.split * p.inner) { return; }
  let o = i / (p.split * p.inner);
  let first = o * p.reduced * p.inner + i % p.inner;
  var total = bitcast<C>(p.start);
  for (var r = (i / p.inner) % p.split; r < p.reduced; r += p.split) { total = merge(total, C(x[first + r * p.inner])); }
  y[i] = TY(finish(total));
}

var<workgroup> shared_total: array<C, GROUP>;

@compute @workgroup_size(GROUP)
fn group(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
  let i = wg.y * groups.x + wg.x;
  if (i >= p.outer * p.split) { return; }
  let first = i / p.split * p.reduced;
  let step = p.split * GROUP;
  var total = bitcast<C>(p.start);
  for (var r = i % p.split * GROUP + lid; r < p.reduced; r += step) { total = merge(total, C(x[first + r])); }
  shared_total[lid] = total;
  workgroupBarrier();
  for (var span = GROUP / 2u; span > 0u; span /= 2u) {
    if (lid < span) { shared_total[lid] = merge(shared_total[lid], shared_total[lid + span]); }
    workgroupBarrier();
  }
  if (lid == 0u) { y[i] = TY(finish(shared_total[0])); }
}

@compute @workgroup_size(WG)
fn argmax(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
  let i = (wg.y * groups.x + wg.x) * WG + lid;
  if (i >= p.outer * p.inner) { return; }
  let first = i / p.inner * p.reduced * p.inner + i % p.inner;
  var best = C(x[first]);
  var place = 0u;
  for (var r = 1u; r < p.reduced; r++) {
    let v = C(x[first + r * p.inner]);
    // The first NaN wins, as in PyTorch.
    if (v > best || (unordered(v) && !unordered(best))) {
      best = v;
      place = r;
    }
  }
  index[i] = i32(place);
}
