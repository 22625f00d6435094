import { suite } from "uvu";
import * as assert from "uvu/assert";
import { AbortedError, createEngine, Key } from "../../engine/index.js";
import { PixelCodec } from "../../model/codec.js";
import type { STDiTConfig } from "../../model/config.js";
import { Flow } from "../../model/diffusion/flow.js";
import type { Objective } from "../../model/diffusion/objective.js";
import { Velocity } from "../../model/diffusion/velocity.js";
import {
  languagePrompts,
  type Pipeline,
  type SampleRequest,
  sample,
  sampleClips,
  samplersOf,
} from "../../model/pipeline.js";
import { STDiT } from "../../model/stdit.js";
import type { Encoded, TextEncoder } from "../../model/text/encoder.js";
import type { Recaptioner } from "../../model/text/recaption.js";
import { rejects } from "../files/throws.js";
import { relNorm } from "./compare.js";
import { equalBits, randomize, SMALL } from "./grown.js";

const test = suite("pipeline");
const engine = await createEngine();
const key = Key.from(51);
const CONFIG: Partial<STDiTConfig> = { ...SMALL, inChannels: 3, depth: 1, languageChannels: 5, languageLength: 6 };

/** Vectors from the characters of a prompt, and a list of what was read. */
class Letters implements TextEncoder {
  readonly read: string[] = [];
  constructor(
    readonly dim: number,
    readonly maxLength: number,
  ) {}
  encode(prompts: string[]): Encoded {
    this.read.push(...prompts);
    const { dim, maxLength } = this;
    const shape: Encoded["shape"] = [prompts.length, maxLength, dim];
    const embeddings = new Float32Array(prompts.length * maxLength * dim);
    const mask = new Int32Array(prompts.length * maxLength);
    prompts.forEach((prompt, i) => {
      for (let t = 0; t < Math.min(prompt.length, maxLength); t++) {
        mask[i * maxLength + t] = 1;
        for (let d = 0; d < dim; d++)
          embeddings[(i * maxLength + t) * dim + d] = 2 * Math.sin(prompt.charCodeAt(t) * (d + 1));
      }
    });
    return { embeddings, mask, shape, unknown: [], truncated: [], warnings: [] };
  }
}

async function model(more: Partial<STDiTConfig>): Promise<STDiT> {
  const m = new STDiT(engine, { ...CONFIG, ...more }, { key });
  await randomize(m, key, 0.5);
  return m;
}
const spoken = await model({ predSigma: false });
const plain = await model({ predSigma: false, languageChannels: 0 });

function pipelineOf(
  m: STDiT,
  objective: Objective = new Flow(),
  more: Partial<Pipeline> = {},
  language = new Letters(5, 6),
) {
  return { model: m, codec: new PixelCodec(), objective, ...more, text: new Letters(3, 4), language };
}
const PROMPTS = ["ox", "bee"];
const video = async (pipeline: Pipeline, request: Partial<SampleRequest>) =>
  (await sample(pipeline, { prompts: PROMPTS, steps: 2, ...request })).video;

test("both scales count with every sampler of every objective", async () => {
  for (const objective of [new Flow(), new Velocity()])
    for (const sampler of samplersOf(objective)) {
      const pipeline = pipelineOf(spoken, objective);
      const usual = await video(pipeline, { sampler });
      assert.ok(
        equalBits(usual, await video(pipeline, { sampler, guidance: 1.5, languageGuidance: 2, parts: 3 })),
        sampler,
      );
      for (const request of [{ guidance: 4 }, { languageGuidance: 5 }])
        assert.ok(relNorm(await video(pipeline, { sampler, ...request }), Array.from(usual)) > 1e-4, sampler);
    }
});

const loud: Recaptioner = {
  name: "loud",
  fingerprint: "loud/1",
  expand: async (prompts) => prompts.map((prompt) => `${prompt.toUpperCase()} IS SHOWN`),
};

test("the language model reads short prompts, long ones, or both", async () => {
  const reads = async (more: Partial<Pipeline>, request: Partial<SampleRequest>) => {
    const pipeline = pipelineOf(spoken, new Flow(), more);
    await video(pipeline, { steps: 1, ...request });
    assert.equal(pipeline.text.read, PROMPTS);
    const asked = { prompts: PROMPTS, ...request };
    assert.equal(await languagePrompts(pipeline, asked), pipeline.language.read);
    return pipeline.language.read;
  };
  const longPrompts = ["a red ox", "a bee flies"];
  assert.equal(await reads({}, {}), PROMPTS);
  assert.equal(await reads({ recaptioner: loud }, {}), PROMPTS);
  assert.equal(await reads({ recaptioner: loud }, { promptForm: "L" }), ["OX IS SHOWN", "BEE IS SHOWN"]);
  assert.equal(await reads({ recaptioner: loud, promptForm: "SL" }, {}), ["ox. OX IS SHOWN", "bee. BEE IS SHOWN"]);
  assert.equal(await reads({ promptForm: "SL" }, { promptForm: "S" }), PROMPTS);
  assert.equal(await reads({ promptForm: "L" }, {}), ["The following is shown: ox.", "The following is shown: bee."]);
  assert.equal(await reads({}, { longPrompts }), longPrompts);
  assert.equal(await reads({ promptForm: "SL" }, { longPrompts }), ["ox. a red ox", "bee. a bee flies"]);
  assert.equal(await reads({ promptForm: "SL" }, { longPrompts, promptForm: "L" }), longPrompts);
  // What it reads changes the clips.
  const [short, long] = [await video(pipelineOf(spoken), {}), await video(pipelineOf(spoken), { longPrompts })];
  assert.ok(relNorm(short, Array.from(long)) > 1e-3);
});

test("what cannot be is refused before anything is encoded", async () => {
  const refused = async (pipeline: ReturnType<typeof pipelineOf>, request: Partial<SampleRequest>, message: string) => {
    await rejects(() => video(pipeline, request), message);
    assert.equal([...pipeline.text.read, ...(pipeline.language?.read ?? [])], []);
  };
  const usual = pipelineOf(spoken);
  for (const [request, name] of [
    [{ languageGuidance: 2 }, "languageGuidance"],
    [{ promptForm: "L" }, "promptForm"],
    [{ longPrompts: ["a", "b"] }, "longPrompts"],
  ] as const)
    await refused(
      pipelineOf(plain),
      request as Partial<SampleRequest>,
      `sample: ${name} has no use: the model has no language branch`,
    );
  const mute = { ...usual, language: undefined } as unknown as typeof usual;
  await refused(mute, {}, "the model has a language branch: the pipeline has no language model for it to read");
  for (const bad of [-1, Number.NaN, Number.POSITIVE_INFINITY]) {
    await refused(usual, { guidance: bad }, `guidance: the scale must be a number from 0: got ${bad}`);
    await refused(usual, { languageGuidance: bad }, `guidance: the language scale must be a number from 0: got ${bad}`);
  }
  await refused(usual, { promptForm: "LS" as "L" }, 'prompt form: must be S, L or SL: "LS" was given');
  await refused(usual, { longPrompts: ["one"] }, "there must be a long prompt for each prompt: got 1 for 2");
  await refused(usual, { promptForm: "S", longPrompts: ["a", "b"] }, 'long prompts have no use with prompt form "S"');
  await refused(usual, { prompts: [] }, "at least one is needed");
  await refused(usual, { sampler: "ddim" }, 'sampler "ddim" does not fit a model trained with flow');
  const wide = pipelineOf(spoken, new Flow(), {}, new Letters(7, 6));
  await refused(wide as typeof usual, {}, "the model's language captions are 5 wide: those of the encoder given are 7");
  const lengthy = pipelineOf(spoken, new Flow(), {}, new Letters(5, 9));
  await refused(lengthy, {}, "at most 6 vectors: the encoder given makes 9; open it with maxLength 6");
});

test("a model without the branch samples as before; an abort stops before the next step and frees everything", async () => {
  const { language: _, ...single } = pipelineOf(plain);
  assert.is((await video(single, {})).length, 2 * 3 * 2 * 2 * 4);
  const before = engine.memory().live;
  const stop = new AbortController();
  const seen: number[] = [];
  try {
    for await (const { step } of sampleClips(pipelineOf(spoken), { prompts: PROMPTS, steps: 6 }, stop.signal)) {
      seen.push(step);
      if (step === 2) stop.abort("enough");
    }
    assert.unreachable("did not stop");
  } catch (error) {
    assert.instance(error, AbortedError);
  }
  assert.equal(seen, [1, 2]);
  assert.is(engine.memory().live, before);
});

test.after(() => engine.destroy());
test.run();
