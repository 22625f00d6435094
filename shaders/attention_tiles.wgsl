// Attention for GPUs: names, formulas and layouts are those of attention.wgsl, the running maximum and sum those of
// https://arxiv.org/abs/2205.14135.
//
// A workgroup owns ROWS rows of the result (keys in backward_key) of each of PACK heads; an invocation owns one row and
// holds it in registers. The other axis is walked in tiles of TILE, which the workgroup first copies to its own memory.
// All columns are read as vec4: D, E, strides and offsets divide by 4.
// Limits assumed: 64 invocations, 8 buffers, 16 KiB of workgroup memory for PACK * TILE * (D + E + 2) elements.

alias T = f32; // param
// Elements of the mask; MASK: 0 none, 1 the same for all rows, 2 any; ADDS: it is added to the score.
alias M = u32; // param
const MASK = 0u; // param
const ADDS = false; // param
const D4 = 4u; // param
const E4 = 4u; // param
const ROWS = 64u; // param
// A multiple of 4.
const TILE = 8u; // param
const WG = 64u;
const PACK = WG / ROWS;

struct Params {
  rows: u32,           // N, queries of a head
  keys: u32,           // L
  depth: u32,          // D, columns of q and k
  width: u32,          // E, columns of v and y
  count: u32,          // heads in all: of q, or of k where one invocation owns a key
  blocks: u32,         // workgroups (naive: invocations) for each of them
  group: u32,          // heads of q that share a head of k and v
  causal: u32,         // 1: row i attends to keys 0 .. i
  scale: f32,
  lead: vec4<u32>,     // three leading axes, then the heads of q
  // Each tensor: strides of the leading axes and of heads; then first element, stride of rows (or keys), mask: of keys.
  q: array<vec4<u32>, 2>,
  k: array<vec4<u32>, 2>,
  v: array<vec4<u32>, 2>,
  mask: array<vec4<u32>, 2>,
  y: array<vec4<u32>, 2>,
  dy: array<vec4<u32>, 2>,
  dq: array<vec4<u32>, 2>,
  dk: array<vec4<u32>, 2>,
  dv: array<vec4<u32>, 2>,
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> q4: array<vec4<T>>;
@group(0) @binding(2) var<storage, read> k4: array<vec4<T>>;
@group(0) @binding(3) var<storage, read> v4: array<vec4<T>>;
@group(0) @binding(4) var<storage, read> mask: array<M>;
@group(0) @binding(5) var<storage, read_write> y4: array<vec4<T>>;
@group(0) @binding(6) var<storage, read_write> stats: array<vec2<f32>>;
@group(0) @binding(5) var<storage, read> dy4: array<vec4<T>>;
@group(0) @binding(7) var<storage, read> out4: array<vec4<T>>;
@group(0) @binding(8) var<storage, read_write> dq4: array<vec4<T>>;
@group(0) @binding(6) var<storage, read> known: array<vec2<f32>>;
// dk and dv share a buffer
@group(0) @binding(7) var<storage, read_write> dkv4: array<vec4<T>>;

// Keys and values; q and dy with the statistics of their rows in backward_key.
var<workgroup> tile_a: array<vec4<f32>, PACK * TILE * D4>;
var<workgroup> tile_b: array<vec4<f32>, PACK * TILE * E4>;
var<workgroup> tile_stats: array<vec2<f32>, PACK * TILE>;

// Scores at or below LOW are masked: their weight is exactly 0.
const LOW = -3.0e38;

fn position(i: u32, heads: u32) -> vec4<u32> {
  let w = i % heads; var rest = i / heads;
  let z = rest % p.lead.z; rest = rest / p.lead.z;
  return vec4<u32>(rest / p.lead.y, rest % p.lead.y, z, w);
}
fn first(pos: vec4<u32>, t: array<vec4<u32>, 2>) -> u32 {
  let m = pos * t[0];
  return m.x + m.y + m.z + m.w + t[1].x;
}
// The position of a head of q to that of the head of k and v it reads.
fn shared_head(pos: vec4<u32>) -> vec4<u32> { return vec4<u32>(pos.xyz, pos.w / p.group); }
// Where the row statistics of a head of q begin.
fn statistics(pos: vec4<u32>) -> u32 { return (((pos.x * p.lead.y + pos.y) * p.lead.z + pos.z) * p.lead.w + pos.w) * p.rows; }
fn masked(score: f32, m: M) -> f32 {
  if (ADDS) { return score + f32(m); }
  return select(score, LOW, m == M());
}
fn weights(s: vec4<f32>, normal: vec4<f32>) -> vec4<f32> { return select(exp(s - normal), vec4<f32>(), s <= vec4<f32>(LOW)); }

// The next `count` rows of a tensor, from element `start` on, into the part of a tile that belongs to this head. Rows are
// used in fours: the last ones may be beyond the end, and 0.
fn fill_a_k(start: u32, stride: u32, count: u32, r: u32, part: u32) {
  for (var n = r; n < min(TILE, count + 3u) * D4; n += ROWS) {
    var value = vec4<f32>();
    if (n / D4 < count) { value = vec4<f32>(k4[(start + n / D4 * stride) / 4u + n % D4]); }
    tile_a[part * TILE * D4 + n] = value;
  }
}
fn fill_a_q(start: u32, stride: u32, count: u32, r: u32, part: u32) {
  for (var n = r; n < min(TILE, count + 3u) * D4; n += ROWS) {
    var value = vec4<f32>();
    if (n / D4 < count) { value = vec4<f32>(q4[(start + n / D4 * stride) / 4u + n % D4]); }
    tile_a[part * TILE * D4 + n] = value;
  }
}
fn fill_b_v(start: u32, stride: u32, count: u32, r: u32, part: u32) {
  for (var n = r; n < min(TILE, count + 3u) * E4; n += ROWS) {
    var value = vec4<f32>();
    if (n / E4 < count) { value = vec4<f32>(v4[(start + n / E4 * stride) / 4u + n % E4]); }
    tile_b[part * TILE * E4 + n] = value;
  }
}
fn fill_b_dy(start: u32, stride: u32, count: u32, r: u32, part: u32) {
  for (var n = r; n < min(TILE, count + 3u) * E4; n += ROWS) {
    var value = vec4<f32>();
    if (n / E4 < count) { value = vec4<f32>(dy4[(start + n / E4 * stride) / 4u + n % E4]); }
    tile_b[part * TILE * E4 + n] = value;
  }
}

// Scores of row i with keys j .. j + 3, or of rows i .. i + 3 with key j: what is hidden becomes LOW.
fn scores(product: vec4<f32>, i: vec4<u32>, j: vec4<u32>, m0: u32) -> vec4<f32> {
  var s = product * p.scale;
  if (MASK > 0u) {
    var at = m0 + min(j, vec4<u32>(p.keys - 1u)) * p.mask[1].z;
    if (MASK > 1u) { at += min(i, vec4<u32>(p.rows - 1u)) * p.mask[1].y; }
    s = vec4<f32>(masked(s.x, mask[at.x]), masked(s.y, mask[at.y]), masked(s.z, mask[at.z]), masked(s.w, mask[at.w]));
  }
  let hidden = (j >= vec4<u32>(p.keys)) | (i >= vec4<u32>(p.rows)) | ((j > i) & vec4<bool>(p.causal != 0u));
  return select(s, vec4<f32>(LOW), hidden);
}

const FOUR = vec4<u32>(0u, 1u, 2u, 3u);

@compute @workgroup_size(WG)
fn forward(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
  let task = wg.y * groups.x + wg.x;
  if (task / p.blocks * PACK >= p.count) { return; }
  let part = lid / ROWS; let r = lid % ROWS;
  let head = task / p.blocks * PACK + part;
  let pos = position(min(head, p.count - 1u), p.lead.w);
  let i0 = task % p.blocks * ROWS;
  let i = min(i0 + r, p.rows - 1u);
  let k0 = first(shared_head(pos), p.k); let v0 = first(shared_head(pos), p.v); let m0 = first(pos, p.mask);
  let qi = (first(pos, p.q) + i * p.q[1].y) / 4u;
  var row = array<vec4<f32>, D4>();
  for (var c = 0u; c < D4; c++) { row[c] = vec4<f32>(q4[qi + c]); }
  var acc = array<vec4<f32>, E4>();
  var high = LOW;
  var total = 0.0;
  let end = select(p.keys, min(p.keys, i0 + ROWS), p.causal != 0u);
  for (var j0 = 0u; j0 < end; j0 += TILE) {
    workgroupBarrier();
    fill_a_k(k0 + j0 * p.k[1].y, p.k[1].y, p.keys - j0, r, part);
    fill_b_v(v0 + j0 * p.v[1].y, p.v[1].y, p.keys - j0, r, part);
    workgroupBarrier();
    for (var t = 0u; t < min(TILE, end - j0); t += 4u) {
      let a = (part * TILE + t) * D4; let b = (part * TILE + t) * E4;
      var product = vec4<f32>();
      for (var c = 0u; c < D4; c++) {
        product += vec4<f32>(dot(row[c], tile_a[a + c]), dot(row[c], tile_a[a + D4 + c]), dot(row[c], tile_a[a + 2u * D4 + c]), dot(row[c], tile_a[a + 3u * D4 + c]));
      }
      let s = scores(product, vec4<u32>(i), j0 + t + FOUR, m0);
      let next = max(high, max(max(s.x, s.y), max(s.z, s.w)));
      let shrink = exp(high - next);
      let w = weights(s, vec4<f32>(next));
      high = next;
      total = total * shrink + w.x + w.y + w.z + w.w;
      for (var c = 0u; c < E4; c++) {
        acc[c] = acc[c] * shrink + w.x * tile_b[b + c] + w.y * tile_b[b + E4 + c] + w.z * tile_b[b + 2u * E4 + c] + w.w * tile_b[b + 3u * E4 + c];
      }
    }
  }
  if (head >= p.count || i0 + r >= p.rows) { return; }
  let inverse = select(1.0 / total, 0.0, total == 0.0);
  let yi = (first(pos, p.y) + i * p.y[1].y) / 4u;
  for (var c = 0u; c < E4; c++) { y4[yi + c] = vec4<T>(acc[c] * inverse); }
  stats[statistics(pos) + i] = vec2<f32>(select(high + log(total), 0.0, total == 0.0), 0.0);
}

@compute @workgroup_size(WG)
fn backward_query(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
  let task = wg.y * groups.x + wg.x;
  if (task / p.blocks * PACK >= p.count) { return; }
  let part = lid / ROWS; let r = lid % ROWS;
  let head = task / p.blocks * PACK + part;
  let pos = position(min(head, p.count - 1u), p.lead.w);
  let i0 = task % p.blocks * ROWS;
  let i = min(i0 + r, p.rows - 1u);
  let mine = head < p.count && i0 + r < p.rows;
  let k0 = first(shared_head(pos), p.k); let v0 = first(shared_head(pos), p.v); let m0 = first(pos, p.mask);
  let qi = (first(pos, p.q) + i * p.q[1].y) / 4u;
  let dyi = (first(pos, p.dy) + i * p.dy[1].y) / 4u;
  let yi = (first(pos, p.y) + i * p.y[1].y) / 4u;
  var row = array<vec4<f32>, D4>();
  for (var c = 0u; c < D4; c++) { row[c] = vec4<f32>(q4[qi + c]); }
  var grad = array<vec4<f32>, E4>();
  var delta = 0.0;
  for (var c = 0u; c < E4; c++) {
    grad[c] = vec4<f32>(dy4[dyi + c]);
    delta += dot(grad[c], vec4<f32>(out4[yi + c]));
  }
  let normal = stats[statistics(pos) + i].x;
  if (mine) { stats[statistics(pos) + i].y = delta; }
  var acc = array<vec4<f32>, D4>();
  let end = select(p.keys, min(p.keys, i0 + ROWS), p.causal != 0u);
  for (var j0 = 0u; j0 < end; j0 += TILE) {
    workgroupBarrier();
    fill_a_k(k0 + j0 * p.k[1].y, p.k[1].y, p.keys - j0, r, part);
    fill_b_v(v0 + j0 * p.v[1].y, p.v[1].y, p.keys - j0, r, part);
    workgroupBarrier();
    for (var t = 0u; t < min(TILE, end - j0); t += 4u) {
      let a = (part * TILE + t) * D4; let b = (part * TILE + t) * E4;
      var product = vec4<f32>();
      for (var c = 0u; c < D4; c++) {
        product += vec4<f32>(dot(row[c], tile_a[a + c]), dot(row[c], tile_a[a + D4 + c]), dot(row[c], tile_a[a + 2u * D4 + c]), dot(row[c], tile_a[a + 3u * D4 + c]));
      }
      var dw = vec4<f32>();
      for (var c = 0u; c < E4; c++) {
        dw += vec4<f32>(dot(grad[c], tile_b[b + c]), dot(grad[c], tile_b[b + E4 + c]), dot(grad[c], tile_b[b + 2u * E4 + c]), dot(grad[c], tile_b[b + 3u * E4 + c]));
      }
      let ds = weights(scores(product, vec4<u32>(i), j0 + t + FOUR, m0), vec4<f32>(normal)) * (dw - delta);
      for (var c = 0u; c < D4; c++) {
        acc[c] += ds.x * tile_a[a + c] + ds.y * tile_a[a + D4 + c] + ds.z * tile_a[a + 2u * D4 + c] + ds.w * tile_a[a + 3u * D4 + c];
      }
    }
  }
  if (!mine) { return; }
  let dqi = (first(pos, p.dq) + i * p.dq[1].y) / 4u;
  for (var c = 0u; c < D4; c++) { dq4[dqi + c] = vec4<T>(acc[c] * p.scale); }
}

@compute @workgroup_size(WG)
fn backward_key(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
  let task = wg.y * groups.x + wg.x;
  if (task / p.blocks * PACK >= p.count) { return; }
  let part = lid / ROWS; let r = lid % ROWS;
  let head = task / p.blocks * PACK + part;
  let shared_pos = position(min(head, p.count - 1u), p.lead.w / p.group);
  let j0 = task % p.blocks * ROWS;
  let j = min(j0 + r, p.keys - 1u);
  let kj = (first(shared_pos, p.k) + j * p.k[1].y) / 4u;
  let vj = (first(shared_pos, p.v) + j * p.v[1].y) / 4u;
  var key = array<vec4<f32>, D4>();
  for (var c = 0u; c < D4; c++) { key[c] = vec4<f32>(k4[kj + c]); }
  var value = array<vec4<f32>, E4>();
  for (var c = 0u; c < E4; c++) { value[c] = vec4<f32>(v4[vj + c]); }
  var acc_k = array<vec4<f32>, D4>();
  var acc_v = array<vec4<f32>, E4>();
  for (var g = 0u; g < p.group; g++) {
    let pos = vec4<u32>(shared_pos.xyz, shared_pos.w * p.group + g);
    let q0 = first(pos, p.q); let dy0 = first(pos, p.dy); let m0 = first(pos, p.mask);
    for (var i0 = select(0u, j0 / TILE * TILE, p.causal != 0u); i0 < p.rows; i0 += TILE) {
      workgroupBarrier();
      fill_a_q(q0 + i0 * p.q[1].y, p.q[1].y, p.rows - i0, r, part);
      fill_b_dy(dy0 + i0 * p.dy[1].y, p.dy[1].y, p.rows - i0, r, part);
      for (var n = r; n < TILE; n += ROWS) { tile_stats[part * TILE + n] = known[statistics(pos) + min(i0 + n, p.rows - 1u)]; }
      workgroupBarrier();
      for (var t = 0u; t < min(TILE, p.rows - i0); t += 4u) {
        let a = (part * TILE + t) * D4; let b = (part * TILE + t) * E4;
        var product = vec4<f32>();
        for (var c = 0u; c < D4; c++) {
          product += vec4<f32>(dot(key[c], tile_a[a + c]), dot(key[c], tile_a[a + D4 + c]), dot(key[c], tile_a[a + 2u * D4 + c]), dot(key[c], tile_a[a + 3u * D4 + c]));
        }
        var dw = vec4<f32>();
        for (var c = 0u; c < E4; c++) {
          dw += vec4<f32>(dot(value[c], tile_b[b + c]), dot(value[c], tile_b[b + E4 + c]), dot(value[c], tile_b[b + 2u * E4 + c]), dot(value[c], tile_b[b + 3u * E4 + c]));
        }
        let n = part * TILE + t;
        let normal = vec4<f32>(tile_stats[n].x, tile_stats[n + 1u].x, tile_stats[n + 2u].x, tile_stats[n + 3u].x);
        let delta = vec4<f32>(tile_stats[n].y, tile_stats[n + 1u].y, tile_stats[n + 2u].y, tile_stats[n + 3u].y);
        let s = scores(product, i0 + t + FOUR, vec4<u32>(j), m0);
        let w = weights(s, normal);
        let ds = w * (dw - delta);
        for (var c = 0u; c < D4; c++) {
          acc_k[c] += ds.x * tile_a[a + c] + ds.y * tile_a[a + D4 + c] + ds.z * tile_a[a + 2u * D4 + c] + ds.w * tile_a[a + 3u * D4 + c];
        }
        for (var c = 0u; c < E4; c++) {
          acc_v[c] += w.x * tile_b[b + c] + w.y * tile_b[b + E4 + c] + w.z * tile_b[b + 2u * E4 + c] + w.w * tile_b[b + 3u * E4 + c];
        }
      }
    }
  }
  if (head >= p.count || j0 + r >= p.keys) { return; }
  let dkj = (first(shared_pos, p.dk) + j * p.dk[1].y) / 4u;
  let dvj = (first(shared_pos, p.dv) + j * p.dv[1].y) / 4u;
  for (var c = 0u; c < D4; c++) { dkv4[dkj + c] = vec4<T>(acc_k[c] * p.scale); }
  for (var c = 0u; c < E4; c++) { dkv4[dvj + c] = vec4<T>(acc_v[c]); }
}
