// What can be chosen in each view.

import { fill, h, select } from "./dom.js";
import { go } from "./state.js";

const words = (name) => name.replaceAll("_", " ");

/** Controls of the view; `about` is what the open run offers, `columns` what each column means. */
export function controls(root, state, about, columns) {
  const make = { flow, layer, budget: () => [], compare, replicas }[state.view];
  fill(root, make ? [...make(state, about, columns), ...range(state)] : []);
}

function columnOf(state, about, columns) {
  const entry = (name) => [name, words(name), columns[name]?.definition];
  const offered = about.columns.length ? about.columns : [state.column];
  return select("Column", state.column, { "": offered.map(entry) }, (column) => go({ column }, false));
}

function flow(state, about, columns) {
  const orders = [
    ["forward", "input first", "In forward order"],
    ["worst", "worst first", "By the value of the last step, seen from the column's bad side"],
  ];
  return [columnOf(state, about, columns), select("Layers", state.order, { "": orders }, (order) => go({ order }, false))];
}

function layer(state, about) {
  const others = about.layers.length ? [] : about.variables;
  const names = [...about.layers, ...others];
  const chosen = names.includes(state.layer) ? state.layer : names[0];
  const at = names.indexOf(chosen);
  const move = (to, text, key) =>
    h("button", { type: "button", "data-key": key, disabled: names[to] === undefined, onclick: () => go({ layer: names[to] }) }, text);
  const groups = { "": names.map((name) => [name, name]) };
  return [select("Layer", chosen, groups, (name) => go({ layer: name })), move(at - 1, "‹ towards the input", "before"), move(at + 1, "towards the loss ›", "after")];
}

/** The steps that are shown; dragging over a figure sets them too. The budget is of the last one where none are set. */
function range(state) {
  const input = (name, label, hint) =>
    h(
      "label",
      { class: "control" },
      h("span", {}, label),
      h("input", { type: "number", min: 0, step: 1, value: state[name], placeholder: hint, "data-key": name, onchange: (e) => go({ [name]: e.target.value.replace(/\D/g, "") }) }),
    );
  const whole = state.view === "budget" ? "Last step" : "All steps";
  const reset = h("button", { type: "button", "data-key": "whole", disabled: !state.first && !state.last, onclick: () => go({ first: "", last: "" }) }, whole);
  return [h("span", { class: "range" }, input("first", "Steps from", state.view === "budget" ? "last" : "first"), input("last", "to", "last"), reset)];
}

function compare(state, about, columns) {
  const name = (list, label, key) => select(label, state[key], { "": [["", "the first"], ...list.map((n) => [n, n])] }, (v) => go({ [key]: v }, false));
  return [columnOf(state, about, columns), name(about.variables, "Gradients of", "variable"), name(about.layers, "Outputs of", "layer")];
}

function replicas(state, about) {
  const all = [["", "all together"], ...about.variables.map((n) => [n, n])];
  return [select("Variable", state.variable, { "": all }, (variable) => go({ variable }, false))];
}
