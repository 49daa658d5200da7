// The Gradients tab: pickers on the left, one of seven views on the right, kept up to date while it is looked at.

import { encode, get, plotly } from "./api.js";
import { controls } from "./controls.js";
import { fill, h } from "./dom.js";
import { findings, nothing, overview } from "./overview.js";
import { draw } from "./panels.js";
import { matching, sidebar } from "./sidebar.js";
import { VIEWS, go, onChange, read, watch } from "./state.js";

const POLL_MS = 1000;
const page = {};
const known = { version: "", runs: [], columns: {}, about: new Map() };
const NOTHING = { asked: "", versions: "", step: 0, whole: true };
let drawn = NOTHING; // what the figures show: the parameters, how far each run had come, and until where nothing is missing
let turns = 0;
let asking = new AbortController();

/** Builds the page, and keeps it up to date from then on. */
export async function render() {
  document.head.append(h("link", { rel: "stylesheet", href: "./static/style.css" }), h("meta", { charset: "utf-8" }));
  document.documentElement.lang = "en";
  plotly().catch(complain);
  build();
  theme();
  watch();
  onChange(refresh);
  await poll();
}

function build() {
  page.side = h("aside", { "aria-label": "Runs" });
  page.tabs = h("nav", { class: "tabs", role: "tablist", "aria-label": "Views", onkeydown: arrows });
  page.heading = h("div", { class: "heading" });
  page.controls = h("form", { class: "controls", onsubmit: (e) => e.preventDefault() });
  page.message = h("p", { class: "message", role: "alert" });
  page.words = h("div", { class: "words" });
  page.panels = h("div", { class: "panels" });
  page.main = h("main", { role: "tabpanel" }, h("div", { class: "bar" }, page.heading, page.controls), page.message, page.words, page.panels);
  page.status = h("p", { class: "visually-hidden", role: "status" });
  document.body.append(page.tabs, h("div", { class: "columns" }, page.side, page.main), page.status);
}

/** Arrow keys move between views, as in any row of tabs. */
function arrows(event) {
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (!step) return;
  const views = Object.keys(VIEWS);
  go({ view: views[(views.indexOf(read().view) + step + views.length) % views.length] });
  page.tabs.querySelector("[aria-selected=true]").focus();
}

/** TensorBoard's own light or dark. */
function theme() {
  const body = window.parent.document.body;
  const apply = () => {
    const dark = body.classList.contains("dark-mode");
    if (document.documentElement.classList.toggle("dark", dark) !== undefined) refresh(read());
  };
  new MutationObserver(apply).observe(body, { attributes: true, attributeFilter: ["class"] });
  apply();
}

/** Asks for news once a second while the tab is visible: TensorBoard keeps hidden tabs in frames without a height. */
async function poll() {
  if (window.innerHeight > 0 && document.visibilityState === "visible") {
    try {
      const answer = await get("runs", { known: known.version });
      if (!answer.unchanged) {
        Object.assign(known, answer);
        await refresh(read());
      } else if (page.message.dataset.lost || !drawn.whole) await refresh(read());
    } catch (error) {
      complain(error, true);
    }
  }
  setTimeout(poll, POLL_MS);
}

/** The state with what it leaves open filled in: a run is always open where there is one. */
function settled(state) {
  const names = known.runs.map((run) => run.name);
  const run = names.includes(state.run) || state.run ? state.run : (names[0] ?? "");
  const ticked = state.ticked.filter((name) => names.includes(name));
  return { ...state, run, ticked };
}

/** Shows what the address says; the page is busy until the last such call is through. */
async function refresh(raw) {
  const turn = ++turns;
  page.main.setAttribute("aria-busy", "true");
  await show(raw);
  if (turn === turns) page.main.setAttribute("aria-busy", "false");
}

async function show(raw) {
  if (!known.version) return;
  const state = settled(raw);
  fill(page.tabs, Object.entries(VIEWS).map(([view, name]) => tab(view, name, state)));
  if (!known.runs.length) return blank(() => nothing(page.words));
  sidebar(page.side, known.runs, state, () => refresh(read()));
  page.main.setAttribute("aria-label", VIEWS[state.view]);
  const run = known.runs.find((r) => r.name === state.run);
  heading(state, run);
  try {
    if (state.view === "overview") {
      complain(null);
      controls(page.controls, state);
      const [shown] = matching(known.runs);
      return blank(() => overview(page.words, known.runs, new Set(shown.map((r) => r.name))));
    }
    if (!run) throw new Error(`There is no run "${state.run}" here: open one of those on the left.`);
    const drawing = state.view === "findings" ? null : figures(state);
    drawing?.catch(() => {}); // it is awaited below, and may fail before that
    const about = await details(run);
    if (read().view !== state.view) return undefined;
    controls(page.controls, state, about, known.columns);
    if (drawing) return await drawing;
    complain(null);
    return blank(() => findings(page.words, run, about));
  } catch (error) {
    if (error.name !== "AbortError") complain(error);
  }
  return undefined;
}

/** A view of words alone. */
function blank(show) {
  asking.abort();
  drawn = NOTHING;
  fill(page.panels);
  show();
}

/** What the run offers, asked again where that has changed. */
async function details({ name, offers, findings: { error, warning, info } }) {
  const key = [name, offers, error, warning, info].join(" ");
  if (!known.about.has(key)) known.about.set(key, await get("run", { run: name }));
  return known.about.get(key);
}

/** The parameters of the view, and nothing that it does not need: they are the key under which it is drawn. */
function parameters(state) {
  const dark = document.documentElement.classList.contains("dark") ? "1" : "0";
  const several = [state.run, ...state.ticked.filter((name) => name !== state.run)];
  const others = known.runs.map((r) => r.name).filter((name) => name !== state.run);
  const { run, column, layer, variable, order, first, last, step } = state;
  const own = {
    flow: { run, column, order, step },
    layer: { run, layer, step },
    budget: { run },
    compare: { run: state.ticked.length ? several : [run, ...others.slice(0, 1)], column, layer, variable },
    replicas: { run: state.ticked.length ? several : [run, ...others].slice(0, 16), variable },
  };
  return { view: state.view, dark, first, last, ...own[state.view] };
}

async function figures(state) {
  const asked = parameters(state);
  const runs = known.runs.filter((r) => [asked.run].flat().includes(r.name));
  const wanted = { asked: encode(asked), versions: runs.map((r) => r.version).join(" "), step: Math.min(...runs.map((r) => r.step)) };
  if (wanted.asked === drawn.asked && wanted.versions === drawn.versions && drawn.whole) return;
  const since = wanted.asked === drawn.asked && wanted.step >= drawn.step ? drawn.step : undefined;
  asking.abort();
  asking = new AbortController();
  const answer = await get("view", { ...asked, since }, asking.signal);
  complain(null);
  fill(page.words);
  const until = answer.whole_until ?? wanted.step;
  drawn = { ...wanted, step: Math.min(until, wanted.step), whole: until >= wanted.step };
  page.panels.classList.toggle("side-by-side", state.view === "compare");
  if (await draw(page.panels, answer.panels, asked)) return;
  drawn = NOTHING; // the columns have become wider, or the rows are others: all is asked for again
  await figures(state);
}

function tab(view, name, state) {
  const selected = view === state.view;
  const attributes = { type: "button", role: "tab", "aria-selected": String(selected), tabindex: selected ? 0 : -1, "data-key": `tab ${view}` };
  return h("button", { ...attributes, onclick: () => go({ view }) }, name);
}

function heading(state, run) {
  if (state.view === "overview" || !run) return fill(page.heading);
  const severe = run.findings.error + run.findings.warning;
  return fill(
    page.heading,
    h("span", { class: "dot", style: { background: run.colour } }),
    h("h2", {}, run.name),
    h("span", { class: `chip ${run.state}` }, `${run.state}, step ${run.step.toLocaleString("en")}`),
    severe && state.view !== "findings" ? h("button", { type: "button", class: "chip warning", "data-key": "severe", onclick: () => go({ view: "findings" }) }, `${severe} to read`) : null,
  );
}

/** Says what went wrong, or that nothing did; `lost` where the server is away and the page goes on asking. */
function complain(error, lost = false) {
  page.message.textContent = error ? (lost ? `TensorBoard does not answer; still asking. ${error.message}` : error.message) : "";
  page.message.toggleAttribute("data-lost", Boolean(error) && lost);
  if (error && !lost) {
    drawn = NOTHING;
    fill(page.panels);
    fill(page.words);
  }
}
