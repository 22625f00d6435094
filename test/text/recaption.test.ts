import { createServer, type IncomingMessage, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { AbortedError, ConfigError } from "../../engine/errors.js";
import { formPrompts, inForm, promptForm } from "../../model/text/form.js";
import { OpenAIRecaptioner, RecaptionError } from "../../model/text/openai.js";
import { parseScene, RuleRecaptioner } from "../../model/text/recaption.js";
import { captionOf, combinations, type Spec, WORLDS, world } from "../../train/data/world.js";

const rules = suite("rules for long captions");
const recaptioner = new RuleRecaptioner();

rules("every caption of every world is taken apart into what it was made of", () => {
  let count = 0;
  for (const name of Object.keys(WORLDS))
    for (const twoColours of [false, true]) {
      const specs = combinations(world(name, { twoColours }));
      const images: Spec[] = specs.map(({ motion: _, ...rest }) => rest);
      for (const spec of [...specs, ...images]) {
        const scene = parseScene(captionOf(spec));
        assert.ok(scene, captionOf(spec));
        assert.match(scene.subject, new RegExp(`^an? ${spec.class}$`));
        assert.is(scene.motion, spec.motion);
        assert.equal(scene.colours, spec.colours);
        count++;
      }
    }
  assert.ok(count > 10_000, `${count}`);
});

rules("no two captions of a world become the same long one, and swapped colours are told apart", () => {
  const captions = combinations(world("new")).map(captionOf);
  const long = captions.map((c) => recaptioner.describe(c));
  assert.is(new Set(long).size, captions.length);
  const [a, b] = [
    "a zebra growing the upper half is blue and the lower half is red",
    "a zebra growing the upper half is red and the lower half is blue",
  ].map((c) => recaptioner.describe(c));
  assert.match(a, /in the upper half, it is blue; below, in the lower half, it is red/);
  assert.match(b, /in the upper half, it is red; below, in the lower half, it is blue/);
});

rules("the long caption of a clip and of an image", () => {
  assert.is(
    recaptioner.describe("an ox moving left on a blue background"),
    "The picture shows an ox. The movement goes from right to left: it begins at the right and ends at the left. The whole background behind it is blue, blue above and blue below. It is drawn as a simple cartoon.",
  );
  assert.is(
    new RuleRecaptioner({ style: "" }).describe("an ox on a blue background"),
    "The picture shows an ox. The whole background behind it is blue, blue above and blue below.",
  );
});

rules("classes and colours may be any words, in any script, case and spacing", () => {
  assert.equal(parseScene(" Two  birthday cakes moving up on a dark blue background. "), {
    subject: "two birthday cakes",
    motion: "moving up",
    colours: ["dark blue"],
  });
  assert.equal(parseScene("a ring the upper half is blau-grün and the lower half is жёлтый"), {
    subject: "a ring",
    motion: undefined,
    colours: ["blau-grün", "жёлтый"],
  });
  assert.equal(parseScene("a t-rex moving left"), { subject: "a t-rex", motion: "moving left", colours: [] });
});

rules("other captions get an expansion that claims nothing, and long ones stay as they are", () => {
  assert.is(recaptioner.describe("sunset over the sea"), "The following is shown: sunset over the sea.");
  assert.is(
    recaptioner.describe("a man walks, and a dog is moving left on a red background"),
    "The following is shown: a man walks, and a dog is moving left on a red background.",
  );
  const long = "A dog runs over a field. The sun is low.";
  assert.is(recaptioner.describe(long), long);
});

rules("other styles have other fingerprints; bad options and prompts are refused", async () => {
  assert.not.equal(new RuleRecaptioner({ style: "" }).fingerprint, recaptioner.fingerprint);
  assert.is(new RuleRecaptioner().fingerprint, recaptioner.fingerprint);
  assert.throws(() => new RuleRecaptioner({ stile: "" } as object), /did you mean "style"/);
  await refused(recaptioner.expand([""]), ConfigError, /must not be empty/);
  await refused(recaptioner.expand(["a"], AbortSignal.abort()), AbortedError, /stopped/);
});

rules("forms: short, long, short followed by long", async () => {
  assert.is(inForm("S", "an ox", "It is an ox."), "an ox");
  assert.is(inForm("L", "an ox", "It is an ox."), "It is an ox.");
  assert.is(inForm("SL", "an ox", "It is an ox."), "an ox. It is an ox.");
  assert.is(inForm("SL", "an ox!", "It is an ox."), "an ox! It is an ox.");
  assert.is(inForm("SL", "an ox", " an ox"), "an ox");
  assert.is(promptForm("SL"), "SL");
  assert.throws(() => promptForm("XL"), /must be S, L or SL: "XL" was given; did you mean "/);
  const prompts = ["an ox moving left on a blue background"];
  const [long] = await formPrompts(prompts, "L", recaptioner);
  assert.equal(await formPrompts(prompts, "SL", recaptioner), [`${prompts[0]}. ${long}`]);
  const never = { name: "none", fingerprint: "none", expand: () => assert.unreachable("it was asked") as never };
  assert.equal(await formPrompts(prompts, "S", never), prompts);
});
rules.run();

const remote = suite("a recaptioner over HTTP");
type Answer = (request: IncomingMessage, body: Record<string, any>, response: ServerResponse) => void;
let answer: Answer;
let calls: { path: string; key: string | undefined; body: Record<string, any> }[] = [];
const server = createServer((request, response) => {
  let text = "";
  request.on("data", (chunk) => {
    text += chunk;
  });
  request.on("end", () => {
    const body = JSON.parse(text);
    calls.push({ path: request.url!, key: request.headers.authorization, body });
    answer(request, body, response);
  });
});
await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
remote.after(() => void server.close());
remote.before.each(() => {
  calls = [];
});
const say =
  (content: unknown, finish = "stop"): Answer =>
  (_request, _body, response) =>
    response.end(JSON.stringify({ choices: [{ message: { role: "assistant", content }, finish_reason: finish }] }));
const status =
  (code: number, text = ""): Answer =>
  (_request, _body, response) => {
    response.statusCode = code;
    response.end(text);
  };
async function refused(promise: Promise<unknown>, kind: new (...args: never[]) => Error, text: RegExp): Promise<void> {
  const error = await promise.then(
    () => assert.unreachable("nothing was refused") as never,
    (e: Error) => e,
  );
  assert.instance(error, kind, String(error));
  assert.match(error.message, text);
}

remote(
  "sends the prompt with the system text and the key, and gives captions back in order, each asked for once",
  async () => {
    answer = (request, body, response) => say(`long ${body.messages[1].content}`)(request, body, response);
    const asks = new OpenAIRecaptioner({ url, model: "m", key: "secret", system: "Be long." });
    const prompts = ["a", "b", "a", "c", "d", "e", "f"];
    assert.equal(
      await asks.expand(prompts),
      prompts.map((p) => `long ${p}`),
    );
    assert.is(calls.length, 6);
    assert.is(calls[0].path, "/v1/chat/completions");
    assert.is(calls[0].key, "Bearer secret");
    assert.equal(calls[0].body.messages, [
      { role: "system", content: "Be long." },
      { role: "user", content: "a" },
    ]);
    assert.is(calls[0].body.model, "m");
  },
);

remote("a base address, one with a path and a whole one all lead to the endpoint", async () => {
  answer = say("x");
  for (const end of ["/", "/v1", "/v1/", "/v1/chat/completions", "/api/openai"])
    await new OpenAIRecaptioner({ url: url + end, model: "m" }).expand(["a"]);
  assert.equal(
    calls.map((c) => c.path),
    [...Array(4).fill("/v1/chat/completions"), "/api/openai/chat/completions"],
  );
  assert.is(calls[0].key, undefined);
});

remote("quotes, thoughts and parts of an answer are made plain text", async () => {
  const asks = new OpenAIRecaptioner({ url, model: "m" });
  for (const content of ['"An ox."', "<think>hm\nox</think>\nAn ox.", [{ type: "text", text: "An ox." }]]) {
    answer = say(content);
    assert.equal(await asks.expand(["ox"]), ["An ox."]);
  }
});

remote("faults of a server are asked again, refusals are not", async () => {
  answer = (request, body, response) => (calls.length < 3 ? status(503) : say("ok"))(request, body, response);
  assert.equal(await new OpenAIRecaptioner({ url, model: "m" }).expand(["a"]), ["ok"]);
  assert.is(calls.length, 3);
  calls = [];
  const withKey = new OpenAIRecaptioner({ url, model: "m", key: "hush" });
  answer = status(401, '{"error":"no such key: hush"}');
  await refused(withKey.expand(["a"]), RecaptionError, /answered 401 .*no such key: ….*does not take the key/);
  await refused(new OpenAIRecaptioner({ url, model: "m" }).expand(["a"]), RecaptionError, /wants a key/);
  assert.is(calls.length, 2);
  answer = (_request, _body, response) => {
    response.setHeader("retry-after", calls.length === 3 ? "0" : "3600");
    response.statusCode = 429;
    response.end();
  };
  await refused(new OpenAIRecaptioner({ url, model: "m" }).expand(["a"]), RecaptionError, /asked too often/);
  assert.is(calls.length, 4);
});

remote("each way to fail has a message of its own, without the key", async () => {
  const asks = new OpenAIRecaptioner({ url, model: "m", key: "hush", retries: 0, timeout: 300 });
  const cases: [Answer, RegExp][] = [
    [status(404), /answered 404.*has the model m/],
    [status(500, "<h1>oh</h1>"), /answered 500 .*fault of its own/],
    [status(200, "<html>"), /not JSON: .* gave <html>/],
    [status(200, "{}"), /holds no choices\[0\]\.message\.content/],
    [status(200, "null"), /holds no choices/],
    [say("  "), /answer is empty: m made nothing of "a"/],
    [say(null), /answer is empty/],
    [say("An ox and", "length"), /cut off: m ran out of tokens at "…An ox and"/],
    [() => {}, /no answer in time: .* more than 300 ms/],
    [(request) => request.socket.destroy(), /not reachable/],
  ];
  for (const [given, text] of cases) {
    answer = given;
    await refused(asks.expand(["a"]), RecaptionError, text);
    await refused(asks.expand(["a"]), RecaptionError, /^(?!.*hush)/);
  }
  const closed = createServer();
  await new Promise<void>((resolve) => closed.listen(0, "127.0.0.1", resolve));
  const { port } = closed.address() as AddressInfo;
  await new Promise((resolve) => closed.close(resolve));
  const nowhere = new OpenAIRecaptioner({ url: `http://127.0.0.1:${port}`, model: "m", retries: 0 });
  await refused(nowhere.expand(["a"]), RecaptionError, /not reachable: .*ECONNREFUSED.*check that the server runs/);
});

remote("can be stopped while it waits for an answer and between tries", async () => {
  for (const given of [(() => {}) as Answer, status(503)]) {
    answer = given;
    const controller = new AbortController();
    setTimeout(() => controller.abort(), 100);
    const started = performance.now();
    const asks = new OpenAIRecaptioner({ url, model: "m", retries: 9 });
    await refused(asks.expand(["a", "b"], controller.signal), AbortedError, /stopped/);
    assert.ok(performance.now() - started < 3000);
  }
});

remote("options are checked before anything is sent; the fingerprint knows model and system text", async () => {
  const make = (options: object) => () => new OpenAIRecaptioner({ url, model: "m", ...options });
  assert.throws(make({ url: undefined }), /url must be an address: undefined/);
  assert.throws(make({ url: "ftp://x/" }), /must be http or https/);
  assert.throws(make({ url: "http://me:pw@host/" }), /must hold no user or password/);
  assert.throws(make({ model: "" }), /model must be named: "" .*\/v1\/models/);
  assert.throws(make({ timeout: 0 }), /timeout must be/);
  assert.throws(make({ retries: -1 }), /retries must be/);
  assert.throws(make({ key: "a\nb" }), /key must be printable ASCII without spaces: the one given is not/);
  assert.throws(make({ modle: "x" }), /did you mean "model"/);
  assert.is(calls.length, 0);
  const prints = [{}, { model: "n" }, { system: "x" }].map((o) => make(o)().fingerprint);
  assert.is(new Set(prints).size, 3);
  assert.is(make({ key: "k", url: "http://elsewhere" })().fingerprint, prints[0]);
});
remote.run();
