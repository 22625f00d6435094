/** What a path names: bytes or text in memory, or a file. */
export type Found = { body: string | Uint8Array; file?: undefined } | { file: string; body?: undefined };
export type Find = (path: string) => Found | undefined | Promise<Found | undefined>;
export function serve(find: Find, port?: number): Promise<{ url: string; close(): Promise<void> }>;
export function folder(path: string): Find;
