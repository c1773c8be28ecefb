/** Checks of values by their schemas. */
import { expect, test } from "vitest";

import { checkOf } from "../src/schema.js";

test("a value that does not fit is told by place and rule, never by itself", () => {
  const check = checkOf({ type: "object", properties: { list: { type: "array", items: { enum: ["a", "b"] } } } });
  expect(check({ list: ["a"] })).toBeUndefined();
  const mismatch = check({ list: ["a", "secret"] });
  expect(mismatch?.field).toBe("/list/1");
  expect(mismatch?.message).not.toContain("secret");
});

test("a schema that is made anew for each call is compiled each time, and nothing of it is kept", () => {
  const made = (): { type: string; $id: string } => ({ type: "string", $id: "https://example.test/same" });
  for (let n = 0; n < 3; n += 1) expect(checkOf(made())(n)?.message).toContain("string");
  const constant = made();
  expect(checkOf(constant)).toBe(checkOf(constant));
});

test("words of others in a schema are theirs, and what lies elsewhere is not fetched", () => {
  expect(checkOf({ type: "string", "x-antiphon-labels": ["pii"], format: "email" })("no mail")).toBeUndefined();
  expect(checkOf(true)(1)).toBeUndefined();
  expect(checkOf(false)(1)).toBeDefined();
  expect(() => checkOf({ $ref: "https://example.test/other" })).toThrow("other");
});
