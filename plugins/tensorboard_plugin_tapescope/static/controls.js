// The controls of each view.

import { fill, h, select } from "./dom.js";
import { countRules } from "./filters.js";
import { spaced } from "./format.js";
import { changeState } from "./state.js";

const VIEW_CONTROLS = { flow, layer, budget: () => [], compare, replicas };
const LONG_LIST = 30; // a longer list of layers is searched by typing

const HEATMAP_REPLICAS = 8; // as in figures/basic.py: so many replicas are drawn as a heatmap, which is not smoothed
const SMOOTHING_DELAY_MS = 150; // a browser takes few changes of the address a second
let made = {}; // what the controls were made for

/** Renders the controls of the view; `details` lists the open run's layers, variables and columns. */
export function renderControls(root, state, details, columns) {
  const key = JSON.stringify({ ...state, smoothing: "" });
  if (key === made.key && details === made.details) {
    // Nothing is replaced under the hand of a user who types or drags while a run is followed.
    const slider = root.querySelector("[data-key=smoothing]");
    if (slider && document.activeElement !== slider) setSmoothing(slider, state.smoothing);
    return;
  }
  made = { key, details };
  if (state.view === "findings") {
    fill(root, findings(state, details));
    return;
  }
  const make = VIEW_CONTROLS[state.view];
  fill(root, make ? [...make(state, details, columns), ...stepRange(state)] : []);
}

function columnSelect(state, details, columns) {
  const names = details.columns.length ? details.columns : [state.column];
  const options = names.map((name) => [name, spaced(name), columns[name]?.definition]);
  return select("Column", state.column, options, (column) => changeState({ column }, false));
}

function flow(state, details, columns) {
  const orders = [
    ["forward", "input first", "In forward order"],
    ["worst", "worst first", "By the value at the last step, the worst first"],
  ];
  return [columnSelect(state, details, columns), select("Order of layers", state.order, orders, (order) => changeState({ order }, false))];
}

function layer(state, details) {
  const names = details.layers.length ? details.layers : details.variables;
  const selected = names.includes(state.layer) ? state.layer : names[0];
  const index = names.indexOf(selected);
  const move = (to, text, key) => {
    const attributes = { type: "button", "data-key": key, disabled: names[to] === undefined };
    return h("button", { ...attributes, onclick: () => changeState({ layer: names[to] }) }, text);
  };
  const options = names.map((name) => [name, name]);
  return [
    names.length > LONG_LIST ? search("Layer", selected, names, (name) => changeState({ layer: name })) : select("Layer", selected, options, (name) => changeState({ layer: name })),
    move(index - 1, "‹ Go towards the input", "before"),
    move(index + 1, "Go towards the loss ›", "after"),
    smoothing(state),
  ];
}

/** Makes a field that takes one of many names, and lists those that contain what is typed. */
function search(label, value, names, onchange) {
  const options = h("datalist", { id: `names of ${label}` }, names.map((name) => h("option", { value: name })));
  const take = (e) => {
    if (names.includes(e.target.value)) onchange(e.target.value);
    else e.target.value = value;
  };
  const attributes = { type: "search", list: options.id, value, "data-key": `search ${label}`, placeholder: "Type a part of the name" };
  return h("label", { class: "control" }, h("span", {}, label), h("input", { ...attributes, onfocus: (e) => e.target.select(), onchange: take }), options);
}

function findings(state, { findings: found }) {
  const scopes = [
    ["", "this run"],
    ["all", "all runs on the left"],
  ];
  const severities = [
    ["", "all severities"],
    ["error", "errors"],
    ["warning", "warnings"],
    ["info", "notes"],
  ];
  const counts = countRules(found);
  const known = counts.some(([rule]) => rule === state.rule) || !state.rule ? [] : [[state.rule, 0]];
  const rules = [["", "all rules"], ...[...counts, ...known].map(([rule, n]) => [rule, `${spaced(rule)} (${n})`])];
  return [
    select("Findings of", state.scope, scopes, (scope) => changeState({ scope })),
    select("Severity", state.severity, severities, (severity) => changeState({ severity }, false)),
    select("Rule", state.rule, rules, (rule) => changeState({ rule }, false)),
  ];
}

/** The slider of TensorBoard's Scalars tab. */
function smoothing(state) {
  let timer = null;
  const commit = (value) => changeState({ smoothing: value }, false);
  const changed = ({ target }) => {
    setSmoothing(target, target.value);
    clearTimeout(timer);
    timer = setTimeout(commit, SMOOTHING_DELAY_MS, target.value);
  };
  const input = h("input", { type: "range", min: 0, max: 0.99, step: 0.01, value: state.smoothing, "data-key": "smoothing", oninput: changed });
  const title = "Weight of the exponential moving average that noisy lines show, as in TensorBoard's Scalars tab. The recorded values are the faint lines. At 0, or with fewer than 30 records, they are drawn alone.";
  return h("label", { class: "control", title }, h("span", {}, "Smoothing"), input, h("output", {}, state.smoothing));
}

function setSmoothing(slider, value) {
  if (slider.value !== value) slider.value = value;
  slider.parentElement.querySelector("output").textContent = value;
}

/** The range of steps that is shown; dragging over a figure sets it too. The budget shows the last step by default. */
function stepRange(state) {
  const last = state.view === "budget";
  const input = (name, label, hint) =>
    h(
      "label",
      { class: "control" },
      h("span", {}, label),
      h("input", {
        type: "number",
        min: 0,
        step: 1,
        value: state[name],
        placeholder: hint,
        "data-key": name,
        onchange: (e) => changeState({ [name]: e.target.value.replace(/\D/g, "") }),
      }),
    );
  const reset = h(
    "button",
    { type: "button", "data-key": "whole", disabled: !state.first && !state.last, onclick: () => changeState({ first: "", last: "" }) },
    last ? "Show last step" : "Show all steps",
  );
  return [h("span", { class: "range" }, input("first", "Steps from", last ? "last" : "first"), input("last", "to", "last"), reset)];
}

function compare(state, details, columns) {
  const rowSelect = (names, label, key) => {
    const options = [["", "first in common"], ...names.map((name) => [name, name])];
    return select(label, state[key], options, (value) => changeState({ [key]: value }, false));
  };
  return [columnSelect(state, details, columns), rowSelect(details.variables, "Gradients of", "variable"), rowSelect(details.layers, "Outputs of", "layer")];
}

function replicas(state, details) {
  const options = [["", "all variables"], ...details.variables.map((name) => [name, name])];
  return [select("Variable", state.variable, options, (variable) => changeState({ variable }, false)), details.replicas < HEATMAP_REPLICAS && smoothing(state)].filter(Boolean);
}
