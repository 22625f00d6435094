import type { Engine } from "../../engine/index.js";

/** One line: the adapter that was taken, and what would be faster. */
export function adapterLine(engine: Engine): string {
  const { name, kind, description, faster } = engine.info;
  return `adapter: ${name} (${kind}, ${description})${faster ? `; faster would be ${faster}` : ""}`;
}
