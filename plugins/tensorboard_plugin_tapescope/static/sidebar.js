// The list of runs: search, the open run, and the runs ticked for comparison.

import { fill, h, refill } from "./dom.js";
import { runName, shortNames } from "./run_name.js";
import { changeState, readState } from "./state.js";

const LONG_NAME = 20; // longer names get a wider list
let search = "";

/** Returns the runs whose name matches a regular expression, or contains the text if it is not a valid one. */
export function matchRuns(runs, text) {
  try {
    const pattern = new RegExp(text, "i");
    return { matches: runs.filter((run) => pattern.test(run.name)), valid: true };
  } catch {
    return { matches: runs.filter((run) => run.name.toLowerCase().includes(text.toLowerCase())), valid: false };
  }
}

/** Returns the runs that match the search field. */
export const searchedRuns = (runs) => matchRuns(runs, search).matches;

export function renderSidebar(root, runs, state, redraw) {
  if (!root.firstChild) {
    const input = h("input", { type: "search", placeholder: "Search runs (regex)", "aria-label": "Search runs by regular expression" });
    input.addEventListener("input", () => {
      search = input.value;
      redraw();
    });
    fill(root, h("h2", {}, "Runs"), input, h("p", { class: "hint", role: "status" }), h("p", { class: "ticks" }), h("ul", { class: "runs" }));
  }
  const { matches, valid } = matchRuns(runs, search);
  const hint = valid ? "Click a run to open it. Tick runs to compare them." : "Not a regular expression; searched as plain text.";
  root.querySelector(".hint").textContent = matches.length ? hint : "No run matches.";
  const short = shortNames(runs.map((run) => run.name));
  root.classList.toggle("wide", Math.max(...[...short.values()].map((name) => name.length)) > LONG_NAME);
  fill(root.querySelector(".ticks"), tickButtons(matches, state));
  refill(root.querySelector(".runs"), matches.map((run) => entry(run, short.get(run.name), state)));
}

/** Makes buttons that tick all runs that are listed, and none. */
function tickButtons(matches, state) {
  const names = matches.map((run) => run.name);
  const all = { type: "button", "data-key": "tick all", disabled: names.every((name) => state.ticked.includes(name)) };
  const none = { type: "button", "data-key": "tick none", disabled: !state.ticked.length };
  const ticked = [...new Set([...state.ticked, ...names])];
  return [
    h("button", { ...all, onclick: () => changeState({ ticked }, false) }, "Tick all"),
    h("button", { ...none, onclick: () => changeState({ ticked: [] }, false) }, "Tick none"),
  ];
}

function entry(run, short, state) {
  const ticked = state.ticked.includes(run.name);
  const toggled = () => {
    const others = readState().ticked.filter((name) => name !== run.name);
    return ticked ? others : [...others, run.name];
  };
  const box = h("input", {
    type: "checkbox",
    checked: ticked,
    "data-key": `tick ${run.name}`,
    "aria-label": `Compare ${run.name}`,
    style: { "accent-color": run.colour },
    "data-ticked": String(ticked), // two entries are compared by their attributes
    onchange: () => changeState({ ticked: toggled() }, false),
  });
  const open = h(
    "button",
    {
      type: "button",
      "data-key": `open ${run.name}`,
      "aria-label": `Open ${run.name}`,
      "aria-current": state.run === run.name ? "true" : null,
      title: `Open ${run.name} (${run.state})`,
      onclick: () => changeState({ run: run.name, first: "", last: "", step: "" }),
    },
    h("span", { class: "dot", style: { background: run.colour } }),
    runName(run.name, short),
    h("span", { class: `state ${run.state}`, "aria-hidden": "true" }),
  );
  return h("li", { class: state.run === run.name ? "open" : "" }, box, open);
}
