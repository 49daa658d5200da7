import assert from "node:assert/strict";
import { test } from "node:test";

import { shortNames, splitName } from "../static/run_name.js";

const short = (...names) => [...shortNames(names).values()];

test("what all names have is left out", () => {
  assert.deepEqual(short("study/lr=0.1,batch=8,seed=0", "study/lr=0.2,batch=8,seed=0"), ["…lr=0.1,…", "…lr=0.2,…"]);
});

test("one run keeps its name", () => {
  assert.deepEqual(short("study/lr=0.1"), ["study/lr=0.1"]);
});

test("a name of common parts only is kept whole", () => {
  assert.deepEqual(short("a/b", "b/a/c"), ["a/b", "…c"]);
});

test("names without common parts are kept", () => {
  assert.deepEqual(short("healthy", "two replicas"), ["healthy", "two replicas"]);
});

test("no names are no problem", () => {
  assert.deepEqual(short(), []);
});

test("a name in two parts is the name", () => {
  for (const name of ["a", "x".repeat(60)]) assert.equal(splitName(name).join(""), name);
});
