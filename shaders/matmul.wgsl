// y[q, i, j] = act(Σ_k a[q, i, k] · b[q, k, j] + bias[j])
//
// a and b are read through strides: rows, columns and up to four batch axes with stride 0 where they repeat, so that
// transposed and broadcast operands need no copy. y's columns are contiguous. A long k may be cut into `split` shares:
// y is then f32 with one matrix per share, [batch, split, m, n], and `merge` adds the shares up.
// Entry points:
//   naive      any layout: an invocation owns one element of y. The plain text of the formula.
//   registers  software adapters: an invocation owns 8 x 4 elements and walks k by 4 x 4 blocks; no barriers
//   tiled      GPUs: a workgroup owns TILE x TILE elements, an invocation 4 x 4 of them, SIDE apart
//   skinny     GPUs, m <= 8: a workgroup owns COLUMNS columns; its invocations share k and meet in workgroup memory
//   merge      an invocation owns one element of y
// matmul_lanes.wgsl holds the variant for lavapipe. Limits assumed: 256 invocations, 8320 bytes of workgroup memory.

alias T = f32; // param
alias TY = f32; // param
const WG = 64u; // param
// The operand's k axis is the contiguous one, else the other axis is (or none).
const A_BY_K = true; // param
const B_BY_K = false; // param
// k does not divide by the step of the kernel.
const TAIL = false; // param

struct Params {
  m: u32, n: u32, k: u32,
  size: u32,        // elements of y
  tiles: u32,       // tiles of one matrix
  across: u32,      // tiles side by side
  split: u32,       // shares of k
  chunk: u32,       // k of one share
  first: u32,       // first share (over all matrices) of this launch
  has_bias: u32,    // 0 none, 1 one value per column, 2 one per row
  activation: u32,  // 0 none, 1 geluTanh, 2 silu
  batch: vec4<u32>, // sizes of the batch axes, innermost last
  a: vec4<u32>,     // offset, row stride, column stride
  b: vec4<u32>,     // offset, row stride, column stride
  to: vec4<u32>,    // y's offset, row stride, matrix stride
  a_batch: vec4<u32>,
  b_batch: vec4<u32>,
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> a: array<T>;
@group(0) @binding(2) var<storage, read> b: array<T>;
@group(0) @binding(3) var<storage, read> bias: array<T>;
@group(0) @binding(4) var<storage, read_write> y: array<TY>;
@group(0) @binding(1) var<storage, read> a4: array<vec4<T>>;
@group(0) @binding(2) var<storage, read> b4: array<vec4<T>>;
@group(0) @binding(1) var<storage, read> shares: array<f32>;

// WGSL's own tanh overflows to NaN on some drivers.
fn gelu_tanh(v: f32) -> f32 { return 0.5 * v * (1.0 + tanh(clamp(0.7978845608028654 * (v + 0.044715 * v * v * v), -15.0, 15.0))); }
fn silu(v: f32) -> f32 {
  let e = exp(-abs(v));
  return v * select(e, 1.0, v >= 0.0) / (1.0 + e);
}
fn finish(sum: f32, row: u32, column: u32) -> f32 {
  var v = sum;
  if (p.has_bias != 0u) { v += f32(bias[select(column, row, p.has_bias == 2u)]); }
  if (p.activation == 1u) { return gelu_tanh(v); }
  if (p.activation == 2u) { return silu(v); }
  return v;
}
fn y_at(matrix: u32, row: u32, column: u32) -> u32 { return p.to.x + matrix * p.to.z + row * p.to.y + column; }

// First elements of matrix `index` of the batch in a and in b.
fn origin(index: u32) -> vec2<u32> {
  var q = vec4<u32>(0u, 0u, 0u, index);
  if (p.batch.z > 1u) {
    q = vec4<u32>(
      index / (p.batch.y * p.batch.z * p.batch.w), index / (p.batch.z * p.batch.w) % p.batch.y,
      index / p.batch.w % p.batch.z, index % p.batch.w);
  }
  let oa = q * p.a_batch;
  let ob = q * p.b_batch;
  return vec2<u32>(p.a.x + oa.x + oa.y + oa.z + oa.w, p.b.x + ob.x + ob.y + ob.z + ob.w);
}

@compute @workgroup_size(WG)
fn naive(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
  let i = (wg.y * groups.x + wg.x) * WG + lid;
  if (i >= p.size) { return; }
  let column = i % p.n;
  let row = i / p.n % p.m;
  let matrix = i / (p.n * p.m);
  var at = origin(matrix) + vec2<u32>(row * p.a.y, column * p.b.z);
  var sum = 0.0;
  for (var k = 0u; k < p.k; k++) {
    sum += f32(a[at.x]) * f32(b[at.y]);
    at += vec2<u32>(p.a.z, p.b.y);
  }
  y[y_at(matrix, row, column)] = TY(finish(sum, row, column));
}

// Four values from `at` on, `step` apart: one load where the step is 1 and all addresses divide by 4.
fn a_at(at: u32, step: u32) -> vec4<f32> { return vec4<f32>(a4[at / 4u]); } // param
fn b_at(at: u32, step: u32) -> vec4<f32> { return vec4<f32>(b4[at / 4u]); } // param

// sum + x · w for one row x of a block of a.
fn row_product(sum: vec4<f32>, x: vec4<f32>, w: mat4x4<f32>) -> vec4<f32> {
  return fma(vec4<f32>(x.w), w[3], fma(vec4<f32>(x.z), w[2], fma(vec4<f32>(x.y), w[1], fma(vec4<f32>(x.x), w[0], sum))));
}
// The block with zeros in the columns that lie beyond the end of k.
fn ended(w: mat4x4<f32>, inside: vec4<bool>) -> mat4x4<f32> {
  let z = vec4<f32>();
  return mat4x4<f32>(select(z, w[0], inside.x), select(z, w[1], inside.y), select(z, w[2], inside.z), select(z, w[3], inside.w));
}

// No index varies here: SwiftShader keeps what is indexed by a variable in memory, at a third of the speed.
@compute @workgroup_size(8)
fn registers(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
  let tile = wg.y * groups.x + wg.x;
  let share = p.first + wg.z;
  let m0 = tile / p.across * 8u;
  let n0 = (tile % p.across * 8u + lid) * 4u;
  if (tile >= p.tiles || n0 >= p.n) { return; }
  let start = origin(share / p.split);
  let last = vec4<u32>(p.m - 1u);
  let i = vec4<u32>(0u, 1u, 2u, 3u);
  // Beyond an edge the last row or column is read again, and dropped when y is written.
  let high = start.x + select(vec4<u32>(m0) + i * p.a.z, min(m0 + i, last) * p.a.y, A_BY_K);
  let low = start.x + select(min(vec4<u32>(m0 + 4u), last) / 4u * 4u + i * p.a.z, min(m0 + 4u + i, last) * p.a.y, A_BY_K);
  let side = start.y + select(vec4<u32>(n0) + i * p.b.y, min(n0 + i, vec4<u32>(p.n - 1u)) * p.b.z, B_BY_K);
  let begin = share % p.split * p.chunk;
  let end = min(begin + p.chunk, p.k);
  var c0: vec4<f32>; var c1: vec4<f32>; var c2: vec4<f32>; var c3: vec4<f32>;
  var c4: vec4<f32>; var c5: vec4<f32>; var c6: vec4<f32>; var c7: vec4<f32>;
  for (var k = begin; k < end; k += 4u) {
    let ka = k * p.a.z;
    let kb = k * p.b.y;
    var top = mat4x4<f32>(a_at(high.x + ka, p.a.z), a_at(high.y + ka, p.a.z), a_at(high.z + ka, p.a.z), a_at(high.w + ka, p.a.z));
    var bottom = mat4x4<f32>(a_at(low.x + ka, p.a.z), a_at(low.y + ka, p.a.z), a_at(low.z + ka, p.a.z), a_at(low.w + ka, p.a.z));
    var w = mat4x4<f32>(b_at(side.x + kb, p.b.y), b_at(side.y + kb, p.b.y), b_at(side.z + kb, p.b.y), b_at(side.w + kb, p.b.y));
    // Each column of `top` and `bottom` becomes one row of a, each column of w one row (one k) of b.
    if (A_BY_K && TAIL) { top = transpose(top); bottom = transpose(bottom); }
    if (B_BY_K) { w = transpose(w); }
    if (TAIL) {
      // Both factors: zero times a NaN that lies beyond the end would not be zero.
      let inside = k + i < vec4<u32>(end);
      top = ended(top, inside);
      bottom = ended(bottom, inside);
      w = ended(w, inside);
    }
    if (!A_BY_K || TAIL) { top = transpose(top); bottom = transpose(bottom); }
    c0 = row_product(c0, top[0], w);
    c1 = row_product(c1, top[1], w);
    c2 = row_product(c2, top[2], w);
    c3 = row_product(c3, top[3], w);
    c4 = row_product(c4, bottom[0], w);
    c5 = row_product(c5, bottom[1], w);
    c6 = row_product(c6, bottom[2], w);
    c7 = row_product(c7, bottom[3], w);
  }
  for (var row = m0; row < min(m0 + 8u, p.m); row++) {
    let at = y_at(share, row, n0);
    y[at] = TY(finish(c0.x, row, n0));
    if (n0 + 1u < p.n) { y[at + 1u] = TY(finish(c0.y, row, n0 + 1u)); }
    if (n0 + 2u < p.n) { y[at + 2u] = TY(finish(c0.z, row, n0 + 2u)); }
    if (n0 + 3u < p.n) { y[at + 3u] = TY(finish(c0.w, row, n0 + 3u)); }
    c0 = c1; c1 = c2; c2 = c3; c3 = c4; c4 = c5; c5 = c6; c6 = c7;
  }
}

const TILE = 64u; // param
const SIDE = 16u; // param
const TILED = 256u; // param
const DEPTH = 16u;
// One column of padding: the writes of neighbouring invocations fall into different banks.
const PITCH = TILE + 1u;
var<workgroup> a_tile: array<f32, DEPTH * PITCH>;
var<workgroup> b_tile: array<f32, DEPTH * PITCH>;

@compute @workgroup_size(TILED)
fn tiled(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
  let tile = wg.y * groups.x + wg.x;
  if (tile >= p.tiles) { return; }
  let share = p.first + wg.z;
  let m0 = tile / p.across * TILE;
  let n0 = tile % p.across * TILE;
  let start = origin(share / p.split);
  let begin = share % p.split * p.chunk;
  let end = min(begin + p.chunk, p.k);
  let i = lid / SIDE;
  let j = lid % SIDE;
  var c: array<vec4<f32>, 4>;
  for (var k0 = begin; k0 < end; k0 += DEPTH) {
    for (var e = lid; e < TILE * DEPTH; e += TILED) {
      // Neighbouring invocations read along the contiguous axis.
      let at_a = select(vec2<u32>(e % TILE, e / TILE), vec2<u32>(e / DEPTH, e % DEPTH), A_BY_K);
      let at_b = select(vec2<u32>(e % TILE, e / TILE), vec2<u32>(e / DEPTH, e % DEPTH), B_BY_K);
      var va = 0.0;
      var vb = 0.0;
      if (m0 + at_a.x < p.m && k0 + at_a.y < end) { va = f32(a[start.x + (m0 + at_a.x) * p.a.y + (k0 + at_a.y) * p.a.z]); }
      if (n0 + at_b.x < p.n && k0 + at_b.y < end) { vb = f32(b[start.y + (k0 + at_b.y) * p.b.y + (n0 + at_b.x) * p.b.z]); }
      a_tile[at_a.y * PITCH + at_a.x] = va;
      b_tile[at_b.y * PITCH + at_b.x] = vb;
    }
    workgroupBarrier();
    for (var k = 0u; k < DEPTH; k++) {
      let at = k * PITCH;
      let w = vec4<f32>(b_tile[at + j], b_tile[at + j + SIDE], b_tile[at + j + 2u * SIDE], b_tile[at + j + 3u * SIDE]);
      c[0] = fma(vec4<f32>(a_tile[at + i]), w, c[0]);
      c[1] = fma(vec4<f32>(a_tile[at + i + SIDE]), w, c[1]);
      c[2] = fma(vec4<f32>(a_tile[at + i + 2u * SIDE]), w, c[2]);
      c[3] = fma(vec4<f32>(a_tile[at + i + 3u * SIDE]), w, c[3]);
    }
    workgroupBarrier();
  }
  for (var r = 0u; r < 4u; r++) {
    let row = m0 + i + r * SIDE;
    for (var s = 0u; s < 4u; s++) {
      let column = n0 + j + s * SIDE;
      if (row < p.m && column < p.n) { y[y_at(share, row, column)] = TY(finish(c[r][s], row, column)); }
    }
  }
}

// WG = COLUMNS · (invocations that share a column): 16 columns where b's columns are contiguous, 4 where its k is.
const COLUMNS = 16u; // param
const SKINNY_ROWS = 8u;
var<workgroup> parts: array<f32, SKINNY_ROWS * WG>;

@compute @workgroup_size(WG)
fn skinny(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
  let tile = wg.y * groups.x + wg.x;
  if (tile >= p.tiles) { return; }
  let share = p.first + wg.z;
  let start = origin(share / p.split);
  let sharers = WG / COLUMNS;
  let j = select(lid % COLUMNS, lid / sharers, B_BY_K);
  let slice = select(lid / COLUMNS, lid % sharers, B_BY_K);
  let column = tile * COLUMNS + j;
  let at_b = start.y + min(column, p.n - 1u) * p.b.z;
  let end = min((share % p.split + 1u) * p.chunk, p.k);
  var c: array<f32, SKINNY_ROWS>;
  for (var k = share % p.split * p.chunk + slice; k < end; k += sharers) {
    let w = f32(b[at_b + k * p.b.y]);
    for (var r = 0u; r < SKINNY_ROWS; r++) {
      if (r < p.m) { c[r] = fma(f32(a[start.x + r * p.a.y + k * p.a.z]), w, c[r]); }
    }
  }
  for (var r = 0u; r < SKINNY_ROWS; r++) { parts[(r * sharers + slice) * COLUMNS + j] = c[r]; }
  workgroupBarrier();
  for (var e = lid; e < p.m * COLUMNS; e += WG) {
    let to = tile * COLUMNS + e % COLUMNS;
    if (to < p.n) {
      var sum = 0.0;
      for (var s = 0u; s < sharers; s++) { sum += parts[(e / COLUMNS * sharers + s) * COLUMNS + e % COLUMNS]; }
      y[y_at(share, e / COLUMNS, to)] = TY(finish(sum, e / COLUMNS, to));
    }
  }
}

@compute @workgroup_size(WG)
fn merge(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
  let i = (wg.y * groups.x + wg.x) * WG + lid;
  if (i >= p.size) { return; }
  let area = p.m * p.n;
  var at = i / area * p.split * area + i % area;
  var sum = 0.0;
  for (var s = 0u; s < p.split; s++) {
    sum += shares[at];
    at += area;
  }
  y[y_at(i / area, i / p.n % p.m, i % p.n)] = TY(finish(sum, i / p.n % p.m, i % p.n));
}
