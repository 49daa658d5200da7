import assert from "node:assert/strict";
import { test } from "node:test";

import { imageSize, pixels } from "../static/replays.js";

test("images are arrays of two axes, or of three with one or three channels", () => {
  assert.deepEqual(imageSize([2, 3], 6), { width: 3, height: 2, channels: 1 });
  assert.deepEqual(imageSize([2, 3, 3], 18), { width: 3, height: 2, channels: 3 });
  assert.equal(imageSize([2, 3, 4], 24), null);
  assert.equal(imageSize([8], 8), null);
  assert.equal(imageSize([], 1), null);
});

test("an array whose values were cut is not an image", () => {
  assert.equal(imageSize([100, 100], 3072), null);
});

test("values reach from black to white, and those that are not finite are red", () => {
  assert.deepEqual([...pixels([0, 5, 10, null], 1)], [0, 0, 0, 255, 128, 128, 128, 255, 255, 255, 255, 255, 217, 48, 37, 255]);
});

test("three channels are colours", () => {
  assert.deepEqual([...pixels([0, 10, 5], 3)], [0, 255, 128, 255]);
});

test("equal values are black", () => {
  assert.deepEqual([...pixels([3, 3], 1)], [0, 0, 0, 255, 0, 0, 0, 255]);
});
