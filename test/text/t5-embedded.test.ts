import { suite } from "uvu";
import * as assert from "uvu/assert";
import { createEngine, Key } from "../../engine/index.js";
import { memorySink, openSafetensors, type SafetensorsEntry, writeSafetensors } from "../../model/safetensors.js";
import { T5Encoder } from "../../model/t5/t5.js";
import { openEmbeddedT5 } from "../../model/text/embedded.js";
import type { Encoded } from "../../model/text/encoder.js";
import { findEncoder, openEncoder } from "../../model/text/spec.js";
import { T5TextEncoder } from "../../model/text/t5.js";
import { encoderAssets, t5Model, wordEncoder } from "../../train/data/assets.js";
import { CLASSES, COLOURS, captionOf, combinations, MOTIONS, world } from "../../train/data/world.js";
import { rejects } from "../files/throws.js";
import { probe } from "./probe.js";

const test = suite("embedded t5");
const engine = await createEngine();

test("the file: small, its losses told, every word of the clips one token", async () => {
  const bytes = t5Model();
  assert.ok(bytes.length <= 1e6, `${bytes.length} bytes`);
  const file = await openSafetensors(bytes);
  const { loss } = JSON.parse(file.metadata.training);
  assert.equal(Object.keys(loss).length, 6);
  for (const { trained, heldOut } of Object.values<{ trained: number; heldOut: number }>(loss))
    assert.ok(trained > 0 && heldOut > 0);
  using encoder = await openEmbeddedT5(engine, bytes);
  assert.equal([encoder.dim, encoder.maxLength], [64, 24]);
  assert.equal(encoder.report.unexpected, []);
  const { tokenizer } = encoder;
  assert.equal(tokenizer.special, { pad: 0, eos: 1, unk: 2 });
  const said = [...CLASSES, ...Object.keys(COLOURS), ...MOTIONS.flatMap((m) => m.split(" "))];
  const trained = new Set(["wide", "new"].flatMap((name) => [...world(name).classes, ...world(name).colours]));
  for (const word of said) if (trained.has(word)) assert.is(tokenizer.encode(word).length, 1, word);
  assert.is(
    tokenizer.decode(tokenizer.encode("a fox moving up on a red background")),
    "a fox moving up on a red background",
  );
});

test('the spec "t5": the same encoder; its options and fingerprint', async () => {
  const found = await findEncoder({ encoder: "t5" }, encoderAssets);
  assert.equal([found.kind, found.needsEngine], ["t5", true]);
  assert.is(
    (await findEncoder({ encoder: "t5", maxLength: 24, clean: true }, encoderAssets)).fingerprint,
    found.fingerprint,
  );
  const short = await findEncoder({ encoder: "t5", maxLength: 16 }, encoderAssets);
  assert.is.not(short.fingerprint, found.fingerprint);
  const { dim, maxLength, fingerprint } = await short.identify(engine);
  const encoder = (await openEncoder(engine, { encoder: "t5", maxLength: 16 }, encoderAssets)) as T5TextEncoder;
  assert.equal([encoder.dim, encoder.maxLength, encoder.fingerprint], [dim, maxLength, fingerprint]);
  using again = await openEmbeddedT5(engine, t5Model(), { maxLength: 16 });
  assert.is(again.fingerprint, encoder.fingerprint);
  const prompts = ["an ox moving left on a blue background", "A Fox!", ""];
  const [a, b] = [await encoder.encode(prompts), await again.encode(prompts)];
  assert.equal(a, b);
  assert.equal(a.shape, [3, 16, 64]);
  // "a fox !" and the end; the empty prompt is the end alone.
  assert.equal(
    [0, 1, 2].map((i) => a.mask.subarray(16 * i, 16 * (i + 1)).reduce((x, y) => x + y, 0)),
    [9, 4, 1],
  );
  encoder.dispose();
  await rejects(() => findEncoder({ encoder: "t5", layer: -2 }, encoderAssets), "layer has no use");
  await rejects(() => openEmbeddedT5(engine, t5Model(), { maxLength: 0 }), "maxLength must be a whole number from 1");

  const file = await openSafetensors(t5Model());
  const entries: SafetensorsEntry[] = [];
  for (const [name, { dtype, shape }] of file.tensors)
    entries.push({ name, dtype, shape, data: (await file.tensor(name)).data });
  const { config: _, ...rest } = file.metadata;
  const sink = memorySink();
  await writeSafetensors(sink, entries, rest);
  await rejects(() => openEmbeddedT5(engine, sink.bytes()), "not a T5's file");
});

test("what its vectors tell, beside word vectors: class, motion and colours of combinations that it never read", async () => {
  const of = world("new");
  const parts = (["trained", "heldOut"] as const).map((part) => combinations(of, part));
  using t5 = await openEmbeddedT5(engine, t5Model(), { batch: 64 });
  const words = wordEncoder();
  // What attention mixes by itself.
  const fresh = new T5Encoder(engine, t5.model.config, { key: Key.from(1) });
  using untrained = new T5TextEncoder(fresh, t5.tokenizer, "untrained", { maxLength: 24, batch: 64 });
  const telling: Record<string, Record<string, number>> = {};
  for (const [name, encoder] of Object.entries({ t5, untrained, words })) {
    const D = encoder.dim;
    const encoded = await Promise.all(
      parts.map(async (specs): Promise<Encoded> => encoder.encode(specs.map((spec) => captionOf(spec)))),
    );
    const rowsOf = (t: number | undefined) =>
      encoded.map(({ embeddings, mask, shape: [B, L] }) =>
        Array.from({ length: B }, (_, i) => {
          const count = mask.subarray(i * L, (i + 1) * L).reduce((a, b) => a + b, 0);
          const at = (place: number) => embeddings.subarray((i * L + place) * D, (i * L + place + 1) * D);
          if (t !== undefined) return Array.from(at(t));
          return Array.from({ length: D }, (_, d) => {
            let sum = 0;
            for (let place = 0; place < count; place++) sum += at(place)[d];
            return sum / count;
          });
        }),
      );
    const told = (t: number | undefined) => {
      const rows = rowsOf(t);
      const by = (choice: (spec: (typeof parts)[0][0]) => string) =>
        probe({ rows: rows[0], choices: parts[0].map(choice) }, { rows: rows[1], choices: parts[1].map(choice) });
      return {
        class: by((spec) => spec.class),
        motion: by((spec) => spec.motion!),
        upper: by(({ colours }) => colours[0]),
        lower: by(({ colours }) => colours[1]),
      };
    };
    const tokens = Array.from({ length: 14 }, (_, t) => told(t));
    telling[name] = told(undefined);
    for (const what of ["class", "motion", "upper", "lower"] as const) {
      telling[name][`${what}, mean of tokens`] = tokens.reduce((sum, one) => sum + one[what], 0) / tokens.length;
      telling[name][`${what}, worst token`] = Math.min(...tokens.map((one) => one[what]));
    }
    console.log(
      `\n  ${name}: ${Object.entries(telling[name])
        .map(([what, share]) => `${what} ${share.toFixed(2)}`)
        .join("; ")}`,
    );
  }
  const { t5: ours, untrained: before, words: bag } = telling;
  for (const what of ["class", "motion"]) assert.ok(ours[what] >= 0.95 && bag[what] >= 0.95, what);
  // The mean of word vectors holds both colours, in no order.
  for (const what of ["upper", "lower"]) assert.ok(ours[what] >= 0.95 && bag[what] < 0.8, what);
  for (const what of ["class", "motion", "upper", "lower"])
    assert.ok(ours[`${what}, worst token`] >= 0.95, `${what}, from each token alone`);
  for (const what of ["upper", "lower"]) assert.ok(before[`${what}, worst token`] < 0.85, "this is learned");
});

test.run();
