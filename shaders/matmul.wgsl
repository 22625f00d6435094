// y[q, i, j] = act(Σ_k a[q, i, k] · b[q, k, j] + bias[j])
//
// a and b are read through strides: rows, columns and up to four batch axes with stride 0 where they repeat, so that
// transposed and broadcast operands need no copy. y's columns are contiguous. A long k may be cut into `split` shares:
// y is then f32 with one matrix per share, [batch, split, m, n], and `merge` adds the shares up.
// Entry points:
//   naive      any layout: an invocation owns one element of y. The plain text of the formula.
//   registers  software adapters: a workgroup owns 16 x 8·LANE elements, an invocation 16 x 8, LANE apart; no barriers
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
// k is odd.
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
  // For what a compiled function does to a result before it is stored: places of further tensors, and constants.
  extra: array<vec4<u32>, 4>,
  constants: array<vec4<u32>, 4>,
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> a: array<T>;
@group(0) @binding(2) var<storage, read> b: array<T>;
@group(0) @binding(3) var<storage, read> bias: array<T>;
@group(0) @binding(4) var<storage, read_write> y: array<TY>;
@group(0) @binding(1) var<storage, read> shares: array<f32>;

// WGSL's own tanh overflows to NaN on some drivers.
fn gelu_tanh(v: f32) -> f32 { return 0.5 * v * (1.0 + tanh(clamp(0.7978845608028654 * (v + 0.044715 * v * v * v), -15.0, 15.0))); }
fn silu(v: f32) -> f32 {
  let e = exp(-abs(v));
  return v * select(e, 1.0, v >= 0.0) / (1.0 + e);
}
fn act(v: f32) -> f32 {
  if (p.activation == 1u) { return gelu_tanh(v); }
  if (p.activation == 2u) { return silu(v); }
  return v;
}
fn finish(sum: f32, row: u32, column: u32) -> f32 {
  var v = sum;
  if (p.has_bias != 0u) { v += f32(bias[select(column, row, p.has_bias == 2u)]); }
  return act(v);
}
fn y_at(matrix: u32, row: u32, column: u32) -> u32 { return p.to.x + matrix * p.to.z + row * p.to.y + column; }

// One value of y, element `at` of all.
fn keep(v: f32, row: u32, column: u32, at: u32) { y[at] = TY(v); } // param

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

// Two values of k of one row of a, the second 0 where k is odd and ends.
fn a_pair(at: u32, odd: bool) -> vec2<f32> {
  let second = f32(a[at + p.a.z]);
  return vec2<f32>(f32(a[at]), select(second, 0.0, odd));
}
// One value of k for columns c .. c + 3 of a lane, LANE apart from each other.
fn b_four(at: vec4<u32>) -> vec4<f32> { return vec4<f32>(f32(b[at.x]), f32(b[at.y]), f32(b[at.z]), f32(b[at.w])); }
// sum + x · w for one row of y: x two values of k, w their eight columns.
fn row_product(sum: mat2x4<f32>, x: vec2<f32>, w: mat4x4<f32>) -> mat2x4<f32> {
  return mat2x4<f32>(
    fma(vec4<f32>(x.y), w[2], fma(vec4<f32>(x.x), w[0], sum[0])), fma(vec4<f32>(x.y), w[3], fma(vec4<f32>(x.x), w[1], sum[1])));
}
fn finished(v: vec4<f32>, row: u32) -> vec4<f32> {
  let shift = select(0.0, f32(bias[min(row, p.m - 1u)]), p.has_bias == 2u);
  return vec4<f32>(act(v.x + shift), act(v.y + shift), act(v.z + shift), act(v.w + shift));
}
fn put(matrix: u32, row: u32, column: u32, v: mat2x4<f32>) {
  // Rows beyond the edge are the last row once more: they write what is there already.
  let at = p.to.x + matrix * p.to.z + min(row, p.m - 1u) * p.to.y + column;
  if (column < p.n) { y[at] = TY(v[0].x); }
  if (column + LANE < p.n) { y[at + LANE] = TY(v[0].y); }
  if (column + 2u * LANE < p.n) { y[at + 2u * LANE] = TY(v[0].z); }
  if (column + 3u * LANE < p.n) { y[at + 3u * LANE] = TY(v[0].w); }
  if (column + 4u * LANE < p.n) { y[at + 4u * LANE] = TY(v[1].x); }
  if (column + 5u * LANE < p.n) { y[at + 5u * LANE] = TY(v[1].y); }
  if (column + 6u * LANE < p.n) { y[at + 6u * LANE] = TY(v[1].z); }
  if (column + 7u * LANE < p.n) { y[at + 7u * LANE] = TY(v[1].w); }
}

// On SwiftShader a load costs as much as four multiplications whatever it loads, but less where all invocations of a
// subgroup load one value or neighbouring ones; and each variable that a loop changes costs as much as a multiplication.
// So a tile is large, columns of neighbouring invocations are neighbours, and k is walked by 2.
// No index varies here: SwiftShader keeps what is indexed by a variable in memory, at a third of the speed.
const LANE = 4u; // param

@compute @workgroup_size(LANE)
fn registers(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
  let tile = wg.y * groups.x + wg.x;
  if (tile >= p.tiles) { return; }
  let share = p.first + wg.z;
  let m0 = tile / p.across * 16u;
  let n0 = tile % p.across * LANE * 8u + lid;
  let start = origin(share / p.split);
  let last = vec4<u32>(p.m - 1u);
  let four = vec4<u32>(0u, 1u, 2u, 3u);
  // Beyond an edge the last row or column is read again.
  let rows0 = start.x + min(m0 + four, last) * p.a.y;
  let rows1 = start.x + min(m0 + 4u + four, last) * p.a.y;
  let rows2 = start.x + min(m0 + 8u + four, last) * p.a.y;
  let rows3 = start.x + min(m0 + 12u + four, last) * p.a.y;
  let columns0 = min(n0 + four * LANE, vec4<u32>(p.n - 1u));
  let columns1 = min(n0 + (four + 4u) * LANE, vec4<u32>(p.n - 1u));
  let left = start.y + columns0 * p.b.z;
  let right = start.y + columns1 * p.b.z;
  let begin = share % p.split * p.chunk;
  let end = min(begin + p.chunk, p.k);
  var bias0: mat2x4<f32>;
  if (p.has_bias == 1u) {
    bias0 = mat2x4<f32>(
      f32(bias[columns0.x]), f32(bias[columns0.y]), f32(bias[columns0.z]), f32(bias[columns0.w]),
      f32(bias[columns1.x]), f32(bias[columns1.y]), f32(bias[columns1.z]), f32(bias[columns1.w]));
  }
  var c0 = bias0; var c1 = bias0; var c2 = bias0; var c3 = bias0;
  var c4 = bias0; var c5 = bias0; var c6 = bias0; var c7 = bias0;
  var c8 = bias0; var c9 = bias0; var c10 = bias0; var c11 = bias0;
  var c12 = bias0; var c13 = bias0; var c14 = bias0; var c15 = bias0;
  for (var k = begin; k < end; k += 2u) {
    // Beyond an odd end both factors are zero: one alone would not silence a NaN that lies there.
    let odd = TAIL && k + 1u == end;
    let ka = k * p.a.z;
    let kb = k * p.b.y;
    let next = kb + p.b.y;
    var w = mat4x4<f32>(b_four(left + kb), b_four(right + kb), b_four(left + next), b_four(right + next));
    if (TAIL && odd) {
      w[2] = vec4<f32>();
      w[3] = vec4<f32>();
    }
    c0 = row_product(c0, a_pair(rows0.x + ka, odd), w);
    c1 = row_product(c1, a_pair(rows0.y + ka, odd), w);
    c2 = row_product(c2, a_pair(rows0.z + ka, odd), w);
    c3 = row_product(c3, a_pair(rows0.w + ka, odd), w);
    c4 = row_product(c4, a_pair(rows1.x + ka, odd), w);
    c5 = row_product(c5, a_pair(rows1.y + ka, odd), w);
    c6 = row_product(c6, a_pair(rows1.z + ka, odd), w);
    c7 = row_product(c7, a_pair(rows1.w + ka, odd), w);
    c8 = row_product(c8, a_pair(rows2.x + ka, odd), w);
    c9 = row_product(c9, a_pair(rows2.y + ka, odd), w);
    c10 = row_product(c10, a_pair(rows2.z + ka, odd), w);
    c11 = row_product(c11, a_pair(rows2.w + ka, odd), w);
    c12 = row_product(c12, a_pair(rows3.x + ka, odd), w);
    c13 = row_product(c13, a_pair(rows3.y + ka, odd), w);
    c14 = row_product(c14, a_pair(rows3.z + ka, odd), w);
    c15 = row_product(c15, a_pair(rows3.w + ka, odd), w);
  }
  if (p.activation != 0u || p.has_bias == 2u) {
    // All rows pass through the first.
    for (var r = 0u; r < 16u; r++) {
      let done = mat2x4<f32>(finished(c0[0], m0 + r), finished(c0[1], m0 + r));
      c0 = c1; c1 = c2; c2 = c3; c3 = c4; c4 = c5; c5 = c6; c6 = c7; c7 = c8; c8 = c9; c9 = c10; c10 = c11; c11 = c12; c12 = c13; c13 = c14; c14 = c15;
      c15 = done;
    }
  }
  for (var row = m0; row < min(m0 + 16u, p.m); row += 4u) {
    put(share, row + 0u, n0, c0);
    put(share, row + 1u, n0, c1);
    put(share, row + 2u, n0, c2);
    put(share, row + 3u, n0, c3);
    c0 = c4; c1 = c5; c2 = c6; c3 = c7;
    c4 = c8; c5 = c9; c6 = c10; c7 = c11;
    c8 = c12; c9 = c13; c10 = c14; c11 = c15;
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
      if (row < p.m && column < p.n) { keep(finish(c[r][s], row, column), row, column, y_at(share, row, column)); }
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
