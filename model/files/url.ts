import { type ByteSource, checkRange, FileError, memorySource } from "./source.js";

// One request this long usually brings a whole safetensors header, and is small beside any model.
const PREFIX_BYTES = 64 * 1024;

/** What a 206 answer covers: `bytes 0-99/1234`. `total` is undefined where the server says `*` or CORS hides the header. */
function contentRange(response: Response): { start: number; end: number; total: number | undefined } | undefined {
  const match = /^bytes (\d+)-(\d+)\/(\d+|\*)$/.exec(response.headers.get("content-range") ?? "");
  if (match === null) return undefined;
  return { start: Number(match[1]), end: Number(match[2]), total: match[3] === "*" ? undefined : Number(match[3]) };
}

async function request(url: string, init: RequestInit): Promise<Response> {
  let response: Response;
  try {
    response = await fetch(url, init);
  } catch (cause) {
    const reason = cause instanceof Error ? ((cause.cause as Error | undefined)?.message ?? cause.message) : cause;
    throw new FileError(`fetch: no answer: ${url}: ${reason}`, "ENETWORK", { cause });
  }
  if (!response.ok)
    throw new FileError(
      `fetch: refused: ${url} answered ${response.status} ${response.statusText}`.trimEnd(),
      response.status === 404 ? "ENOENT" : "EHTTP",
    );
  return response;
}

/** The length of a resource from a HEAD request, for servers whose range answers do not tell it. */
async function lengthOf(url: string): Promise<number> {
  const length = Number((await request(url, { method: "HEAD" })).headers.get("content-length") ?? Number.NaN);
  if (!Number.isSafeInteger(length))
    throw new FileError(`fetch: length unknown: ${url} tells neither Content-Range nor Content-Length`);
  return length;
}

/**
 * A source over http(s) that fetches only the ranges asked for (RFC 9110, section 14). A server that ignores `Range`
 * sends everything: then the whole body is kept in memory.
 */
export async function urlSource(address: string | URL): Promise<ByteSource> {
  const url = String(address);
  const first = await request(url, { headers: { Range: `bytes=0-${PREFIX_BYTES - 1}` } });
  const body = new Uint8Array(await first.arrayBuffer());
  if (first.status !== 206) return memorySource(body, url);

  const tag = first.headers.get("etag");
  const size = contentRange(first)?.total ?? (body.length < PREFIX_BYTES ? body.length : await lengthOf(url));
  const source: ByteSource = {
    name: url,
    size,
    async read(offset, length) {
      checkRange(source, offset, length);
      if (offset + length <= body.length) return body.subarray(offset, offset + length);
      const response = await request(url, { headers: { Range: `bytes=${offset}-${offset + length - 1}` } });
      const range = contentRange(response);
      if (response.headers.get("etag") !== tag || (range?.total !== undefined && range.total !== size))
        throw new FileError(`fetch: file changed: ${url} was replaced while it was read; open it again`, "ECHANGED");
      const part = new Uint8Array(await response.arrayBuffer());
      if (response.status !== 206 || (range !== undefined && range.start !== offset) || part.length !== length)
        throw new FileError(
          `fetch: wrong range: ${url} gave ${part.length} bytes from ${range?.start ?? 0}; asked ${length} from ${offset}`,
        );
      return part;
    },
    async close() {},
  };
  return source;
}
