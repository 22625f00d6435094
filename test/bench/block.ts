import { type Engine, Key } from "../../engine/index.js";
import { type Module, STDiTBlock } from "../../model/index.js";
import { type Case, errorAt, places } from "./case.js";
import { random } from "./ops.js";
import { block, type Numbers, type Sizes } from "./plain.js";

/** Floating-point operations of a block's forward pass: linears and attention products. */
function blockFlops({ B, T, S, L, C }: Sizes): number {
  const N = T * S;
  const linears = N * C * C * (2 * 4 + 2 + 8) + L * C * 2 * C;
  return 2 * B * (linears + 2 * N * (S + T + L) * C);
}

/**
 * Gives the layers that start as zeros random weights: they would hide what stands before them from a check, and every
 * gradient there would be zero. Call it before an optimizer is made.
 */
export function fillZeros(engine: Engine, model: Module): void {
  for (const [name, t] of model.namedParameters()) {
    if (!/(attn_temp|cross_attn)\.proj\.weight$|^final_layer\.linear\.weight$/.test(name)) continue;
    const numbers = random(engine, t.shape);
    const values = numbers.mul(0.5 / Math.sqrt(t.shape[1]));
    t.point(values.storage, values.offset);
    for (const made of [values, numbers]) made.dispose();
  }
}

/** STDiT's block on clips of 8 frames of 16 tokens with 16 words, forward or with the gradients of all that it reads. */
function blockCase(C: number, backward: boolean): Case {
  const sizes: Sizes = { B: 8, T: 8, S: 16, L: 16, C, heads: 4 };
  const { B, T, S, L } = sizes;
  return {
    name: `block ${C} [8,8,16]${backward ? " fwd+bwd" : ""}`,
    flops: (backward ? 3 : 1) * blockFlops(sizes),
    long: C > 64,
    prepare: async (engine: Engine) => {
      const model = new STDiTBlock(engine, C, sizes.heads, { key: Key.from(1), gateBias: 0.5 });
      fillZeros(engine, model);
      const weights = Object.entries(model.stateDict());
      const [x, y, t6] = [
        [B, T, S, C],
        [B, L, C],
        [B, 6, C],
      ].map((shape) => random(engine, shape));
      const dy = random(engine, [B, T, S, C]);
      const leaves = [x, y, t6, ...weights.map(([, t]) => t)];
      for (const t of leaves) t.setRequiresGrad(backward);
      const f = () => model.forward(x, y, t6);
      const drop = () => {
        for (const t of leaves) {
          t.grad?.dispose();
          t.grad = undefined;
        }
      };
      return {
        run: () => {
          if (!backward) return void f();
          f().backward(dy);
          drop();
        },
        limit: 5e-5,
        check: async () => {
          const names = ["x", "y", "t6", ...weights.map(([name]) => name)];
          const host: Record<string, Numbers> = {};
          for (const [i, name] of names.entries()) host[name] = await leaves[i].data();
          const plain = (at: Record<string, Numbers>) => block(at.x, at.y, at.t6, at, sizes);
          const out = f();
          const expected = plain(host);
          const error = await errorAt(out, (i) => expected[i], places(out.size, out.size));
          if (!backward) {
            out.dispose();
            return error;
          }
          // Along g / |g|² of each operand the slope of Σ y dy is 1, so that none is too small to count: central differences
          // in float64 along all of them at once give their number.
          out.backward(dy);
          out.dispose();
          const gradients: Record<string, Numbers> = {};
          for (const [i, name] of names.entries()) gradients[name] = await leaves[i].grad!.data();
          drop();
          const wanted = await dy.data();
          const squares = names.map((name) => Array.from(gradients[name]).reduce((sum, g) => sum + g * g, 0));
          const h = 1e-4 * Math.sqrt(Math.min(...squares));
          const moved = (by: number) => {
            const shifted = (name: string, k: number) =>
              Float64Array.from(host[name], (v, i) => v + (by * gradients[name][i]) / squares[k]);
            const at = Object.fromEntries(names.map((name, k) => [name, shifted(name, k)]));
            return plain(at).reduce((sum, v, i) => sum + v * wanted[i], 0);
          };
          const slope = (moved(h) - moved(-h)) / (2 * h);
          return Math.max(error, Math.abs(slope / names.length - 1));
        },
      };
    },
  };
}

export const blocks: readonly Case[] = [64, 128].flatMap((C) =>
  [false, true].map((backward) => blockCase(C, backward)),
);
