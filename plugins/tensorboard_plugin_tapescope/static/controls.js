// The controls of each view.

import { fill, h, select } from "./dom.js";
import { countRules } from "./filters.js";
import { spaced } from "./format.js";
import { changeState } from "./state.js";

const VIEW_CONTROLS = { flow, layer, budget: () => [], compare, replicas, heads };
const LONG_LIST = 30; // a longer list of layers is searched by typing

/** Renders the controls of the view; `details` lists the open run's layers, variables and columns. */
export function renderControls(root, state, details, columns) {
  if (state.view === "findings") {
    fill(root, findings(state, details));
    return;
  }
  const make = VIEW_CONTROLS[state.view];
  fill(root, make ? [...make(state, details, columns), ...stepRange(state)] : []);
}

function columnSelect(state, details, columns) {
  return selectOf(details.columns, state.column, columns, (column) => changeState({ column }, false));
}

function selectOf(recorded, selected, columns, onchange) {
  const names = recorded.length ? recorded : [selected];
  return select("Column", selected, names.map((name) => [name, spaced(name), columns[name]?.definition]), onchange);
}

function heads(state, details, columns) {
  const unknown = state.head && !details.heads.includes(state.head) ? [state.head] : [];
  const options = [["", "worst at the last step"], ...[...details.heads, ...unknown].map((name) => [name, name])];
  return [
    selectOf(details.head_columns, state.headColumn, columns, (headColumn) => changeState({ headColumn }, false)),
    select("Head", state.head, options, (head) => changeState({ head }, false)),
  ];
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
  return [select("Variable", state.variable, options, (variable) => changeState({ variable }, false))];
}
