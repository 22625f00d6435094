import { EspalierError } from "./errors.js";
import { Tensor } from "./tensor.js";

/**
 * Runs `f(...inputs)` without keeping what its ops save for backward: `backward()` runs `f` once more and goes on from
 * there, trading time for memory (Chen et al., "Training deep nets with sublinear memory cost", 2016). Values and
 * gradients equal those without a checkpoint to the last bit, as long as `f` is a function of its inputs, of parameters
 * and of random keys. Gradients also flow to parameters and other tensors that `f` reads without being given them.
 *
 * @param f gives a tensor or a list of tensors; it must not depend on what changes between forward and backward
 */
export function checkpoint<I extends readonly Tensor[], T extends Tensor | readonly Tensor[]>(
  f: (...inputs: I) => T,
  ...inputs: I
): T {
  if (!inputs.length || !inputs.every((t) => t instanceof Tensor))
    throw new EspalierError(
      "checkpoint: needs a function and the tensors to call it with: checkpoint((x, c) => block.forward(x, c), x, c).",
    );
  for (const t of inputs) t.check("checkpoint");
  const { engine } = inputs[0];
  const { tape } = engine;
  if (!engine.recording) return f(...inputs);
  const mark = tape.entries.length;
  // Recorded once, so that it is known which outputs depend on something trained; then forgotten.
  const result = engine.scope(() => f(...inputs) as Tensor);
  const given = [result as Tensor | readonly Tensor[]].flat() as Tensor[];
  // An input that is handed through, or an output given twice, has its gradient's way already.
  const open = given.map((t, i) => t.requiresGrad && !tape.isLeaf(t) && !inputs.includes(t) && given.indexOf(t) === i);
  tape.truncate(mark);
  if (!open.includes(true)) return result as T;
  const leaves = inputs.map((t) => t.requiresGrad && tape.isLeaf(t));
  const held = inputs.map((t, i) => (leaves[i] ? t : t.alias().keep()));
  held.forEach((t, i) => {
    t.requiresGrad = inputs[i].requiresGrad;
  });
  const release = () => {
    for (const [i, t] of held.entries()) if (!leaves[i]) t.dispose();
  };
  tape.record({
    op: "checkpoint",
    module: engine.modulePath,
    attrs: {},
    inputs: inputs.map((t, i) => ({ name: `${i}`, uid: t.uid, shape: t.shape, needs: t.requiresGrad })),
    outputs: given.map((t, i) => ({ uid: open[i] ? t.uid : -1, shape: t.shape })),
    savedBytes: held.reduce((n, t) => n + t.bytes, 0),
    backward: () => [],
    replay: () => {
      const again = engine.scope(() => f(...(held as unknown as I)) as Tensor);
      const outs = [again as Tensor | readonly Tensor[]].flat() as Tensor[];
      if (outs.length !== given.length)
        throw new EspalierError(
          `checkpoint: the function gave ${given.length} tensors in forward and ${outs.length} in backward; it must do the same both times.`,
        );
      return outs;
    },
    release,
  });
  return result as T;
}
