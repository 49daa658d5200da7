import assert from "node:assert/strict";
import { test } from "node:test";

import { matchRuns } from "../static/sidebar.js";

const RUNS = ["healthy", "vanishing", "two (replicas)"].map((name) => ({ name }));
const names = (text) => matchRuns(RUNS, text).matches.map((run) => run.name);

test("runs are matched by regular expression, whatever their case", () => {
  assert.deepEqual(names("^(HEALTHY|van)"), ["healthy", "vanishing"]);
});

test("an empty search matches all runs", () => {
  assert.equal(names("").length, 3);
});

test("what is not a regular expression is searched as plain text", () => {
  assert.equal(matchRuns(RUNS, "(rep").valid, false);
  assert.deepEqual(names("(rep"), ["two (replicas)"]);
});
