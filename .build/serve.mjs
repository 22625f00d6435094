// A small file server for pages of this project: loopback only, strict headers, byte ranges.
import { createReadStream, realpathSync, statSync } from "node:fs";
import { createServer } from "node:http";
import { extname, join, sep } from "node:path";

const TYPES = {
  ".html": "text/html; charset=utf-8",
  ".js": "text/javascript; charset=utf-8",
  ".css": "text/css; charset=utf-8",
  ".json": "application/json; charset=utf-8",
  ".jsonl": "application/jsonl; charset=utf-8",
  ".map": "application/json; charset=utf-8",
  ".txt": "text/plain; charset=utf-8",
  ".wgsl": "text/wgsl; charset=utf-8",
  ".svg": "image/svg+xml",
  ".png": "image/png",
  ".ico": "image/x-icon",
  ".webp": "image/webp",
  ".gif": "image/gif",
  ".mp4": "video/mp4",
  ".webm": "video/webm",
  ".woff2": "font/woff2",
};

const HEADERS = {
  "Content-Security-Policy": [
    "default-src 'none'",
    "script-src 'self' 'wasm-unsafe-eval'",
    "worker-src 'self' blob:",
    "style-src 'self'",
    "img-src 'self' blob: data:",
    "media-src 'self' blob:",
    "font-src 'self'",
    "connect-src 'self' blob:",
    "base-uri 'none'",
    "form-action 'none'",
    "frame-ancestors 'none'",
  ].join("; "),
  "Cross-Origin-Opener-Policy": "same-origin",
  "Cross-Origin-Embedder-Policy": "require-corp",
  "Cross-Origin-Resource-Policy": "same-origin",
  "X-Content-Type-Options": "nosniff",
  "Referrer-Policy": "no-referrer",
  "Cache-Control": "no-cache",
};

/**
 * Serves on 127.0.0.1. `find(path)` gives `{ body }`, `{ file }` or undefined for a decoded path such as "/main.js"; it
 * may be async. Resolves to `{ url, close }`; rejects when the port is taken.
 */
export async function serve(find, port = 0) {
  const server = createServer((request, response) => {
    answer(find, request, response).catch((error) => {
      if (!response.headersSent) send(response, 500, `${error.message}\n`);
      else response.destroy();
    });
  });
  await new Promise((resolve, reject) => {
    server.once("error", reject);
    server.listen(port, "127.0.0.1", resolve);
  });
  return {
    url: `http://127.0.0.1:${server.address().port}/`,
    close() {
      server.closeAllConnections();
      return new Promise((resolve) => server.close(resolve));
    },
  };
}

/** Finds files under a folder, and none outside it, links out of it included. */
export function folder(path) {
  const base = realpathSync(path);
  return (url) => {
    let file;
    try {
      file = realpathSync(join(base, url));
    } catch {
      return undefined;
    }
    return file.startsWith(base + sep) && statSync(file).isFile() ? { file } : undefined;
  };
}

async function answer(find, request, response) {
  // A page elsewhere may have its own name point here; only this machine's own names are served.
  if (!/^(127\.0\.0\.1|localhost)(:\d+)?$/.test(request.headers.host ?? ""))
    return send(response, 403, "unknown host\n");
  if (request.method !== "GET" && request.method !== "HEAD") {
    response.setHeader("Allow", "GET, HEAD");
    return send(response, 405, "only GET and HEAD\n");
  }
  let path;
  try {
    path = decodeURIComponent(new URL(request.url, "http://127.0.0.1").pathname);
  } catch {
    return send(response, 400, "malformed address\n");
  }
  if (path.includes("\0") || path.split(/[/\\]/).includes("..")) return send(response, 400, "malformed path\n");
  const found = await find(path);
  if (!found) return send(response, 404, `no such file: ${path}\n`);

  const type = TYPES[extname(path === "/" ? "index.html" : (found.file ?? path))] ?? "application/octet-stream";
  const headers = { ...HEADERS, "Content-Type": type, "Accept-Ranges": "bytes" };
  const size = found.file ? statSync(found.file).size : Buffer.byteLength(found.body);
  const range = byteRange(request.headers.range, size);
  if (range === null) {
    response.writeHead(416, { ...headers, "Content-Range": `bytes */${size}` }).end();
    return;
  }
  const { start, end } = range ?? { start: 0, end: size - 1 };
  headers["Content-Length"] = end - start + 1;
  if (range) headers["Content-Range"] = `bytes ${start}-${end}/${size}`;
  response.writeHead(range ? 206 : 200, headers);
  if (request.method === "HEAD" || size === 0) response.end();
  else if (found.file)
    createReadStream(found.file, { start, end })
      .on("error", () => response.destroy())
      .pipe(response);
  else response.end(Buffer.from(found.body).subarray(start, end + 1));
}

/** `{ start, end }` of a single range, undefined where none is asked, null where it lies outside. */
function byteRange(header, size) {
  const match = /^bytes=(\d*)-(\d*)$/.exec(header ?? "");
  if (!match || (match[1] === "" && match[2] === "")) return undefined;
  const start = match[1] === "" ? Math.max(0, size - Number(match[2])) : Number(match[1]);
  const end = match[1] === "" || match[2] === "" ? size - 1 : Math.min(Number(match[2]), size - 1);
  return start < size && start <= end ? { start, end } : null;
}

function send(response, status, text) {
  response.writeHead(status, { ...HEADERS, "Content-Type": "text/plain; charset=utf-8" }).end(text);
}
