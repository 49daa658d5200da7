// Overview and Findings: what a person is told in words.

import { fill, h, number, sentence, sparkline } from "./dom.js";
import { address, go } from "./state.js";

const WORDS = { error: ["error", "errors"], warning: ["warning", "warnings"], info: ["note", "notes"] };
const SIGNS = { error: "✕", warning: "!", info: "i" };

/** A link within the tab, of all steps: an address that can be copied, followed without a reload. */
function link(target, text, title = null) {
  const changes = { first: "", last: "", ...target };
  const follow = (event) => {
    if (event.ctrlKey || event.metaKey || event.shiftKey || event.button) return;
    event.preventDefault();
    go(changes);
  };
  const root = window.parent.location.href.split("#")[0];
  return h("a", { href: root + address(changes), target: "_parent", title, "data-key": `link ${JSON.stringify(changes)}`, onclick: follow }, text);
}

export function overview(root, runs, names) {
  const shown = runs.filter((run) => names.has(run.name));
  const rank = (run) => (run.findings.error ? 0 : run.findings.warning ? 1 : 2);
  const cards = [...shown].sort((a, b) => rank(a) - rank(b)).map(card);
  fill(root, h("div", { class: "overview" }, lead(shown), h("div", { class: "cards" }, cards)));
}

/** How the runs stand, in one sentence; the cards below it begin with the worst. */
function lead(runs) {
  const bad = runs.filter((run) => run.findings.error);
  const uneasy = runs.filter((run) => !run.findings.error && run.findings.warning);
  const live = runs.filter((run) => run.state === "training").length;
  const stalled = runs.filter((run) => run.state === "stalled").length;
  const count = (n, one, many) => `${n} ${n === 1 ? one : many}`;
  const looked = runs.filter((run) => run.looked && !run.problems.length).length;
  let headline = looked === runs.length ? `Nothing was found in ${count(looked, "run", "runs")}` : `Nothing was found in ${looked} of ${count(runs.length, "run", "runs")}`;
  if (!looked) headline = `${count(runs.length, "run holds", "runs hold")} no findings`;
  if (bad.length) headline = `${bad.length} of ${count(runs.length, "run", "runs")} ${bad.length === 1 ? "has" : "have"} errors`;
  else if (uneasy.length) headline = `${uneasy.length} of ${count(runs.length, "run", "runs")} ${uneasy.length === 1 ? "has" : "have"} warnings`;
  const unread = runs.filter((run) => run.problems.length).length;
  const silent = runs.length - looked - unread;
  const parts = [live && `${live} training`, stalled && `${stalled} stalled`, unread && `${unread} cannot be read in full`, silent && looked && `${silent} without findings recorded`];
  return h(
    "header",
    { class: `lead ${bad.length ? "error" : uneasy.length || unread ? "warning" : looked ? "good" : "plain"}` },
    h("h2", {}, headline, h("small", {}, parts.filter(Boolean).join(", "))),
  );
}

/** Links to the layer and the step of a finding. */
function where(run, finding) {
  const { layer, step } = finding;
  const at = link({ view: "flow", run, step }, `step ${step.toLocaleString("en")}`, "Open the flow of this run, this step marked");
  if (!layer) return h("span", { class: "where" }, at);
  return h("span", { class: "where" }, link({ view: "layer", run, layer, step }, layer, "Open this layer, the step marked"), " · ", at);
}

function card(run) {
  const share = run.steps ? Math.min(1, (run.step + 1) / run.steps) : null;
  const progress = h("div", { class: "progress", role: "img", "aria-label": share === null ? "" : `${Math.round(100 * share)} %` });
  if (share !== null) progress.append(h("span", { style: { width: `${100 * share}%`, background: run.colour } }));
  const replicas = run.replicas > 1 ? ` · ${run.replicas} replicas` : "";
  return h(
    "article",
    { class: "card", "data-run": run.name },
    h(
      "div",
      { class: "title" },
      h("span", { class: "dot", style: { background: run.colour } }),
      h("h3", {}, link({ view: "flow", run: run.name }, run.name, "Open the flow of this run")),
      h("span", { class: `chip ${run.state}`, title: run.reason || STATES[run.state] }, run.state + replicas),
      chips(run),
    ),
    h(
      "dl",
      { class: "facts" },
      fact("Step", [number(run.step, 9), run.steps ? h("small", {}, ` of ${number(run.steps, 9)}`) : null, share === null ? null : progress], "The last step that was recorded"),
      fact("Loss", [number(run.loss), sparkline(run.losses, run.colour)], "The loss, as the program gave it to the recorder"),
      fact(
        "Gradient from input to loss",
        run.profile.length > 1 ? [sparkline(run.profile, run.colour, FLAT_DECADES), h("small", {}, decades(run.profile))] : "–",
        "Norm of the gradient at the output of each layer at the last step, on a logarithmic scale, the input side to the left: a steady rise is a gradient that vanishes on its way back",
      ),
      fact("Worst layer", worst(run), "The layer of the most severe finding; without one, that of the smallest gradient norm at the last step"),
      fact(
        "Measuring costs",
        run.overhead === null ? "–" : [`${number(100 * run.overhead, 2)} %`, h("small", {}, ` ${number(run.measure_ms, 2)} ms a record`)],
        "Median milliseconds of measuring a step, over the milliseconds that training takes between two records",
      ),
    ),
    run.headline ? headline(run) : null,
    run.problems.map((problem) => h("p", { class: "problem" }, `Cannot be read: ${problem}`)),
  );
}

/** What was found, where, and what to do about it. */
function headline({ name, headline: found }) {
  const sign = h("span", { class: `sign ${found.severity}`, "aria-hidden": "true" }, SIGNS[found.severity]);
  const advice = found.advice ? h("small", {}, sentence(found.advice)) : null;
  return h("div", { class: "headline" }, sign, h("p", {}, sentence(found.message), " ", where(name, found)), advice);
}

const STATES = {
  training: "Records are coming in",
  ended: "The run was closed",
  stalled: "It says that it trains, and nothing has come for a minute and ten times the usual gap",
  unknown: "The run does not say how it stands",
};

function fact(name, value, title) {
  return h("div", { title }, h("dt", {}, name), h("dd", {}, value));
}

const FLAT_DECADES = 4; // what fewer decades than these look like is a gentle slope

function decades(profile) {
  return `${number(Math.max(...profile) - Math.min(...profile), 2)} decades`;
}

function worst(run) {
  if (!run.worst) return "–";
  const { layer, words } = run.worst;
  return [link({ view: "layer", run: run.name, layer }, layer, "Open this layer"), h("small", {}, words)];
}

function chips(run) {
  const made = Object.entries(run.findings).filter(([, n]) => n);
  const text = ([severity, n]) => `${n} ${WORDS[severity][n === 1 ? 0 : 1]}`;
  return h("span", { class: "counts" }, made.map((entry) => link({ view: "findings", run: run.name }, text(entry), "Read them")).map((a, i) => (a.classList.add("chip", made[i][0]), a)));
}

export function findings(root, run, about) {
  if (about.findings === null || !about.findings.length) {
    const words = about.findings === null ? "This run holds no findings: what wrote it did not look for any." : "The rules found nothing in this run so far.";
    fill(root, h("div", { class: "blankslate" }, h("h2", {}, "No findings"), h("p", {}, words)));
    return;
  }
  fill(root, h("ol", { class: "findings" }, about.findings.map((finding) => item(run, finding, about.layers.includes(finding.layer)))));
}

function item(run, finding, known) {
  const evidence = Object.entries(finding.evidence);
  return h(
    "li",
    { class: `finding ${finding.severity}` },
    h("span", { class: `sign ${finding.severity}`, "aria-hidden": "true" }, SIGNS[finding.severity]),
    h(
      "div",
      {},
      h("p", { class: "kind" }, `${WORDS[finding.severity][0]} · ${finding.rule.replaceAll("_", " ")} · `, where(run.name, known ? finding : { ...finding, layer: null })),
      h("h3", {}, sentence(finding.message)),
      finding.advice ? h("p", { class: "advice" }, sentence(finding.advice)) : null,
      evidence.length ? h("dl", { class: "evidence" }, evidence.map(([name, value]) => h("div", {}, h("dt", {}, name.replaceAll("_", " ")), h("dd", {}, number(value))))) : null,
    ),
  );
}

export function nothing(root) {
  const commands = "pip install 'tapescope[trainers]'\ntapescope-train --logdir=runs/first\ntensorboard --logdir=runs --reload_interval=1";
  fill(
    root,
    h(
      "div",
      { class: "blankslate" },
      h("h2", {}, "No run holds gradient records yet"),
      h("p", {}, "Train a first one, and it appears here while it trains:"),
      h("pre", {}, commands),
      h("p", {}, "In your own loop, write with tapescope.Recorder into a directory below TensorBoard's --logdir."),
    ),
  );
}
