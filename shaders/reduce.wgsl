// y[o, i] = sum over r of x[o, r, i]: x is [outer, reduced, inner], y is [outer, inner].
// One invocation owns one element of y.
alias T = f32; // param
alias C = f32; // param
const WG = 64u; // param

struct Params {
  outer: u32,
  reduced: u32,
  inner: u32,
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<T>;
@group(0) @binding(2) var<storage, read_write> y: array<T>;

@compute @workgroup_size(WG)
fn sum(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
  let i = (wg.y * groups.x + wg.x) * WG + lid;
  if (i >= p.outer * p.inner) { return; }
  let o = i / p.inner;
  var at = o * p.reduced * p.inner + i % p.inner;
  var total = C();
  for (var r = 0u; r < p.reduced; r++) {
    total += C(x[at]);
    at += p.inner;
  }
  y[i] = T(total);
}
