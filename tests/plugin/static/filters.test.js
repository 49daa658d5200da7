import assert from "node:assert/strict";
import { test } from "node:test";

import { countRules, filterFindings } from "../static/filters.js";

const FOUND = [
  { severity: "error", rule: "vanishing" },
  { severity: "warning", rule: "dead_units" },
  { severity: "info", rule: "dead_units" },
];

test("an empty filter lets all findings pass", () => {
  assert.equal(filterFindings(FOUND, { severity: "", rule: "" }).length, 3);
});

test("both filters hold at once", () => {
  assert.deepEqual(filterFindings(FOUND, { severity: "info", rule: "dead_units" }), [FOUND[2]]);
  assert.deepEqual(filterFindings(FOUND, { severity: "error", rule: "dead_units" }), []);
});

test("rules are counted in alphabetical order", () => {
  assert.deepEqual(countRules(FOUND), [["dead_units", 2], ["vanishing", 1]]);
});
