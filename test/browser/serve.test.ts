import { mkdtempSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { request } from "node:http";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { folder, serve } from "../../.build/serve.mjs";

const test = suite("serve");

let home: string;
let server: Awaited<ReturnType<typeof serve>>;

test.before(async () => {
  home = mkdtempSync(join(tmpdir(), "espalier-"));
  writeFileSync(join(home, "index.html"), "<!doctype html>");
  writeFileSync(join(home, "weights.safetensors"), "0123456789");
  symlinkSync("/etc/passwd", join(home, "link"));
  const files = folder(home);
  server = await serve((path) => (path === "/" ? { body: "<!doctype html>" } : files(path)));
});

test.after(async () => {
  await server.close();
  rmSync(home, { recursive: true });
});

/** fetch() would tidy the path and forbid the Host header. */
function ask(path: string, headers: Record<string, string> = {}, method = "GET") {
  return new Promise<{ status: number; headers: Record<string, unknown>; body: string }>((resolve, reject) => {
    const { hostname, port } = new URL(server.url);
    const sent = request({ hostname, port, path, method, headers }, (response) => {
      let body = "";
      response.setEncoding("utf8").on("data", (chunk) => {
        body += chunk;
      });
      response.on("end", () => resolve({ status: response.statusCode!, headers: response.headers, body }));
    });
    sent.on("error", reject).end();
  });
}

test("files have their type and strict headers", async () => {
  for (const path of ["/", "/index.html"]) {
    const { status, headers, body } = await ask(path);
    assert.is(status, 200);
    assert.is(body, "<!doctype html>");
    assert.is(headers["content-type"], "text/html; charset=utf-8");
    assert.match(headers["content-security-policy"] as string, /^default-src 'none'; script-src 'self'/);
    assert.is(headers["x-content-type-options"], "nosniff");
  }
  assert.is((await ask("/weights.safetensors")).headers["content-type"], "application/octet-stream");
});

test("it listens on loopback only", () => assert.match(server.url, /^http:\/\/127\.0\.0\.1:\d+\/$/));

test("nothing outside the folder is served", async () => {
  for (const path of [
    "/../etc/passwd",
    "/..%2f..%2fetc/passwd",
    "/%2e%2e/etc/passwd",
    "/..%5cx",
    "/link",
    "//etc/passwd",
    "/%00",
    "/%zz",
  ]) {
    const { status, body } = await ask(path);
    assert.ok(status === 400 || status === 404, `${path}: ${status}`);
    assert.not.match(body, /root:/);
  }
});

test("other names for this machine are refused", async () => {
  assert.is((await ask("/", { Host: "example.com" })).status, 403);
});

test("only reading is allowed", async () => {
  assert.is((await ask("/", {}, "POST")).status, 405);
  const { status, headers, body } = await ask("/weights.safetensors", {}, "HEAD");
  assert.equal([status, headers["content-length"], body], [200, "10", ""]);
});

test("byte ranges", async () => {
  const cases: [string, number, string, string | undefined][] = [
    ["bytes=2-4", 206, "234", "bytes 2-4/10"],
    ["bytes=7-", 206, "789", "bytes 7-9/10"],
    ["bytes=-2", 206, "89", "bytes 8-9/10"],
    ["bytes=0-99", 206, "0123456789", "bytes 0-9/10"],
    ["bytes=10-12", 416, "", "bytes */10"],
    ["lines=1-2", 200, "0123456789", undefined],
  ];
  for (const [range, status, body, contentRange] of cases) {
    const answer = await ask("/weights.safetensors", { Range: range });
    assert.equal(
      [range, answer.status, answer.body, answer.headers["content-range"]],
      [range, status, body, contentRange],
    );
  }
});

test("a port that is taken is an error", async () => {
  const port = Number(new URL(server.url).port);
  const code = await serve(() => undefined, port).then(
    () => "none",
    (error) => error.code,
  );
  assert.is(code, "EADDRINUSE");
});

test.run();
