import assert from "node:assert/strict";
import { test } from "node:test";

import { lostDecades, sortRuns, spikeText } from "../static/run_table.js";

const run = (name, loss, error = 0, warning = 0, profile = []) => ({ name, loss, profile, spikes: { loss: null, gradient: null }, findings: { error, warning, info: 0 } });
const RUNS = [run("b", 0.3), run("a", "nan", 0, 2), run("c10", null, 1, 0, [-5, -1]), run("c9", 0.1, 0, 1, [-2, -1])];
const order = (sort) => sortRuns(RUNS, sort).map(({ name }) => name);

test("names are sorted as people count", () => {
  assert.deepEqual(order("name"), ["a", "b", "c9", "c10"]);
});

test("unknown values come last in both orders", () => {
  assert.deepEqual(order("loss"), ["c9", "b", "a", "c10"]);
  assert.deepEqual(order("-loss"), ["b", "c9", "a", "c10"]);
});

test("an error comes before any number of warnings", () => {
  assert.deepEqual(order("findings"), ["c10", "a", "c9", "b"]);
});

test("the largest loss of gradient comes first", () => {
  assert.deepEqual(order("decades").slice(0, 2), ["c10", "c9"]);
  assert.equal(lostDecades(RUNS[2]), 4);
  assert.equal(lostDecades(RUNS[0]), null);
});

test("a column that does not exist sorts by findings", () => {
  assert.deepEqual(order("constructor"), order("findings"));
});

test("runs are sorted by the larger share of spikes, and unknown shares are not shown", () => {
  const calm = { ...RUNS[0], name: "calm", spikes: { loss: 0.001, gradient: null } };
  const wild = { ...RUNS[0], name: "wild", spikes: { loss: 0, gradient: 0.02 } };
  assert.deepEqual(sortRuns([RUNS[0], calm, wild], "spikes").map(({ name }) => name), ["wild", "calm", "b"]);
  assert.equal(spikeText(calm), "loss 0.1 %");
  assert.equal(spikeText(RUNS[0]), "–");
});
