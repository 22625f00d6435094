import { createEngine, Key, normal } from "../../engine/index.js";
import { openModel } from "../../model/checkpoint.js";
import { Flow } from "../../model/diffusion/flow.js";
import { sample } from "../../model/pipeline.js";
import { STDiT } from "../../model/stdit.js";
import { AdamW } from "../../train/optim.js";

// These run in Node and in a page, which must agree.

/** One request to the trained model at `location`: its clip, [3, T, H, W] row by row. */
export async function sampled(location: string, adapter?: string): Promise<number[]> {
  const engine = await createEngine({ adapter });
  const loaded = await openModel(engine, location);
  const { model, codec, objective, text } = loaded;
  const pipeline = { model, codec: codec!, objective: objective!, text: text.encoder! };
  const prompts = ["an ox moving left on a blue background"];
  const { video } = await sample(pipeline, { prompts, steps: 4, guidance: 1.5, seed: 11 });
  loaded.dispose();
  engine.destroy();
  return Array.from(video);
}

/** The losses of a few steps of a small model on data that one key decides. */
export async function trained(adapter?: string): Promise<number[]> {
  const engine = await createEngine({ adapter });
  const key = Key.from(3);
  const [B, L, D] = [2, 4, 8];
  const model = new STDiT(
    engine,
    {
      inChannels: 4,
      predSigma: false,
      hidden: 32,
      depth: 2,
      heads: 2,
      frames: 4,
      latent: [4, 4],
      captionChannels: D,
      maxLength: L,
      spaceScale: 1,
    },
    { key: key.fold(0), gateBias: 0.5 },
  );
  const objective = new Flow({ shift: 4 });
  const optimizer = new AdamW(Object.fromEntries(model.namedParameters()), { lr: 3e-3 });
  const losses: number[] = [];
  for (let step = 0; step < 6; step++) {
    const loss = engine.scope(() => {
      const draw = (i: number, shape: number[]) => normal(engine, key.fold(1 + step).fold(i), shape);
      const [x0, eps] = [draw(0, [B, 4, 4, 4, 4]), draw(1, [B, 4, 4, 4, 4])]; // [B, C, T, H, W]
      const times = objective.times([0.3, 0.9]);
      const noised = { x0, eps, times };
      const output = model.forward(objective.noise(noised), objective.timesteps(times), draw(2, [B, L, D]));
      const { loss } = objective.loss(output, noised); // []
      loss.backward();
      optimizer.step({ clip: 1 });
      optimizer.zeroGrad();
      return loss.detach();
    });
    losses.push(await loss.item());
    loss.dispose();
  }
  engine.destroy();
  return losses;
}
