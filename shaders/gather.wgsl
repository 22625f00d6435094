// Reading and adding along one axis by index. x and y are [outer, n, inner]; src (or the result of pick) is
// [outer, m, inner]; index is [outer, m, inner], or [outer, m] when it is the same for all of the inner axis.
//
//   pick  y[o, j, i] = x[o, index[o, j, i], i]           one invocation owns one element of y
//   add   y[o, index[o, j, i], i] += src[o, j, i]        one invocation owns one element of src
//
// An index outside 0 … n - 1 picks 0 and adds nothing. add has no float atomics and one fixed order of sums: of all
// elements of a column that meet in one place, the first one's invocation adds up all and writes.
alias T = f32; // param
alias C = f32; // param
alias I = i32; // param
const WG = 64u; // param

struct Params {
  count: u32,   // elements of the [outer, m, inner] side
  n: u32,
  m: u32,
  inner: u32,
  varies: u32,  // 1 when index has the inner axis
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<T>;
@group(0) @binding(1) var<storage, read> src: array<T>;
@group(0) @binding(2) var<storage, read> index: array<I>;
@group(0) @binding(3) var<storage, read_write> y: array<T>;

fn target_of(o: u32, j: u32, i: u32) -> u32 {
  return u32(index[select(o * p.m + j, (o * p.m + j) * p.inner + i, p.varies == 1u)]);
}

@compute @workgroup_size(WG)
fn pick(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
  let e = (wg.y * groups.x + wg.x) * WG + lid;
  if (e >= p.count) { return; }
  let i = e % p.inner;
  let j = e / p.inner % p.m;
  let o = e / p.inner / p.m;
  let to = target_of(o, j, i);
  if (to >= p.n) {
    y[e] = T(0);
    return;
  }
  y[e] = x[(o * p.n + to) * p.inner + i];
}

@compute @workgroup_size(WG)
fn add(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
  let e = (wg.y * groups.x + wg.x) * WG + lid;
  if (e >= p.count) { return; }
  let i = e % p.inner;
  let j = e / p.inner % p.m;
  let o = e / p.inner / p.m;
  let to = target_of(o, j, i);
  if (to >= p.n) { return; }
  for (var k = 0u; k < j; k++) {
    if (target_of(o, k, i) == to) { return; }
  }
  let at = (o * p.n + to) * p.inner + i;
  var total = C(y[at]);
  for (var k = j; k < p.m; k++) {
    if (target_of(o, k, i) == to) { total += C(src[(o * p.m + k) * p.inner + i]); }
  }
  y[at] = T(total);
}
