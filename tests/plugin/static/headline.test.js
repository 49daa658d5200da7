import assert from "node:assert/strict";
import { test } from "node:test";

import { summarize } from "../static/headline.js";

const run = (findings = {}, fields = {}) => ({
  state: "ended",
  looked: true,
  problems: [],
  findings: { error: 0, warning: 0, info: 0, ...findings },
  ...fields,
});

test("errors come first", () => {
  const { level, text } = summarize([run({ error: 2 }), run({ warning: 1 }), run()]);
  assert.deepEqual([level, text], ["error", "1 of 3 runs has errors"]);
});

test("warnings come second", () => {
  const { level, text } = summarize([run({ warning: 1 }), run({ warning: 1 })]);
  assert.deepEqual([level, text], ["warning", "2 of 2 runs have warnings"]);
});

test("notes are neither errors nor warnings", () => {
  const { level, text } = summarize([run({ info: 3 })]);
  assert.deepEqual([level, text], ["good", "No errors or warnings in 1 run"]);
});

test("runs without recorded findings are not called good", () => {
  const { level, text } = summarize([run({}, { looked: false })]);
  assert.deepEqual([level, text], ["plain", "No findings recorded in 1 run"]);
});

test("some runs without recorded findings are counted", () => {
  const { text, details } = summarize([run(), run({}, { looked: false })]);
  assert.deepEqual([text, details], ["No errors or warnings in 1 of 2 runs", "1 not checked by the rules"]);
});

test("a run that cannot be read in full is a warning", () => {
  const { level, details } = summarize([run(), run({}, { problems: ["a tag"] })]);
  assert.deepEqual([level, details], ["warning", "1 not fully readable"]);
});

test("running and stalled runs are counted", () => {
  const { details } = summarize([run({}, { state: "training" }), run({}, { state: "stalled" }), run()]);
  assert.equal(details, "1 training, 1 stalled");
});
