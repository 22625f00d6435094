import { suite } from "uvu";
import * as assert from "uvu/assert";
import { formPrompts } from "../../model/text/form.js";
import { RuleRecaptioner } from "../../model/text/recaption.js";
import { type ModulePage, openModule } from "./harness.js";

const test = suite("long captions in Chromium");
let page: ModulePage;

test.before(async () => {
  page = await openModule("test/browser/recaption.ts");
});
test.after(() => page?.close());

test("the rules give what they give in Node", async () => {
  const prompts = [
    "an ox moving left on a blue background",
    "Größe",
    "a fox the upper half is red and the lower half is blue",
  ];
  assert.equal(await page.run<string[]>("rules", prompts), await formPrompts(prompts, "SL", new RuleRecaptioner()));
});

test("an endpoint is asked, and one that cannot be reached is told", async () => {
  const { origin } = new URL(page.page.url());
  await page.page.route("**/v1/chat/completions", (route) => {
    const content = `long ${route.request().postDataJSON().messages[1].content}`;
    return route.fulfill({ json: { choices: [{ message: { content } }] } });
  });
  assert.equal(await page.run<string[]>("ask", origin, ["a", "b"]), ["long a", "long b"]);
  // The page's own policy lets it ask its own server only.
  const [name, message] = await page.run<string[]>("ask", "http://127.0.0.1:1/v1", ["a"]);
  assert.is(name, "RecaptionError");
  assert.match(message, /not reachable: http:\/\/127\.0\.0\.1:1\/v1\/chat\/completions: .*let the page ask it/);
});
test.run();
