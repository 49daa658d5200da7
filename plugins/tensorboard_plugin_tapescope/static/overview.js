// The views Overview and Findings.

import { fill, h, refill, sentence, sparkline } from "./dom.js";
import { count, formatNumber, formatStep, spaced } from "./format.js";
import { summarize } from "./headline.js";
import { runName } from "./run_name.js";
import { largestSpikeText, lostDecades, runTable, spikeText } from "./run_table.js";
import { changeState, hashWith } from "./state.js";

const SEVERITY_NAMES = { error: "error", warning: "warning", info: "note" };
const SIGNS = { error: "✕", warning: "!", info: "i" };
const STATE_TITLES = {
  training: "Records are arriving",
  ended: "The run was closed",
  stalled: "The status is training, but no record came for a minute and ten times the usual gap",
  unknown: "No status recorded",
};
const MOST_CARDS = 12; // more runs than these are listed in a table at first
const FLAT_DECADES = 4; // fewer decades than these are drawn as a gentle slope

/** Makes a link within the tab that shows all steps: it can be copied, and works without a reload. */
function link(target, text, title = null) {
  const changes = { first: "", last: "", ...target };
  const follow = (event) => {
    if (event.ctrlKey || event.metaKey || event.shiftKey || event.button) return;
    event.preventDefault();
    changeState(changes);
  };
  const root = window.parent.location.href.split("#")[0];
  const key = `link ${JSON.stringify(changes)}`;
  return h("a", { href: root + hashWith(changes), target: "_parent", title, "data-key": key, onclick: follow }, text);
}

export function renderOverview(root, runs, { layout, sort }) {
  const asTable = layout === "table" || (layout !== "cards" && runs.length > MOST_CARDS);
  const content = asTable ? runTable(runs, sort, { open: openLink, findings: findingMark, layer: layerLink }) : h("div", { class: "cards" }, sortedCards(runs));
  refill(root, h("div", { class: "overview" }, headline(runs), layoutSwitch(asTable), content));
}

function sortedCards(runs) {
  const rank = (run) => (run.findings.error ? 0 : run.findings.warning ? 1 : 2);
  return [...runs].sort((a, b) => rank(a) - rank(b)).map(card);
}

function layoutSwitch(asTable) {
  const option = (layout, text, current) =>
    h("button", { type: "button", "data-key": `layout ${layout}`, "aria-pressed": String(current), onclick: () => changeState({ layout }, false) }, text);
  return h("div", { class: "switch", role: "group", "aria-label": "Layout" }, option("cards", "Cards", !asTable), option("table", "Table", asTable));
}

const openLink = (run, content) => link({ view: "flow", run: run.name }, content, "Open the view Flow of this run");
const layerLink = ({ name, worst: { layer, words } }) => link({ view: "layer", run: name, layer }, layer, `Open this layer: ${words}`);

function findingMark(run, severity) {
  const n = run.findings[severity];
  const mark = link({ view: "findings", run: run.name, scope: "" }, String(n), `${count(n, SEVERITY_NAMES[severity])}; open the findings of this run`);
  mark.classList.add("chip", severity);
  return mark;
}

function headline(runs) {
  const { level, text, details } = summarize(runs);
  return h("header", { class: `lead ${level}` }, h("h2", {}, text, h("small", {}, details)));
}

/** Makes the links to the layer and the step of a finding. */
function findingLinks(run, { layer, step }) {
  const stepLink = link({ view: "flow", run, step }, `step ${formatStep(step)}`, "Open the view Flow with this step marked");
  if (!layer) return h("span", { class: "where" }, stepLink);
  const layerLink = link({ view: "layer", run, layer, step }, layer, "Open this layer with the step marked");
  return h("span", { class: "where" }, layerLink, " · ", stepLink);
}

function card(run) {
  return h(
    "article",
    { class: "card", "data-run": run.name },
    h(
      "div",
      { class: "title" },
      h("span", { class: "dot", style: { background: run.colour } }),
      h("h3", {}, openLink(run, runName(run.name))),
      h("span", { class: `chip ${run.state}`, title: run.reason || STATE_TITLES[run.state] }, stateText(run)),
      findingChips(run),
    ),
    h("dl", { class: "facts" }, facts(run)),
    run.headline ? topFinding(run) : null,
    run.problems.map((problem) => h("p", { class: "problem" }, `Cannot be read: ${problem}`)),
  );
}

function stateText(run) {
  const state = run.state === "unknown" ? STATE_TITLES.unknown : run.state;
  return run.replicas > 1 ? `${state} · ${run.replicas} replicas` : state;
}

function facts(run) {
  const share = run.steps && run.step !== null ? Math.min(1, (run.step + 1) / run.steps) : null;
  const total = run.steps ? h("small", {}, ` of ${formatNumber(run.steps, 9)}`) : null;
  const profile = [sparkline(run.profile, run.colour, FLAT_DECADES), h("small", {}, `${formatNumber(lostDecades(run), 2)} decades`)];
  const validation = run.validation_loss === null ? null : h("small", {}, ` validation ${formatNumber(run.validation_loss)}`);
  const overhead = [`${formatNumber(100 * run.overhead, 2)} %`, h("small", {}, ` ${formatNumber(run.measure_ms, 2)} ms a record`)];
  return [
    fact("Step", [formatNumber(run.step, 9), total, share === null ? null : progress(share, run.colour)], "The last recorded step"),
    fact(
      "Loss",
      [h("span", { class: "loss" }, formatNumber(run.loss)), sparkline(run.losses, run.colour), validation],
      "The loss that the program passed to the recorder, and that of the last validation before the last record",
    ),
    fact(
      "Gradient from input to loss",
      run.profile.length > 1 ? profile : "–",
      "Gradient norm at the output of each layer at the last step, on a logarithmic scale, with the input at the left. A line that rises steadily is a gradient that vanishes on its way back to the input.",
    ),
    fact(
      "Spikes",
      largestSpikeText(run),
      `Share of steps whose loss, or whose gradient norm, is more than six standard deviations above the 128 before it: ${spikeText(run)}`,
    ),
    fact("Worst layer", worstLayer(run), "The layer of the most severe finding, or else the layer with the smallest gradient norm at its output at the last step"),
    fact(
      "Measuring overhead",
      run.overhead === null ? "–" : overhead,
      "Median time of measuring a step, over the time of training between two records",
    ),
  ];
}

function fact(name, value, title) {
  return h("div", { title }, h("dt", {}, name), h("dd", {}, value));
}

function progress(share, colour) {
  const bar = h("span", { style: { width: `${100 * share}%`, background: colour } });
  return h("div", { class: "progress", role: "img", "aria-label": `${Math.round(100 * share)} %` }, bar);
}

function worstLayer(run) {
  if (!run.worst) return "–";
  const { layer, words } = run.worst;
  return [link({ view: "layer", run: run.name, layer }, layer, "Open this layer"), h("small", {}, words)];
}

function findingChips(run) {
  const chips = Object.entries(run.findings)
    .filter(([, n]) => n)
    .map(([severity, n]) => {
      const chip = link({ view: "findings", run: run.name, scope: "" }, count(n, SEVERITY_NAMES[severity]), "Open the findings of this run");
      chip.classList.add("chip", severity);
      return chip;
    });
  return h("span", { class: "counts" }, chips);
}

/** Makes the most severe finding of a run: its message, links and advice. */
function topFinding({ name, headline: finding }) {
  const sign = h("span", { class: `sign ${finding.severity}`, "aria-hidden": "true" }, SIGNS[finding.severity]);
  const advice = finding.advice ? h("small", {}, sentence(finding.advice)) : null;
  return h("div", { class: "headline" }, sign, h("p", {}, sentence(finding.message), " ", findingLinks(name, finding)), advice);
}

/** Renders the findings of one run, or of all: `findings` are those that pass the filters, `found` is how many there are, and `columns` defines the numbers of the evidence. */
export function renderFindings(root, findings, found, { looked, scope, columns }) {
  if (findings.length) {
    fill(root, h("ol", { class: "findings" }, findings.map((finding) => findingItem(finding, scope === "all", columns))));
    return;
  }
  const where = scope === "all" ? "these runs" : "this run";
  const nothing = looked ? `The rules found nothing in ${where} so far.` : "No step is measured yet, or the program that wrote this run applied no rules. Run `tapescope check` on it to see which.";
  const text = found ? `None of ${count(found, "finding")} passes the filters.` : nothing;
  fill(root, h("div", { class: "blankslate" }, h("h2", {}, "No findings"), h("p", {}, sentence(text))));
}

function findingItem(finding, namesRun, columns) {
  const evidence = Object.entries(finding.evidence).map(([name, value]) => h("div", { title: columns[name]?.definition }, h("dt", {}, spaced(name)), h("dd", {}, formatNumber(value))));
  const links = findingLinks(finding.run, finding.hasLayer ? finding : { ...finding, layer: null });
  const run = namesRun ? [h("span", { class: "dot", style: { background: finding.colour } }), link({ view: "findings", run: finding.run, scope: "" }, finding.run, "Show the findings of this run only"), " · "] : [];
  return h(
    "li",
    { class: `finding ${finding.severity}` },
    h("span", { class: `sign ${finding.severity}`, "aria-hidden": "true" }, SIGNS[finding.severity]),
    h(
      "div",
      {},
      h("p", { class: "kind" }, run, `${SEVERITY_NAMES[finding.severity]} · ${spaced(finding.rule)} · `, links),
      h("h3", {}, sentence(finding.message)),
      finding.advice ? h("p", { class: "advice" }, sentence(finding.advice)) : null,
      evidence.length ? h("dl", { class: "evidence" }, evidence) : null,
    ),
  );
}

/** Renders what to do if TensorBoard has found no run of tapescope. */
export function renderNoRuns(root) {
  const commands = "pip install 'tapescope[trainers]'\ntapescope-train --logdir=runs/first\ntensorboard --logdir=runs --reload_interval=1";
  fill(
    root,
    h(
      "div",
      { class: "blankslate" },
      h("h2", {}, "No run with gradient records"),
      h("p", {}, "Train a network, and its run appears here while it trains:"),
      h("pre", {}, commands),
      h("p", {}, "In your own loop, let tapescope.Recorder write to a directory below TensorBoard's --logdir."),
    ),
  );
}
