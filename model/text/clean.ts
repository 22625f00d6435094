/** Characters that make a word: letters, digits and the underscore of every script, no combining marks. */
const WORD = "[\\p{L}\\p{N}_]";

/** A pattern that must stand alone: neither side touches a word. */
const alone = (pattern: string) => new RegExp(`(?<!${WORD})(?:${pattern})(?!${WORD})`, "gu");

// U+00A0 to U+00BF and U+00E0 to U+00FF by their names in HTML; text is in lower case when they are read.
const LATIN =
  "nbsp iexcl cent pound curren yen brvbar sect uml copy ordf laquo not shy reg macr deg plusmn sup2 sup3 acute micro para middot cedil sup1 ordm raquo frac14 frac12 frac34 iquest";
const LETTERS =
  "agrave aacute acirc atilde auml aring aelig ccedil egrave eacute ecirc euml igrave iacute icirc iuml eth ntilde ograve oacute ocirc otilde ouml divide oslash ugrave uacute ucirc uuml yacute thorn yuml";
const ENTITIES = new Map([
  ...LATIN.split(" ").map((name, i) => [name, String.fromCharCode(0xa0 + i)] as const),
  ...LETTERS.split(" ").map((name, i) => [name, String.fromCharCode(0xe0 + i)] as const),
  ...Object.entries({
    ...{ amp: "&", lt: "<", gt: ">", quot: '"', apos: "'", szlig: "ß", times: "×", euro: "€", trade: "™" },
    ...{ ndash: "–", mdash: "—", lsquo: "‘", rsquo: "’", sbquo: "‚", ldquo: "“", rdquo: "”", bdquo: "„" },
    ...{ hellip: "…", bull: "•", prime: "′", minus: "−", larr: "←", rarr: "→", hearts: "♥" },
  }),
]);

/** Entities of HTML in lower case, by number or by a usual name, as characters. Others stay as they are. */
function unescapeHtml(text: string): string {
  return text.replace(/&(?:#(\d{1,7})|#x([0-9a-f]{1,6})|([a-z][a-z0-9]*));/g, (all, decimal, hex, name) => {
    if (name !== undefined) return ENTITIES.get(name) ?? all;
    const code = decimal === undefined ? Number.parseInt(hex, 16) : Number(decimal);
    return code > 0 && code <= 0x10ffff && (code < 0xd800 || code > 0xdfff) ? String.fromCodePoint(code) : "\ufffd";
  });
}

/** What a browser sends for a form's text, decoded: "+" is a space, %XX are bytes of UTF-8; a lone "%" stays. */
function decodeForm(text: string): string {
  return text.replaceAll("+", " ").replace(/(?:%[0-9a-f]{2})+/gi, (run) => {
    const bytes = Uint8Array.from(run.slice(1).split("%"), (hex) => Number.parseInt(hex, 16));
    return new TextDecoder("utf-8", { ignoreBOM: true }).decode(bytes);
  });
}

/** Text between tags, its entities as characters. A "<" that begins no tag is text. */
const withoutTags = (html: string) => unescapeHtml(html.replace(/<!--.*?-->|<[/!?]?[a-z][^<>]*>/gs, ""));

const MEDIA = "png|jpg|jpeg|bmp|webp|eps|pdf|apk|mp4";
type Rule = readonly [pattern: RegExp, by: string];

// Patterns that begin with a run are held to its beginning: they would else take the square of a long run's length.

/** Before tags are taken out. */
const ADDRESSES: readonly Rule[] = [
  [/<person>/g, "person"],
  [/(?<![\p{L}\p{N}_])https?:[\w./-]*/gu, ""],
  [/(?<![a-z0-9.-])[a-z0-9.-]+\.(?:com|co|ru|net|org|edu|gov|it)(?![\p{L}\p{N}_])[\w/-]*(?!@)/gu, ""],
];

/** From what a page may hold to plain punctuation. */
const SIGNS: readonly Rule[] = [
  [/@[\p{L}\p{N}_]+/gu, ""],
  // Strokes, enclosed and compatibility forms, hexagrams and unified ideographs of Chinese, Japanese and Korean.
  [/[\u31c0-\u9fff]/g, ""],
  [/\p{Pd}/gu, "-"],
  [/[`´«»“”¨]/g, '"'],
  [/[‘’]/g, "'"],
  [/&quot;?/g, ""],
  [/&amp/g, ""],
  // Addresses of machines, then a time at the end of a copied line.
  [/\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}/g, " "],
  [/\d:\d\d\s+$/g, ""],
  [/\\n/g, " "],
  [/#\d{1,3}(?![\p{L}\p{N}_])/gu, ""],
  [/#\d{5,}(?![\p{L}\p{N}_])/gu, ""],
  [alone("\\d{6,}"), ""],
  [new RegExp(`(?<!\\S)\\S+\\.(?:${MEDIA})(?!${WORD})`, "gu"), ""],
  [/["']{2,}/g, '"'],
  [/\.{2,}/g, " "],
  [/[#®•©™&@·º½¾¿¡§~()[\]{}|\\/*]+/g, " "],
  [/(?<!\s)\s+\.\s+/g, " "],
];

/** What sellers and catalogues add to a description. */
const LEFTOVERS: readonly Rule[] = [
  [alone("[a-z]{1,3}\\d{3,15}"), ""],
  [alone("[a-z]+\\d+[a-z]+"), ""],
  [alone("\\d+[a-z]+\\d+"), ""],
  [alone("(?:worldwide\\s+)?(?:free\\s+)?shipping"), ""],
  [alone("(?:free\\s)?download(?:\\sfree)?"), ""],
  [alone("click\\s(?:for|on)\\s\\w+"), ""],
  [alone(`(?:${MEDIA})(?:\\s+images?)?`), ""],
  [alone("page\\s+\\d+"), ""],
  [alone("\\d*[a-z]+\\d+[a-z]+\\d+[a-z\\d]*"), " "],
  [alone("\\d+(?:\\.\\d+)?[xх×]\\d+(?:\\.\\d+)?"), ""],
  [/(?<!\s)\s+:\s+/g, ": "],
  [/([^\d][,./])(?=[\p{L}\p{N}_])/gu, "$1 "],
  [/\s+/g, " "],
];

/** What may be left at both ends. */
const ENDS: readonly Rule[] = [
  [/^["'](.*)["']$/s, "$1"],
  [/^['_,\-:;]/, ""],
  [/['_,\-:+]$/, ""],
  [/^\.\S+$/, ""],
];

const apply = (text: string, rules: readonly Rule[]) =>
  rules.reduce((t, [pattern, by]) => t.replace(pattern, by), text);

/**
 * A caption as Open-Sora's text encoder wants it: lower case, without addresses, tags, handles, file names, ids, sizes
 * and sales talk, with plain quotes and dashes and single spaces. The encoder applies it twice.
 *
 * The behaviour is that of Open-Sora 1.0, with two limits: text that was decoded with the wrong character set is not
 * repaired, and of HTML's entities the usual names are known.
 */
export function cleanCaption(text: string): string {
  const plain = apply(withoutTags(apply(decodeForm(text).trim().toLowerCase(), ADDRESSES)), SIGNS);
  const joints = plain.match(/[-_]/g)?.length ?? 0;
  // A file's name or an address made of words; up to three joints are how people write.
  const spaced = joints > 3 ? plain.replace(/[-_]/g, " ") : plain;
  const whole = unescapeHtml(unescapeHtml(spaced)).trim();
  return apply(apply(whole, LEFTOVERS).trim(), ENDS).trim();
}
