// One clip learnt by heart: rectified flow puts it on straight lines to noise, a small transformer learns the lines'
// direction, and Euler's method walks back from fresh noise to the clip. 15 seconds on lavapipe.
// node .build/run.mjs examples/diffusion.ts
import { createEngine, expand, Key, normal } from "../engine/index.js";
import { Flow, PCACodec, STDiT, sample } from "../model/index.js";
import { AdamW, captionOf, compose, fitPatches, loadSprites, rateOf, wordEncoder, world } from "../train/index.js";

const [STEPS, B, T, SIDE] = [350, 8, 4, 24];
const engine = await createEngine();
const spec = { class: "frog", motion: "moving right" as const, colours: ["yellow"] };
const caption = captionOf(spec);
const clip = compose(spec, world("easy", { frames: T, size: SIDE }), await loadSprites([spec.class])); // [3, T, H, W]
console.log(`"${caption}" on ${engine.info.name}: ${STEPS} steps of ${B} noisy copies`);

// Squares of 4 x 4 pixels become places with 4 channels; two by two places are a token of the transformer.
const codec = new PCACodec(engine, fitPatches([clip], { frames: T, height: SIDE, width: SIDE }, 4, 4));
const latent = codec.encode(engine.tensor(clip, [1, 3, T, SIDE, SIDE])); // [1, C, T, h, w]
const x0 = expand(latent, [B, ...latent.shape.slice(1)]); // [B, C, T, h, w]
const text = wordEncoder({ maxLength: 12 });
const { embeddings, mask, shape } = await text.encode(Array<string>(B).fill(caption));
const [y, words] = [engine.tensor(embeddings, shape), engine.tensor(mask, shape.slice(0, 2))]; // [B, L, D], [B, L]
const sizes = { frames: T, latent: [SIDE / 4, SIDE / 4] as const, captionChannels: text.dim, maxLength: 12 };
const net = { inChannels: 4, predSigma: false, hidden: 64, depth: 1, heads: 4, spaceScale: 1 };
const model = new STDiT(engine, { ...sizes, ...net }, { key: Key.from(0), captionInit: "xavier", gateBias: 0.5 });
const objective = new Flow({ shift: 4 });

/** A batch with one time from each of B equal parts of [0, 1), `at` of the way through its part. */
function batch(key: Key, at: number) {
  const times = objective.times(Array.from({ length: B }, (_, i) => (i + at) / B)); // [B]
  const noised = { x0, eps: normal(engine, key, x0.shape), times };
  const output = model.forward(objective.noise(noised), objective.timesteps(times), y, words); // [B, C, T, h, w]
  return { noised, ...objective.loss(output, noised) };
}

const optimizer = new AdamW(model.parameters(), { weightDecay: 0 });
const rate = rateOf({ lr: 8e-3, schedule: "linear-decay", warmupSteps: 20, decayFraction: 0.5, steps: STEPS });
for (let step = 0; step < STEPS; step++) {
  const loss = engine.scope(() => {
    const { loss } = batch(Key.from(1).fold(step), (step * 0.618034) % 1);
    loss.backward();
    optimizer.lr = rate(step);
    optimizer.step({ clip: 1 });
    optimizer.zeroGrad();
    return loss;
  });
  if (step % 50 === 49) console.log(`step ${step + 1}  loss ${(await loss.item()).toFixed(4)}`);
  else loss.dispose();
}

// Who may not look at the noisy clip guesses best with the mean of ε - x0, which is -x0: what is then left is ε.
const byTime = Array<number>(B).fill(0);
let constant = 0;
for (let i = 0; i < 16; i++) {
  const [mse, guess] = engine.noGrad(() =>
    engine.scope(() => {
      const { noised, parts } = batch(Key.from(2).fold(i), (i + 0.5) / 16);
      return [parts.mse, noised.eps.square().mean()];
    }),
  );
  for (const [k, v] of (await mse.data()).entries()) byTime[k] += v / 16;
  constant += (await guess.item()) / 16;
}
const loss = byTime.reduce((a, b) => a + b) / B;
console.log(`\nloss on fresh noise, from the times near the clip to those near noise:`);
console.log(`  ${byTime.map((v) => v.toFixed(3)).join("  ")}`);
console.log("near the clip the noise is too faint to tell its direction, so the first stays high");
console.log(
  `loss ${loss.toFixed(4)}, constant predictor ${constant.toFixed(4)}: ${((100 * loss) / constant).toFixed(2)} %`,
);

const { video } = await sample({ model, codec, objective, text }, { prompts: [caption], guidance: 1, steps: 16 });
const coded = await codec.decode(latent).data();
const decibels = (v: ArrayLike<number>) =>
  (-10 * Math.log10(clip.reduce((sum, x, i) => sum + ((x - v[i]) / 2) ** 2, 0) / clip.length)).toFixed(1);
console.log(
  `\nsampled from noise in 16 steps: ${decibels(video)} dB from the clip; its codec alone: ${decibels(coded)} dB`,
);

/** Row j of frame t as characters, dark to light by the red of its pixels. */
const row = (v: Float32Array, t: number, j: number) => {
  const reds = Array.from(v.subarray((t * SIDE + j) * SIDE, (t * SIDE + j + 1) * SIDE));
  return reds.map((red) => "@#*+=-. "[Math.min(7, Math.max(0, Math.round(3.5 * (red + 1))))]).join("");
};
console.log(
  `${"first frame, sampled".padEnd(SIDE)} | ${"clip".padEnd(SIDE)} | ${"last frame, sampled".padEnd(SIDE)} | clip`,
);
for (let j = 0; j < SIDE; j += 2)
  console.log([0, T - 1].flatMap((t) => [row(video, t, j), row(clip, t, j)]).join(" | "));
engine.destroy();
