// Rotates pairs of elements: y1 = x1 cos1 - x2 sin1, y2 = x2 cos2 + x1 sin2; with BACK the transpose of that.
//
// One invocation owns one pair. x, cos and sin are walked through <= 3 axes and the pairs, with strides of their own, and
// the second element of a pair lies `second` elements behind the first: a pair may be two halves or two neighbours.
// Limits assumed: 64 invocations, 4 buffers.
alias T = f32; // param
const BACK = false; // param
const WG = 64u;

struct Params {
  n: u32,               // pairs
  shape: vec4<u32>,     // three axes, leading ones 1, then pairs
  offset: vec4<u32>,    // first element of x, cos, sin, y
  second: vec4<u32>,
  stride_x: vec4<u32>,
  stride_cos: vec4<u32>,
  stride_sin: vec4<u32>,
  stride_y: vec4<u32>,
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<T>;
@group(0) @binding(2) var<storage, read> cosine: array<T>;
@group(0) @binding(3) var<storage, read> sine: array<T>;
@group(0) @binding(4) var<storage, read_write> y: array<T>;

fn at(pos: vec4<u32>, stride: vec4<u32>, offset: u32) -> u32 {
  let m = pos * stride;
  return m.x + m.y + m.z + m.w + offset;
}

@compute @workgroup_size(WG)
fn rotate(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
  let i = (wg.y * groups.x + wg.x) * WG + lid;
  if (i >= p.n) { return; }
  let w = i % p.shape.w; var rest = i / p.shape.w;
  let z = rest % p.shape.z; rest = rest / p.shape.z;
  let pos = vec4<u32>(rest / p.shape.y, rest % p.shape.y, z, w);
  let ix = at(pos, p.stride_x, p.offset.x);
  let ic = at(pos, p.stride_cos, p.offset.y);
  let is = at(pos, p.stride_sin, p.offset.z);
  let iy = at(pos, p.stride_y, p.offset.w);
  let x1 = f32(x[ix]); let x2 = f32(x[ix + p.second.x]);
  let c1 = f32(cosine[ic]); let c2 = f32(cosine[ic + p.second.y]);
  let s1 = f32(sine[is]); let s2 = f32(sine[is + p.second.z]);
  var first = x1 * c1 - x2 * s1;
  var other = x2 * c2 + x1 * s2;
  if (BACK) {
    first = x1 * c1 + x2 * s2;
    other = x2 * c2 - x1 * s1;
  }
  y[iy] = T(first);
  y[iy + p.second.w] = T(other);
}
