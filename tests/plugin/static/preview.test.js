import assert from "node:assert/strict";
import { test } from "node:test";

import { cellEdges, palette, plainText, stepTicks } from "../static/preview.js";

test("a palette begins and ends with the colours of its scale", () => {
  const colours = palette([[0, "#000000"], [0.5, "#ff0000"], [1, "#00ff00"]]);
  assert.equal(colours.length, 256);
  assert.deepEqual(colours[0], [0, 0, 0, 255]);
  assert.deepEqual(colours[255], [0, 255, 0, 255]);
});

test("between two colours a palette is linear", () => {
  const colours = palette([[0, "#000000"], [1, "#ff0000"]]);
  assert.deepEqual(colours.map(([red]) => red), Array.from({ length: 256 }, (_, i) => i));
});

test("a step in a scale stays a step", () => {
  const colours = palette([[0, "#000000"], [0.5, "#000000"], [0.5, "#ffffff"], [1, "#ffffff"]]);
  assert.deepEqual([colours[127][0], colours[128][0]], [0, 255]);
});

test("cells end half-way to the next centre", () => {
  assert.deepEqual(cellEdges([0, 10, 20]), [-5, 5, 15, 25]);
  assert.deepEqual(cellEdges([0, 10, 40]), [-5, 5, 25, 55]);
  assert.deepEqual(cellEdges([7]), [6.5, 7.5]);
});

test("ticks are round steps within the range", () => {
  assert.deepEqual(stepTicks(-1, 301, 6), [0, 100, 200, 300]);
  assert.deepEqual(stepTicks(0, 3, 6), [0, 1, 2, 3]);
  assert.deepEqual(stepTicks(1995, 2005, 2), [1995, 2000, 2005]);
});

test("markup of labels becomes text", () => {
  assert.equal(plainText("≤ 10<sup>−12</sup>"), "≤ 10⁻¹²");
  assert.equal(plainText("&lt;b&gt; &amp;lt;"), "<b> &lt;");
});
