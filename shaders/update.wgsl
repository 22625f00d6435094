// Updates of flat buffers that hold many parameters each. Padding between parameters is zero everywhere and stays so.
//
//   adamw        one step of AdamW (Loshchilov and Hutter, https://arxiv.org/abs/1711.05101) with the gradient clipped:
//                  g = grad * min(1, clip / (norm + 1e-6))        clip = 0: g = grad
//                  m = beta1 m + (1 - beta1) g,  v = beta2 v + (1 - beta2) g²
//                  param = param * decay - rate * m / (sqrt(v) * root + eps)
//                decay = 1 - lr * weight decay, rate = lr / (1 - beta1^t), root = 1 / sqrt(1 - beta2^t).
//                A norm that is not finite leaves everything as it was.
//   ema          shadow = decay * shadow + rest * param, rest = 1 - decay
//   accumulate   y = x, or y = y + x
//   squares      partial[base + j] = sum of x² over the vectors j, j + lanes, j + 2 lanes, …
//   root         y = sqrt(sum of partial), by one workgroup
//
// One invocation owns one vector of four elements (squares: every `lanes`-th). Sums run in a fixed order: the same input
// gives the same bits. Limits assumed: 256 invocations, 6 buffers, 1 KiB workgroup memory.

alias T = f32; // param
// Type to compute with: f32 for f16 storage.
alias C = f32; // param
const WG = 64u; // param

struct Step { first: u32, count: u32, beta1: f32, beta2: f32, rest1: f32, rest2: f32, decay: f32, rate: f32, root: f32, eps: f32, clip: f32 }
struct Mix { count: u32, decay: f32, rest: f32 }
struct Put { n: u32, fresh: u32 }
struct Part { n: u32, base: u32, lanes: u32 }
struct Total { n: u32 }
@group(0) @binding(0) var<uniform> step: Step;
@group(0) @binding(0) var<uniform> mix_by: Mix;
@group(0) @binding(0) var<uniform> put: Put;
@group(0) @binding(0) var<uniform> part: Part;
@group(0) @binding(0) var<uniform> total: Total;
@group(0) @binding(1) var<storage, read> norm: array<f32>;
@group(0) @binding(2) var<storage, read> grad: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> m: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read_write> v: array<vec4<f32>>;
@group(0) @binding(5) var<storage, read_write> param: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> source: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> shadow: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> x: array<vec4<T>>;
@group(0) @binding(2) var<storage, read_write> y: array<vec4<T>>;
@group(0) @binding(2) var<storage, read_write> partial: array<f32>;
@group(0) @binding(1) var<storage, read> partials: array<f32>;
@group(0) @binding(2) var<storage, read_write> result: array<f32>;

fn index(wg: vec3<u32>, groups: vec3<u32>, lid: u32) -> u32 { return (wg.y * groups.x + wg.x) * WG + lid; }

// Which of the four elements of vector i lie below n.
fn inside(i: u32, n: u32) -> vec4<bool> { return vec4<u32>(i * 4u) + vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(n); }

@compute @workgroup_size(WG)
fn adamw(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
  let j = index(wg, groups, lid);
  let length = norm[0];
  // An exponent of all ones is infinity or NaN; comparisons may be optimised away.
  if (j >= step.count || (bitcast<u32>(length) & 0x7f800000u) == 0x7f800000u) { return; }
  let i = step.first + j;
  let scale = select(1.0, min(1.0, step.clip / (length + 1e-6)), step.clip > 0.0);
  let g = grad[i] * scale;
  let mean = step.beta1 * m[i] + step.rest1 * g;
  let square = step.beta2 * v[i] + step.rest2 * g * g;
  m[i] = mean;
  v[i] = square;
  param[i] = param[i] * step.decay - step.rate * mean / (sqrt(square) * step.root + step.eps);
}

@compute @workgroup_size(WG)
fn ema(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
  let i = index(wg, groups, lid);
  if (i >= mix_by.count) { return; }
  shadow[i] = mix_by.decay * shadow[i] + mix_by.rest * source[i];
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
