// A convolution without a matrix of columns: y[q, o, p] = bias[o] + Σ_k w[o, k] · x[q, tap(k) + seen(p)], where k counts
// channels and taps, p output positions. With the padding in x (or none), the place that tap k sees at p is a sum of one
// number that depends on k and one that depends on p, so that x is read as matmul_lanes.wgsl reads its b.
//
// x [items, channels, T, H, W] with its padding; w [outputs, channels · taps]; y [items, outputs, positions]; all dense.
// A workgroup is one subgroup of LANES lanes and owns ROWS outputs x 4·LANES positions of an item, a lane ROWS x 4.
// Limits assumed: subgroups of exactly LANES lanes.
enable subgroups;

alias T = f32; // param
const LANES = 8u; // param
const ROWS = 16u; // param

struct Params {
  outputs: u32,
  positions: u32,
  depth: u32,        // channels · taps
  tiles: u32,        // tiles of one item
  across: u32,       // tiles side by side
  first: u32,        // first item of this launch
  offset: u32,       // first element of x
  item: u32,         // elements of an item of x
  has_bias: u32,
  size: vec4<u32>,   // T, H, W of x
  taps: vec4<u32>,
  stride: vec4<u32>,
  out: vec4<u32>,    // T', H', W'
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<T>;
@group(0) @binding(2) var<storage, read> w: array<T>;
@group(0) @binding(3) var<storage, read> bias: array<T>;
@group(0) @binding(4) var<storage, read_write> y: array<T>;

// Element of an item's first channel that the first tap sees at a position. Remainders by multiplication: a division costs
// a software adapter eight scalar ones.
fn seen(position: u32) -> u32 {
  let line = position / p.out.z;
  let u = position - line * p.out.z;
  let t = line / p.out.y;
  let v = line - t * p.out.y;
  return (t * p.stride.x * p.size.y + v * p.stride.y) * p.size.z + u * p.stride.z;
}

@compute @workgroup_size(LANES)
fn lanes(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let tile = wg.y * groups.x + wg.x;
  if (tile >= p.tiles) { return; }
  let q = p.first + wg.z;
  let m0 = tile / p.across * ROWS;
  let n0 = (tile % p.across * LANES + lane) * 4u;
  // Beyond an edge the last row or position is read again, and dropped when y is written.
  var at_w: array<u32, ROWS / LANES>;
  for (var i = 0u; i < ROWS / LANES; i++) { at_w[i] = min(m0 + i * LANES + lane, p.outputs - 1u) * p.depth; }
  var at_x: vec4<u32>;
  for (var j = 0u; j < 4u; j++) { at_x[j] = p.offset + q * p.item + seen(min(n0 + j, p.positions - 1u)); }
  var c: array<vec4<f32>, ROWS>;
  if (p.has_bias != 0u) {
    for (var r = 0u; r < ROWS; r++) { c[r] = vec4<f32>(f32(bias[min(m0 + r, p.outputs - 1u)])); }
  }
  // The next tap, and steps from one to the next: within a row of taps, to the next row, plane and channel.
  let last = p.taps.xyz - 1u;
  let row = p.size.z - last.z;
  let plane = (p.size.y - last.y - 1u) * p.size.z + row;
  let channel = (p.size.x - last.x - 1u) * p.size.y * p.size.z + plane;
  let depth = p.depth;
  var tap = vec3<u32>();
  var to = 0u;
  for (var k = 0u; k < depth; k += 2u) {
    // Beyond an odd end both factors are zero: one alone would not silence a NaN that lies there.
    let odd = k + 1u == depth;
    var pair: array<vec2<f32>, ROWS / LANES>;
    for (var i = 0u; i < ROWS / LANES; i++) {
      let second = f32(w[at_w[i] + k + 1u]);
      pair[i] = vec2<f32>(f32(w[at_w[i] + k]), select(second, 0.0, odd));
    }
    var b: array<vec4<f32>, 2>;
    for (var i = 0u; i < 2u; i++) {
      let at = at_x + to;
      b[i] = vec4<f32>(f32(x[at.x]), f32(x[at.y]), f32(x[at.z]), f32(x[at.w]));
      let ends = tap == last;
      to += select(1u, select(row, select(plane, channel, ends.x), ends.y), ends.z);
      tap.x = select(tap.x, select(tap.x + 1u, 0u, ends.x), ends.y && ends.z);
      tap.y = select(tap.y, select(tap.y + 1u, 0u, ends.y), ends.z);
      tap.z = select(tap.z + 1u, 0u, ends.z);
    }
    b[1] = select(b[1], vec4<f32>(), odd);
    for (var r = 0u; r < ROWS; r++) {
      let v = subgroupShuffle(pair[r / LANES], r % LANES);
      c[r] = fma(vec4<f32>(v.y), b[1], fma(vec4<f32>(v.x), b[0], c[r]));
    }
  }
  if (n0 >= p.positions) { return; }
  var at = (q * p.outputs + m0) * p.positions + n0;
  let rows = min(ROWS, p.outputs - m0);
  for (var r = 0u; r < rows; r += 4u) {
    for (var i = 0u; i < 4u; i++) {
      for (var j = 0u; j < 4u; j++) {
        if (r + i < rows && n0 + j < p.positions) { y[at + i * p.positions + j] = T(c[i][j]); }
      }
    }
    at += 4u * p.positions;
    // All rows leave through the first four: an index that varies would keep c out of registers.
    for (var i = 4u; i < ROWS; i++) { c[i - 4u] = c[i]; }
  }
}
