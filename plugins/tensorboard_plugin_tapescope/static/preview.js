// A heatmap on a canvas, for the time until plotly.js is there: its 4.8 MB take a second to compile and evaluate.

import { decode } from "./figure_updates.js";

const LEVELS = 256;
const BAR = { gap: 12, padding: 10, width: 10 }; // where Plotly has its colour bar, beside the plot
const TICK_PIXELS = 60; // between two labels of the x axis, at least

/** Draws the first trace of a figure into `chart` if it is a heatmap, in the place that Plotly will give it. */
export function drawPreview(chart, { data: [trace], layout, since }) {
  if (trace?.type !== "heatmap" || since !== undefined) return; // or it is only the newer part
  const { width, height } = { width: chart.clientWidth, height: layout.height };
  const { l, r, t, b } = layout.margin;
  const plot = { left: l, top: t, width: width - l - r, height: height - t - b };
  if (plot.width < 1 || plot.height < 1) return;
  const ratio = window.devicePixelRatio || 1;
  const canvas = document.createElement("canvas");
  Object.assign(canvas, { className: "preview", width: Math.round(width * ratio), height: Math.round(height * ratio) });
  canvas.style.setProperty("width", `${width}px`);
  const context = canvas.getContext("2d");
  context.scale(ratio, ratio);
  context.font = `11px ${layout.font.family}`;
  context.textBaseline = "middle";
  const edges = cellEdges(Array.from(decode(trace.x)));
  const colours = palette(trace.colorscale);
  context.fillStyle = layout.plot_bgcolor;
  context.fillRect(plot.left, plot.top, plot.width, plot.height);
  drawCells(context, trace, plot, edges, colours);
  drawLabels(context, trace, plot, edges, layout);
  drawBar(context, trace, plot, colours);
  chart.replaceChildren(canvas);
  performance.mark("previewed");
}

function drawCells(context, trace, plot, edges, colours) {
  const rows = decode(trace.z);
  const [first, last] = [edges[0], edges[edges.length - 1]];
  const image = new ImageData(edges.length - 1, rows.length);
  rows.forEach((row, y) => row.forEach((value, x) => Number.isNaN(value) || image.data.set(colours[level(value, trace)], 4 * (y * image.width + x))));
  const cells = document.createElement("canvas");
  Object.assign(cells, { width: image.width, height: image.height });
  cells.getContext("2d").putImageData(image, 0, 0);
  context.imageSmoothingEnabled = false;
  const place = (step) => Math.round(plot.left + (plot.width * (step - first)) / (last - first));
  for (let x = 0; x < image.width; x++) {
    const [from, to] = [place(edges[x]), place(edges[x + 1])];
    context.drawImage(cells, x, 0, 1, image.height, from, plot.top, Math.max(to - from, 1), plot.height);
  }
}

function drawLabels(context, trace, plot, edges, layout) {
  const [first, last] = [edges[0], edges[edges.length - 1]];
  const { tickfont, type } = layout.yaxis;
  context.fillStyle = tickfont.color;
  context.textAlign = "right";
  const names = type === "category" ? trace.y : [];
  const stride = Math.ceil((1.3 * tickfont.size * names.length) / plot.height);
  for (let i = 0; i < names.length; i += stride) context.fillText(plainText(names[i]), plot.left - 8, plot.top + (plot.height * (i + 0.5)) / names.length);
  context.textAlign = "center";
  for (const tick of stepTicks(first, last, Math.max(1, Math.floor(plot.width / TICK_PIXELS)))) {
    context.fillText(tick.toLocaleString("en"), plot.left + (plot.width * (tick - first)) / (last - first), plot.top + plot.height + 14);
  }
  context.fillText(layout.xaxis.title.text, plot.left + plot.width / 2, plot.top + plot.height + 34);
}

function drawBar(context, trace, plot, colours) {
  const bar = { left: plot.left + plot.width + BAR.gap, top: plot.top + BAR.padding, height: plot.height - 2 * BAR.padding };
  for (let y = 0; y < bar.height; y++) {
    context.fillStyle = `rgb(${colours[Math.round((LEVELS - 1) * (1 - y / bar.height))].slice(0, 3).join(" ")})`;
    context.fillRect(bar.left, bar.top + y, BAR.width, 1.5);
  }
  const { tickvals = [], ticktext = [], tickfont } = trace.colorbar;
  context.fillStyle = tickfont.color;
  context.textAlign = "left";
  decode(tickvals).forEach((value, i) => {
    const share = (value - trace.zmin) / (trace.zmax - trace.zmin);
    context.fillText(plainText(String(ticktext[i] ?? value)), bar.left + BAR.width + 4, bar.top + bar.height * (1 - share));
  });
}

const level = (value, { zmin, zmax }) => Math.round((LEVELS - 1) * Math.min(1, Math.max(0, (value - zmin) / (zmax - zmin))));

/** Returns LEVELS colours [r, g, b, 255] of a Plotly colour scale of `#rrggbb`. */
export function palette(scale) {
  const stops = scale.map(([at, colour]) => [at, [1, 3, 5].map((i) => parseInt(colour.slice(i, i + 2), 16))]);
  return Array.from({ length: LEVELS }, (_, i) => {
    const at = i / (LEVELS - 1);
    const next = Math.max(1, stops.findIndex(([place], k) => k && place >= at));
    const [[low, from], [high, to]] = [stops[next - 1], stops[next]];
    const part = high > low ? (at - low) / (high - low) : 1;
    return [...from.map((value, c) => Math.round(value + part * (to[c] - value))), 255];
  });
}

/** Returns the edges of the cells around their centres: half-way between two of them. */
export function cellEdges(centres) {
  if (centres.length === 1) return [centres[0] - 0.5, centres[0] + 0.5];
  const middles = centres.slice(1).map((x, i) => (x + centres[i]) / 2);
  const last = centres.length - 1;
  return [centres[0] - (middles[0] - centres[0]), ...middles, centres[last] + (centres[last] - middles[last - 1])];
}

/** Returns at most about `count` round steps between two. */
export function stepTicks(first, last, count) {
  const rough = Math.max((last - first) / count, 1);
  const power = 10 ** Math.floor(Math.log10(rough));
  const width = [1, 2, 5, 10].map((factor) => factor * power).find((candidate) => candidate >= rough);
  const start = Math.ceil(first / width);
  return Array.from({ length: Math.floor(last / width) - start + 1 }, (_, i) => (start + i) * width);
}

/** Returns Plotly's markup as plain text: `10<sup>−3</sup>` as 10⁻³. */
export function plainText(markup) {
  const raised = (text) => Array.from(text, (c) => ({ "-": "⁻", "−": "⁻" })[c] ?? "⁰¹²³⁴⁵⁶⁷⁸⁹"[c] ?? c).join("");
  const entities = { lt: "<", gt: ">", amp: "&" };
  return markup
    .replace(/<sup>(.*?)<\/sup>/g, (_, text) => raised(text))
    .replace(/<[^>]*>/g, "")
    .replace(/&(lt|gt|amp);/g, (_, name) => entities[name]);
}
