import assert from "node:assert/strict";
import { afterEach, test } from "node:test";

import { encode, get } from "../static/api.js";

afterEach(() => delete globalThis.fetch);

const answerWith = (status, json) => {
  globalThis.fetch = async (url) => ({ ok: status === 200, status, url, json });
};

test("arrays are given several times, empty parameters not at all", () => {
  assert.equal(encode({ run: ["a", "b"], layer: "", since: undefined, dark: "0" }), "run=a&run=b&dark=0");
});

test("names are escaped", () => {
  assert.equal(encode({ run: "a&b=c" }), "run=a%26b%3Dc");
});

test("a response is returned as an object", async () => {
  answerWith(200, async () => ({ runs: [] }));
  assert.deepEqual(await get("runs"), { runs: [] });
});

test("the sentence of a refusal is the error", async () => {
  answerWith(404, async () => ({ error: "There is no run 'a'." }));
  await assert.rejects(get("run", { run: "a" }), { message: "There is no run 'a'." });
});

test("an answer that is not JSON is an error with its status", async () => {
  answerWith(502, async () => JSON.parse("<html>"));
  await assert.rejects(get("runs"), { message: "TensorBoard answered 502." });
});
