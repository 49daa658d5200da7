// What is being looked at. It lives in the address, so that every view is a link that survives a reload.

const PLUGIN = "tapescope";
const DEFAULTS = { view: "overview", run: "", column: "gradient_norm", layer: "", variable: "", order: "forward", first: "", last: "", step: "" };

export const VIEWS = {
  overview: "Overview",
  flow: "Flow",
  layer: "Layer",
  budget: "Budget",
  compare: "Compare",
  replicas: "Replicas",
  findings: "Findings",
};

const listeners = new Set();

/** The state in the address; `ticked` are the runs chosen to be compared. */
export function read() {
  const query = new URLSearchParams(window.parent.location.hash.split("&").slice(1).join("&"));
  const state = Object.fromEntries(Object.entries(DEFAULTS).map(([name, value]) => [name, query.get(name) ?? value]));
  if (!(state.view in VIEWS)) state.view = "overview";
  return { ...state, ticked: query.getAll("with") };
}

/** The address of the state with changes: what a link points to. */
export function address(changes) {
  const state = { ...read(), ...changes };
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries(DEFAULTS)) if (state[name] !== value) query.set(name, state[name]);
  for (const run of state.ticked) query.append("with", run);
  const rest = query.toString();
  return `#${PLUGIN}${rest ? `&${rest}` : ""}`;
}

/** Changes the state; a change of view or run is a step that the browser's Back undoes. */
export function go(changes, remember = true) {
  const parent = window.parent;
  const target = address(changes);
  if (target !== parent.location.hash) parent.history[remember ? "pushState" : "replaceState"](parent.history.state, "", target);
  notify();
}

export function onChange(listener) {
  listeners.add(listener);
}

/** Listens to the address too: Back, Forward and a pasted link. */
export function watch() {
  const moved = () => window.parent.location.hash.startsWith(`#${PLUGIN}`) && notify();
  window.parent.addEventListener("hashchange", moved);
  window.parent.addEventListener("popstate", moved);
}

function notify() {
  for (const listener of listeners) listener(read());
}
