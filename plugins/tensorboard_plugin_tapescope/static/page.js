// The page of the Gradients tab: runs on the left, one of eight views on the right, updated while it is visible.

import { encode, get, plotly } from "./api.js";
import { renderControls } from "./controls.js";
import { fill, h, refill } from "./dom.js";
import { filterFindings } from "./filters.js";
import { count, formatStep } from "./format.js";
import { renderFindings, renderNoRuns, renderOverview } from "./overview.js";
import { replaySection } from "./replays.js";
import { drawPanels } from "./panels.js";
import { runName } from "./run_name.js";
import { watchKeys } from "./shortcuts.js";
import { renderSidebar, searchedRuns } from "./sidebar.js";
import { VIEWS, changeState, onChange, readState, watchAddress } from "./state.js";

const POLL_MS = 1000;
const MAX_REPLICA_RUNS = 16;
const page = {};
const known = { version: "", runs: [], columns: {}, details: new Map() };
const NOTHING_DRAWN = { request: "", versions: "", step: 0, complete: true };
let drawn = NOTHING_DRAWN; // what the figures show: the request, the version of each run, and up to which step
let turns = 0;
let pendingView = new AbortController();

/** Builds the page and keeps it up to date. */
export async function render() {
  document.head.append(h("link", { rel: "stylesheet", href: "./static/style.css" }), h("meta", { charset: "utf-8" }));
  document.documentElement.lang = "en";
  plotly().catch(showError);
  build();
  followTheme();
  watchAddress();
  watchKeys({ view: openView, run: moveToRun, tick: tickRun, search: () => page.side.querySelector("input[type=search]")?.focus() });
  onChange(refresh);
  await poll();
}

function build() {
  page.side = h("aside", { "aria-label": "Runs" });
  page.tabs = h("nav", { class: "tabs", role: "tablist", "aria-label": "Views", onkeydown: moveBetweenTabs });
  page.heading = h("div", { class: "heading" });
  page.controls = h("form", { class: "controls", onsubmit: (e) => e.preventDefault() });
  page.message = h("p", { class: "message", role: "alert" });
  page.words = h("div", { class: "words" });
  page.panels = h("div", { class: "panels" });
  page.main = h("main", { role: "tabpanel" }, h("div", { class: "bar" }, page.heading, page.controls), page.message, page.words, page.panels);
  document.body.append(page.tabs, h("div", { class: "columns" }, page.side, page.main));
}

/** Moves to the next view with the arrow keys, as is usual for tabs. */
function moveBetweenTabs(event) {
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (!step) return;
  const views = Object.keys(VIEWS);
  changeState({ view: views[(views.indexOf(readState().view) + step + views.length) % views.length] });
  page.tabs.querySelector("[aria-selected=true]").focus();
}

function openView(index) {
  changeState({ view: Object.keys(VIEWS)[index] });
}

/** Opens the next run that is listed, or the one before. */
function moveToRun(step) {
  const names = searchedRuns(known.runs).map((run) => run.name);
  if (!names.length) return;
  const at = names.indexOf(resolve(readState()).run);
  changeState({ run: names[at < 0 ? 0 : (at + step + names.length) % names.length], first: "", last: "", step: "" });
}

function tickRun() {
  const { run, ticked } = resolve(readState());
  changeState({ ticked: ticked.includes(run) ? ticked.filter((name) => name !== run) : [...ticked, run] }, false);
}

/** Follows TensorBoard's light or dark theme. */
function followTheme() {
  const body = window.parent.document.body;
  const apply = () => {
    document.documentElement.classList.toggle("dark", body.classList.contains("dark-mode"));
    refresh(readState());
  };
  new MutationObserver(apply).observe(body, { attributes: true, attributeFilter: ["class"] });
  apply();
}

/** Asks for changes once a second while the tab is visible. TensorBoard keeps hidden tabs in frames without height. */
async function poll() {
  if (window.innerHeight > 0 && document.visibilityState === "visible") {
    try {
      const answer = await get("runs", { known: known.version });
      if (!answer.unchanged) Object.assign(known, answer);
      if (!answer.unchanged || page.message.dataset.lost || !drawn.complete) await refresh(readState());
    } catch (error) {
      showError(error, true);
    }
  }
  setTimeout(poll, POLL_MS);
}

/** Returns the state with a run open if there is one, and without ticked runs that are gone. */
function resolve(state) {
  const names = known.runs.map((run) => run.name);
  const run = state.run || (names[0] ?? "");
  const ticked = state.ticked.filter((name) => names.includes(name));
  return { ...state, run, ticked };
}

/** Shows the state in the address. The page is busy until the last such call has ended. */
async function refresh(state) {
  const turn = ++turns;
  page.main.setAttribute("aria-busy", "true");
  await show(state);
  if (turn === turns) page.main.setAttribute("aria-busy", "false");
}

async function show(addressState) {
  if (!known.version) return;
  const state = resolve(addressState);
  refill(page.tabs, Object.entries(VIEWS).map(([view, name]) => tab(view, name, state)));
  if (!known.runs.length) {
    showText(() => renderNoRuns(page.words));
    return;
  }
  renderSidebar(page.side, known.runs, state, () => refresh(readState()));
  page.main.setAttribute("aria-label", VIEWS[state.view]);
  const run = known.runs.find((r) => r.name === state.run);
  renderHeading(state, run);
  try {
    await showView(state, run);
  } catch (error) {
    if (error.name !== "AbortError") showError(error);
  }
}

async function showView(state, run) {
  if (state.view === "overview") {
    showError(null);
    renderControls(page.controls, state);
    showText(() => renderOverview(page.words, searchedRuns(known.runs), state));
    return;
  }
  if (state.view === "findings" && state.scope === "all") {
    await showAllFindings(state);
    return;
  }
  if (!run) throw new Error(`There is no run "${state.run}". Open one of the runs on the left.`);
  const drawing = state.view === "findings" ? null : drawView(state);
  drawing?.catch(() => {}); // awaited below, and may fail before that
  const details = await runDetails(run);
  if (readState().view !== state.view) return;
  if (drawing) {
    renderControls(page.controls, state, details, known.columns);
    await drawing;
    return;
  }
  const layers = new Set(details.layers);
  const found = (details.findings ?? []).map((f) => ({ ...f, run: run.name, colour: run.colour, hasLayer: layers.has(f.layer) }));
  showFindings(state, found, details.findings !== null);
  if (details.replays?.length) page.words.append(replaySection(details.replays));
}

/** Shows the findings of all runs that are listed on the left. */
async function showAllFindings(state) {
  const version = known.runs.map(({ name, findings: { error, warning, info } }) => [name, error, warning, info].join(" ")).join("\n");
  if (known.allFindings?.version !== version) known.allFindings = { version, findings: (await get("findings", {})).findings };
  if (readState().view !== state.view) return;
  const runs = new Map(searchedRuns(known.runs).map((run) => [run.name, run]));
  const found = known.allFindings.findings.filter((f) => runs.has(f.run)).map((f) => ({ ...f, colour: runs.get(f.run).colour, hasLayer: f.has_layer }));
  showFindings(state, found, true);
}

function showFindings(state, found, looked) {
  renderControls(page.controls, state, { findings: found });
  showError(null);
  showText(() => renderFindings(page.words, filterFindings(found, state), found.length, { looked, scope: state.scope, columns: known.columns }));
}

/** Shows a view without figures. */
function showText(renderText) {
  pendingView.abort();
  drawn = NOTHING_DRAWN;
  fill(page.panels);
  renderText();
}

/** Returns a run's layers, variables, columns and findings, requested again when these have changed. */
async function runDetails({ name, offers, replicas, findings: { error, warning, info } }) {
  const key = [name, offers, error, warning, info].join(" ");
  if (!known.details.has(key)) known.details.set(key, { ...(await get("run", { run: name })), replicas });
  return known.details.get(key);
}

/** Returns the parameters that the view needs and no others: they are the key under which it is drawn. */
function viewParameters(state) {
  const dark = document.documentElement.classList.contains("dark") ? "1" : "0";
  const ticked = [state.run, ...state.ticked.filter((name) => name !== state.run)];
  const others = known.runs.map((r) => r.name).filter((name) => name !== state.run);
  const { run, column, layer, variable, order, headColumn, head, first, last, step, smoothing } = state;
  const parameters = {
    flow: { run, column, order, step },
    layer: { run, layer, step, smoothing },
    budget: { run },
    compare: { run: state.ticked.length ? ticked : [run, ...others.slice(0, 1)], column, layer, variable },
    replicas: { run: state.ticked.length ? ticked : [run, ...others].slice(0, MAX_REPLICA_RUNS), variable, smoothing },
    heads: { run, column: headColumn, head, step },
  };
  return { view: state.view, dark, first, last, ...parameters[state.view] };
}

async function drawView(state) {
  const parameters = viewParameters(state);
  const runs = known.runs.filter((r) => [parameters.run].flat().includes(r.name));
  const request = encode(parameters);
  const versions = runs.map((r) => r.version).join(" ");
  const step = Math.min(...runs.map((r) => r.step));
  if (request === drawn.request && versions === drawn.versions && drawn.complete) return;
  const since = request === drawn.request && step >= drawn.step ? drawn.step : undefined;
  pendingView.abort();
  pendingView = new AbortController();
  const answer = await get("view", { ...parameters, since }, pendingView.signal);
  showError(null);
  fill(page.words);
  const completeUntil = answer.whole_until ?? step;
  drawn = { request, versions, step: Math.min(completeUntil, step), complete: completeUntil >= step };
  if (await drawPanels(page.panels, answer.panels, parameters)) return;
  drawn = NOTHING_DRAWN; // the newer part does not continue what is drawn, so the whole is requested
  await drawView(state);
}

function tab(view, name, state) {
  const selected = view === state.view;
  const attributes = { type: "button", role: "tab", "aria-selected": String(selected), tabindex: selected ? 0 : -1, "data-key": `tab ${view}` };
  return h("button", { ...attributes, onclick: () => changeState({ view }) }, name);
}

function renderHeading(state, run) {
  if (state.view === "overview" || !run || (state.view === "findings" && state.scope === "all")) {
    fill(page.heading);
    return;
  }
  const runState = run.state === "unknown" ? "no status recorded" : run.state;
  const step = run.step === null ? "no step recorded" : `step ${formatStep(run.step)}`;
  fill(
    page.heading,
    h("span", { class: "dot", style: { background: run.colour } }),
    h("h2", {}, runName(run.name)),
    h("span", { class: `chip ${run.state}` }, `${runState}, ${step}`),
    state.view === "findings" ? null : findingsChip(run),
  );
}

function findingsChip({ findings: { error, warning, info } }) {
  const total = error + warning + info;
  if (!total) return null;
  const level = error ? "error" : warning ? "warning" : "info";
  const attributes = { type: "button", class: `chip ${level}`, "data-key": "severe", title: "Open the findings of this run" };
  return h("button", { ...attributes, onclick: () => changeState({ view: "findings", scope: "" }) }, count(total, "finding"));
}

/** Shows an error, or clears it; `lost` if TensorBoard does not answer and the page keeps asking. */
function showError(error, lost = false) {
  const prefix = lost ? "TensorBoard does not answer; trying again. " : "";
  page.message.textContent = error ? prefix + error.message : "";
  page.message.toggleAttribute("data-lost", Boolean(error) && lost);
  if (error && !lost) {
    drawn = NOTHING_DRAWN;
    fill(page.panels);
    fill(page.words);
  }
}
