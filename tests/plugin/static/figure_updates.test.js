import assert from "node:assert/strict";
import { test } from "node:test";

import { decode, mergeFigure } from "../static/figure_updates.js";

/** An array in Plotly's typed-array encoding. */
const encode = (dtype, array, shape) => ({ dtype, bdata: Buffer.from(array.buffer).toString("base64"), shape });

const line = (x, y) => ({ type: "scatter", name: "loss", x, y });
const heatmap = (x, z) => ({ type: "heatmap", y: ["a", "b"], meta: { rows: ["a", "b"] }, x, z });

test("a whole figure is returned as it is", () => {
  const data = [line([0, 1], [5, 6])];
  assert.equal(mergeFigure(undefined, { data }), data);
});

test("newer points are appended and replace those from their step on", () => {
  const newer = { data: [line([2, 3], [70, 80])], since: 2, begins: [0] };
  const [merged] = mergeFigure([line([0, 1, 2], [5, 6, 7])], newer);
  assert.deepEqual([merged.x, merged.y], [[0, 1, 2, 3], [5, 6, 70, 80]]);
});

test("an update without newer points keeps what is drawn", () => {
  const [merged] = mergeFigure([line([0, 1], [5, 6])], { data: [line([], [])], since: 2, begins: [0] });
  assert.deepEqual(merged.x, [0, 1]);
});

test("encoded arrays keep their type", () => {
  const old = line(encode("f8", new Float64Array([0, 1])), encode("f4", new Float32Array([5, 6])));
  const newer = line(encode("f8", new Float64Array([2])), encode("f4", new Float32Array([7])));
  const [merged] = mergeFigure([old], { data: [newer], since: 2, begins: [0] });
  assert.deepEqual(merged.y, new Float32Array([5, 6, 7]));
});

test("a heatmap is extended row by row", () => {
  const old = heatmap([0, 1], encode("f4", new Float32Array([1, 2, 3, 4]), "2, 2"));
  const newer = heatmap([2], encode("f4", new Float32Array([9, 8]), "2, 1"));
  const [merged] = mergeFigure([old], { data: [newer], since: 2, begins: [0] });
  assert.deepEqual(merged.z, [new Float32Array([1, 2, 9]), new Float32Array([3, 4, 8])]);
});

test("an extended heatmap can be extended again", () => {
  const old = heatmap([0], encode("f4", new Float32Array([1, 3]), "2, 1"));
  const update = (x, z) => ({ data: [heatmap([x], encode("f4", new Float32Array(z), "2, 1"))], since: x, begins: [0] });
  const once = mergeFigure([old], update(1, [2, 4]));
  const [twice] = mergeFigure(once, update(2, [9, 8]));
  assert.deepEqual(twice.z, [new Float32Array([1, 2, 9]), new Float32Array([3, 4, 8])]);
});

test("text of a map is extended as well", () => {
  const map = (x, z, text) => ({ ...heatmap(x, z), text });
  const old = map([0], encode("u1", new Uint8Array([1, 2]), "2, 1"), [["alive"], ["dead"]]);
  const newer = map([1], encode("u1", new Uint8Array([2, 2]), "2, 1"), [["dead"], ["dead"]]);
  const [merged] = mergeFigure([old], { data: [newer], since: 1, begins: [0] });
  assert.deepEqual(merged.text, [["alive", "dead"], ["dead", "dead"]]);
});

test("an update does not fit if the columns have become wider", () => {
  assert.equal(mergeFigure([line([0, 1], [5, 6])], { data: [line([2], [7])], since: 2, begins: [3] }), null);
});

test("an update does not fit if it is of another line", () => {
  const other = { ...line([2], [7]), name: "other" };
  assert.equal(mergeFigure([line([0, 1], [5, 6])], { data: [other], since: 2, begins: [0] }), null);
});

test("an update does not fit if the rows are others", () => {
  const newer = { ...heatmap([1], [[1], [2]]), y: ["b", "a"] };
  assert.equal(mergeFigure([heatmap([0], [[1], [2]])], { data: [newer], since: 1, begins: [0] }), null);
});

test("an update does not fit if nothing or something else is drawn", () => {
  const newer = { data: [line([2], [7])], since: 2, begins: [0] };
  assert.equal(mergeFigure(undefined, newer), null);
  assert.equal(mergeFigure([], newer), null);
});

test("plain arrays are decoded as they are", () => {
  const array = [1, 2];
  assert.equal(decode(array), array);
});
