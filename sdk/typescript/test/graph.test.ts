/** Graphs as messages. */
import { expect, test } from "vitest";

import { Graph, index, item, ref } from "../src/index.js";
import { Distinct, FailureKind, Graph as GraphMessage, GraphTask, OnFailure } from "../src/v1.js";

test("waits, loops and undoing are in the message", () => {
  const graph = new Graph("waits");
  const asked = graph.task("ask", "person.ask@1", {
    until: { condition: ref("output.sure"), maxIterations: 5 },
    compensate: { capability: "person.forget@1", input: { who: ref("tasks.ask.output") }, retry: [{ on: ["LOST"] }], timeout: 500 },
    atMostOnce: true,
    onFailure: "escalate",
  });
  const answer = graph.wait("answer", { signal: "answered" }, { needs: [asked], deadline: 60_000, onFailure: "skip", when: "true" });
  graph.wait("pause", { time: 1500 }, { needs: [answer], join: "any" });
  graph.wait("until", { moment: ref("input.start") });
  const [ask, wait, pause, until] = graph.message().tasks;
  expect(ask).toMatchObject({
    until: { condition: "output.sure", maxIterations: 5 },
    compensate: { capability: "person.forget@1", input: '{"who":"${tasks.ask.output}"}', timeout: { nanos: 5e8 } },
    atMostOnce: true,
    onFailure: OnFailure.ESCALATE,
  });
  expect(wait).toMatchObject({
    id: "answer",
    needs: ["ask"],
    wait: { cause: { $case: "signal", value: "answered" } },
    deadline: { seconds: 60 },
    onFailure: OnFailure.SKIP,
    when: "true",
    capability: "",
  });
  expect(pause?.wait).toMatchObject({ cause: { $case: "time", value: { seconds: 1, nanos: 5e8 } } });
  expect(until?.wait).toMatchObject({ cause: { $case: "moment", value: "input.start" } });
});

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

test("quorums, hedges, caches and sub-runs are in the message", () => {
  const graph = new Graph("several");
  const total = graph.task("total", "books.total@1", {
    quorum: { agree: 2, of: 3, condition: ref("output.total == other.total"), distinct: "instance" },
  });
  graph.task("plain", "books.total@1", { quorum: { agree: 2, of: 2 } });
  graph.task("search", "catalog.search@1", { hedge: { delay: 300, quantile: 0.95, share: 0.2 } });
  graph.task("rate", "tax.rate@1", { hedge: { delay: 1000 }, cache: 3_600_000 });
  graph.subRun("review", "finance.review@1.2", {
    input: { total },
    forEach: ref("input.books"),
    priority: 3,
    compensate: { capability: "finance.undo@1" },
    onFailure: "continue",
    deadline: 60_000,
  });
  const [asked, plain, search, rate, review] = graph.message().tasks;
  expect(asked?.quorum).toMatchObject({ agree: 2, of: 3, condition: "output.total == other.total", distinct: Distinct.INSTANCE });
  expect(plain?.quorum).toMatchObject({ agree: 2, of: 2, condition: "", distinct: Distinct.AGENT });
  expect(search?.hedge).toMatchObject({ delay: { seconds: 0, nanos: 3e8 }, quantile: 0.95, share: 0.2 });
  expect(rate).toMatchObject({ hedge: { delay: { seconds: 1 }, quantile: 0, share: 0 }, cache: { ttl: { seconds: 3600 } } });
  expect(review).toMatchObject({
    graph: "finance.review@1.2",
    capability: "",
    input: '{"total":"${tasks.total.output}"}',
    forEach: "input.books",
    priority: 3,
    compensate: { capability: "finance.undo@1" },
    onFailure: OnFailure.CONTINUE,
    deadline: { seconds: 60 },
  });
});

test("the builder has a word for every field of the contract", () => {
  const graph = new Graph("all", {
    version: "1",
    description: "All.",
    inputSchema: {},
    output: 1,
    deadline: 1,
    labels: { team: "a" },
  });
  graph.task("a", "x.y@1", {
    input: 1,
    needs: ["b"],
    when: "true",
    forEach: "input",
    join: "any",
    retry: [{ on: ["LOST"] }],
    timeout: 1,
    deadline: 1,
    scheduleTimeout: 1,
    priority: 1,
    onFailure: "skip",
    until: { condition: "true", maxIterations: 1 },
    compensate: { capability: "x.z@1" },
    atMostOnce: true,
    quorum: { agree: 2, of: 2 },
    hedge: { delay: 1 },
    cache: 1,
    maxCost: 1,
    description: "A.",
  });
  graph.subRun("b", "other");
  graph.wait("c", { time: 1 });
  const message = graph.message();
  const names = (empty: object): string[] => Object.keys(empty).filter((name) => name !== "_unknownFields");
  const says = (said: object, empty: object, name: string): boolean => {
    const [value, nothing] = [said, empty].map((one) => JSON.stringify((one as Record<string, unknown>)[name]));
    return value !== nothing;
  };
  const [noGraph, noTask] = [GraphMessage.fromPartial({}), GraphTask.fromPartial({})];
  expect(names(noGraph).filter((name) => !says(message, noGraph, name))).toEqual([]);
  expect(names(noTask).filter((name) => !message.tasks.some((task) => says(task, noTask, name)))).toEqual([]);
});

test("an input that JSON cannot hold is refused", () => {
  expect(() => new Graph("g").task("t", "a.b@1", { input: { n: NaN } })).toThrow('"n" is a number that JSON cannot hold');
  expect(() => new Graph("g").task("t", "a.b@1", { input: 1n })).toThrow(TypeError);
});
