// Updates of flat buffers that hold many parameters each. Padding between parameters is zero everywhere and stays so.
//
//   adamw        one step of AdamW (Loshchilov and Hutter, https://arxiv.org/abs/1711.05101) with the gradient clipped:
//                  g = grad / scale * min(1, clip / (norm / scale + 1e-6))      clip = 0: g = grad / scale
//                  m = beta1 m + (1 - beta1) g,  v = beta2 v + (1 - beta2) g²
//                  param = param * decay - rate * m / (sqrt(v) * root + eps)
//                decay = 1 - lr * weight decay, rate = lr / (1 - beta1^t), root = 1 / sqrt(1 - beta2^t), which lie with
//                the loss scale in `schedule`: they change from step to step, launches do not.
//                A norm that is not finite leaves everything as it was.
//   adamw_packed the same with m and sqrt(v) in 8 or 16 bits, as shares of the largest in 64 neighbours (`scales`).
//                Of 8 bits, share = ± 2^((c - 127) / 8) for m, 2^((c - 255) / 16) for sqrt(v), and 0 for c = 0; of 16, a
//                half float. Rounding is to either neighbour, by chance in proportion, so that averages neither stick
//                nor drift: changes of one step are smaller than a unit of the code.
//   rescale      the loss scale after a step: halved when the norm was not finite, doubled after `window` steps that were
//   ema          shadow = decay * shadow + rest * param, rest = 1 - decay, both in `shares`
//   accumulate   y = x, or y = y + x
//   squares      partial[base + j] = sum of x² over the vectors j, j + lanes, j + 2 lanes, …
//   root         y = sqrt(sum of partial), by one workgroup
//
// One invocation owns one vector of four elements (squares: every `lanes`-th). Sums run in a fixed order: the same input
// gives the same bits. Limits assumed: 256 invocations, 8 buffers, 1 KiB workgroup memory.

alias T = f32; // param
// Type to compute with: f32 for f16 storage.
alias C = f32; // param
const WG = 64u; // param
// Bits of a packed average: 8 or 16.
const BITS = 8u; // param

struct Step { first: u32, count: u32, beta1: f32, beta2: f32, rest1: f32, rest2: f32, eps: f32, clip: f32 }
// What the host writes before each step; from byte 256 on, where a binding may begin, what only `rescale` writes.
struct Schedule { decay: f32, rate: f32, root: f32, @size(244) t: u32, scale: f32, good: f32, skipped: f32 }
struct Window { window: f32 }
struct Mix { count: u32 }
struct Put { n: u32, fresh: u32 }
struct Part { n: u32, base: u32, lanes: u32 }
struct Total { n: u32 }
@group(0) @binding(0) var<uniform> step: Step;
@group(0) @binding(0) var<uniform> growth: Window;
@group(0) @binding(0) var<uniform> mix_by: Mix;
@group(0) @binding(0) var<uniform> put: Put;
@group(0) @binding(0) var<uniform> part: Part;
@group(0) @binding(0) var<uniform> total: Total;
@group(0) @binding(1) var<storage, read> norm: array<f32>;
@group(0) @binding(2) var<storage, read> grad: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> m: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read_write> v: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> m_codes: array<u32>;
@group(0) @binding(4) var<storage, read_write> v_codes: array<u32>;
@group(0) @binding(5) var<storage, read_write> param: array<vec4<f32>>;
@group(0) @binding(6) var<storage, read> schedule: Schedule;
// Of each 64 elements: the largest |m| and the largest sqrt(v).
@group(0) @binding(7) var<storage, read_write> scales: array<vec2<f32>>;
@group(0) @binding(2) var<storage, read_write> scaling: Schedule;
@group(0) @binding(3) var<storage, read_write> unscaled: array<f32>;
@group(0) @binding(1) var<storage, read> source: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> shadow: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> shares: array<f32>;
@group(0) @binding(1) var<storage, read> x: array<vec4<T>>;
@group(0) @binding(2) var<storage, read_write> y: array<vec4<T>>;
@group(0) @binding(2) var<storage, read_write> partial: array<f32>;
@group(0) @binding(1) var<storage, read> partials: array<f32>;
@group(0) @binding(2) var<storage, read_write> result: array<f32>;

fn index(wg: vec3<u32>, groups: vec3<u32>, lid: u32) -> u32 { return (wg.y * groups.x + wg.x) * WG + lid; }

// Which of the four elements of vector i lie below n.
fn inside(i: u32, n: u32) -> vec4<bool> { return vec4<u32>(i * 4u) + vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(n); }

// An exponent of all ones is infinity or NaN; comparisons may be optimised away.
fn is_finite(a: f32) -> bool { return (bitcast<u32>(a) & 0x7f800000u) != 0x7f800000u; }

// What turns a scaled gradient into the one to step by.
fn factor(length: f32) -> f32 {
  let unscale = 1.0 / schedule.scale;
  return unscale * select(1.0, min(1.0, step.clip / (length * unscale + 1e-6)), step.clip > 0.0);
}

@compute @workgroup_size(WG)
fn adamw(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
  let j = index(wg, groups, lid);
  let length = norm[0];
  if (j >= step.count || !is_finite(length)) { return; }
  let i = step.first + j;
  let g = grad[i] * factor(length);
  let mean = step.beta1 * m[i] + step.rest1 * g;
  let square = step.beta2 * v[i] + step.rest2 * g * g;
  m[i] = mean;
  v[i] = square;
  param[i] = param[i] * schedule.decay - schedule.rate * mean / (sqrt(square) * schedule.root + step.eps);
}

// PCG's output function (O'Neill, https://www.pcg-random.org): rounding needs no more.
fn scramble(n: u32) -> u32 {
  let state = n * 747796405u + 2891336453u;
  let word = ((state >> ((state >> 28u) + 4u)) ^ state) * 277803737u;
  return (word >> 22u) ^ word;
}

// Four numbers in (0, 1), of 16 bits each.
fn chances(n: u32) -> vec4<f32> {
  let a = scramble(n);
  let b = scramble(a ^ 0x9e3779b9u);
  return (vec4<f32>(vec4<u32>(a & 0xffffu, a >> 16u, b & 0xffffu, b >> 16u)) + 0.5) / 65536.0;
}

fn bytes_of(word: u32) -> vec4<u32> { return (vec4<u32>(word) >> vec4<u32>(0u, 8u, 16u, 24u)) & vec4<u32>(0xffu); }
fn word_of(b: vec4<u32>) -> u32 { return b.x | (b.y << 8u) | (b.z << 16u) | (b.w << 24u); }

// Shares in [-1, 1] as halves, rounded by chance: 13 bits of the mantissa go.
fn halves(share: vec4<f32>, chance: vec4<f32>) -> vec2<u32> {
  let up = (bitcast<vec4<u32>>(share) + vec4<u32>(chance * 8192.0)) & vec4<u32>(0xffffe000u);
  let s = clamp(bitcast<vec4<f32>>(up), vec4<f32>(-1.0), vec4<f32>(1.0));
  return vec2<u32>(pack2x16float(s.xy), pack2x16float(s.zw));
}

// Share that code c of 0 … `most` stands for: 0, then steps of a root of two by `octave` codes an octave, up to 1.
fn share_of(c: vec4<f32>, most: f32, octave: f32) -> vec4<f32> {
  return select(vec4<f32>(), exp2((c - most) / octave), c > vec4<f32>());
}

// The last code whose share is not above this one, but the last code.
fn code_of(share: vec4<f32>, most: f32, octave: f32) -> vec4<f32> {
  return clamp(floor(most + octave * log2(max(share, vec4<f32>(1e-9)))), vec4<f32>(), vec4<f32>(most - 1.0));
}

fn read_mean(i: u32) -> vec4<f32> {
  if (BITS == 16u) { return vec4<f32>(unpack2x16float(m_codes[2u * i]), unpack2x16float(m_codes[2u * i + 1u])); }
  let b = bytes_of(m_codes[i]);
  let share = share_of(vec4<f32>(b & vec4<u32>(127u)), 127.0, 8.0);
  return select(share, -share, b > vec4<u32>(127u));
}

fn write_mean(i: u32, share: vec4<f32>, chance: vec4<f32>) {
  if (BITS == 16u) {
    let h = halves(share, chance);
    m_codes[2u * i] = h.x;
    m_codes[2u * i + 1u] = h.y;
  } else {
    let c = code_of(abs(share), 127.0, 8.0);
    let low = share_of(c, 127.0, 8.0);
    let up = chance < (abs(share) - low) / (share_of(c + 1.0, 127.0, 8.0) - low);
    m_codes[i] = word_of(vec4<u32>(select(c, c + 1.0, up)) | select(vec4<u32>(), vec4<u32>(128u), share < vec4<f32>()));
  }
}

fn read_root(i: u32) -> vec4<f32> {
  if (BITS == 16u) { return vec4<f32>(unpack2x16float(v_codes[2u * i]), unpack2x16float(v_codes[2u * i + 1u])); }
  return share_of(vec4<f32>(bytes_of(v_codes[i])), 255.0, 16.0);
}

// A root that is not zero never becomes zero: the step would have nothing to divide by.
fn write_root(i: u32, share: vec4<f32>, chance: vec4<f32>) {
  if (BITS == 16u) {
    let h = halves(select(share, max(share, vec4<f32>(6.2e-5)), share > vec4<f32>()), chance);
    v_codes[2u * i] = h.x;
    v_codes[2u * i + 1u] = h.y;
  } else {
    // The square is what is averaged: chances are those that keep its mean.
    let c = code_of(share, 255.0, 16.0);
    let low = share_of(c, 255.0, 16.0);
    let high = share_of(c + 1.0, 255.0, 16.0);
    let up = chance < (share * share - low * low) / (high * high - low * low);
    let kept = max(select(c, c + 1.0, up), vec4<f32>(1.0));
    v_codes[i] = word_of(vec4<u32>(select(vec4<f32>(), kept, share > vec4<f32>())));
  }
}

fn largest(a: vec4<f32>) -> f32 { return max(max(a.x, a.y), max(a.z, a.w)); }

var<workgroup> shared_scales: array<vec2<f32>, WG>;

@compute @workgroup_size(WG)
fn adamw_packed(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
  let j = index(wg, groups, lid);
  let length = norm[0];
  if (!is_finite(length)) { return; }
  let i = step.first + j;
  let live = j < step.count;
  var mean = vec4<f32>();
  var deviation = vec4<f32>();
  if (live) {
    let old = scales[i / 16u];
    let g = grad[i] * factor(length);
    let before = read_root(i) * old.y;
    mean = step.beta1 * (read_mean(i) * old.x) + step.rest1 * g;
    deviation = sqrt(step.beta2 * before * before + step.rest2 * g * g);
    param[i] = param[i] * schedule.decay - schedule.rate * mean / (deviation * schedule.root + step.eps);
  }
  shared_scales[lid] = vec2<f32>(largest(abs(mean)), largest(deviation));
  workgroupBarrier();
  if (!live) { return; }
  // 16 invocations have the 64 elements of one scale; runs of parameters begin and end with one.
  let base = lid / 16u * 16u;
  var most = vec2<f32>();
  for (var k = 0u; k < 16u; k++) { most = max(most, shared_scales[base + k]); }
  let inverse = select(vec2<f32>(), 1.0 / most, most > vec2<f32>());
  let seed = scramble(i + scramble(schedule.t));
  write_mean(i, mean * inverse.x, chances(seed));
  write_root(i, deviation * inverse.y, chances(seed ^ 0x85ebca6bu));
  if (lid == base) { scales[i / 16u] = most; }
}

@compute @workgroup_size(1)
fn rescale() {
  let length = norm[0];
  unscaled[0] = length / scaling.scale;
  if (is_finite(length)) {
    scaling.good += 1.0;
    if (scaling.good >= growth.window) {
      scaling.scale = min(scaling.scale * 2.0, 16777216.0);
      scaling.good = 0.0;
    }
  } else {
    scaling.scale = max(scaling.scale * 0.5, 0.0009765625);
    scaling.good = 0.0;
    scaling.skipped += 1.0;
  }
}

@compute @workgroup_size(WG)
fn ema(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
  let i = index(wg, groups, lid);
  if (i >= mix_by.count) { return; }
  shadow[i] = shares[0] * shadow[i] + shares[1] * source[i];
}

@compute @workgroup_size(WG)
fn accumulate(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
  let i = index(wg, groups, lid);
  if (i * 4u >= put.n) { return; }
  let sum = select(vec4<C>(y[i]) + vec4<C>(x[i]), vec4<C>(x[i]), put.fresh == 1u);
  y[i] = vec4<T>(select(vec4<C>(), sum, inside(i, put.n)));
}

@compute @workgroup_size(WG)
fn squares(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
  let j = index(wg, groups, lid);
  if (j >= part.lanes) { return; }
  var sum = vec4<f32>();
  let count = (part.n + 3u) / 4u;
  for (var i = j; i < count; i += part.lanes) {
    let a = select(vec4<f32>(), vec4<f32>(x[i]), inside(i, part.n));
    sum += a * a;
  }
  partial[part.base + j] = (sum.x + sum.y) + (sum.z + sum.w);
}

var<workgroup> shared_sum: array<f32, 256>;

@compute @workgroup_size(256)
fn root(@builtin(local_invocation_index) lid: u32) {
  var sum = 0.0;
  for (var i = lid; i < total.n; i += 256u) { sum += partials[i]; }
  shared_sum[lid] = sum;
  for (var half = 128u; half > 0u; half = half / 2u) {
    workgroupBarrier();
    if (lid < half) { shared_sum[lid] += shared_sum[lid + half]; }
  }
  if (lid == 0u) { result[0] = sqrt(shared_sum[0]); }
}
