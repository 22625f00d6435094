import { openSafetensors } from "../model/safetensors.js";

/** A tensor of a golden file. */
export interface Golden {
  shape: readonly number[];
  data: Float32Array | Float64Array | Int32Array;
}

/** All tensors of a golden file, with its notes. A page finds the files elsewhere. */
export async function golden(
  name: string,
  folder = "test/goldens",
): Promise<{ tensors: Record<string, Golden>; metadata: Readonly<Record<string, string>> }> {
  const file = await openSafetensors(`${folder}/${name}.safetensors`);
  const tensors: Record<string, Golden> = {};
  for (const [key, { dtype, shape }] of file.tensors)
    tensors[key] = {
      shape,
      data: await (dtype === "F64" ? file.float64(key) : dtype.startsWith("F") ? file.float32(key) : file.int32(key)),
    };
  await file.close();
  return { tensors, metadata: file.metadata };
}
