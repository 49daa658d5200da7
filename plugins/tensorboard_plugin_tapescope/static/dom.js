// Elements of the page. Every text is inserted as text, never as markup.

import { asSentence } from "./format.js";

/** Makes an element: `h("a", {href: "#", class: "link", onclick: f}, "text", child)`. */
export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  assign(element, attributes);
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

function assign(element, attributes) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name in element && typeof value === "boolean") element[name] = value;
    else if (name === "style") Object.entries(value).forEach(([k, v]) => element.style.setProperty(k, v));
    else element.setAttribute(name, value);
  }
}

/** Replaces the children of `element`; the child with the same `data-key` as before keeps the focus. */
export function fill(element, ...children) {
  const key = element.contains(document.activeElement) && document.activeElement.dataset.key;
  element.replaceChildren(...children.flat().filter(Boolean));
  if (key) [...element.querySelectorAll("[data-key]")].find((e) => e.dataset.key === key)?.focus({ preventScroll: true });
}

const ATOMIC = "a, button, input, label, select, svg"; // replaced as a whole: what they do may have changed too

/** As `fill`, but elements that stay the same are kept, so that no click and no tooltip is lost while a run is followed. */
export function refill(element, ...children) {
  const fresh = children.flat().filter(Boolean);
  const old = [...element.childNodes];
  if (fresh.length !== old.length) fill(element, ...fresh);
  else fresh.forEach((node, i) => renew(old[i], node));
}

function renew(old, fresh) {
  if (old.isEqualNode(fresh)) return;
  const alike = old.nodeName === fresh.nodeName && old.nodeType === Node.ELEMENT_NODE && old.cloneNode().isEqualNode(fresh.cloneNode());
  if (alike && !old.matches(ATOMIC) && old.childNodes.length === fresh.childNodes.length) {
    [...fresh.childNodes].forEach((node, i) => renew(old.childNodes[i], node));
    return;
  }
  const focused = old.contains(document.activeElement) && document.activeElement.dataset.key;
  old.replaceWith(fresh);
  if (focused) [fresh, ...(fresh.querySelectorAll?.("[data-key]") ?? [])].find((e) => e.dataset?.key === focused)?.focus({ preventScroll: true });
}

/** Makes a labelled select; `options` are [value, text, title]. */
export function select(label, value, options, onchange) {
  const made = options.map(([v, text, title]) => h("option", { value: v, title, selected: v === value }, text));
  const control = h("select", { title: options.find(([v]) => v === value)?.[2], "data-key": `select ${label}`, onchange: (e) => onchange(e.target.value) }, made);
  return h("label", { class: "control" }, h("span", {}, label), control);
}

/** Returns the text as a sentence; parts between backticks become code elements. */
export function sentence(text) {
  return asSentence(text)
    .split("`")
    .map((part, i) => (i % 2 ? h("code", {}, part) : part));
}

/** Makes a sparkline; its height covers the range of the values, and at least `minRange`. */
export function sparkline(values, colour, minRange = 0) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("class", "spark");
  svg.setAttribute("viewBox", "0 0 100 28");
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("aria-hidden", "true");
  if (values.length > 1) {
    const [smallest, largest] = [Math.min(...values), Math.max(...values)];
    const range = Math.max(largest - smallest, minRange) || 1;
    const low = (smallest + largest - range) / 2;
    const line = document.createElementNS("http://www.w3.org/2000/svg", "polyline");
    const points = values.map((v, i) => `${(100 * i) / (values.length - 1)},${2 + 24 * (1 - (v - low) / range)}`);
    line.setAttribute("points", points.join(" "));
    line.setAttribute("stroke", colour);
    svg.append(line);
  }
  return svg;
}
