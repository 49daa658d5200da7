// The state of the page: the open view, run and so on. It is kept in the address, so that every view has a link.

const PLUGIN = "tapescope";
// The smoothing is that of TensorBoard's Scalars tab, which shows series of the same run next to this tab.
const DEFAULTS = { view: "overview", run: "", column: "gradient_norm", layer: "", variable: "", order: "forward", first: "", last: "", step: "", layout: "", sort: "", scope: "", severity: "", rule: "", smoothing: "0.6" };

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

/** Returns the state in an address' hash; `ticked` are the runs selected for comparison. */
export function parseHash(hash) {
  const query = new URLSearchParams(hash.split("&").slice(1).join("&"));
  const state = Object.fromEntries(Object.entries(DEFAULTS).map(([name, value]) => [name, query.get(name) ?? value]));
  if (!Object.hasOwn(VIEWS, state.view)) state.view = DEFAULTS.view;
  return { ...state, ticked: query.getAll("with") };
}

/** Returns the hash of a state, without the fields that have their default. */
export function formatHash(state) {
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries(DEFAULTS)) if (state[name] !== value) query.set(name, state[name]);
  for (const run of state.ticked) query.append("with", run);
  const text = query.toString();
  return `#${PLUGIN}${text ? `&${text}` : ""}`;
}

/** Returns the state in the address. */
export const readState = () => parseHash(window.parent.location.hash);

/** Returns the hash of the current state with changes, for a link. */
export const hashWith = (changes) => formatHash({ ...readState(), ...changes });

/** Changes the state. With `remember` the browser's Back button undoes it. */
export function changeState(changes, remember = true) {
  const parent = window.parent;
  const hash = hashWith(changes);
  if (hash !== parent.location.hash) parent.history[remember ? "pushState" : "replaceState"](parent.history.state, "", hash);
  notify();
}

/** Calls `listener` with the state whenever it changes. */
export function onChange(listener) {
  listeners.add(listener);
}

/** Watches the address for changes by Back, Forward and pasted links. */
export function watchAddress() {
  const changed = () => window.parent.location.hash.startsWith(`#${PLUGIN}`) && notify();
  window.parent.addEventListener("hashchange", changed);
  window.parent.addEventListener("popstate", changed);
}

function notify() {
  for (const listener of listeners) listener(readState());
}
