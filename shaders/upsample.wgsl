// y[r, v, u] = x[r, v / scale, u / scale]: x is [rows of planes, H, W], y the same with H and W times `scale`.
//
// Entry points:
//   repeat   an invocation owns one value of x and writes scale x scale values of y
//   gather   the gradient: an invocation owns one value of dx and adds scale x scale values of dy
// Limits assumed: 256 invocations.

alias T = f32; // param
const WG = 64u; // param

struct Params {
  n: u32,     // elements of x
  width: u32, // W
  scale: u32,
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<T>;
@group(0) @binding(2) var<storage, read_write> y: array<T>;
@group(0) @binding(1) var<storage, read> dy: array<T>;
@group(0) @binding(2) var<storage, read_write> dx: array<T>;

// First value of y that value i of x becomes.
fn corner(i: u32) -> u32 {
  let row = i / p.width;
  return (row * p.scale * p.width + i - row * p.width) * p.scale;
}

@compute @workgroup_size(WG)
fn repeat(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
  let i = (wg.y * groups.x + wg.x) * WG + lid;
  if (i >= p.n) { return; }
  let value = x[i];
  var at = corner(i);
  for (var v = 0u; v < p.scale; v++) {
    for (var u = 0u; u < p.scale; u++) { y[at + u] = value; }
    at += p.width * p.scale;
  }
}

@compute @workgroup_size(WG)
fn gather(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
  let i = (wg.y * groups.x + wg.x) * WG + lid;
  if (i >= p.n) { return; }
  var at = corner(i);
  var sum = 0.0;
  for (var v = 0u; v < p.scale; v++) {
    for (var u = 0u; u < p.scale; u++) { sum += f32(dy[at + u]); }
    at += p.width * p.scale;
  }
  dx[i] = T(sum);
}
