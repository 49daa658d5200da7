// The table of the runs' hyperparameters: those that differ, and below them, folded, the others.

import { h } from "./dom.js";
import { runName, shortNames } from "./run_name.js";

/** Makes the table of a panel, which http_api.md documents. */
export function parameterTable({ runs, colours, folded, differing, equal }) {
  const short = shortNames(runs);
  const heads = runs.map((run, i) => h("th", { scope: "col" }, h("span", { class: "dot", style: { background: colours[i] } }), runName(run, short.get(run))));
  const common = Object.entries(equal);
  const rows = Object.entries(differing);
  return [
    rows.length ? h("table", {}, h("thead", {}, h("tr", {}, h("th"), heads)), h("tbody", {}, rows.map(([name, texts]) => row(name, texts)))) : null,
    common.length ? h("details", {}, h("summary", {}, folded), h("table", {}, h("tbody", {}, common.map(([name, text]) => row(name, [text]))))) : null,
  ].filter(Boolean);
}

function row(name, texts) {
  return h("tr", {}, h("th", { scope: "row" }, name), texts.map((text) => h("td", { title: text }, text)));
}
