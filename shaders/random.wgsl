// Random numbers from Philox 4x32-10 (Salmon et al., SC 2011): element e is word e % 4 of philox(counter (e / 4, 0, 0, 0), key),
// so it depends on the key and on e alone, never on the shape or the adapter. The bits equal those of philox.ts.
//
//   draw_bits      y = word
//   draw_uniform   y = low + span * u,  u = (word >> 8) / 2^24 in [0, 1)
//   draw_normal    y = mean + std * z,  z by Box-Muller from a pair of words (Box and Muller, 1958)
//   draw_whole     y = first + floor(word * range / 2^32); off a flat distribution by less than range / 2^32
//   dropout        y = x * scale where word >= threshold, else 0
//
// One invocation owns the four elements of one block. Dense x and y of n elements, read and written as vectors of four.
// Limits assumed: 64 invocations, 3 buffers.

alias T = f32; // param
const WG = 64u; // param
// Philox's multipliers and Weyl steps.
const M0 = 3528531795u;
const M1 = 3449720151u;
const W0 = 2654435769u;
const W1 = 3144134277u;

struct Bits { key: vec2<u32>, n: u32 }
struct Real { key: vec2<u32>, n: u32, low: f32, span: f32 }
struct Whole { key: vec2<u32>, n: u32, first: i32, range: u32 }
struct Drop { key: vec2<u32>, n: u32, threshold: u32, scale: f32 }
@group(0) @binding(0) var<uniform> bits: Bits;
@group(0) @binding(0) var<uniform> real: Real;
@group(0) @binding(0) var<uniform> whole: Whole;
@group(0) @binding(0) var<uniform> drop: Drop;
@group(0) @binding(1) var<storage, read> x: array<vec4<T>>;
@group(0) @binding(2) var<storage, read_write> y: array<vec4<T>>;
@group(0) @binding(2) var<storage, read_write> y_bits: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read_write> y_whole: array<vec4<i32>>;

// High 32 bits of a 64-bit product, by 16-bit halves: WGSL has no wider integer.
fn mul_high(a: u32, b: u32) -> u32 {
  let al = a & 0xffffu; let ah = a >> 16u;
  let bl = b & 0xffffu; let bh = b >> 16u;
  let middle = ah * bl + ((al * bl) >> 16u);
  let other = al * bh + (middle & 0xffffu);
  return ah * bh + (middle >> 16u) + (other >> 16u);
}

fn philox(i: u32, key: vec2<u32>) -> vec4<u32> {
  var c = vec4<u32>(i, 0u, 0u, 0u);
  var k = key;
  for (var round = 0u; round < 10u; round++) {
    let high0 = mul_high(M0, c.x);
    let high1 = mul_high(M1, c.z);
    c = vec4<u32>(high1 ^ c.y ^ k.x, M1 * c.z, high0 ^ c.w ^ k.y, M0 * c.x);
    k += vec2<u32>(W0, W1);
  }
  return c;
}

// ln v for v in (0, 1] (Cephes, logf). WGSL's own is good to 2^-21 only near 1, where a normal draw needs every bit.
fn ln(v: f32) -> f32 {
  let word = bitcast<u32>(v);
  var e = f32(i32(word >> 23u) - 126);
  var m = bitcast<f32>((word & 0x007fffffu) | 0x3f000000u);
  if (m < 0.70710678) { e -= 1.0; m = m + m - 1.0; } else { m = m - 1.0; }
  let z = m * m;
  var q = 7.0376836292e-2;
  q = q * m - 1.1514610310e-1; q = q * m + 1.1676998740e-1; q = q * m - 1.2420140846e-1;
  q = q * m + 1.4249322787e-1; q = q * m - 1.6668057665e-1; q = q * m + 2.0000714765e-1;
  q = q * m - 2.4999993993e-1; q = q * m + 3.3333331174e-1;
  return m + (q * m * z - 2.12194440e-4 * e - 0.5 * z) + 0.693359375 * e;
}

// (cos, sin) of a full turn times w / 2^32, from the upper 24 bits of w. The nearest quarter turn is taken off in
// integers; what is left lies within +-pi/4, where the polynomials (Cephes, sinf and cosf) are good to the last bit.
// WGSL's own cos may be off by 2^-11.
fn turn(w: u32) -> vec2<f32> {
  let t = w >> 8u;
  let quarter = (t + 0x200000u) >> 22u;
  let a = f32(i32(t) - i32(quarter << 22u)) * 3.7450704e-7;
  let z = a * a;
  let s = a + a * z * (-1.6666654611e-1 + z * (8.3321608736e-3 - z * 1.9515295891e-4));
  let c = 1.0 - 0.5 * z + z * z * (4.166664568298827e-2 + z * (-1.388731625493765e-3 + z * 2.443315711809948e-5));
  let swapped = select(vec2<f32>(c, s), vec2<f32>(-s, c), (quarter & 1u) == 1u);
  return select(swapped, -swapped, (quarter & 2u) == 2u);
}

// Two normal draws from two words. The radius uses all 32 bits of a: 24 would end the tail at 5.8.
fn gauss(a: u32, b: u32) -> vec2<f32> {
  let u = f32(a >> 8u) * 5.9604644775390625e-8 + (f32(a & 255u) + 1.0) * 2.3283064365386963e-10;
  return sqrt(-2.0 * ln(u)) * turn(b);
}

fn index(wg: vec3<u32>, groups: vec3<u32>, lid: u32) -> u32 { return (wg.y * groups.x + wg.x) * WG + lid; }

@compute @workgroup_size(WG)
fn draw_bits(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
  let i = index(wg, groups, lid);
  if (i * 4u >= bits.n) { return; }
  y_bits[i] = philox(i, bits.key);
}

@compute @workgroup_size(WG)
fn draw_uniform(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
  let i = index(wg, groups, lid);
  if (i * 4u >= real.n) { return; }
  let u = vec4<f32>(philox(i, real.key) >> vec4<u32>(8u)) * 5.9604644775390625e-8;
  y[i] = vec4<T>(real.low + real.span * u);
}

@compute @workgroup_size(WG)
fn draw_normal(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
  let i = index(wg, groups, lid);
  if (i * 4u >= real.n) { return; }
  let w = philox(i, real.key);
  y[i] = vec4<T>(real.low + real.span * vec4<f32>(gauss(w.x, w.y), gauss(w.z, w.w)));
}

@compute @workgroup_size(WG)
fn draw_whole(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
  let i = index(wg, groups, lid);
  if (i * 4u >= whole.n) { return; }
  let w = philox(i, whole.key);
  let r = whole.range;
  y_whole[i] = whole.first + vec4<i32>(vec4<u32>(mul_high(w.x, r), mul_high(w.y, r), mul_high(w.z, r), mul_high(w.w, r)));
}

@compute @workgroup_size(WG)
fn dropout(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
  let i = index(wg, groups, lid);
  if (i * 4u >= drop.n) { return; }
  let keep = philox(i, drop.key) >= vec4<u32>(drop.threshold);
  y[i] = vec4<T>(select(vec4<f32>(), vec4<f32>(x[i]) * drop.scale, keep));
}
