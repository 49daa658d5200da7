// Keyboard shortcuts of the tab, and the list of them.

import { h } from "./dom.js";

/** Keys and what they do, as they are listed. */
export const SHORTCUTS = [
  ["1 … 8", "Open a view, from Overview to Findings"],
  ["j, k", "Open the next or the run before"],
  ["x", "Tick the open run, or take the tick away"],
  ["/", "Search runs"],
  ["?", "Show this list"],
  ["Esc", "Close this list, or leave a field"],
];

/** Calls the action of a key: `actions` has `view(index)`, `run(step)`, `tick()`, `search()` and `help()`. */
export function act(key, actions) {
  if (/^[1-8]$/.test(key)) actions.view(Number(key) - 1);
  else if (key === "j" || key === "k") actions.run(key === "j" ? 1 : -1);
  else if (key === "x") actions.tick();
  else if (key === "/") actions.search();
  else if (key === "?") actions.help();
  else return false;
  return true;
}

/** Watches the keys of this page, and those of TensorBoard's while this tab is the one that is shown. */
export function watchKeys(actions) {
  const help = h("dialog", { class: "shortcuts", "aria-label": "Keyboard shortcuts" }, h("h2", {}, "Keyboard shortcuts"), list());
  document.body.append(help);
  const showHelp = () => (help.open ? help.close() : help.showModal());
  const pressed = (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || window.innerHeight === 0) return;
    const target = event.target;
    if (target.closest?.("input, select, textarea, [contenteditable]")) {
      if (event.key === "Escape") target.blur();
      return;
    }
    if (act(event.key, { ...actions, help: showHelp })) event.preventDefault();
  };
  document.addEventListener("keydown", pressed);
  window.parent.document.addEventListener("keydown", pressed);
}

function list() {
  return h("dl", {}, SHORTCUTS.map(([keys, text]) => h("div", {}, h("dt", {}, h("kbd", {}, keys)), h("dd", {}, text))));
}
