import assert from "node:assert/strict";
import { test } from "node:test";

import { changeState, formatHash, onChange, parseHash, readState, watchAddress } from "../static/state.js";

const INITIAL = parseHash("#tapescope");

/** A page in a frame of TensorBoard, with the history and the listeners of its parent. */
function openPage(hash) {
  const history = [];
  const listeners = {};
  const location = { hash };
  const record = (method) => (state, title, target) => {
    history.push([method, target]);
    location.hash = target;
  };
  globalThis.window = {
    parent: {
      location,
      history: { state: null, pushState: record("push"), replaceState: record("replace") },
      addEventListener: (name, listener) => (listeners[name] = listener),
    },
  };
  return { history, listeners, location };
}

test("without parameters the overview is open and no run is ticked", () => {
  assert.equal(INITIAL.view, "overview");
  assert.deepEqual(INITIAL.ticked, []);
});

test("fields with their default are left out of the address", () => {
  assert.equal(formatHash(INITIAL), "#tapescope");
  assert.equal(formatHash({ ...INITIAL, view: "flow", run: "a" }), "#tapescope&view=flow&run=a");
});

for (const name of ["a&b=c#d", "слой 層", "a+b c", "<b>%41", "with"]) {
  test(`the address keeps the run ${name}`, () => {
    const state = { ...INITIAL, view: "layer", run: name, layer: name, ticked: [name, "other"] };
    assert.deepEqual(parseHash(formatHash(state)), state);
  });
}

for (const view of ["nonsense", "constructor", "__proto__", ""]) {
  test(`the unknown view "${view}" opens the overview`, () => {
    assert.equal(parseHash(`#tapescope&view=${view}`).view, "overview");
  });
}

test("a change is a step that Back undoes", () => {
  const { history } = openPage("#tapescope&view=flow");
  changeState({ run: "a" });
  assert.deepEqual(history, [["push", "#tapescope&view=flow&run=a"]]);
});

test("a change that is not to be remembered replaces the address", () => {
  const { history } = openPage("#tapescope");
  changeState({ column: "delta_norm" }, false);
  assert.deepEqual(history, [["replace", "#tapescope&column=delta_norm"]]);
});

test("a change to the same state is not a step", () => {
  const { history } = openPage("#tapescope&run=a");
  changeState({ run: "a" });
  assert.deepEqual(history, []);
});

test("listeners get the changed state", () => {
  openPage("#tapescope");
  const seen = [];
  onChange((state) => seen.push(state.view));
  changeState({ view: "flow" });
  assert.deepEqual(seen, ["flow"]);
});

test("a changed address is noticed, unless it is of another tab", () => {
  const { listeners, location } = openPage("#tapescope");
  const seen = [];
  onChange((state) => seen.push(state.run));
  watchAddress();
  location.hash = "#tapescope&run=b";
  listeners.hashchange();
  location.hash = "#scalars";
  listeners.hashchange();
  assert.deepEqual(seen, ["b"]);
  assert.equal(readState().run, "");
});
