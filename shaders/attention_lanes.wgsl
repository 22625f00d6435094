// Attention for processors that run a subgroup's lanes as one vector instruction: names, formulas and layouts are those of
// attention.wgsl, the running maximum and sum those of https://arxiv.org/abs/2205.14135.
//
// A workgroup is one subgroup and owns LANES * R rows of the result (keys in backward_key), each lane R of them, LANES
// apart. It walks the other axis in tiles of LANES * G rows. What of a tile all lanes need, each lane loads a part of,
// and shuffles show it to all: a load costs such a processor as much as a dozen multiplications, a shuffle about one.
// A tile's weights stay in registers; the sums wait in workgroup memory, where each lane has its own, so that no barrier
// is needed and the loop over columns stays short. Larger R or G take more registers than there are, and are slower.
// Workgroups with z > 0 own further columns, and compute the weights again. (Loops over columns end at a number that no
// compiler can bound: lavapipe's would unroll them, and take minutes.)
// backward gives all three gradients: a workgroup owns a head of k and v, and adds to dq where it lies, once for each tile
// of keys. It computes the weights once where backward_query and backward_key compute them twice, but needs many heads.
// Columns are read as vec4: D, E, strides and offsets divide by 4.
// Limits assumed: subgroups of exactly LANES lanes, 8 buffers, 2 * 16 * C4 * R * LANES bytes of workgroup memory.
enable subgroups;

alias T = f32; // param
// Elements of the mask; MASK: 0 none, 1 the same for all rows, 2 any; ADDS: it is added to the score.
alias M = u32; // param
const MASK = 0u; // param
const ADDS = false; // param
const LANES = 8u; // param
const R = 2u; // param
const G = 2u; // param
// A workgroup owns up to C4 * 4 columns.
const C4 = 8u; // param
const TILE = LANES * G;

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
// dq, dk and dv share a buffer
@group(0) @binding(8) var<storage, read_write> d4: array<vec4<T>>;

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
fn weight(s: f32, normal: f32) -> f32 { return select(exp(s - normal), 0.0, s <= LOW); }

fn dot_add(a: vec4<f32>, b: vec4<f32>, sum: f32) -> f32 { return fma(a.x, b.x, fma(a.y, b.y, fma(a.z, b.z, fma(a.w, b.w, sum)))); }

// Sums of the own rows: [column / 4, row, lane]. sums_k is backward's for dq and dk.
var<workgroup> sums: array<vec4<f32>, C4 * R * LANES>;
var<workgroup> sums_k: array<vec4<f32>, C4 * R * LANES>;

alias Tile = array<f32, TILE * R>;   // [key, own row] or [row, own key]

// Own rows `i` with keys j0 + 0 .. TILE - 1: products to scores, LOW where hidden.
fn scores(products: Tile, i: array<u32, R>, j0: u32, m0: u32, lane: u32) -> Tile {
  var s = products;
  for (var n = 0u; n < TILE * R; n++) { s[n] *= p.scale; }
  if (MASK == 1u) {
    for (var g = 0u; g < G; g++) {
      let m = mask[m0 + min(j0 + g * LANES + lane, p.keys - 1u) * p.mask[1].z];
      for (var t = 0u; t < LANES; t++) {
        let shown = subgroupShuffle(m, t);
        for (var r = 0u; r < R; r++) { s[(g * LANES + t) * R + r] = masked(s[(g * LANES + t) * R + r], shown); }
      }
    }
  }
  for (var t = 0u; t < TILE; t++) {
    let j = j0 + t;
    for (var r = 0u; r < R; r++) {
      if (MASK == 2u) { s[t * R + r] = masked(s[t * R + r], mask[m0 + i[r] * p.mask[1].y + min(j, p.keys - 1u) * p.mask[1].z]); }
      s[t * R + r] = select(s[t * R + r], LOW, j >= p.keys || (p.causal != 0u && j > i[r]));
    }
  }
  return s;
}

@compute @workgroup_size(LANES)
fn forward(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(subgroup_invocation_id) lane: u32) {
  let task = wg.y * groups.x + wg.x;
  if (task >= p.count * p.blocks) { return; }
  let from_w = wg.z * C4;
  let end_w = min(from_w + C4, p.width / 4u);
  let pos = position(task / p.blocks, p.lead.w);
  let i0 = (task % p.blocks) * LANES * R;
  let q0 = first(pos, p.q); let y0 = first(pos, p.y); let m0 = first(pos, p.mask);
  let k0 = first(shared_head(pos), p.k); let v0 = first(shared_head(pos), p.v);
  // Rows beyond the last repeat it and are not written.
  var i = array<u32, R>();
  var qi = array<u32, R>();
  var high = array<f32, R>();
  var total = array<f32, R>();
  for (var r = 0u; r < R; r++) {
    i[r] = min(i0 + r * LANES + lane, p.rows - 1u);
    qi[r] = (q0 + i[r] * p.q[1].y) / 4u;
    high[r] = LOW;
  }
  let end = select(p.keys, min(p.keys, i0 + LANES * R), p.causal != 0u);
  for (var j0 = 0u; j0 < end; j0 += TILE) {
    var kj = array<u32, G>();
    var vj = array<u32, G>();
    for (var g = 0u; g < G; g++) {
      let j = min(j0 + g * LANES + lane, p.keys - 1u);
      kj[g] = (k0 + j * p.k[1].y) / 4u;
      vj[g] = (v0 + j * p.v[1].y) / 4u;
    }
    var s = Tile();
    for (var c = 0u; c < p.depth / 4u; c++) {
      var mine = array<vec4<f32>, R>();
      for (var r = 0u; r < R; r++) { mine[r] = vec4<f32>(q4[qi[r] + c]); }
      for (var g = 0u; g < G; g++) {
        let shown = vec4<f32>(k4[kj[g] + c]);
        for (var t = 0u; t < LANES; t++) {
          let other = subgroupShuffle(shown, t);
          for (var r = 0u; r < R; r++) { s[(g * LANES + t) * R + r] = dot_add(mine[r], other, s[(g * LANES + t) * R + r]); }
        }
      }
    }
    s = scores(s, i, j0, m0, lane);
    var shrink = array<f32, R>();
    for (var r = 0u; r < R; r++) {
      var next = high[r];
      for (var t = 0u; t < TILE; t++) { next = max(next, s[t * R + r]); }
      shrink[r] = exp(high[r] - next);
      high[r] = next;
      total[r] *= shrink[r];
      for (var t = 0u; t < TILE; t++) {
        s[t * R + r] = weight(s[t * R + r], next);
        total[r] += s[t * R + r];
      }
    }
    for (var c = from_w; c < end_w; c++) {
      var sum = array<vec4<f32>, R>();
      for (var r = 0u; r < R; r++) { sum[r] = sums[((c - from_w) * R + r) * LANES + lane] * shrink[r]; }
      for (var g = 0u; g < G; g++) {
        let shown = vec4<f32>(v4[vj[g] + c]);
        for (var t = 0u; t < LANES; t++) {
          let other = subgroupShuffle(shown, t);
          for (var r = 0u; r < R; r++) { sum[r] = fma(vec4<f32>(s[(g * LANES + t) * R + r]), other, sum[r]); }
        }
      }
      for (var r = 0u; r < R; r++) { sums[((c - from_w) * R + r) * LANES + lane] = sum[r]; }
    }
  }
  for (var r = 0u; r < R; r++) {
    if (i0 + r * LANES + lane >= p.rows) { continue; }
    // A row without any key gives 0.
    let inverse = select(1.0 / total[r], 0.0, total[r] == 0.0);
    if (wg.z == 0u) { stats[statistics(pos) + i[r]] = vec2<f32>(select(high[r] + log(total[r]), 0.0, total[r] == 0.0), 0.0); }
    let yi = (y0 + i[r] * p.y[1].y) / 4u;
    for (var c = from_w; c < end_w; c++) { y4[yi + c] = vec4<T>(sums[((c - from_w) * R + r) * LANES + lane] * inverse); }
  }
}

@compute @workgroup_size(LANES)
fn backward_query(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(subgroup_invocation_id) lane: u32) {
  let task = wg.y * groups.x + wg.x;
  if (task >= p.count * p.blocks) { return; }
  let from_x = wg.z * C4;
  let end_x = min(from_x + C4, p.depth / 4u);
  let pos = position(task / p.blocks, p.lead.w);
  let i0 = (task % p.blocks) * LANES * R;
  let q0 = first(pos, p.q); let dy0 = first(pos, p.dy); let y0 = first(pos, p.y); let dq0 = first(pos, p.dq); let m0 = first(pos, p.mask);
  let k0 = first(shared_head(pos), p.k); let v0 = first(shared_head(pos), p.v);
  var i = array<u32, R>();
  var qi = array<u32, R>();
  var dyi = array<u32, R>();
  var normal = array<f32, R>();
  var delta = array<f32, R>();
  for (var r = 0u; r < R; r++) {
    i[r] = min(i0 + r * LANES + lane, p.rows - 1u);
    qi[r] = (q0 + i[r] * p.q[1].y) / 4u;
    dyi[r] = (dy0 + i[r] * p.dy[1].y) / 4u;
    let yi = (y0 + i[r] * p.y[1].y) / 4u;
    for (var c = 0u; c < p.width / 4u; c++) { delta[r] = dot_add(vec4<f32>(dy4[dyi[r] + c]), vec4<f32>(out4[yi + c]), delta[r]); }
    let row = statistics(pos) + i[r];
    normal[r] = stats[row].x;
    if (wg.z == 0u && i0 + r * LANES + lane < p.rows) { stats[row].y = delta[r]; }
  }
  let end = select(p.keys, min(p.keys, i0 + LANES * R), p.causal != 0u);
  for (var j0 = 0u; j0 < end; j0 += TILE) {
    var kj = array<u32, G>();
    var vj = array<u32, G>();
    for (var g = 0u; g < G; g++) {
      let j = min(j0 + g * LANES + lane, p.keys - 1u);
      kj[g] = (k0 + j * p.k[1].y) / 4u;
      vj[g] = (v0 + j * p.v[1].y) / 4u;
    }
    var s = Tile();
    for (var c = 0u; c < p.depth / 4u; c++) {
      var mine = array<vec4<f32>, R>();
      for (var r = 0u; r < R; r++) { mine[r] = vec4<f32>(q4[qi[r] + c]); }
      for (var g = 0u; g < G; g++) {
        let shown = vec4<f32>(k4[kj[g] + c]);
        for (var t = 0u; t < LANES; t++) {
          let other = subgroupShuffle(shown, t);
          for (var r = 0u; r < R; r++) { s[(g * LANES + t) * R + r] = dot_add(mine[r], other, s[(g * LANES + t) * R + r]); }
        }
      }
    }
    s = scores(s, i, j0, m0, lane);
    for (var n = 0u; n < TILE * R; n++) { s[n] = weight(s[n], normal[n % R]); }
    var ds = Tile();
    for (var c = 0u; c < p.width / 4u; c++) {
      var mine = array<vec4<f32>, R>();
      for (var r = 0u; r < R; r++) { mine[r] = vec4<f32>(dy4[dyi[r] + c]); }
      for (var g = 0u; g < G; g++) {
        let shown = vec4<f32>(v4[vj[g] + c]);
        for (var t = 0u; t < LANES; t++) {
          let other = subgroupShuffle(shown, t);
          for (var r = 0u; r < R; r++) { ds[(g * LANES + t) * R + r] = dot_add(mine[r], other, ds[(g * LANES + t) * R + r]); }
        }
      }
    }
    for (var n = 0u; n < TILE * R; n++) { ds[n] = s[n] * (ds[n] - delta[n % R]); }
    for (var c = from_x; c < end_x; c++) {
      var sum = array<vec4<f32>, R>();
      for (var r = 0u; r < R; r++) { sum[r] = sums_k[((c - from_x) * R + r) * LANES + lane]; }
      for (var g = 0u; g < G; g++) {
        let shown = vec4<f32>(k4[kj[g] + c]);
        for (var t = 0u; t < LANES; t++) {
          let other = subgroupShuffle(shown, t);
          for (var r = 0u; r < R; r++) { sum[r] = fma(vec4<f32>(ds[(g * LANES + t) * R + r]), other, sum[r]); }
        }
      }
      for (var r = 0u; r < R; r++) { sums_k[((c - from_x) * R + r) * LANES + lane] = sum[r]; }
    }
  }
  for (var r = 0u; r < R; r++) {
    if (i0 + r * LANES + lane >= p.rows) { continue; }
    let dqi = (dq0 + i[r] * p.dq[1].y) / 4u;
    for (var c = from_x; c < end_x; c++) { dq4[dqi + c] = vec4<T>(sums_k[((c - from_x) * R + r) * LANES + lane] * p.scale); }
  }
}

@compute @workgroup_size(LANES)
fn backward_key(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(subgroup_invocation_id) lane: u32) {
  let task = wg.y * groups.x + wg.x;
  if (task >= p.count * p.blocks) { return; }
  // Neither part of the columns may begin beyond the end: the wider of the two decided how many there are.
  let from_x = min(wg.z * C4, p.depth / 4u); let end_x = min(from_x + C4, p.depth / 4u);
  let from_w = min(wg.z * C4, p.width / 4u); let end_w = min(from_w + C4, p.width / 4u);
  let shared_pos = position(task / p.blocks, p.lead.w / p.group);
  let j0 = (task % p.blocks) * LANES * R;
  let k0 = first(shared_pos, p.k); let v0 = first(shared_pos, p.v);
  var j = array<u32, R>();
  var kj = array<u32, R>();
  var vj = array<u32, R>();
  for (var r = 0u; r < R; r++) {
    j[r] = min(j0 + r * LANES + lane, p.keys - 1u);
    kj[r] = (k0 + j[r] * p.k[1].y) / 4u;
    vj[r] = (v0 + j[r] * p.v[1].y) / 4u;
  }
  for (var h = 0u; h < p.group; h++) {
    let pos = vec4<u32>(shared_pos.xyz, shared_pos.w * p.group + h);
    let q0 = first(pos, p.q); let dy0 = first(pos, p.dy); let m0 = first(pos, p.mask);
    var m = array<M, R>();
    if (MASK == 1u) {
      for (var r = 0u; r < R; r++) { m[r] = mask[m0 + j[r] * p.mask[1].z]; }
    }
    for (var i0 = select(0u, j0, p.causal != 0u); i0 < p.rows; i0 += TILE) {
      var qi = array<u32, G>();
      var dyi = array<u32, G>();
      for (var g = 0u; g < G; g++) {
        let i = min(i0 + g * LANES + lane, p.rows - 1u);
        qi[g] = (q0 + i * p.q[1].y) / 4u;
        dyi[g] = (dy0 + i * p.dy[1].y) / 4u;
      }
      var s = Tile();
      for (var c = 0u; c < p.depth / 4u; c++) {
        var mine = array<vec4<f32>, R>();
        for (var r = 0u; r < R; r++) { mine[r] = vec4<f32>(k4[kj[r] + c]); }
        for (var g = 0u; g < G; g++) {
          let shown = vec4<f32>(q4[qi[g] + c]);
          for (var t = 0u; t < LANES; t++) {
            let other = subgroupShuffle(shown, t);
            for (var r = 0u; r < R; r++) { s[(g * LANES + t) * R + r] = dot_add(mine[r], other, s[(g * LANES + t) * R + r]); }
          }
        }
      }
      for (var t = 0u; t < TILE; t++) {
        let i = i0 + t;
        for (var r = 0u; r < R; r++) {
          var value = s[t * R + r] * p.scale;
          if (MASK == 1u) { value = masked(value, m[r]); }
          if (MASK == 2u) { value = masked(value, mask[m0 + min(i, p.rows - 1u) * p.mask[1].y + j[r] * p.mask[1].z]); }
          s[t * R + r] = select(value, LOW, i >= p.rows || (p.causal != 0u && j[r] > i));
        }
      }
      var delta = array<f32, TILE>();
      for (var g = 0u; g < G; g++) {
        let row = known[statistics(pos) + min(i0 + g * LANES + lane, p.rows - 1u)];
        for (var t = 0u; t < LANES; t++) {
          let normal = subgroupShuffle(row.x, t);
          delta[g * LANES + t] = subgroupShuffle(row.y, t);
          for (var r = 0u; r < R; r++) { s[(g * LANES + t) * R + r] = weight(s[(g * LANES + t) * R + r], normal); }
        }
      }
      for (var c = from_w; c < end_w; c++) {
        var sum = array<vec4<f32>, R>();
        for (var r = 0u; r < R; r++) { sum[r] = sums[((c - from_w) * R + r) * LANES + lane]; }
        for (var g = 0u; g < G; g++) {
          let shown = vec4<f32>(dy4[dyi[g] + c]);
          for (var t = 0u; t < LANES; t++) {
            let other = subgroupShuffle(shown, t);
            for (var r = 0u; r < R; r++) { sum[r] = fma(vec4<f32>(s[(g * LANES + t) * R + r]), other, sum[r]); }
          }
        }
        for (var r = 0u; r < R; r++) { sums[((c - from_w) * R + r) * LANES + lane] = sum[r]; }
      }
      var ds = Tile();
      for (var c = 0u; c < p.width / 4u; c++) {
        var mine = array<vec4<f32>, R>();
        for (var r = 0u; r < R; r++) { mine[r] = vec4<f32>(v4[vj[r] + c]); }
        for (var g = 0u; g < G; g++) {
          let shown = vec4<f32>(dy4[dyi[g] + c]);
          for (var t = 0u; t < LANES; t++) {
            let other = subgroupShuffle(shown, t);
            for (var r = 0u; r < R; r++) { ds[(g * LANES + t) * R + r] = dot_add(mine[r], other, ds[(g * LANES + t) * R + r]); }
          }
        }
      }
      for (var n = 0u; n < TILE * R; n++) { ds[n] = s[n] * (ds[n] - delta[n / R]); }
      for (var c = from_x; c < end_x; c++) {
        var sum = array<vec4<f32>, R>();
        for (var r = 0u; r < R; r++) { sum[r] = sums_k[((c - from_x) * R + r) * LANES + lane]; }
        for (var g = 0u; g < G; g++) {
          let shown = vec4<f32>(q4[qi[g] + c]);
          for (var t = 0u; t < LANES; t++) {
            let other = subgroupShuffle(shown, t);
            for (var r = 0u; r < R; r++) { sum[r] = fma(vec4<f32>(ds[(g * LANES + t) * R + r]), other, sum[r]); }
          }
        }
        for (var r = 0u; r < R; r++) { sums_k[((c - from_x) * R + r) * LANES + lane] = sum[r]; }
      }
    }
  }
  let dk0 = first(shared_pos, p.dk); let dv0 = first(shared_pos, p.dv);
  for (var r = 0u; r < R; r++) {
    if (j0 + r * LANES + lane >= p.keys) { continue; }
    let dkj = (dk0 + j[r] * p.dk[1].y) / 4u;
    let dvj = (dv0 + j[r] * p.dv[1].y) / 4u;
    for (var c = from_x; c < end_x; c++) { dkv4[dkj + c] = vec4<T>(sums_k[((c - from_x) * R + r) * LANES + lane] * p.scale); }
    for (var c = from_w; c < end_w; c++) { dkv4[dvj + c] = vec4<T>(sums[((c - from_w) * R + r) * LANES + lane]); }
  }
}

@compute @workgroup_size(LANES)
fn backward(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(subgroup_invocation_id) lane: u32) {
  let task = wg.y * groups.x + wg.x;
  if (task >= p.count) { return; }
  let shared_pos = position(task, p.lead.w / p.group);
  let k0 = first(shared_pos, p.k); let v0 = first(shared_pos, p.v);
  let dk0 = first(shared_pos, p.dk); let dv0 = first(shared_pos, p.dv);
  for (var j0 = 0u; j0 < p.keys; j0 += LANES * R) {
    var j = array<u32, R>();
    var kj = array<u32, R>();
    var vj = array<u32, R>();
    for (var r = 0u; r < R; r++) {
      j[r] = min(j0 + r * LANES + lane, p.keys - 1u);
      kj[r] = (k0 + j[r] * p.k[1].y) / 4u;
      vj[r] = (v0 + j[r] * p.v[1].y) / 4u;
    }
    for (var h = 0u; h < p.group; h++) {
      let pos = vec4<u32>(shared_pos.xyz, shared_pos.w * p.group + h);
      let q0 = first(pos, p.q); let dy0 = first(pos, p.dy); let y0 = first(pos, p.y); let dq0 = first(pos, p.dq); let m0 = first(pos, p.mask);
      var m = array<M, R>();
      if (MASK == 1u) {
        for (var r = 0u; r < R; r++) { m[r] = mask[m0 + j[r] * p.mask[1].z]; }
      }
      // The first keys reach every row's dq, which begins there.
      for (var i0 = select(0u, j0 / TILE * TILE, p.causal != 0u); i0 < p.rows; i0 += TILE) {
        var qi = array<u32, G>();
        var dyi = array<u32, G>();
        var row = array<vec2<f32>, G>();
        for (var g = 0u; g < G; g++) {
          let i = min(i0 + g * LANES + lane, p.rows - 1u);
          qi[g] = (q0 + i * p.q[1].y) / 4u;
          dyi[g] = (dy0 + i * p.dy[1].y) / 4u;
          row[g] = stats[statistics(pos) + i];
          if (j0 == 0u) {
            let yi = (y0 + i * p.y[1].y) / 4u;
            var delta = 0.0;
            for (var c = 0u; c < p.width / 4u; c++) { delta = dot_add(vec4<f32>(dy4[dyi[g] + c]), vec4<f32>(out4[yi + c]), delta); }
            row[g].y = delta;
            if (i0 + g * LANES + lane < p.rows) { stats[statistics(pos) + i].y = delta; }
          }
        }
        var s = Tile();
        for (var c = 0u; c < p.depth / 4u; c++) {
          var mine = array<vec4<f32>, R>();
          for (var r = 0u; r < R; r++) { mine[r] = vec4<f32>(k4[kj[r] + c]); }
          for (var g = 0u; g < G; g++) {
            let shown = vec4<f32>(q4[qi[g] + c]);
            for (var t = 0u; t < LANES; t++) {
              let other = subgroupShuffle(shown, t);
              for (var r = 0u; r < R; r++) { s[(g * LANES + t) * R + r] = dot_add(mine[r], other, s[(g * LANES + t) * R + r]); }
            }
          }
        }
        for (var t = 0u; t < TILE; t++) {
          let i = i0 + t;
          for (var r = 0u; r < R; r++) {
            var value = s[t * R + r] * p.scale;
            if (MASK == 1u) { value = masked(value, m[r]); }
            if (MASK == 2u) { value = masked(value, mask[m0 + min(i, p.rows - 1u) * p.mask[1].y + j[r] * p.mask[1].z]); }
            s[t * R + r] = select(value, LOW, i >= p.rows || j0 + r * LANES + lane >= p.keys || (p.causal != 0u && j[r] > i));
          }
        }
        var delta = array<f32, TILE>();
        for (var g = 0u; g < G; g++) {
          for (var t = 0u; t < LANES; t++) {
            let normal = subgroupShuffle(row[g].x, t);
            delta[g * LANES + t] = subgroupShuffle(row[g].y, t);
            for (var r = 0u; r < R; r++) { s[(g * LANES + t) * R + r] = weight(s[(g * LANES + t) * R + r], normal); }
          }
        }
        // One look at dy for both dv and the weights' gradients.
        var ds = Tile();
        for (var c = 0u; c < p.width / 4u; c++) {
          var mine = array<vec4<f32>, R>();
          var sum = array<vec4<f32>, R>();
          for (var r = 0u; r < R; r++) {
            mine[r] = vec4<f32>(v4[vj[r] + c]);
            sum[r] = sums[(c * R + r) * LANES + lane];
          }
          for (var g = 0u; g < G; g++) {
            let shown = vec4<f32>(dy4[dyi[g] + c]);
            for (var t = 0u; t < LANES; t++) {
              let other = subgroupShuffle(shown, t);
              for (var r = 0u; r < R; r++) {
                let n = (g * LANES + t) * R + r;
                ds[n] = dot_add(mine[r], other, ds[n]);
                sum[r] = fma(vec4<f32>(s[n]), other, sum[r]);
              }
            }
          }
          for (var r = 0u; r < R; r++) { sums[(c * R + r) * LANES + lane] = sum[r]; }
        }
        for (var n = 0u; n < TILE * R; n++) { ds[n] = s[n] * (ds[n] - delta[n / R]); }
        for (var c = 0u; c < p.depth / 4u; c++) {
          var sum = array<vec4<f32>, R>();
          for (var r = 0u; r < R; r++) { sum[r] = sums_k[(c * R + r) * LANES + lane]; }
          for (var g = 0u; g < G; g++) {
            let shown = vec4<f32>(q4[qi[g] + c]);
            for (var t = 0u; t < LANES; t++) {
              let other = subgroupShuffle(shown, t);
              for (var r = 0u; r < R; r++) { sum[r] = fma(vec4<f32>(ds[(g * LANES + t) * R + r]), other, sum[r]); }
            }
          }
          for (var r = 0u; r < R; r++) { sums_k[(c * R + r) * LANES + lane] = sum[r]; }
        }
        // Own rows in place of own keys: blocks of LANES x LANES are transposed.
        for (var g = 0u; g < G; g++) {
          for (var r = 0u; r < R; r++) {
            for (var bit = 1u; bit < LANES; bit *= 2u) {
              for (var t = 0u; t < LANES; t++) {
                if ((t & bit) == 0u) {
                  let n = (g * LANES + t) * R + r;
                  let upper = (lane & bit) != 0u;
                  let other = subgroupShuffleXor(select(ds[n + bit * R], ds[n], upper), bit);
                  ds[n] = select(ds[n], other, upper);
                  ds[n + bit * R] = select(other, ds[n + bit * R], upper);
                }
              }
            }
          }
        }
        for (var c = 0u; c < p.depth / 4u; c++) {
          var sum = array<vec4<f32>, G>();
          for (var r = 0u; r < R; r++) {
            let shown = vec4<f32>(k4[kj[r] + c]);
            for (var t = 0u; t < LANES; t++) {
              let other = subgroupShuffle(shown, t);
              for (var g = 0u; g < G; g++) { sum[g] = fma(vec4<f32>(ds[(g * LANES + t) * R + r]), other, sum[g]); }
            }
          }
          for (var g = 0u; g < G; g++) {
            let i = i0 + g * LANES + lane;
            if (i < p.rows) {
              let at = (dq0 + i * p.dq[1].y) / 4u + c;
              var before = vec4<f32>();
              if (j0 > 0u) { before = vec4<f32>(d4[at]); }
              d4[at] = vec4<T>(fma(sum[g], vec4<f32>(p.scale), before));
            }
          }
        }
      }
    }
    for (var r = 0u; r < R; r++) {
      let own = j0 + r * LANES + lane < p.keys;
      let dkj = (dk0 + j[r] * p.dk[1].y) / 4u;
      let dvj = (dv0 + j[r] * p.dv[1].y) / 4u;
      for (var c = 0u; c < p.depth / 4u; c++) {
        let at = (c * R + r) * LANES + lane;
        if (own) { d4[dkj + c] = vec4<T>(sums_k[at] * p.scale); }
        sums_k[at] = vec4<f32>();
      }
      for (var c = 0u; c < p.width / 4u; c++) {
        let at = (c * R + r) * LANES + lane;
        if (own) { d4[dvj + c] = vec4<T>(sums[at]); }
        sums[at] = vec4<f32>();
      }
    }
  }
}
