/**
 * What the page runs to draw its curves with uPlot. It is text, not a function, because the page is a file of its own:
 * a bundler may rename or split a function.
 */
export const PLOT_SCRIPT = `
const data = JSON.parse(document.getElementById("curves").textContent);
const box = document.getElementById("loss");
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const show = (value) => (value == null ? "–" : value.toPrecision(3));
const axis = (label) => ({
  label, stroke: () => colour("--quiet"), grid: { stroke: () => colour("--line"), width: 1 },
  ticks: { stroke: () => colour("--line"), width: 1 }, font: "12px system-ui", labelFont: "12px system-ui", labelSize: 20,
});
const lines = [
  { label: "each step", stroke: () => colour("--raw"), width: 1 },
  { label: "smoothed", stroke: () => colour("--leaf"), width: 2 },
  { label: "held out", stroke: () => colour("--held"), width: 2, spanGaps: true, points: { show: true, size: 6 } },
];
const plot = new uPlot({
  width: box.clientWidth, height: box.clientWidth < 500 ? 260 : 320,
  padding: [6, 12, 0, 0], cursor: { y: false, points: { size: 7 } },
  scales: { x: { time: false }, y: { distr: data.log ? 3 : 1 } },
  axes: [axis("step"), { ...axis("loss"), size: 58 }],
  series: [{ label: "step" }, ...lines.slice(0, data.values.length - 1).map((line) => ({ ...line, value: (_, v) => show(v) }))],
}, data.values, box);
new ResizeObserver(() => plot.setSize({ width: box.clientWidth, height: plot.height })).observe(box);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => plot.redraw(false, true));
`;
