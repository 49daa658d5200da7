// Names of runs where there is little room: without the parts that all have, and cut in the middle.

import { h } from "./dom.js";

const TAIL = 10;

/** Returns a short form of each name: parts between `/`, `,` and spaces that all names have become `…`. */
export function shortNames(names) {
  const parts = names.map((name) => name.split(/([/, ]+)/));
  const common = new Set(parts[0]?.filter((part) => parts.every((others) => others.includes(part))));
  const isCommon = (part, i) => i % 2 === 0 && common.has(part);
  const shorten = (name, i) => (names.length > 1 && !parts[i].every((part, at) => at % 2 || common.has(part)) ? elide(parts[i], isCommon) : name);
  return new Map(names.map((name, i) => [name, shorten(name, i)]));
}

/** Joins parts and the separators between them, with one `…` for each stretch of common parts. */
function elide(parts, isCommon) {
  let text = "";
  for (const [i, part] of parts.entries()) {
    if (i % 2) {
      if (!text.endsWith("…")) text += part;
    } else if (!isCommon(part, i)) text += part;
    else if (!text.endsWith("…")) text += "…";
  }
  return text;
}

/** Returns a name in two parts, of which the second is always shown. */
export function splitName(name) {
  const at = name.length > TAIL + 4 ? name.length - TAIL : name.length;
  return [name.slice(0, at), name.slice(at)];
}

/** Makes a name that is cut in the middle where there is no room; `short` is what is shown of it. */
export function runName(name, short = name) {
  const [start, end] = splitName(short);
  return h("span", { class: "name", title: name }, h("span", { class: "start" }, start), h("span", { class: "end" }, end));
}
