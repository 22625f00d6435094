import * as ops from "./ops/index.js";
import { Tensor } from "./tensor.js";

type Ops = typeof ops;
/** `f(x, …)` as the method `x.f(…)`. */
type Method<F> = F extends (x: Tensor, ...rest: infer R) => infer Y ? (...rest: R) => Y : never;
type Methods = { [K in keyof Ops as Ops[K] extends (x: Tensor, ...rest: any[]) => any ? K : never]: Method<Ops[K]> };

declare module "./tensor.js" {
  interface Tensor extends Methods {}
}

for (const [name, f] of Object.entries(ops)) {
  if (typeof f !== "function" || name in Tensor.prototype) continue;
  Object.defineProperty(Tensor.prototype, name, {
    value: function (this: Tensor, ...rest: unknown[]) {
      return (f as (...a: unknown[]) => unknown)(this, ...rest);
    },
  });
}
