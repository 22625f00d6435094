import { suite } from "uvu";
import * as assert from "uvu/assert";
import { createEngine, type Engine } from "../../engine/index.js";
import { adaptedOf } from "../../model/lora.js";
import { type ConfigInput, parseConfig } from "../../train/config.js";
import { continuedSetup } from "../../train/continued.js";
import { heldOutLoss } from "../../train/heldout.js";
import { dropoutOf } from "../../train/loop.js";
import { openSource } from "../../train/source.js";
import { trainedParameters } from "../../train/state.js";

const continued = suite("going on from a model");
let engine: Engine;
continued.before(async () => {
  engine = await createEngine();
});
continued.after(() => engine.destroy());

const from = "examples/checkpoints/easy.safetensors";
const refused: [ConfigInput, RegExp][] = [
  [{ grow: { mode: "insert", blocks: 2 } }, /grow\.mode needs a model: set model\.from/],
  [{ model: { from }, grow: { mode: "insert" } }, /grow\.blocks missing: how many new blocks\?/],
  [{ model: { from }, grow: { blocks: 2 } }, /grow\.blocks has no use: grow\.mode is none/],
  [{ model: { from, hidden: 32 } }, /model\.hidden has no use: model\.from decides it/],
  [{ model: { from }, objective: { flowShift: 2 } }, /objective\.flowShift has no use: model\.from decides it/],
  [{ language: { encoder: "language" } }, /language\.encoder needs a model/],
  [{ model: { from }, language: { gate: "head" } }, /language\.gate has no use: language\.encoder is none/],
  [{ lora: { pattern: "blocks.**" } }, /lora\.pattern needs a model/],
  [{ model: { from }, lora: { rank: 2 } }, /lora\.rank has no use: lora\.pattern is not set/],
  [
    { model: { from }, lora: { pattern: "blocks.**" }, grow: { mode: "insert", blocks: 1 }, train: { scope: "new" } },
    /train\.scope has no use: with lora\.pattern only adapters learn/,
  ],
  [{ train: { scope: "new" } }, /train\.scope new has nothing new/],
  [{ replay: { fraction: 0.5 } }, /replay needs one source/],
  [{ replay: { clips: "easy" } }, /replay\.clips has no use: replay\.fraction is 0/],
  [{ replay: { fraction: 1, clips: "wide" } }, /at 1 nothing new is seen/],
  [{ model: { from }, replay: { fraction: 0.5, clips: "easy" } }, /replay\.clips is what is trained already: easy/],
  [{ train: { conditionDropout: 0.7, languageDropout: 0.7 } }, /shares of one whole: together 1\.4/],
];
continued("options that do not go together are refused", () => {
  for (const [input, message] of refused) assert.throws(() => parseConfig(input), message, JSON.stringify(input));
});

continued("a model grows, gets a branch and is frozen but for what is new", async () => {
  const config = parseConfig({
    model: { from },
    data: { world: "new" },
    grow: { mode: "insert", blocks: 1 },
    language: { encoder: "language", gate: "head" },
    train: { scope: "new" },
  });
  const setup = await continuedSetup(engine, config);
  const { model } = setup;
  assert.is(model.config.depth, 4);
  assert.is(model.config.languageChannels, setup.language!.dim);
  const grown = model.growth!.blocks.findIndex((b) => b.step > 0);
  const trained = Object.keys(trainedParameters(model));
  assert.ok(trained.includes(`blocks.${grown}.attn.qkv.weight`));
  for (const name of trained)
    assert.ok(
      name.startsWith(`blocks.${grown}.`) || /llm/.test(name),
      `${name} is neither in the new block nor of the branch`,
    );
  assert.equal(dropoutOf(config, setup), { conditionDropout: 0.05, languageDropout: 0.05 });
  const source = await openSource(config);
  const loss = await heldOutLoss(setup, source);
  assert.ok(loss > 0.1 && Number.isFinite(loss), `${loss}`);
  assert.is(await heldOutLoss(setup, source), loss, "the same clips, times and noise each time");
  setup.dispose();
});

continued("adapters alone learn, on the layers that several patterns name", async () => {
  const config = parseConfig({
    model: { from },
    data: { world: "new" },
    lora: { pattern: "blocks.0.attn.**, blocks.*.mlp.fc1", rank: 2 },
  });
  const setup = await continuedSetup(engine, config);
  assert.equal(
    adaptedOf(setup.model).map((a) => a.name),
    ["blocks.0.attn.qkv", "blocks.0.attn.proj", "blocks.0.mlp.fc1", "blocks.1.mlp.fc1", "blocks.2.mlp.fc1"],
  );
  assert.ok(Object.keys(trainedParameters(setup.model)).every((name) => /\.lora_[AB]\.weight$/.test(name)));
  assert.throws(
    () => dropoutOf(parseConfig({ train: { languageDropout: 0.1 } }), setup),
    /languageDropout has no use: the model reads no language model/,
  );
  setup.dispose();
});

continued("clips of another size than the model's are refused with both sizes", async () => {
  const config = parseConfig({ model: { from }, data: { world: "new", size: 48 } });
  let message = "";
  await continuedSetup(engine, config).catch((error: Error) => {
    message = error.message;
  });
  assert.match(message, /clips of 8 frames of 48 x 48 have latents of 8 x 12 x 12: .* was trained on 8 x 8 x 8/);
});

continued.run();
