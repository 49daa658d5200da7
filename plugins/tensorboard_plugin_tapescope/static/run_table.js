// The overview as a table: a line for each run, sorted by any column.

import { h, sparkline } from "./dom.js";
import { formatNumber } from "./format.js";
import { runName, shortNames } from "./run_name.js";
import { changeState } from "./state.js";

/** Returns the decades between the smallest and the largest gradient of a run's layers; null if unknown. */
export function lostDecades({ profile }) {
  return profile.length > 1 ? Math.max(...profile) - Math.min(...profile) : null;
}

const percent = (run) => (run.overhead === null ? null : 100 * run.overhead);
const spikes = (run) => {
  const known = Object.values(run.spikes).filter((share) => share !== null);
  return known.length ? 100 * Math.max(...known) : null;
};

/** Returns the larger share of spikes as text: `0.4 %`; "–" if none is known. */
export function largestSpikeText(run) {
  return spikes(run) === null ? "–" : `${formatNumber(spikes(run), 2)} %`;
}

/** Returns the shares of spikes as text: `loss 0.4 %, gradient 0 %`; "–" if none is known. */
export function spikeText(run) {
  const known = Object.entries(run.spikes).filter(([, share]) => share !== null);
  return known.map(([name, share]) => `${name} ${formatNumber(100 * share, 2)} %`).join(", ") || "–";
}

const SEVERITIES = ["error", "warning", "info"];

/** Columns by key: title, definition, value to sort by, cell, and whether the largest value comes first. */
export const COLUMNS = {
  name: { title: "Run", help: "The run's directory below TensorBoard's --logdir", value: (run) => run.name, text: true },
  state: { title: "State", help: "Training, ended, or stalled: no record came for a minute and ten times the usual gap", value: (run) => run.state, text: true },
  step: { title: "Step", help: "The last recorded step", value: (run) => run.step, largest: true },
  loss: { title: "Loss", help: "The loss that the program passed to the recorder", value: (run) => (run.loss === null ? null : Number(run.loss)) },
  spikes: { title: "Spikes", help: "The larger share of steps whose loss, or whose gradient norm, is more than six standard deviations above the 128 before it", value: spikes, largest: true },
  findings: { title: "Findings", help: "Errors, warnings and notes of the rules", value: ({ findings }) => findings.error * 1e6 + findings.warning * 1e3 + findings.info, largest: true },
  decades: { title: "Decades lost", help: "Decades between the smallest and the largest gradient norm at the outputs of the layers at the last step", value: lostDecades, largest: true },
  worst: { title: "Worst layer", help: "The layer of the most severe finding, or else the layer with the smallest gradient norm at its output at the last step", value: (run) => run.worst?.layer ?? null, text: true },
  overhead: { title: "Overhead", help: "Median time of measuring a step, over the time of training between two records", value: percent, largest: true },
};

/** Returns the runs in the order of a column: `loss`, or `-loss` for the opposite order. Unknown values come last. */
export function sortRuns(runs, sort) {
  const key = sort.replace(/^-/, "");
  const column = Object.hasOwn(COLUMNS, key) ? COLUMNS[key] : COLUMNS.findings;
  const sign = (column.largest ? -1 : 1) * (sort.startsWith("-") ? -1 : 1);
  const unknown = (value) => value === null || Number.isNaN(value);
  const compare = column.text ? (a, b) => a.localeCompare(b, undefined, { numeric: true }) : (a, b) => a - b;
  return [...runs].sort((first, second) => {
    const [a, b] = [column.value(first), column.value(second)];
    if (unknown(a) || unknown(b)) return unknown(a) - unknown(b);
    return sign * compare(a, b);
  });
}

/** Makes the table; `links` are functions that make the links of a run: `open`, `findings` and `layer`. */
export function runTable(runs, sort, links) {
  const heads = Object.keys(COLUMNS).map((key) => head(key, sort || "findings"));
  const short = shortNames(runs.map((run) => run.name));
  const lines = sortRuns(runs, sort || "findings").map((run) => line(run, short.get(run.name), links));
  return h("table", { class: "run-table" }, h("thead", {}, h("tr", {}, heads)), h("tbody", {}, lines));
}

function head(key, sort) {
  const current = sort.replace(/^-/, "") === key;
  const opposite = sort.startsWith("-");
  const order = current ? (Boolean(COLUMNS[key].largest) !== opposite ? "descending" : "ascending") : null;
  const sign = { ascending: " ▴", descending: " ▾" }[order] ?? "";
  const sortBy = () => changeState({ sort: current && !opposite ? `-${key}` : key }, false);
  const button = h("button", { type: "button", "data-key": `sort ${key}`, title: `${COLUMNS[key].help}. Click to sort.`, onclick: sortBy }, COLUMNS[key].title + sign);
  return h("th", { scope: "col", "aria-sort": order, class: COLUMNS[key].text ? "" : "number" }, button);
}

function line(run, short, links) {
  const decades = lostDecades(run);
  const cost = percent(run);
  const number = (...content) => h("td", { class: "number" }, ...content);
  const marks = SEVERITIES.filter((severity) => run.findings[severity]).map((severity) => links.findings(run, severity));
  return h(
    "tr",
    { "data-run": run.name },
    h("th", { scope: "row" }, h("span", { class: "dot", style: { background: run.colour } }), links.open(run, runName(run.name, short))),
    h("td", {}, h("span", { class: `chip ${run.state}`, title: run.reason }, run.state)),
    number(formatNumber(run.step, 9)),
    number(sparkline(run.losses, run.colour), h("span", { class: "loss" }, formatNumber(run.loss))),
    h("td", { class: "number", title: spikeText(run) }, largestSpikeText(run)),
    number(marks.length ? marks : "–"),
    number(decades === null ? "–" : formatNumber(decades, 2)),
    h("td", {}, run.worst ? links.layer(run) : "–"),
    number(cost === null ? "–" : `${formatNumber(cost, 2)} %`),
  );
}
