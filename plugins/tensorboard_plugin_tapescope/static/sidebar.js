// The list of runs: search, the open run, and the runs ticked for comparison.

import { fill, h } from "./dom.js";
import { changeState } from "./state.js";

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
    fill(root, h("h2", {}, "Runs"), input, h("p", { class: "hint", role: "status" }), h("ul", { class: "runs" }));
  }
  const { matches, valid } = matchRuns(runs, search);
  const hint = valid ? "Click a run to open it. Tick runs to compare them." : "Not a regular expression; searched as plain text.";
  root.querySelector(".hint").textContent = matches.length ? hint : "No run matches.";
  fill(root.querySelector(".runs"), matches.map((run) => entry(run, state)));
}

function entry(run, state) {
  const ticked = state.ticked.includes(run.name);
  const toggled = ticked ? state.ticked.filter((name) => name !== run.name) : [...state.ticked, run.name];
  const box = h("input", {
    type: "checkbox",
    checked: ticked,
    "data-key": `tick ${run.name}`,
    "aria-label": `Compare ${run.name}`,
    style: { "accent-color": run.colour },
    onchange: () => changeState({ ticked: toggled }, false),
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
    h("span", { class: "name" }, run.name),
    h("span", { class: `state ${run.state}`, "aria-hidden": "true" }),
  );
  return h("li", { class: state.run === run.name ? "open" : "" }, box, open);
}
