// The grid of figures: each is drawn once and then updated in place, so that zoom and scroll position stay.

import { encode, plotly } from "./api.js";
import { fill, h } from "./dom.js";
import { mergeFigure } from "./figure_updates.js";
import { parameterTable } from "./parameter_table.js";
import { drawPreview } from "./preview.js";
import { changeState } from "./state.js";

const RESIZE_DELAY = 100; // milliseconds after which a window that is dragged smaller or larger has its size
const CONFIG = { displayModeBar: false, responsive: false, doubleClick: "autosize" };

const resized = new ResizeObserver((entries) => {
  for (const { target } of entries) {
    const width = target.clientWidth;
    if (width > 0 && target.data && width !== target.drawnWidth) {
      target.drawnWidth = width;
      clearTimeout(target.resizing);
      target.resizing = setTimeout(() => target.isConnected && target.data && window.Plotly.relayout(target, { width: target.clientWidth }), RESIZE_DELAY);
    }
  }
});

/**
 * Draws panels into `root`. `parameters` are those of the view; the CSV links contain them.
 * Returns false if the panels hold only what is newer, and that does not continue what is drawn.
 */
export async function drawPanels(root, panels, parameters) {
  const Plotly = window.Plotly ?? (await previewUntil(plotly(), root, panels));
  const sections = makeSections(root, panels);
  const updated = await Promise.all(panels.map((panel, i) => update(Plotly, sections[i], panel, parameters)));
  return updated.every(Boolean);
}

/** Shows the heatmaps on canvases until Plotly is there, and returns it. */
async function previewUntil(loading, root, panels) {
  makeSections(root, panels).forEach((section, i) => {
    showTexts(section, panels[i]);
    if (panels[i].figure) drawPreview(section.querySelector(".chart"), panels[i].figure);
  });
  return loading;
}

/** Returns the sections of panels, those of the same key as before, in `root`. */
function makeSections(root, panels) {
  const before = new Map([...root.children].map((section) => [section.dataset.panel, section]));
  const sections = panels.map((panel) => before.get(panel.key) ?? emptySection(panel));
  if (sections.length !== root.children.length || sections.some((s, i) => s !== root.children[i])) fill(root, sections);
  return sections;
}

function emptySection(panel) {
  return h(
    "section",
    { class: "panel", "data-panel": panel.key },
    h("header", {}, h("h3"), h("div", { class: "tools" })),
    h("p", { class: "note" }),
    h("div", { class: "chart" }),
    h("div", { class: "empty" }),
  );
}

async function update(Plotly, section, panel, parameters) {
  const part = (name) => section.querySelector(name);
  showTexts(section, panel);
  const chart = part(".chart");
  if (!panel.figure) {
    Plotly.purge(chart); // with its listeners
    chart.listening = false;
    fill(part(".tools"));
    return true;
  }
  fill(part(".tools"), ...tools(Plotly, chart, panel, parameters));
  const { layout } = panel.figure;
  const data = mergeFigure(chart.data, panel.figure);
  if (!data) return false;
  // Zoom stays while the same is shown. Over steps it is the range that was asked for, which the server has drawn.
  const uirevision = encode({ ...parameters, dark: "", step: "", first: "", last: "", smoothing: "" });
  const xaxis = isOverSteps(layout) ? { ...layout.xaxis, uirevision: encode(parameters) } : layout.xaxis;
  const width = chart.clientWidth; // which may change while Plotly draws
  await Plotly.react(chart, data, { ...layout, xaxis, uirevision, width, autosize: false }, CONFIG);
  chart.querySelector(".preview")?.remove();
  chart.setAttribute("role", "img");
  chart.setAttribute("aria-label", `${panel.title}. ${panel.note}`);
  performance.mark("drawn");
  chart.dataset.shows = [parameters.column, parameters.run].flat().filter(Boolean).join(" ");
  chart.drawnWidth = width;
  resized.observe(chart);
  chart.rows = panel.rows;
  chart.classList.toggle("clickable", panel.rows.length > 0);
  if (!chart.listening) listen(chart);
  return true;
}

function showTexts(section, panel) {
  const part = (name) => section.querySelector(name);
  section.classList.toggle("wide", panel.wide);
  part("h3").textContent = panel.title;
  part("h3").title = panel.help || panel.title;
  part("h3").classList.toggle("helps", Boolean(panel.help));
  part(".note").textContent = panel.note.replaceAll(" %", "\u00a0%"); // a line does not break before the sign
  section.classList.toggle("blank", !panel.figure);
  section.classList.toggle("listing", Boolean(panel.table));
  showReason(part(".empty"), panel);
}

/** Shows why there is no figure, or the table instead of one. It is left as it is, with what is unfolded, if it is the same. */
function showReason(element, { empty, table }) {
  const text = table ? JSON.stringify(table) : empty;
  if (element.shownText === text) return;
  element.shownText = text;
  element.replaceChildren(...(table ? parameterTable(table) : [empty]));
}

function tools(Plotly, chart, panel, parameters) {
  const name = `tapescope ${parameters.view} ${panel.title}`.replace(/[^\w.-]+/g, "_").slice(0, 80);
  const save = () => {
    const background = getComputedStyle(document.body).backgroundColor;
    const layout = { ...chart.layout, paper_bgcolor: background };
    const size = { width: chart.clientWidth, height: chart.clientHeight };
    Plotly.downloadImage({ data: chart.data, layout }, { format: "png", scale: 2, filename: name, ...size });
  };
  const link = `./csv?${encode({ ...parameters, panel: panel.key })}`;
  return [
    h("button", { type: "button", "data-key": "png", title: "Save this figure as PNG", onclick: save }, "Save PNG"),
    h("a", { href: link, download: `${name}.csv`, "data-key": "csv", title: "Save the numbers of all recorded steps as CSV" }, "Save CSV"),
  ];
}

const isOverSteps = (layout) => layout.xaxis.title.text === "step";

/** Opens a layer when its row is clicked, or a head when its cell is, and shows a range of steps when it is dragged over. */
function listen(chart) {
  chart.listening = true;
  chart.on("plotly_relayout", (change) => {
    const [from, to] = [Math.ceil(change["xaxis.range[0]"]), Math.floor(change["xaxis.range[1]"])];
    if (isOverSteps(chart.layout) && from <= to) changeState({ first: String(Math.max(0, from)), last: String(Math.max(0, to)) });
  });
  chart.on("plotly_doubleclick", () => isOverSteps(chart.layout) && changeState({ first: "", last: "" }));
  chart.on("plotly_click", ({ points: [point] }) => {
    const row = Array.isArray(point.pointNumber) ? point.pointNumber[0] : undefined;
    const layer = chart.rows[row];
    if (layer === undefined) return;
    if (chart.layout.xaxis.title.text === "head") {
      if (Number.isFinite(point.z)) changeState({ head: `${layer}/head_${point.x}` }, false);
    } else changeState({ view: "layer", layer });
  });
}
