// Figures that a route sends, in a grid: drawn once, then updated in place so that zoom and scroll stay.

import { encode, plotly } from "./api.js";
import { fill, h } from "./dom.js";
import { whole } from "./newer.js";
import { go } from "./state.js";

const CONFIG = { displayModeBar: false, responsive: false, doubleClick: "autosize" };

const resized = new ResizeObserver((entries) => {
  for (const { target } of entries) {
    const width = target.clientWidth;
    if (width > 0 && target.data && width !== target.drawnWidth) {
      target.drawnWidth = width;
      window.Plotly.Plots.resize(target);
    }
  }
});

/**
 * Draws the panels into `root`. `asked` are the parameters of the view: they make the links to the numbers.
 * False where the panels hold only what is new, and that does not fit what is there.
 */
export async function draw(root, panels, asked) {
  const Plotly = await plotly();
  const before = new Map([...root.children].map((section) => [section.dataset.panel, section]));
  const sections = panels.map((panel) => before.get(panel.key) ?? frame(panel));
  if (sections.length !== root.children.length || sections.some((s, i) => s !== root.children[i])) fill(root, sections);
  const fit = await Promise.all(panels.map((panel, i) => update(Plotly, sections[i], panel, asked)));
  return fit.every(Boolean);
}

function frame(panel) {
  return h(
    "section",
    { class: "panel", "data-panel": panel.key },
    h("header", {}, h("h3"), h("div", { class: "tools" })),
    h("p", { class: "note" }),
    h("div", { class: "chart" }),
    h("p", { class: "empty" }),
  );
}

async function update(Plotly, section, panel, asked) {
  const part = (name) => section.querySelector(name);
  section.classList.toggle("wide", panel.wide);
  part("h3").textContent = panel.title;
  part(".note").textContent = panel.note;
  part(".empty").textContent = panel.empty;
  section.classList.toggle("blank", !panel.figure);
  const chart = part(".chart");
  if (!panel.figure) {
    Plotly.purge(chart);
    fill(part(".tools"));
    return true;
  }
  fill(part(".tools"), ...tools(Plotly, chart, panel, asked));
  const { layout } = panel.figure;
  const data = whole(chart.data, panel.figure);
  if (!data) return false;
  // Zoom is kept while the same is shown; over steps it is the range that was asked for, and the server has drawn it.
  const uirevision = encode({ ...asked, dark: "", step: "", first: "", last: "" });
  const xaxis = overSteps(layout) ? { ...layout.xaxis, uirevision: encode(asked) } : layout.xaxis;
  await Plotly.react(chart, data, { ...layout, xaxis, uirevision, width: chart.clientWidth, autosize: false }, CONFIG);
  chart.setAttribute("role", "img");
  chart.setAttribute("aria-label", `${panel.title}. ${panel.note}`);
  performance.mark("drawn");
  chart.dataset.shows = [asked.column, asked.run].flat().filter(Boolean).join(" ");
  chart.drawnWidth = chart.clientWidth;
  resized.observe(chart);
  chart.rows = panel.rows;
  chart.classList.toggle("clickable", panel.rows.length > 0);
  if (!chart.listening) listen(chart);
  return true;
}

function tools(Plotly, chart, panel, asked) {
  const name = `tapescope ${asked.view} ${panel.title}`.replace(/[^\w.-]+/g, "_").slice(0, 80);
  const save = () => {
    const background = getComputedStyle(document.body).backgroundColor;
    const layout = { ...chart.layout, paper_bgcolor: background };
    const size = { width: chart.clientWidth, height: chart.clientHeight };
    Plotly.downloadImage({ data: chart.data, layout }, { format: "png", scale: 2, filename: name, ...size });
  };
  const link = `./csv?${encode({ ...asked, panel: panel.key })}`;
  return [
    h("button", { type: "button", "data-key": "png", title: "Save this figure as PNG", onclick: save }, "PNG"),
    h("a", { href: link, download: `${name}.csv`, "data-key": "csv", title: "Save its numbers, every recorded step, as CSV" }, "CSV"),
  ];
}

const overSteps = (layout) => layout.xaxis.title.text === "step";

/** A click on a row opens its layer; a range of steps dragged over is shown in full by every figure. */
function listen(chart) {
  chart.listening = true;
  chart.on("plotly_relayout", (change) => {
    const [from, to] = [Math.ceil(change["xaxis.range[0]"]), Math.floor(change["xaxis.range[1]"])];
    if (overSteps(chart.layout) && from <= to) go({ first: String(Math.max(0, from)), last: String(Math.max(0, to)) });
  });
  chart.on("plotly_doubleclick", () => overSteps(chart.layout) && go({ first: "", last: "" }));
  chart.on("plotly_click", ({ points: [point] }) => {
    const row = Array.isArray(point.pointNumber) ? point.pointNumber[0] : undefined;
    const layer = chart.rows[row];
    if (layer !== undefined) go({ view: "layer", layer });
  });
}
