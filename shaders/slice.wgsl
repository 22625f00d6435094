// y[i] = x[(i - before) / step] where that is an element of x, else a value: padding, and the gradient of a slice.
//
//   pad   one invocation owns one element of y
//   pad4  one invocation owns 4 consecutive elements: x's innermost axis has stride 1 and is not padded; its size, the
//         other strides and the offset divide by 4
//
// y is dense; x is read through strides, over <= 4 axes. T may be any dtype: values are moved, never computed with;
// C is f32 for f16. Limits assumed: 64 invocations, 2 buffers.

alias T = f32; // param
alias C = f32; // param
const WG = 64u; // param

struct Pad {
  n: u32,              // elements of y
  offset: u32,         // first element of x
  value: u32,          // bits of the padding, a C
  shape: vec4<u32>,    // of y, innermost last; leading ones are 1
  size: vec4<u32>,     // of x
  before: vec4<u32>,
  step: vec4<u32>,
  stride: vec4<u32>,   // of x
}
@group(0) @binding(0) var<uniform> p: Pad;
@group(0) @binding(1) var<storage, read> x: array<T>;
@group(0) @binding(2) var<storage, read_write> y: array<T>;
@group(0) @binding(1) var<storage, read> x4: array<vec4<T>>;
@group(0) @binding(2) var<storage, read_write> y4: array<vec4<T>>;

fn position(i: u32, shape: vec4<u32>) -> vec4<u32> {
  let w = i % shape.w; var rest = i / shape.w;
  let z = rest % shape.z; rest = rest / shape.z;
  return vec4<u32>(rest / shape.y, rest % shape.y, z, w);
}
fn at(pos: vec4<u32>, stride: vec4<u32>, offset: u32) -> u32 {
  let m = pos * stride;
  return m.x + m.y + m.z + m.w + offset;
}

@compute @workgroup_size(WG)
fn pad(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
  let i = (wg.y * groups.x + wg.x) * WG + lid;
  if (i >= p.n) { return; }
  let here = position(i, p.shape);
  let inner = here - p.before;
  let pos = inner / p.step;
  var v = T(bitcast<C>(p.value));
  if (all(here >= p.before) && all(pos < p.size) && all(inner % p.step == vec4<u32>())) { v = x[at(pos, p.stride, p.offset)]; }
  y[i] = v;
}

@compute @workgroup_size(WG)
fn pad4(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
  let i = ((wg.y * groups.x + wg.x) * WG + lid) * 4u;
  if (i >= p.n) { return; }
  let here = position(i, p.shape);
  let inner = here - p.before;
  let pos = inner / p.step;
  var v = vec4<T>(T(bitcast<C>(p.value)));
  if (all(here >= p.before) && all(pos < p.size) && all(inner % p.step == vec4<u32>())) { v = x4[at(pos, p.stride, p.offset) / 4u]; }
  y4[i / 4u] = v;
}
