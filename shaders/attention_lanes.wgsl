// Attention for processors that run a subgroup's lanes as one vector instruction: names, formulas and layouts are those of
// attention.wgsl, the running maximum and sum those of https://arxiv.org/abs/2205.14135.
//
// A workgroup is one subgroup and owns LANES * R rows of the result (keys in backward_key), each lane R of them, LANES
// apart. It walks the other axis in tiles of LANES rows. What of a tile all lanes need, each lane loads a part of, and
// shuffles show it to all: a load costs such a processor as much as a dozen multiplications, a shuffle about one.
// Workgroups with z > 0 own further columns, and compute the weights again.
// Columns are read as vec4: D, E, strides and offsets divide by 4.
// Limits assumed: subgroups of exactly LANES lanes, 8 buffers.
enable subgroups;

alias T = f32; // param
// Elements of the mask; MASK: 0 none, 1 the same for all rows, 2 any; ADDS: it is added to the score.
alias M = u32; // param
const MASK = 0u; // param
const ADDS = false; // param
const LANES = 8u; // param
const R = 2u; // param
// A workgroup owns W * LANES columns of y and dv, X * LANES of dq and dk.
const W = 2u; // param
const X = 2u; // param

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

// s[t] of each own row, for a t that is no constant: indexed so, the array would lie in memory.
fn pick(s: array<f32, LANES * R>, t: u32) -> array<f32, R> {
  var values = array<f32, R>();
  for (var r = 0u; r < R; r++) {
    values[r] = s[r];
    for (var n = 1u; n < LANES; n++) { values[r] = select(values[r], s[n * R + r], t == n); }
  }
  return values;
}

@compute @workgroup_size(LANES)
fn forward(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(subgroup_invocation_id) lane: u32) {
  let task = wg.y * groups.x + wg.x;
  if (task >= p.count * p.blocks) { return; }
  let from_w = wg.z * W * LANES;
  let pos = position(task / p.blocks, p.lead.w);
  let i0 = (task % p.blocks) * LANES * R;
  let q0 = first(pos, p.q); let y0 = first(pos, p.y); let m0 = first(pos, p.mask);
  let k0 = first(shared_head(pos), p.k); let v0 = first(shared_head(pos), p.v);
  // Rows beyond the last repeat it and are not written.
  var i = array<u32, R>();
  var qi = array<u32, R>();
  var yi = array<u32, R>();
  var high = array<f32, R>();
  var total = array<f32, R>();
  for (var r = 0u; r < R; r++) {
    i[r] = min(i0 + r * LANES + lane, p.rows - 1u);
    qi[r] = (q0 + i[r] * p.q[1].y) / 4u;
    yi[r] = (y0 + i[r] * p.y[1].y) / 4u;
    high[r] = LOW;
  }
  var acc = array<f32, W * LANES * R>();   // [column, row]
  let end = select(p.keys, min(p.keys, i0 + LANES * R), p.causal != 0u);
  for (var j0 = 0u; j0 < end; j0 += LANES) {
    let kj = (k0 + min(j0 + lane, p.keys - 1u) * p.k[1].y) / 4u;
    var s = array<f32, LANES * R>();       // [key, row]
    for (var c = 0u; c < p.depth / 4u; c++) {
      let shown = vec4<f32>(k4[kj + c]);
      var mine = array<vec4<f32>, R>();
      for (var r = 0u; r < R; r++) { mine[r] = vec4<f32>(q4[qi[r] + c]); }
      for (var t = 0u; t < LANES; t++) {
        let other = subgroupShuffle(shown, t);
        for (var r = 0u; r < R; r++) { s[t * R + r] = dot_add(mine[r], other, s[t * R + r]); }
      }
    }
    for (var n = 0u; n < LANES * R; n++) { s[n] *= p.scale; }
    if (MASK == 1u) {
      let m = mask[m0 + min(j0 + lane, p.keys - 1u) * p.mask[1].z];
      for (var t = 0u; t < LANES; t++) {
        let shown = subgroupShuffle(m, t);
        for (var r = 0u; r < R; r++) { s[t * R + r] = masked(s[t * R + r], shown); }
      }
    }
    if (MASK == 2u) {
      for (var t = 0u; t < min(LANES, p.keys - j0); t++) {
        for (var r = 0u; r < R; r++) {
          let m = mask[m0 + i[r] * p.mask[1].y + (j0 + t) * p.mask[1].z];
          for (var n = 0u; n < LANES; n++) { s[n * R + r] = select(s[n * R + r], masked(s[n * R + r], m), n == t); }
        }
      }
    }
    for (var r = 0u; r < R; r++) {
      var next = high[r];
      for (var t = 0u; t < LANES; t++) {
        let j = j0 + t;
        s[t * R + r] = select(s[t * R + r], LOW, j >= p.keys || (p.causal != 0u && j > i[r]));
        next = max(next, s[t * R + r]);
      }
      let shrink = exp(high[r] - next);
      high[r] = next;
      total[r] *= shrink;
      for (var t = 0u; t < LANES; t++) {
        s[t * R + r] = weight(s[t * R + r], next);
        total[r] += s[t * R + r];
      }
      for (var c = 0u; c < W * LANES; c++) { acc[c * R + r] *= shrink; }
    }
    for (var t = 0u; t < min(LANES, end - j0); t++) {
      let weights = pick(s, t);
      let vj = v0 + (j0 + t) * p.v[1].y;
      for (var w = 0u; w < W; w++) {
        let at = vj + min(from_w + w * LANES + lane, p.width - 1u);
        let shown = f32(v4[at / 4u][at % 4u]);
        for (var l = 0u; l < LANES; l++) {
          let other = subgroupShuffle(shown, l);
          for (var r = 0u; r < R; r++) { acc[(w * LANES + l) * R + r] = fma(weights[r], other, acc[(w * LANES + l) * R + r]); }
        }
      }
    }
  }
  // A row without any key gives 0.
  var inverse = array<f32, R>();
  for (var r = 0u; r < R; r++) {
    inverse[r] = select(1.0 / total[r], 0.0, total[r] == 0.0);
    if (wg.z == 0u && i0 + r * LANES + lane < p.rows) {
      stats[statistics(pos) + i[r]] = vec2<f32>(select(high[r] + log(total[r]), 0.0, total[r] == 0.0), 0.0);
    }
  }
  // All columns leave through the first four: an index that varies would keep the sums out of registers.
  for (var c = 0u; c < min(W * LANES, max(p.width, from_w) - from_w) / 4u; c++) {
    for (var r = 0u; r < R; r++) {
      if (i0 + r * LANES + lane < p.rows) { y4[yi[r] + from_w / 4u + c] = vec4<T>(vec4<f32>(acc[r], acc[R + r], acc[2u * R + r], acc[3u * R + r]) * inverse[r]); }
    }
    for (var n = 4u * R; n < W * LANES * R; n++) { acc[n - 4u * R] = acc[n]; }
  }
}

@compute @workgroup_size(LANES)
fn backward_query(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(subgroup_invocation_id) lane: u32) {
  let task = wg.y * groups.x + wg.x;
  if (task >= p.count * p.blocks) { return; }
  let from_x = wg.z * X * LANES;
  let pos = position(task / p.blocks, p.lead.w);
  let i0 = (task % p.blocks) * LANES * R;
  let q0 = first(pos, p.q); let dy0 = first(pos, p.dy); let y0 = first(pos, p.y); let dq0 = first(pos, p.dq); let m0 = first(pos, p.mask);
  let k0 = first(shared_head(pos), p.k); let v0 = first(shared_head(pos), p.v);
  var i = array<u32, R>();
  var qi = array<u32, R>();
  var dyi = array<u32, R>();
  var dqi = array<u32, R>();
  var normal = array<f32, R>();
  var delta = array<f32, R>();
  for (var r = 0u; r < R; r++) {
    i[r] = min(i0 + r * LANES + lane, p.rows - 1u);
    qi[r] = (q0 + i[r] * p.q[1].y) / 4u;
    dyi[r] = (dy0 + i[r] * p.dy[1].y) / 4u;
    dqi[r] = (dq0 + i[r] * p.dq[1].y) / 4u;
    let yi = (y0 + i[r] * p.y[1].y) / 4u;
    for (var c = 0u; c < p.width / 4u; c++) { delta[r] = dot_add(vec4<f32>(dy4[dyi[r] + c]), vec4<f32>(out4[yi + c]), delta[r]); }
    let row = statistics(pos) + i[r];
    normal[r] = stats[row].x;
    if (wg.z == 0u && i0 + r * LANES + lane < p.rows) { stats[row].y = delta[r]; }
  }
  var acc = array<f32, X * LANES * R>();
  let end = select(p.keys, min(p.keys, i0 + LANES * R), p.causal != 0u);
  for (var j0 = 0u; j0 < end; j0 += LANES) {
    let key = min(j0 + lane, p.keys - 1u);
    let kj = (k0 + key * p.k[1].y) / 4u;
    let vj = (v0 + key * p.v[1].y) / 4u;
    var s = array<f32, LANES * R>();
    var ds = array<f32, LANES * R>();
    for (var c = 0u; c < p.depth / 4u; c++) {
      let shown = vec4<f32>(k4[kj + c]);
      var mine = array<vec4<f32>, R>();
      for (var r = 0u; r < R; r++) { mine[r] = vec4<f32>(q4[qi[r] + c]); }
      for (var t = 0u; t < LANES; t++) {
        let other = subgroupShuffle(shown, t);
        for (var r = 0u; r < R; r++) { s[t * R + r] = dot_add(mine[r], other, s[t * R + r]); }
      }
    }
    for (var c = 0u; c < p.width / 4u; c++) {
      let shown = vec4<f32>(v4[vj + c]);
      var mine = array<vec4<f32>, R>();
      for (var r = 0u; r < R; r++) { mine[r] = vec4<f32>(dy4[dyi[r] + c]); }
      for (var t = 0u; t < LANES; t++) {
        let other = subgroupShuffle(shown, t);
        for (var r = 0u; r < R; r++) { ds[t * R + r] = dot_add(mine[r], other, ds[t * R + r]); }
      }
    }
    for (var n = 0u; n < LANES * R; n++) { s[n] *= p.scale; }
    if (MASK == 1u) {
      let m = mask[m0 + min(j0 + lane, p.keys - 1u) * p.mask[1].z];
      for (var t = 0u; t < LANES; t++) {
        let shown = subgroupShuffle(m, t);
        for (var r = 0u; r < R; r++) { s[t * R + r] = masked(s[t * R + r], shown); }
      }
    }
    if (MASK == 2u) {
      for (var t = 0u; t < min(LANES, p.keys - j0); t++) {
        for (var r = 0u; r < R; r++) {
          let m = mask[m0 + i[r] * p.mask[1].y + (j0 + t) * p.mask[1].z];
          for (var n = 0u; n < LANES; n++) { s[n * R + r] = select(s[n * R + r], masked(s[n * R + r], m), n == t); }
        }
      }
    }
    for (var t = 0u; t < LANES; t++) {
      let j = j0 + t;
      for (var r = 0u; r < R; r++) {
        let n = t * R + r;
        s[n] = select(s[n], LOW, j >= p.keys || (p.causal != 0u && j > i[r]));
        ds[n] = weight(s[n], normal[r]) * (ds[n] - delta[r]);
      }
    }
    for (var t = 0u; t < min(LANES, end - j0); t++) {
      let weights = pick(ds, t);
      let kt = k0 + (j0 + t) * p.k[1].y;
      for (var w = 0u; w < X; w++) {
        let at = kt + min(from_x + w * LANES + lane, p.depth - 1u);
        let shown = f32(k4[at / 4u][at % 4u]);
        for (var l = 0u; l < LANES; l++) {
          let other = subgroupShuffle(shown, l);
          for (var r = 0u; r < R; r++) { acc[(w * LANES + l) * R + r] = fma(weights[r], other, acc[(w * LANES + l) * R + r]); }
        }
      }
    }
  }
  // All columns leave through the first four: an index that varies would keep the sums out of registers.
  for (var c = 0u; c < min(X * LANES, max(p.depth, from_x) - from_x) / 4u; c++) {
    for (var r = 0u; r < R; r++) {
      if (i0 + r * LANES + lane < p.rows) { dq4[dqi[r] + from_x / 4u + c] = vec4<T>(vec4<f32>(acc[r], acc[R + r], acc[2u * R + r], acc[3u * R + r]) * p.scale); }
    }
    for (var n = 4u * R; n < X * LANES * R; n++) { acc[n - 4u * R] = acc[n]; }
  }
}

@compute @workgroup_size(LANES)
fn backward_key(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(subgroup_invocation_id) lane: u32) {
  let task = wg.y * groups.x + wg.x;
  if (task >= p.count * p.blocks) { return; }
  let from_x = wg.z * X * LANES;
  let from_w = wg.z * W * LANES;
  let shared_pos = position(task / p.blocks, p.lead.w / p.group);
  let j0 = (task % p.blocks) * LANES * R;
  let k0 = first(shared_pos, p.k); let v0 = first(shared_pos, p.v); let dk0 = first(shared_pos, p.dk); let dv0 = first(shared_pos, p.dv);
  var j = array<u32, R>();
  var kj = array<u32, R>();
  var vj = array<u32, R>();
  var dkj = array<u32, R>();
  var dvj = array<u32, R>();
  for (var r = 0u; r < R; r++) {
    j[r] = min(j0 + r * LANES + lane, p.keys - 1u);
    kj[r] = (k0 + j[r] * p.k[1].y) / 4u;
    vj[r] = (v0 + j[r] * p.v[1].y) / 4u;
    dkj[r] = (dk0 + j[r] * p.dk[1].y) / 4u;
    dvj[r] = (dv0 + j[r] * p.dv[1].y) / 4u;
  }
  var acc_k = array<f32, X * LANES * R>();
  var acc_v = array<f32, W * LANES * R>();
  for (var g = 0u; g < p.group; g++) {
    let pos = vec4<u32>(shared_pos.xyz, shared_pos.w * p.group + g);
    let q0 = first(pos, p.q); let dy0 = first(pos, p.dy); let m0 = first(pos, p.mask);
    var m = array<M, R>();
    if (MASK == 1u) {
      for (var r = 0u; r < R; r++) { m[r] = mask[m0 + j[r] * p.mask[1].z]; }
    }
    for (var i0 = select(0u, j0, p.causal != 0u); i0 < p.rows; i0 += LANES) {
      let row = min(i0 + lane, p.rows - 1u);
      let qi = (q0 + row * p.q[1].y) / 4u;
      let dyi = (dy0 + row * p.dy[1].y) / 4u;
      let mine = known[statistics(pos) + row];
      var s = array<f32, LANES * R>();     // [row, key]
      var ds = array<f32, LANES * R>();
      for (var c = 0u; c < p.depth / 4u; c++) {
        let shown = vec4<f32>(q4[qi + c]);
        var mine = array<vec4<f32>, R>();
        for (var r = 0u; r < R; r++) { mine[r] = vec4<f32>(k4[kj[r] + c]); }
        for (var t = 0u; t < LANES; t++) {
          let other = subgroupShuffle(shown, t);
          for (var r = 0u; r < R; r++) { s[t * R + r] = dot_add(mine[r], other, s[t * R + r]); }
        }
      }
      for (var c = 0u; c < p.width / 4u; c++) {
        let shown = vec4<f32>(dy4[dyi + c]);
        var mine = array<vec4<f32>, R>();
        for (var r = 0u; r < R; r++) { mine[r] = vec4<f32>(v4[vj[r] + c]); }
        for (var t = 0u; t < LANES; t++) {
          let other = subgroupShuffle(shown, t);
          for (var r = 0u; r < R; r++) { ds[t * R + r] = dot_add(mine[r], other, ds[t * R + r]); }
        }
      }
      for (var n = 0u; n < LANES * R; n++) {
        s[n] *= p.scale;
        if (MASK == 1u) { s[n] = masked(s[n], m[n % R]); }
      }
      if (MASK == 2u) {
        for (var t = 0u; t < min(LANES, p.rows - i0); t++) {
          for (var r = 0u; r < R; r++) {
            let bias = mask[m0 + (i0 + t) * p.mask[1].y + j[r] * p.mask[1].z];
            for (var n = 0u; n < LANES; n++) { s[n * R + r] = select(s[n * R + r], masked(s[n * R + r], bias), n == t); }
          }
        }
      }
      for (var t = 0u; t < LANES; t++) {
        let i = i0 + t;
        let normal = subgroupShuffle(mine.x, t);
        let delta = subgroupShuffle(mine.y, t);
        for (var r = 0u; r < R; r++) {
          let n = t * R + r;
          s[n] = weight(select(s[n], LOW, i >= p.rows || (p.causal != 0u && j[r] > i)), normal);
          ds[n] = s[n] * (ds[n] - delta);
        }
      }
      for (var t = 0u; t < min(LANES, p.rows - i0); t++) {
        let weights_k = pick(ds, t);
        let weights_v = pick(s, t);
        let qt = q0 + (i0 + t) * p.q[1].y;
        let dyt = dy0 + (i0 + t) * p.dy[1].y;
        for (var w = 0u; w < X; w++) {
          let at = qt + min(from_x + w * LANES + lane, p.depth - 1u);
          let shown = f32(q4[at / 4u][at % 4u]);
          for (var l = 0u; l < LANES; l++) {
            let other = subgroupShuffle(shown, l);
            for (var r = 0u; r < R; r++) { acc_k[(w * LANES + l) * R + r] = fma(weights_k[r], other, acc_k[(w * LANES + l) * R + r]); }
          }
        }
        for (var w = 0u; w < W; w++) {
          let at = dyt + min(from_w + w * LANES + lane, p.width - 1u);
          let shown = f32(dy4[at / 4u][at % 4u]);
          for (var l = 0u; l < LANES; l++) {
            let other = subgroupShuffle(shown, l);
            for (var r = 0u; r < R; r++) { acc_v[(w * LANES + l) * R + r] = fma(weights_v[r], other, acc_v[(w * LANES + l) * R + r]); }
          }
        }
      }
    }
  }
  // All columns leave through the first four: an index that varies would keep the sums out of registers.
  for (var c = 0u; c < min(X * LANES, max(p.depth, from_x) - from_x) / 4u; c++) {
    for (var r = 0u; r < R; r++) {
      if (j0 + r * LANES + lane < p.keys) { dkv4[dkj[r] + from_x / 4u + c] = vec4<T>(vec4<f32>(acc_k[r], acc_k[R + r], acc_k[2u * R + r], acc_k[3u * R + r]) * p.scale); }
    }
    for (var n = 4u * R; n < X * LANES * R; n++) { acc_k[n - 4u * R] = acc_k[n]; }
  }
  // All columns leave through the first four: an index that varies would keep the sums out of registers.
  for (var c = 0u; c < min(W * LANES, max(p.width, from_w) - from_w) / 4u; c++) {
    for (var r = 0u; r < R; r++) {
      if (j0 + r * LANES + lane < p.keys) { dkv4[dvj[r] + from_w / 4u + c] = vec4<T>(vec4<f32>(acc_v[r], acc_v[R + r], acc_v[2u * R + r], acc_v[3u * R + r])); }
    }
    for (var n = 4u * R; n < W * LANES * R; n++) { acc_v[n - 4u * R] = acc_v[n]; }
  }
}
