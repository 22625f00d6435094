import { suite } from "uvu";
import * as assert from "uvu/assert";
import type { Encoded, TextEncoder } from "../../model/text/encoder.js";
import { Batches } from "../../train/batch.js";
import type { Dataset, Sample } from "../../train/data/dataset.js";
import { MixedDataset } from "../../train/data/mixed.js";

const mixed = suite("two sets in one stream");

/** Clips whose caption tells their set and place. */
class Named implements Dataset {
  constructor(
    private readonly name: string,
    readonly size: number,
    readonly frames = 1,
  ) {}
  readonly height = 2;
  readonly width = 2;
  sample(index: number): Sample {
    const { frames, height, width } = this;
    return { video: new Float32Array(3 * frames * 4), caption: `${this.name} ${index}`, frames, height, width };
  }
}

mixed("takes exactly its share of any run, in order, and nothing twice", async () => {
  const set = new MixedDataset(new Named("new", 5), new Named("old", 9), 0.25);
  const captions = await Promise.all(Array.from({ length: 64 }, async (_, i) => (await set.sample(i)).caption));
  for (let at = 0; at < 64; at += 16)
    assert.is(captions.slice(at, at + 16).filter((c) => c.startsWith("old")).length, 4, `from ${at}`);
  const of = (name: string) => captions.filter((c) => c.startsWith(name));
  assert.equal(
    of("old"),
    Array.from({ length: 16 }, (_, i) => `old ${i}`),
  );
  assert.equal(
    of("new"),
    Array.from({ length: 48 }, (_, i) => `new ${i}`),
  );
  assert.is(set.size, 5);
});

mixed("an odd share is kept in the long run", async () => {
  const set = new MixedDataset(new Named("new", 5), new Named("old", 9), 0.3);
  let old = 0;
  for (let i = 0; i < 1000; i++) if ((await set.sample(i)).caption.startsWith("old")) old++;
  assert.is(old, 300);
});

mixed("refuses shares that leave one set out and clips of another size", () => {
  for (const share of [0, 1, -1, Number.NaN])
    assert.throws(() => new MixedDataset(new Named("a", 1), new Named("b", 1), share), /must lie above 0 and below 1/);
  assert.throws(
    () => new MixedDataset(new Named("a", 1), new Named("b", 1, 3), 0.5),
    /clips must be of one size: 1 x 2 x 2 and 3 x 2 x 2/,
  );
});

/** One number a caption. */
class Numbers implements TextEncoder {
  readonly dim = 1;
  readonly maxLength = 1;
  encode(prompts: string[]): Encoded {
    const embeddings = Float32Array.from(prompts, (p) => Number(p.split(" ")[1]));
    const mask = Int32Array.from(prompts, () => 1);
    return { embeddings, mask, shape: [prompts.length, 1, 1], unknown: [], truncated: [], warnings: [] };
  }
}

mixed("one draw a sample drops both captions, the language caption alone, or none", async () => {
  const numbers = new Numbers();
  const options = { batchSize: 500, conditionDropout: 0.1, languageDropout: 0.2, seed: 3 };
  const batches = new Batches(new Named("clip", 9), numbers, options, async (c) => numbers.encode(c));
  let [both, languageAlone, textAlone, total] = [0, 0, 0, 0];
  for (let n = 0; n < 8; n++) {
    const { drop, language } = await batches.get(n);
    drop.forEach((d, i) => {
      const l = language!.drop[i];
      total++;
      if (d && l) both++;
      else if (l) languageAlone++;
      else if (d) textAlone++;
    });
  }
  assert.is(textAlone, 0, "the first caption is never dropped alone");
  assert.ok(Math.abs(both / total - 0.1) < 0.015, `${both / total}`);
  assert.ok(Math.abs(languageAlone / total - 0.2) < 0.02, `${languageAlone / total}`);
  const plain = await new Batches(new Named("clip", 9), numbers, { ...options, languageDropout: 0 }).get(0);
  assert.is(plain.language, undefined);
});

mixed.run();
