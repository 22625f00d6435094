import { ConfigError, type Engine, EspalierError, type Flat, type Tensor } from "../engine/index.js";

/** Parameters by name, as `Object.fromEntries(model.namedParameters())` has them, or a list (named "0", "1", …). */
export type Parameters = Readonly<Record<string, Tensor>> | readonly Tensor[];

/** A trained parameter. */
export interface Named {
  name: string;
  tensor: Tensor;
}

/** Trained parameters by name; throws for what an optimizer cannot take. */
export function trained(subject: string, parameters: Parameters): { all: Named[]; list: Named[] } {
  const all = Object.entries(parameters).map(([name, tensor]) => ({ name, tensor }));
  const seen = new Map<Tensor, string>();
  for (const { name, tensor } of all) {
    tensor.check(subject);
    if (tensor.engine !== all[0].tensor.engine)
      throw new EspalierError(`${subject}: parameter "${name}" belongs to another engine.`);
    if (seen.has(tensor))
      throw new EspalierError(
        `${subject}: parameters "${seen.get(tensor)}" and "${name}" are one tensor; give it once.`,
      );
    seen.set(tensor, name);
    if (tensor.requiresGrad && !tensor.engine.tape.isLeaf(tensor))
      throw new EspalierError(
        `${subject}: "${name}" is no parameter but computed: ${tensor.describe()}; give the tensors it was made from.`,
      );
    if (tensor.requiresGrad && tensor.dtype !== "f32")
      throw new EspalierError(
        `${subject}: parameter "${name}" is ${tensor.dtype}; training needs f32 parameters: convert the model with to("f32").`,
      );
  }
  const list = all.filter(({ tensor }) => tensor.requiresGrad);
  if (!list.length)
    throw new EspalierError(
      `${subject}: no parameter requires a gradient: got ${all.length}; call setRequiresGrad() on what is to be trained.`,
    );
  return { all, list };
}

/** @throws ConfigError for a setting out of range */
export function within(subject: string, name: string, value: number, ok: boolean, rule: string): void {
  if (!ok) throw new ConfigError(`${subject}: ${name} must be ${rule}: got ${value}.`);
}

/** Flat parameters must stay where EMA and AdamW found them. */
export function checkHomes(subject: string, flat: Flat, list: readonly Named[]): void {
  for (const [i, { name, tensor }] of list.entries()) {
    tensor.check(subject);
    if (!flat.holds(tensor, i))
      throw new EspalierError(
        `${subject}: parameter "${name}" lies elsewhere now: EMA weights are swapped in (swap them back), or another optimizer took it (make this one anew).`,
      );
  }
}

const traced = new WeakMap<object, WeakSet<object>>();

/** What one host value before each call decides cannot happen twice in a call of a compiled function. */
export function oncePerCall(subject: string, { trace }: Engine, who: object): void {
  if (!trace) return;
  const seen = traced.get(trace) ?? new WeakSet();
  if (seen.has(who))
    throw new EspalierError(`${subject}: happens twice in one compiled function; compile one step and call it twice.`);
  traced.set(trace, seen.add(who));
}
