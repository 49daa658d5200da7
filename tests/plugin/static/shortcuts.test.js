import assert from "node:assert/strict";
import { test } from "node:test";

import { act } from "../static/shortcuts.js";

function pressed(key) {
  const done = [];
  const record = (name) => (value) => done.push(value === undefined ? name : `${name} ${value}`);
  const known = act(key, { view: record("view"), run: record("run"), tick: record("tick"), search: record("search"), help: record("help") });
  return known ? done : null;
}

test("digits open the views in their order", () => {
  assert.deepEqual(pressed("1"), ["view 0"]);
  assert.deepEqual(pressed("8"), ["view 7"]);
});

test("letters move between runs and tick them", () => {
  assert.deepEqual([pressed("j"), pressed("k"), pressed("x")].flat(), ["run 1", "run -1", "tick"]);
});

test("signs search and help", () => {
  assert.deepEqual([pressed("/"), pressed("?")].flat(), ["search", "help"]);
});

test("other keys are left to the browser", () => {
  for (const key of ["9", "a", "Enter", "ArrowDown"]) assert.equal(pressed(key), null);
});
