import { type Engine, Key, type Tensor } from "../../engine/index.js";
import { guided } from "../../model/diffusion/guidance.js";
import { forwardFlops } from "../../model/index.js";
import { Batches } from "../../train/batch.js";
import { parseConfig } from "../../train/config.js";
import { AdamW, dropoutOf, EMA, lossOf, openSource, type Source } from "../../train/index.js";
import { PRESETS } from "../../train/presets.js";
import { newSetup, type Setup } from "../../train/setup.js";
import { trainStep, uploadBatch } from "../../train/step.js";
import { fillZeros } from "./block.js";
import { type Case, errorAt, places } from "./case.js";
import { random } from "./ops.js";

const preset = PRESETS.find((p) => p.name === "easy")!;
const config = parseConfig(preset.config);

/** Floating-point operations of a forward pass of the preset's model over one clip. */
const clipFlops = ({ model }: Setup) =>
  forwardFlops(model.config, [model.config.frames, ...model.config.latent], config.model.maxLength);

let made: Promise<{ setup: Setup; source: Source }> | undefined;
/** The preset's model and data, which both cases share. */
const shared = (engine: Engine) => {
  made ??= openSource(config).then(async (source) => {
    const setup = await newSetup(engine, config, source);
    fillZeros(engine, setup.model);
    return { setup, source };
  });
  return made;
};

/** The optimizer of the preset's model, its average, and a batch, which all training cases share. */
const training = async (engine: Engine) => {
  const { setup, source } = await shared(engine);
  const { batchSize } = config.train;
  const batches = new Batches(source.dataset, setup.text, { batchSize, ...dropoutOf(config, setup), seed: 1 });
  const batch = await batches.get(0);
  const parameters = setup.model.namedParameters();
  state ??= {
    optimizer: new AdamW(Object.fromEntries(parameters), { lr: 1e-4 }),
    ema: new EMA(Object.fromEntries(parameters), config.ema),
  };
  const [key, flops] = [Key.from(3), 3 * batchSize * clipFlops(setup)];
  const { optimizer, ema } = state;
  const compiled = trainStep(setup, optimizer, ema, { clip: 1 });
  /** A step as the loop takes it, with the upload of its batch; [loss, norm of the gradient]. */
  const step = (eager: boolean) => {
    engine.eager = eager;
    try {
      return compiled([uploadBatch(setup, batch)], key);
    } finally {
      engine.eager = false;
    }
  };
  return { setup, batch, parameters, key, flops, optimizer, step };
};
let state: { optimizer: AdamW; ema: EMA } | undefined;

/** What training and sampling repeat, for the demonstration's smallest preset; compiled after eager. */
export const steps: readonly Case[] = [
  {
    name: `training step, preset ${preset.name}`,
    traced: true,
    prepare: async (engine) => {
      const { setup, batch, parameters, key, optimizer, flops, step } = await training(engine);
      const loss = async () => {
        const tensor = engine.scope(() => lossOf(setup, batch, key));
        return tensor.item().finally(() => tensor.dispose());
      };
      return {
        flops,
        run: () => void step(true),
        // Differences of a loss in f32, along a curve.
        limit: 5e-3,
        check: async () => {
          // The slope of the loss along the gradient, by central differences, is the norm that the optimizer reports.
          await loss();
          const values = await Promise.all(parameters.map(([, p]) => p.data()));
          const gradients = await Promise.all(
            parameters.map(async ([, p]) => (p.grad ? await p.grad.data() : new Float32Array(p.size))),
          );
          optimizer.lr = 0;
          const norm = await engine.scope(() => optimizer.step({ clip: 1 }).norm).item();
          optimizer.lr = 1e-4;
          const at = async (by: number) => {
            optimizer.zeroGrad();
            for (const [i, [, p]] of parameters.entries())
              engine.write(
                p,
                new Uint8Array(Float32Array.from(values[i], (v, k) => v + (by * gradients[i][k]) / norm).buffer),
              );
            return loss();
          };
          const h = 1e-2;
          const slope = ((await at(h)) - (await at(-h))) / (2 * h);
          await at(0);
          optimizer.zeroGrad();
          return Math.abs(slope / norm - 1);
        },
      };
    },
  },
  {
    name: `training step, preset ${preset.name}, compiled`,
    traced: true,
    prepare: async (engine) => {
      const { optimizer, flops, step } = await training(engine);
      return {
        flops,
        run: () => void step(false),
        check: async () => {
          // At a rate of 0 nothing moves, so both find the same model.
          optimizer.lr = 0;
          const [expected, got] = await Promise.all(
            [true, false].map((eager) => engine.scope(() => step(eager)).data()),
          );
          optimizer.lr = 1e-4;
          return Math.max(...Array.from(got, (v, i) => Math.abs(v / expected[i] - 1)));
        },
      };
    },
  },
  ...[false, true].map(samplingCase),
];

/** A step of a sampler with guidance: four clips, each with its caption and without. */
function samplingCase(compiled: boolean): Case {
  return {
    name: `sampling step, 4 clips, guided${compiled ? ", compiled" : ""}`,
    prepare: async (engine) => {
      const { setup } = await shared(engine);
      const { model } = setup;
      const encoded = await setup.text.encode(["a pig", "an ox", "a frog on a red background", "a snail moving up"]);
      const y = engine.tensor(encoded.embeddings, encoded.shape).keep();
      const mask = engine.tensor(encoded.mask, encoded.shape.slice(0, 2)).keep();
      const x = random(engine, setup.codec.latentShape([4, 3, config.data.frames, config.data.size, config.data.size]));
      const [scale, du] = [1.5, -0.05];
      const predict = guided(model, y, mask, { scale });
      const step = (x: Tensor) => engine.noGrad(() => x.add(predict(x, 700).mul(du)));
      const sample = compiled ? engine.compile(step) : step;
      const f = () => sample(x);
      return {
        flops: 2 * 4 * clipFlops(setup),
        run: () => void f(),
        check: async () => {
          const plain = async (y: Tensor) => {
            const out = engine.noGrad(() => engine.scope(() => model.forward(x, [700, 700, 700, 700], y, mask)));
            return out.data().finally(() => out.dispose());
          };
          const none = engine.noGrad(() => engine.scope(() => model.yEmbedder.nullCaption(4, y.shape[1])));
          const [c, u, from] = [await plain(y), await plain(none), await x.data()];
          const out: Tensor = engine.scope(f);
          const error = await errorAt(
            out,
            (i) => from[i] + du * (u[i] + scale * (c[i] - u[i])),
            places(out.size, out.size),
          );
          for (const t of [out, none]) t.dispose();
          return error;
        },
      };
    },
  };
}
