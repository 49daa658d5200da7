// Small pieces of page: every text goes in as text, never as markup.

/** An element: `h("a", {href: "#", class: "link", onclick: f}, "text", child)`. */
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

/** Makes `element` hold exactly `children`; focus is kept by the `data-key` of what had it. */
export function fill(element, ...children) {
  const key = element.contains(document.activeElement) && document.activeElement.dataset.key;
  element.replaceChildren(...children.flat().filter(Boolean));
  if (key) [...element.querySelectorAll("[data-key]")].find((e) => e.dataset.key === key)?.focus({ preventScroll: true });
}

/** A labelled select; `groups` is {label: [[value, text, title], ...]}. */
export function select(label, value, groups, onchange) {
  const options = Object.entries(groups)
    .filter(([, entries]) => entries.length)
    .map(([name, entries]) => {
      const made = entries.map(([v, text, title]) => h("option", { value: v, title, selected: v === value }, text));
      return name ? h("optgroup", { label: name }, made) : made;
    });
  const control = h("select", { "data-key": `select ${label}`, onchange: (e) => onchange(e.target.value) }, options.flat());
  return h("label", { class: "control" }, h("span", {}, label), control);
}

/** A sentence with a capital and a full stop; what stands between backticks is set as code. */
export function sentence(text) {
  const whole = `${text.charAt(0).toUpperCase()}${text.slice(1)}${/[.!?]$/.test(text) ? "" : "."}`;
  return whole.split("`").map((part, i) => (i % 2 ? h("code", {}, part) : part));
}

/** A number as a person reads it. */
export function number(value, digits = 4) {
  if (value === null || value === undefined) return "–";
  if (typeof value === "string") return value === "nan" ? "NaN" : value.replace("inf", "Inf");
  if (value !== 0 && (Math.abs(value) < 1e-3 || Math.abs(value) >= 1e6)) return value.toExponential(2);
  return value.toLocaleString("en", { maximumSignificantDigits: digits });
}

/** A line the size of a word; its height is that of the values' range, and at least of `least`. */
export function sparkline(values, colour, least = 0) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("class", "spark");
  svg.setAttribute("viewBox", "0 0 100 28");
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("aria-hidden", "true");
  if (values.length > 1) {
    const [smallest, largest] = [Math.min(...values), Math.max(...values)];
    const range = Math.max(largest - smallest, least) || 1;
    const low = (smallest + largest - range) / 2;
    const line = document.createElementNS("http://www.w3.org/2000/svg", "polyline");
    const points = values.map((v, i) => `${(100 * i) / (values.length - 1)},${2 + 24 * (1 - (v - low) / range)}`);
    line.setAttribute("points", points.join(" "));
    line.setAttribute("stroke", colour);
    svg.append(line);
  }
  return svg;
}
