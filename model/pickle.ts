import { SafetensorsError } from "../engine/errors.js";

/** Endings of PyTorch's own files, which are programs that pickle runs. */
const ENDINGS = /\.(bin|pth|pt|ckpt|pkl)$/i;

/** Whether a location is called like a file that PyTorch pickles. */
export const isPickle = (location: string | URL): boolean => ENDINGS.test(String(location));

/**
 * Refuses a file that PyTorch pickled, with the line of Python that turns it into safetensors.
 * @throws SafetensorsError always
 */
export function refusePickle(subject: string, location: string | URL): never {
  const from = String(location);
  const to = from.replace(ENDINGS, ".safetensors");
  throw new SafetensorsError(
    `${subject}: a pickle is a program, and none is run here: ${from}; convert it once, where you trust it:\n` +
      `  python3 -c "import torch, safetensors.torch as s; d = torch.load('${from}', map_location='cpu', weights_only=True); d = d.get('state_dict', d); s.save_file({k: v.clone().contiguous() for k, v in d.items()}, '${to}')"`,
  );
}
