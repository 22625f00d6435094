// A convolution is a matrix product: y[o, p] = Σ_k w[o, k] · columns[k, p], where k counts the weight's channels and taps,
// p the output's positions, and columns[k, p] is the value of x that tap k sees at p (0 in the padding).
//
// x is [items, channels, T, H, W] with three spatial axes (T and H may be 1), columns [items, channels · taps, rows · W'],
// for `rows` output rows (T' · H' of them in all, each of W' positions) from `first` on.
// Entry points:
//   unfold   x to columns: an invocation owns 4 neighbouring positions of one tap
//   fold     gradients of columns to x, added to what x's gradient holds unless `fresh`: an invocation owns one value of x
// Limits assumed: 256 invocations.

alias T = f32; // param
const WG = 64u; // param

struct Params {
  n: u32,            // invocations
  channels: u32,
  first: u32,        // first output row
  rows: u32,         // output rows
  offset: u32,       // first element of x
  fresh: u32,
  size: vec4<u32>,   // T, H, W of x
  taps: vec4<u32>,   // of the weight
  stride: vec4<u32>,
  before: vec4<u32>, // padding before each axis
  out: vec4<u32>,    // T', H', W'
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<T>;
@group(0) @binding(2) var<storage, read_write> columns: array<T>;
@group(0) @binding(1) var<storage, read> dcolumns: array<f32>;
@group(0) @binding(2) var<storage, read_write> dx: array<T>;

@compute @workgroup_size(WG)
fn unfold(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
  let i = (wg.y * groups.x + wg.x) * WG + lid;
  if (i >= p.n) { return; }
  // Remainders by multiplication: a division costs a software adapter eight scalar ones.
  let runs = (p.out.z + 3u) / 4u;
  let line = i / runs;
  let x0 = (i - line * runs) * 4u;
  let r = line / p.rows;
  let row = p.first + line - r * p.rows;
  let area = p.taps.y * p.taps.z;
  let volume = p.taps.x * area;
  let plane = r / volume; // item · channels + channel
  let tap = r - plane * volume;
  let kt = tap / area;
  let ky = (tap - kt * area) / p.taps.z;
  let kx = tap - kt * area - ky * p.taps.z;
  let ot = row / p.out.y;
  // What lies before an axis wraps to large numbers, and fails the test below as what lies behind it does.
  let t = ot * p.stride.x + kt - p.before.x;
  let v = (row - ot * p.out.y) * p.stride.y + ky - p.before.y;
  let inside = t < p.size.x && v < p.size.y;
  let start = p.offset + ((plane * p.size.x + t) * p.size.y + v) * p.size.z;
  for (var j = x0; j < min(x0 + 4u, p.out.z); j++) {
    let u = j * p.stride.z + kx - p.before.z;
    var value = T();
    if (inside && u < p.size.z) { value = x[start + u]; }
    columns[line * p.out.z + j] = value;
  }
}

// The output position at which tap k sees position i of an axis, or a large number.
fn seen_at(i: u32, k: u32, before: u32, stride: u32, positions: u32) -> u32 {
  let at = i + before - k;
  let o = at / stride;
  return select(0xffffffffu, o, i + before >= k && o * stride == at && o < positions);
}

@compute @workgroup_size(WG)
fn fold(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
  let i = (wg.y * groups.x + wg.x) * WG + lid;
  if (i >= p.n) { return; }
  let line = i / p.size.z;
  let u = i - line * p.size.z;
  let sheet = line / p.size.y;
  let v = line - sheet * p.size.y;
  let plane = sheet / p.size.x;
  let t = sheet - plane * p.size.x;
  var sum = 0.0;
  for (var kt = 0u; kt < p.taps.x; kt++) {
    let ot = seen_at(t, kt, p.before.x, p.stride.x, p.out.x);
    for (var ky = 0u; ky < p.taps.y; ky++) {
      let oy = seen_at(v, ky, p.before.y, p.stride.y, p.out.y);
      let row = ot * p.out.y + oy - p.first;
      if (ot == 0xffffffffu || oy == 0xffffffffu || row >= p.rows) { continue; }
      let k = ((plane * p.taps.x + kt) * p.taps.y + ky) * p.taps.z;
      for (var kx = 0u; kx < p.taps.z; kx++) {
        let ox = seen_at(u, kx, p.before.z, p.stride.z, p.out.z);
        if (ox != 0xffffffffu) { sum += dcolumns[((k + kx) * p.rows + row) * p.out.z + ox]; }
      }
    }
  }
  if (p.fresh == 0u) { sum += f32(dx[p.offset + i]); }
  dx[p.offset + i] = T(sum);
}
