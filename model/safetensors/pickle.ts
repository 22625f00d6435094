import { SafetensorsError } from "../../engine/errors.js";
import type { ByteSource } from "../files/source.js";
import { headerBytes, MAX_HEADER_BYTES } from "./header.js";

/** Endings of PyTorch's own files, which are programs that pickle runs. */
const ENDINGS = /\.(bin|pth|pt|ckpt|pkl)$/i;
const withoutQuery = (location: string | URL) => String(location).replace(/[?#].*$/, "");

/** Whether a location is called like a file that PyTorch pickles. */
export const isPickle = (location: string | URL): boolean => ENDINGS.test(withoutQuery(location));

/** The name of a pickle lies at the start of PyTorch's zip archives. */
const LOOK = 512;

/** Whether a file holds a pickle, whatever it is called: PyTorch's zip archive around data.pkl, or bare opcodes. */
export async function isPickled(source: ByteSource): Promise<boolean> {
  const first = await source.read(0, Math.min(LOOK, source.size));
  const isZip = first[0] === 0x50 && first[1] === 0x4b && first[2] === 3 && first[3] === 4;
  if (isZip) return new TextDecoder("latin1").decode(first).includes("data.pkl");
  // A header that is merely cut short must not pass for opcodes: those read as lengths beyond any header.
  const isLength = first.length >= 8 && headerBytes(first) <= MAX_HEADER_BYTES;
  // PROTO with a version, then FRAME or others; or protocol 0 and 1's MARK or empty dictionary, with STOP at the end.
  if (first[0] === 0x80 && first[1] >= 2 && first[1] <= 5) return first[2] === 0x95 || !isLength;
  if (isLength || source.size < 2 || !["(", "}"].includes(String.fromCharCode(first[0]))) return false;
  return (await source.read(source.size - 1, 1))[0] === 0x2e;
}

const quoted = (path: string) => `'${path.replace(/'/g, "'\\''")}'`;
/** Where training scripts put the state within what they save; averaged weights come first. */
const NESTED = ["ema", "state_dict_ema", "ema_state_dict", "model_ema", "state_dict", "model", "module"];

/** One line of shell that turns pickles of PyTorch into one safetensors file; nested states are found two levels deep. */
export function conversionLine(files: readonly string[]): string {
  const stem = withoutQuery(files[0])
    .replace(ENDINGS, "")
    .replace(/-0*1-of-\d+$/, "");
  const program = [
    "import sys, torch, safetensors.torch as s",
    `f = lambda d: next((d[k] for k in (${NESTED.map((k) => `'${k}'`).join(", ")}) if isinstance(d.get(k), dict)), d)`,
    "d = {}",
    "[d.update(f(f(torch.load(p, map_location='cpu', weights_only=True)))) for p in sys.argv[2:]]",
    "s.save_file({k: v.detach().clone().contiguous() for k, v in d.items() if torch.is_tensor(v)}, sys.argv[1])",
  ];
  return `python3 -c "${program.join("; ")}" ${[`${stem}.safetensors`, ...files].map(quoted).join(" ")}`;
}

/**
 * Refuses files that PyTorch pickled, with the line of shell that turns them into safetensors.
 * @throws SafetensorsError always
 */
export function refusePickle(subject: string, location: string | URL | readonly string[]): never {
  const files = typeof location === "string" || location instanceof URL ? [String(location)] : location;
  throw new SafetensorsError(
    `${subject}: a pickle is a program, and none is run here: ${files.join(", ")}; convert it once, where you trust it (pip install torch safetensors):\n  ${conversionLine(files)}`,
  );
}
