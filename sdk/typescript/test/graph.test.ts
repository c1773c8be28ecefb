/** Graphs as messages. */
import { expect, test } from "vitest";

import { Graph, index, item, ref } from "../src/index.js";
import { FailureKind, OnFailure } from "../src/v1.js";

test("a graph says in its message what was said in TypeScript", () => {
  const graph = new Graph("review", {
    version: "2",
    description: "Reviews.",
    inputSchema: { type: "object" },
    output: { all: ref("tasks.classify.output") },
    deadline: 90_500,
    labels: { team: "a" },
  });
  const found = graph.task("list", "inventory.list@1", { input: { folder: ref("input.folder"), hello: `Dear ${ref("input.name").toString()}` } });
  graph.task("classify", "license.classify@1", {
    forEach: found.output,
    input: { package: item, place: index },
    needs: [found, "other"],
    when: "${ input.wanted }",
    join: 2,
    retry: [{ on: ["TRANSIENT", "LOST"], maxAttempts: 5, backoff: 100, maxBackoff: 1000, multiplier: 2 }],
    timeout: 1000,
    onFailure: "continue",
    priority: 3,
    maxCost: 1.5,
  });
  graph.task("end", "report.write@1", { input: found, join: "any" });
  const message = graph.message();
  expect(message).toMatchObject({
    name: "review",
    version: "2",
    inputSchema: '{"type":"object"}',
    output: '{"all":"${tasks.classify.output}"}',
    deadline: { seconds: 90, nanos: 5e8 },
    labels: { team: "a" },
  });
  expect(message.tasks[0]?.input).toBe('{"folder":"${input.folder}","hello":"Dear ${input.name}"}');
  expect(message.tasks[1]).toMatchObject({
    forEach: "tasks.list.output",
    input: '{"package":"${item}","place":"${index}"}',
    needs: ["list", "other"],
    when: "input.wanted",
    join: { rule: { $case: "atLeast", value: 2 } },
    retry: [{ kinds: [FailureKind.TRANSIENT, FailureKind.LOST], maxAttempts: 5, initialBackoff: { seconds: 0, nanos: 1e8 }, multiplier: 2 }],
    timeout: { seconds: 1 },
    onFailure: OnFailure.CONTINUE,
    priority: 3,
    constraints: { maxCost: 1.5, agentLabels: {} },
  });
  expect(message.tasks[2]).toMatchObject({ input: '"${tasks.list.output}"', join: { rule: { $case: "any" } } });
});

test("an input that JSON cannot hold is refused", () => {
  expect(() => new Graph("g").task("t", "a.b@1", { input: { n: NaN } })).toThrow('"n" is a number that JSON cannot hold');
  expect(() => new Graph("g").task("t", "a.b@1", { input: 1n })).toThrow(TypeError);
});
