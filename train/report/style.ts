/** The report's style sheet. Colours follow the reader's light or dark setting; nothing is loaded from elsewhere. */
export const STYLE = `
:root {
  color-scheme: light dark;
  --ground: #f6f7f4; --panel: #ffffff; --ink: #1c2320; --quiet: #66716b; --line: #e1e5df;
  --leaf: #2f7d4f; --leaf-soft: #dcefe2; --wrong: #b3423a; --wrong-soft: #f8e1de; --warn: #8a6116; --warn-soft: #fbf0d6;
  --raw: #b9c8bf; --held: #b0702a;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ground: #121614; --panel: #1a201d; --ink: #e6ebe7; --quiet: #93a099; --line: #2b332f;
    --leaf: #6fc48f; --leaf-soft: #1f3a2b; --wrong: #ec8f86; --wrong-soft: #44241f; --warn: #e3bd6e; --warn-soft: #3a2f16;
    --raw: #47574e; --held: #dfa45f;
  }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink); font: 15px/1.5 system-ui, -apple-system, "Segoe UI", sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 40px 24px 64px; }
h1 { font-size: 30px; line-height: 1.2; letter-spacing: -0.02em; margin: 0 0 6px; text-wrap: balance; }
h2 { font-size: 17px; margin: 0 0 14px; letter-spacing: -0.01em; }
h2 small, .quiet { color: var(--quiet); font-weight: 400; font-size: 13px; }
p { margin: 0 0 8px; }
.lead { color: var(--quiet); max-width: 70ch; margin-bottom: 28px; }
section { background: var(--panel); border: 1px solid var(--line); border-radius: 12px; padding: 22px 24px; margin-bottom: 20px; }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: 20px; align-items: start; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(130px, 1fr)); gap: 12px; margin-bottom: 20px; }
.tile { background: var(--panel); border: 1px solid var(--line); border-radius: 12px; padding: 14px 16px; }
.tile b { display: block; font-size: 25px; line-height: 1.2; letter-spacing: -0.02em; font-variant-numeric: tabular-nums; }
.tile span { color: var(--quiet); font-size: 13px; }
.warnings { background: var(--warn-soft); border-color: transparent; color: var(--warn); }
.warnings ul { margin: 0; padding-left: 18px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th { text-align: left; font-weight: 500; color: var(--quiet); font-size: 13px; padding: 0 12px 6px 0; }
td { padding: 7px 12px 7px 0; border-top: 1px solid var(--line); vertical-align: top; overflow-wrap: anywhere; }
td:last-child, th:last-child { padding-right: 0; }
td.number, th.number { text-align: right; white-space: nowrap; }
.bar { height: 8px; min-width: 70px; border-radius: 4px; background: var(--line); margin-top: 7px; overflow: hidden; }
.bar i { display: block; height: 100%; border-radius: 4px; background: var(--leaf); }
.clips { display: grid; grid-template-columns: repeat(auto-fill, minmax(300px, 1fr)); gap: 22px 20px; }
figure { margin: 0; min-width: 0; }
.films { display: grid; grid-template-columns: 1fr 1fr; gap: 6px; }
.rows { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 440px), 1fr)); gap: 22px 28px; }
.films.row { grid-template-columns: repeat(auto-fit, minmax(64px, 1fr)); }
.films div { position: relative; }
.films img { display: block; width: 100%; border-radius: 8px; image-rendering: pixelated; background: var(--line); }
.films span { position: absolute; left: 6px; bottom: 6px; padding: 1px 7px; border-radius: 5px; background: rgb(0 0 0 / 0.55); color: #fff; font-size: 11px; }
figcaption { margin-top: 8px; font-weight: 500; line-height: 1.35; }
.chips { display: flex; flex-wrap: wrap; gap: 5px; margin-top: 6px; }
.chip { font-size: 12px; padding: 1px 8px; border-radius: 999px; background: var(--leaf-soft); color: var(--leaf); }
.chip.wrong { background: var(--wrong-soft); color: var(--wrong); }
.chip::before { content: "✓ "; }
.chip.wrong::before { content: "✗ "; }
#loss { min-height: 300px; }
.u-legend { color: var(--ink); font-size: 13px; }
.u-legend th { padding: 0; color: inherit; }
.u-legend td { border: 0; padding: 0; }
.options { display: grid; grid-template-columns: repeat(auto-fill, minmax(250px, 1fr)); gap: 20px 32px; }
.options h3 { font-size: 13px; color: var(--quiet); font-weight: 500; margin: 0 0 4px; }
dl { display: grid; grid-template-columns: auto minmax(0, 1fr); gap: 2px 14px; margin: 0; font: 13px/1.55 ui-monospace, "SF Mono", Menlo, Consolas, monospace; }
dt { color: var(--quiet); }
dd { margin: 0; text-align: right; overflow-wrap: anywhere; }
dd.changed { color: var(--leaf); font-weight: 600; }
footer { color: var(--quiet); font-size: 13px; padding: 0 4px; }
@media (max-width: 720px) {
  main { padding: 24px 14px 40px; }
  h1 { font-size: 25px; }
  .lead { margin-bottom: 20px; }
  section { padding: 18px 16px; }
  .pair { grid-template-columns: minmax(0, 1fr); gap: 0; }
  .tiles { grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 10px; }
  .clips { grid-template-columns: minmax(0, 1fr); }
}
@media print { section, .tile { break-inside: avoid; } }
`;
