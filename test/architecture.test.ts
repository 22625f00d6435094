import { readdirSync, readFileSync } from "node:fs";
import { dirname, join, normalize } from "node:path";
import { suite } from "uvu";
import * as assert from "uvu/assert";

const architecture = suite("architecture");

/** Which folders a folder may import from. */
const arrows: Record<string, readonly string[]> = {
  shaders: [],
  engine: ["shaders", "engine"],
  model: ["engine", "model"],
  train: ["engine", "model", "train"],
  examples: ["engine", "model", "train", "examples"],
  test: [".build", "shaders", "engine", "model", "train", "examples", "test"],
};
/** The only files that may touch the machine. */
const platformFiles = ["engine/device/node.ts", "model/files/node.ts"];

interface Import {
  file: string;
  to: string;
  typeOnly: boolean;
}

function imports(): Import[] {
  const found: Import[] = [];
  for (const folder of Object.keys(arrows)) {
    for (const name of readdirSync(folder, { recursive: true }).map(String)) {
      if (!name.endsWith(".ts") || name.endsWith(".d.ts")) continue;
      const file = join(folder, name);
      const source = readFileSync(file, "utf8");
      for (const m of source.matchAll(
        /^(?:import|export)\s+(type\s)?[^;]*?from\s+"([^"]+)"|^import\s+"([^"]+)"|\bimport\("([^"]+)"\)/gm,
      ))
        found.push({ file, to: m[2] ?? m[3] ?? m[4], typeOnly: m[1] !== undefined });
    }
  }
  return found;
}

const resolved = (i: Import) => normalize(join(dirname(i.file), i.to)).replace(/\.js$/, ".ts");
const all = imports();

architecture("folders import only along the arrows", () => {
  const wrong = all.filter(
    (i) => i.to.startsWith(".") && !arrows[i.file.split("/")[0]].includes(resolved(i).split("/")[0]),
  );
  assert.equal(wrong, []);
  assert.ok(all.length > 100);
});

architecture("other folders reach the engine through its index only", () => {
  const inner = all.filter((i) => {
    const [from, to] = [i.file.split("/")[0], resolved(i)];
    // Errors and the two pieces of pure arithmetic need no GPU, so they may be had without the engine's weight.
    const light = [
      "engine/index.ts",
      "engine/errors.ts",
      "engine/random/philox.ts",
      "engine/random/key.ts",
      "engine/dtype.ts",
    ];
    return (
      i.to.startsWith(".") &&
      (from === "model" || from === "train" || from === "examples") &&
      to.startsWith("engine/") &&
      !light.includes(to) &&
      !i.typeOnly
    );
  });
  assert.equal(inner, []);
});

architecture("only the platform files touch Node or the webgpu package", () => {
  const wrong = all.filter(
    (i) =>
      ["engine", "model"].includes(i.file.split("/")[0]) &&
      /^(node:|webgpu$|koffi$|@sparticuz)/.test(i.to) &&
      !platformFiles.includes(i.file),
  );
  assert.equal(wrong, []);
  const webgpu = all.filter((i) => i.to === "webgpu" && !i.file.startsWith("test/"));
  assert.equal([...new Set(webgpu.map((i) => i.file))], ["engine/device/node.ts"]);
});

architecture("no cycle of imports", () => {
  const edges = new Map<string, Set<string>>();
  for (const i of all) {
    if (!i.to.startsWith(".") || i.typeOnly || i.file.startsWith("test/")) continue;
    edges.set(i.file, (edges.get(i.file) ?? new Set()).add(resolved(i)));
  }
  const state = new Map<string, "open" | "done">();
  const cycles: string[] = [];
  const visit = (file: string, path: string[]) => {
    if (state.get(file) === "open") cycles.push([...path.slice(path.indexOf(file)), file].join(" → "));
    if (state.has(file)) return;
    state.set(file, "open");
    for (const to of edges.get(file) ?? []) visit(to, [...path, file]);
    state.set(file, "done");
  };
  for (const file of edges.keys()) visit(file, []);
  assert.equal(cycles, []);
});

architecture("shaders are WGSL files with a header that says what they compute", () => {
  for (const name of readdirSync("shaders")) {
    assert.match(name, /^[a-z0-9_]+\.wgsl$/);
    assert.match(readFileSync(join("shaders", name), "utf8"), /^\/\/ \S/);
  }
});

architecture.run();
