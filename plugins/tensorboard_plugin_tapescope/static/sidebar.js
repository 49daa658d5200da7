// The list of runs: search, the run that is open, and those ticked to be compared.

import { fill, h } from "./dom.js";
import { go } from "./state.js";

let search = "";

/** Runs that the search keeps: a regular expression, or plain text where it is none. */
export function matching(runs) {
  try {
    const pattern = new RegExp(search, "i");
    return [runs.filter((run) => pattern.test(run.name)), true];
  } catch {
    return [runs.filter((run) => run.name.toLowerCase().includes(search.toLowerCase())), false];
  }
}

export function sidebar(root, runs, state, redraw) {
  if (!root.firstChild) {
    const input = h("input", { type: "search", placeholder: "Search runs (regex)", "aria-label": "Search runs, a regular expression" });
    input.addEventListener("input", () => {
      search = input.value;
      redraw();
    });
    fill(root, h("h2", {}, "Runs"), input, h("p", { class: "hint", role: "status" }), h("ul", { class: "runs" }));
  }
  const [shown, valid] = matching(runs);
  const words = valid ? "Click a name to open the run; tick runs to compare." : "Not a regular expression: searched as plain text.";
  root.querySelector(".hint").textContent = shown.length ? words : "No run matches.";
  fill(root.querySelector(".runs"), shown.map((run) => entry(run, state)));
}

function entry(run, state) {
  const ticked = state.ticked.includes(run.name);
  const toggle = () => go({ ticked: ticked ? state.ticked.filter((r) => r !== run.name) : [...state.ticked, run.name] }, false);
  const box = h("input", {
    type: "checkbox",
    checked: ticked,
    "data-key": `tick ${run.name}`,
    "aria-label": `Compare ${run.name}`,
    style: { "accent-color": run.colour },
    onchange: toggle,
  });
  const open = h(
    "button",
    {
      type: "button",
      "data-key": `open ${run.name}`,
      "aria-current": state.run === run.name ? "true" : null,
      title: `${run.name}: ${run.state}`,
      onclick: () => go({ run: run.name, first: "", last: "", step: "" }),
    },
    h("span", { class: "dot", style: { background: run.colour } }),
    h("span", { class: "name" }, run.name),
    h("span", { class: `state ${run.state}`, "aria-hidden": "true" }),
  );
  return h("li", { class: state.run === run.name ? "open" : "" }, box, open);
}
