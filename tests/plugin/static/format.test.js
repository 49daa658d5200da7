import assert from "node:assert/strict";
import { test } from "node:test";

import { asSentence, count, formatNumber, formatStep, spaced } from "../static/format.js";

const NUMBERS = [
  [0, "0"],
  [0.123456, "0.1235"],
  [1234.5, "1,235"],
  [0.00012345, "1.23e-4"],
  [-12345678, "-1.23e+7"],
  [null, "–"],
  [undefined, "–"],
  ["nan", "NaN"],
  ["-inf", "-Inf"],
];

for (const [value, text] of NUMBERS) {
  test(`${value} is shown as ${text}`, () => assert.equal(formatNumber(value), text));
}

test("a number has so many significant digits", () => {
  assert.equal(formatNumber(11.04, 2), "11");
});

test("a step has thousands separators", () => {
  assert.equal(formatStep(123456), "123,456");
});

test("a name is shown with spaces", () => {
  assert.equal(spaced("dead_units_share"), "dead units share");
});

test("one and several are told apart", () => {
  assert.deepEqual([count(1, "finding"), count(0, "finding"), count(3, "finding")], ["1 finding", "0 findings", "3 findings"]);
});

test("a sentence has a capital letter and one full stop", () => {
  assert.deepEqual(["lower it", "Why?", ""].map(asSentence), ["Lower it.", "Why?", "."]);
});
