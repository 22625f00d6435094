import { test as attention } from "./attention.js";
import type { OpTest } from "./case.js";
import { test as conv } from "./conv.js";
import { test as elementwise } from "./elementwise.js";
import { test as gather } from "./gather.js";
import { test as join } from "./join.js";
import { test as loss } from "./loss.js";
import { test as matmul } from "./matmul.js";
import { test as norm } from "./norm.js";
import { test as quantized } from "./quantized.js";
import { test as random } from "./random.js";
import { test as reduce } from "./reduce.js";
import { test as rotary } from "./rotary.js";
import { test as slice } from "./slice.js";
import { test as softmax } from "./softmax.js";
import { test as upsample } from "./upsample.js";
import { test as view } from "./view.js";
import { test as walk } from "./walk.js";

/** One entry per stem: the registry loop runs them in Node and in the browser. */
export const opTests: Record<string, OpTest> = {
  attention,
  conv,
  elementwise,
  gather,
  join,
  loss,
  matmul,
  norm,
  quantized,
  random,
  reduce,
  rotary,
  slice,
  softmax,
  upsample,
  view,
  walk,
};
