/** An agent at a sidecar double's real socket. */
import { expect, onTestFinished, test } from "vitest";

import { Agent, AntiphonError, CallFailed, Failure, type FromSchema, Graph, permanent, Payload, ref, SetupError, Subgraph, type Task, transient } from "../src/index.js";
import { Effect, FailureKind, Payload as PayloadMessage } from "../src/v1.js";
import { assignment, eventually, type Line, Sidecar } from "./sidecar.js";

const quiet = { debug: () => undefined, info: () => undefined, warn: () => undefined, error: () => undefined };
const PACKAGE = {
  type: "object",
  properties: { name: { type: "string" }, files: { type: "integer" } },
  required: ["name"],
} as const;

function sample(options: ConstructorParameters<typeof Agent>[1] = {}): Agent {
  const agent = new Agent("sample", { logger: quiet, version: "7", labels: { region: "eu" }, ...options });
  agent.capability(
    "sample.judge@1",
    {
      description: "Judges a package.",
      effect: "pure",
      idempotent: true,
      clearance: ["pii"],
      cost: 2.5,
      expectedLatency: 1500,
      input: PACKAGE,
      output: { type: "object", properties: { name: { type: "string" }, fine: { type: "boolean" } } },
    },
    (input) => ({ name: input.name, fine: (input.files ?? 0) > 0 }),
  );
  agent.capability("sample.echo@1", { input: Payload }, (input) => input);
  agent.capability("sample.number@1", { output: { type: "integer" } }, (input: number) => input);
  agent.capability("sample.any@1", {}, (input: unknown) => input);
  agent.capability("sample.fail@1", {}, (how: string) => {
    if (how === "transient") throw transient("come back later", { code: "busy" });
    if (how === "permanent") throw permanent("never", { cause: new Error("behind it") });
    throw new RangeError(how);
  });
  agent.capability("sample.wait@1", {}, async (_, task) => {
    await new Promise((_resolve, reject) => {
      task.signal.addEventListener("abort", () => { reject(task.signal.reason as Error); });
    });
  });
  agent.capability("sample.say@1", {}, (_, task) => {
    task.progress(0.25, "a quarter");
    task.progress(7, "more than all");
    return { attempt: task.attemptId, run: task.runId, key: task.idempotencyKey, number: task.number, left: task.remaining };
  });
  agent.capability("sample.ask@1", {}, async (input: unknown, task) => {
    return await task.call("text.summarize@1", input, { returns: { type: "string" }, timeout: 1500 });
  });
  return agent;
}

/** The agent at work, and the line on which it said hello. It stops with the test. */
async function attached(agent = sample()): Promise<{ sidecar: Sidecar; line: Line; drain: AbortController; life: Promise<boolean> }> {
  const sidecar = await Sidecar.started();
  const { drain, life } = working(agent, sidecar);
  return { sidecar, line: await sidecar.line(), drain, life };
}

function working(agent: Agent, sidecar: Sidecar, grace = 20_000): { drain: AbortController; life: Promise<boolean> } {
  const [drain, stop] = [new AbortController(), new AbortController()];
  const life = agent.serve({ socket: sidecar.path, drain: drain.signal, signal: stop.signal, grace });
  onTestFinished(async () => {
    stop.abort(new Error("the test is over"));
    await life.catch(() => undefined);
  });
  return { drain, life };
}

test("an agent announces what its capabilities say", async () => {
  const { line } = await attached();
  const { description, protocolVersion } = line.hello;
  expect(protocolVersion).toBe(1);
  expect(description).toMatchObject({ name: "sample", version: "7", labels: { region: "eu" }, concurrency: 32, prefetch: 32 });
  expect(description?.runtime).toMatch(/^typescript\//);
  const judge = description?.capabilities[0];
  expect(judge).toMatchObject({
    name: "sample.judge",
    version: "1",
    description: "Judges a package.",
    effect: Effect.PURE,
    idempotent: true,
    clearance: ["pii"],
    cost: 2.5,
    expectedLatency: { seconds: 1, nanos: 500_000_000 },
  });
  expect(JSON.parse(judge?.inputSchema ?? "")).toEqual(PACKAGE);
});

test("batches are answered in batches", async () => {
  const { line } = await attached();
  line.assign(...Array.from({ length: 200 }, (_, n) => assignment(`r/t${String(n)}/0/1`, "sample.judge@1", { name: "a", files: n })));
  expect(await line.output("r/t0/0/1")).toEqual({ name: "a", fine: false });
  expect(await line.output("r/t199/0/1")).toEqual({ name: "a", fine: true });
  expect(Math.max(...line.batches)).toBeGreaterThanOrEqual(32);
});

test.each([
  ["transient", FailureKind.TRANSIENT, true],
  ["permanent", FailureKind.PERMANENT, false],
  ["surprise", FailureKind.TRANSIENT, true],
])("what a handler throws chooses the kind of failure: %s", async (how, kind, retryable) => {
  const { line } = await attached();
  line.assign(assignment("r/t/0/1", "sample.fail@1", how));
  const failure = await line.failure("r/t/0/1");
  expect(failure).toMatchObject({ kind, retryable });
  if (how === "transient") expect(failure).toMatchObject({ code: "busy", message: "come back later", cause: "" });
  if (how === "permanent") expect(failure.cause).toContain("behind it");
  if (how === "surprise") {
    expect(failure.message).toBe("RangeError: surprise");
    expect(failure.cause).toContain("agent.test.ts");
  }
});

test("input that does not fit never reaches the handler, and the message holds no value", async () => {
  const { line } = await attached();
  line.assign(assignment("r/a/0/1", "sample.judge@1", { name: 12345 }), assignment("r/b/0/1", "sample.judge@1", {}));
  const wrong = await line.failure("r/a/0/1");
  expect(wrong).toMatchObject({ kind: FailureKind.INVALID_INPUT, field: "/name", retryable: false });
  expect(wrong.message).toBe("the input does not fit: must be string");
  expect((await line.failure("r/b/0/1")).kind).toBe(FailureKind.INVALID_INPUT);
});

test("output that does not fit, cannot travel or is too large is a failure", async () => {
  const { line } = await attached();
  line.assign(
    assignment("r/a/0/1", "sample.number@1", "seven"),
    assignment("r/b/0/1", "sample.any@1", "x".repeat(65535)),
    assignment("r/c/0/1", "sample.any@1", "x".repeat(65534)),
  );
  const unfit = { kind: FailureKind.INVALID_OUTPUT, message: "the output does not fit: must be integer" };
  expect(await line.failure("r/a/0/1")).toMatchObject(unfit);
  expect((await line.failure("r/b/0/1")).message).toContain("65537 bytes");
  expect(await line.output("r/c/0/1")).toHaveLength(65534);
});

/** An agent that answers a text as it is, or takes its task apart. */
function planner(): Agent {
  const agent = new Agent("planner", { logger: quiet });
  const graph = new Graph("apart");
  graph.task("part", "text.sum@1", { input: ref("input") });
  agent.capability("plan.text@1", { output: { type: "string" } }, (how: string) => {
    if (how === "apart") return new Subgraph(graph, [1, 2]);
    if (how === "message") return new Subgraph(graph.message());
    if (how === "payload") return new Subgraph(graph, Payload.inline(Buffer.from("a"), "text/plain"));
    if (how === "too large") return new Subgraph(new Graph("apart", { description: "x".repeat(262_144) }));
    if (how === "input too large") return new Subgraph(graph, "x".repeat(70_000));
    if (how === "input cannot travel") return new Subgraph(graph, { n: NaN });
    if (how === "no time") return new Subgraph({ ...graph.message(), deadline: { seconds: "soon" as unknown as number, nanos: 0 } });
    return how;
  });
  agent.batch("plan.batch@1", { maxSize: 2, maxWait: 60_000 }, (inputs: string[]) =>
    inputs.map((input) => (input === "apart" ? new Subgraph(graph) : input)),
  );
  return agent;
}

test("a handler may answer with a value or with a graph and its input", async () => {
  const { line } = await attached(planner());
  expect(line.hello.description?.capabilities[0]?.outputSchema).toBe('{"type":"string"}');
  line.assign(...["as it is", "apart", "message", "payload"].map((how) => assignment(`r/${how}/0/1`, "plan.text@1", how)));
  expect(await line.output("r/as it is/0/1")).toBe("as it is");
  const apart = (await line.result("r/apart/0/1")).outcome;
  expect(apart).toMatchObject({
    $case: "subgraph",
    value: { graph: { name: "apart", tasks: [{ capability: "text.sum@1" }] }, input: { content: { value: Buffer.from("[1,2]") } } },
  });
  const { outcome } = await line.result("r/message/0/1");
  expect(outcome).toMatchObject({ $case: "subgraph", value: { graph: { name: "apart" }, input: undefined } });
  expect((await line.result("r/payload/0/1")).outcome?.value).toMatchObject({ input: { mediaType: "text/plain" } });
});

test("a graph that cannot be answered fails its attempt alone", async () => {
  const { line } = await attached(planner());
  const wrong = {
    "too large": "larger than 262144 bytes",
    "input too large": "70002 bytes",
    "input cannot travel": '"n" is a number',
    "no time": "the graph cannot travel",
  };
  line.assign(...[...Object.keys(wrong), "well"].map((how) => assignment(`r/${how}/0/1`, "plan.text@1", how)));
  for (const [how, message] of Object.entries(wrong)) {
    const failure = await line.failure(`r/${how}/0/1`);
    expect(failure.kind).toBe(FailureKind.INVALID_OUTPUT);
    expect(failure.message).toContain(message);
  }
  expect(await line.output("r/well/0/1")).toBe("well");
});

test("a batch may answer graphs, too", async () => {
  const { line } = await attached(planner());
  line.assign(assignment("r/a/0/1", "plan.batch@1", "as it is"), assignment("r/b/0/1", "plan.batch@1", "apart"));
  expect(await line.output("r/a/0/1")).toBe("as it is");
  expect((await line.result("r/b/0/1")).outcome).toMatchObject({ $case: "subgraph", value: { graph: { name: "apart" } } });
});

test("a payload travels as it is, with its media type", async () => {
  const { line } = await attached();
  const made = assignment("r/a/0/1", "sample.echo@1");
  made.input = Payload.inline(Buffer.from([0, 255]), "image/png").message;
  line.assign(made);
  const { outcome } = await line.result("r/a/0/1");
  expect(outcome?.value).toMatchObject({ mediaType: "image/png", content: { value: Buffer.from([0, 255]) } });
});

test("an unknown capability is a failure of the attempt, not of the stream", async () => {
  const { line } = await attached();
  line.assign(assignment("r/a/0/1", "sample.none@1"), assignment("r/b/0/1", "sample.any@1", 1));
  expect(await line.failure("r/a/0/1")).toMatchObject({ kind: FailureKind.PERMANENT, code: "unknown_capability" });
  expect(await line.output("r/b/0/1")).toBe(1);
});

test("a task knows its ids and its time, and the newest progress is told", async () => {
  const { line } = await attached();
  line.assign(assignment("run/t/0/2", "sample.say@1", null, 60));
  const said = await line.output("run/t/0/2");
  expect(said).toMatchObject({ attempt: "run/t/0/2", run: "run", key: "run/t/0", number: 2 });
  expect((said as { left: number }).left).toBeGreaterThan(1000);
  // It ended in the same turn, so its progress is out of date and not sent at all.
  expect(line.progress).toEqual([]);
});

test("a cancelled attempt hears of it and ends as cancelled", async () => {
  const { line } = await attached();
  line.assign(assignment("r/a/0/1", "sample.wait@1"));
  line.cancel("r/a/0/1", "deadline");
  const failure = await line.failure("r/a/0/1");
  expect(failure).toMatchObject({ kind: FailureKind.CANCELLED, cause: "" });
  expect(failure.message).toContain("deadline");
});

test("an attempt that is assigned twice runs once", async () => {
  const { line } = await attached();
  line.assign(assignment("r/a/0/1", "sample.wait@1"), assignment("r/a/0/1", "sample.wait@1"));
  line.cancel("r/a/0/1");
  await line.failure("r/a/0/1");
  line.assign(assignment("r/b/0/1", "sample.any@1", 1));
  await line.output("r/b/0/1");
  expect(line.results).toHaveLength(2);
});

test("a call carries the proof of its attempt and gives the answer its schema's type", async () => {
  const { line } = await attached();
  line.assign(assignment("r/a/0/1", "sample.ask@1", { text: "long" }));
  const call = await line.call();
  expect(call).toMatchObject({ callId: "1", attemptId: "r/a/0/1", capability: "text.summarize@1", timeout: { seconds: 1, nanos: 5e8 } });
  expect(call.attemptToken.toString()).toBe("token of r/a/0/1");
  line.send({ callResults: [{ callId: "1", attemptId: "r/a/0/1", outcome: { $case: "output", value: Payload.inline(Buffer.from('"short"')).message } }] });
  expect(await line.output("r/a/0/1")).toBe("short");
});

test("the failure of a call fails its caller, as permanent unless another try may help", async () => {
  const { line } = await attached();
  for (const [attemptId, kind, retryable] of [["r/a/0/1", FailureKind.INVALID_INPUT, false], ["r/b/0/1", FailureKind.LOST, true]] as const) {
    line.assign(assignment(attemptId, "sample.ask@1"));
    await line.call();
    const failure = { kind, message: "no", code: "c", retryable, cause: "", field: "/x" };
    line.send({ callResults: [{ callId: "1", attemptId, outcome: { $case: "failure", value: failure } }] });
  }
  expect(await line.failure("r/a/0/1")).toMatchObject({ kind: FailureKind.PERMANENT, code: "c", field: "" });
  expect(await line.failure("r/b/0/1")).toMatchObject({ kind: FailureKind.TRANSIENT, retryable: true });
});

test("a cancel ends everything a handler has asked for, and no process because one of it is not listened to yet", async () => {
  const agent = new Agent("asker", { logger: quiet }).capability("asker.ask@1", {}, async (_, task) => {
    const { context } = task;
    const asked = [
      task.call("a.b@1"),
      task.call("a.b@1"),
      context.get("key"),
      context.entry("key"),
      context.put("key", 1),
      context.delete("key"),
      context.list(),
      context.lineage("key"),
      context.claim("plan", () => Promise.resolve()),
    ];
    for (const one of asked) await one;
  });
  const { line } = await attached(agent);
  line.assign(assignment("r/a/0/1", "asker.ask@1"));
  await eventually(() => line.calls.length === 2 && line.asks.length === 7, "what is asked for");
  line.cancel("r/a/0/1");
  expect(await line.failure("r/a/0/1")).toMatchObject({ kind: FailureKind.CANCELLED });
});

test("nothing is asked for an attempt with its outcome or after it", async () => {
  const late: Promise<unknown>[] = [];
  let left: Task | undefined;
  const agent = new Agent("asker", { logger: quiet })
    .capability("asker.ask@1", {}, async (_, task) => await task.call("a.b@1"))
    .capability("asker.get@1", {}, async (_, task) => await task.context.get("key"))
    .capability("asker.leave@1", {}, (_, task) => {
      late.push(task.call("a.b@1"), task.context.get("key"));
      left = task;
      return "left";
    });
  const { line } = await attached(agent);
  for (const [attemptId, capability] of [["r/a/0/1", "asker.ask@1"], ["r/b/0/1", "asker.get@1"]] as const) {
    line.send({ assignments: [assignment(attemptId, capability)], cancels: [{ attemptId, reason: "deadline" }] });
    expect(await line.failure(attemptId)).toMatchObject({ kind: FailureKind.CANCELLED });
  }
  line.assign(assignment("r/c/0/1", "asker.leave@1"));
  expect(await line.output("r/c/0/1")).toBe("left");
  late.push(left?.call("a.b@1") ?? Promise.resolve());
  const why = (error: unknown): unknown => error instanceof CallFailed ? error.code : error instanceof AntiphonError ? error.reason : error;
  expect(await Promise.all(late.map((one) => one.catch(why)))).toEqual(Array(3).fill("ATTEMPT_NOT_FOUND"));
  line.assign(assignment("r/d/0/1", "asker.other@1"));
  await line.failure("r/d/0/1");
  expect([line.calls, line.asks]).toEqual([[], []]);
});

test("a call without an answer is made again on the next stream", async () => {
  const { sidecar, line } = await attached();
  line.assign(assignment("r/a/0/1", "sample.ask@1", 1));
  const call = await line.call();
  sidecar.stop();
  await sidecar.start();
  const next = await sidecar.line();
  expect(await next.call()).toEqual(call);
});

test("an agent that starts before its sidecar attaches once there is one", async () => {
  const sidecar = new Sidecar();
  working(sample(), sidecar);
  await sidecar.start();
  expect((await sidecar.line()).hello.description?.name).toBe("sample");
});

test("outcomes that were lost with a stream are repeated, and not worked out again", async () => {
  let times = 0;
  const agent = new Agent("once", { logger: quiet }).capability("once.count@1", {}, () => (times += 1));
  const { sidecar, line } = await attached(agent);
  line.assign(assignment("r/a/0/1", "once.count@1"));
  expect(await line.output("r/a/0/1")).toBe(1);
  sidecar.stop();
  sidecar.refusal = "OVERLOADED"; // however many dials it takes
  await sidecar.start();
  await eventually(() => sidecar.refused > 1, "dials that are refused");
  sidecar.refusal = undefined;
  const next = await sidecar.line();
  next.assign(assignment("r/a/0/1", "once.count@1"));
  expect(await next.output("r/a/0/1")).toBe(1);
});

test("an attempt goes on through a broken stream, and its outcome waits for the next", async () => {
  const go = new AbortController();
  const agent = new Agent("slow", { logger: quiet }).capability("slow.wait@1", {}, async () => {
    await eventually(() => go.signal.aborted, "the word to go");
    return "done";
  });
  const { sidecar, line } = await attached(agent);
  line.assign(assignment("r/a/0/1", "slow.wait@1"));
  line.assign(assignment("r/b/0/1", "slow.none@1"));
  await line.failure("r/b/0/1"); // so the first has begun
  sidecar.stop();
  go.abort();
  await sidecar.start();
  expect(await (await sidecar.line()).output("r/a/0/1")).toBe("done");
});

test("work that ends while there is no stream is not done again", async () => {
  const go = new AbortController();
  let times = 0;
  const agent = new Agent("once", { logger: quiet }).capability("once.count@1", {}, async () => {
    times += 1;
    const mine = times;
    await eventually(() => go.signal.aborted, "the word to go");
    return mine;
  });
  const { sidecar, line } = await attached(agent);
  line.assign(assignment("r/a/0/1", "once.count@1"));
  await eventually(() => times === 1, "the handler");
  sidecar.stop();
  go.abort();
  await sidecar.start();
  const next = await sidecar.line();
  next.assign(assignment("r/a/0/1", "once.count@1"));
  next.assign(assignment("r/a/0/2", "once.count@1"));
  expect(await next.output("r/a/0/2")).toBe(2);
  expect(await next.output("r/a/0/1")).toBe(1);
});

test.each([20_000, Infinity])("draining with a grace of %d ms finishes what was assigned, says so, and ends", async (grace) => {
  const sidecar = await Sidecar.started();
  const { drain, life } = working(sample(), sidecar, grace);
  const line = await sidecar.line();
  line.assign(assignment("r/a/0/1", "sample.wait@1"));
  line.assign(assignment("r/b/0/1", "sample.any@1", 1));
  await line.output("r/b/0/1");
  drain.abort();
  await eventually(() => line.drained, "the agent to drain");
  line.cancel("r/a/0/1");
  await line.failure("r/a/0/1");
  line.stream.end();
  expect(await life).toBe(true);
});

test("an agent whose sidecar drains ends the stream when nothing is left, and dials again", async () => {
  const { sidecar, line } = await attached();
  line.assign(assignment("r/a/0/1", "sample.wait@1"));
  line.send({ drain: true });
  line.cancel("r/a/0/1");
  await line.failure("r/a/0/1");
  await eventually(() => line.ended, "the stream to end");
  await sidecar.line();
});

test("a sidecar that drained and went away leaves the stream to the next one alone", async () => {
  const { sidecar, line } = await attached();
  line.assign(assignment("r/a/0/1", "sample.wait@1"));
  line.send({ drain: true });
  line.assign(assignment("r/b/0/1", "sample.any@1", 1));
  await line.output("r/b/0/1"); // so it has heard that it drains
  sidecar.stop();
  await sidecar.start();
  const next = await sidecar.line();
  next.cancel("r/a/0/1");
  await next.failure("r/a/0/1");
  next.assign(assignment("r/c/0/1", "sample.any@1", 2));
  expect(await next.output("r/c/0/1")).toBe(2);
  expect(next.ended).toBe(false);
});

test("attempts that outlast the grace are given up", async () => {
  const sidecar = await Sidecar.started();
  const { drain, life } = working(sample(), sidecar, 50);
  const line = await sidecar.line();
  line.assign(assignment("r/a/0/1", "sample.wait@1"));
  line.assign(assignment("r/b/0/1", "sample.any@1", 1));
  await line.output("r/b/0/1");
  drain.abort();
  expect(await life).toBe(false);
});

test("a refusal that another try cannot change ends the agent with its error", async () => {
  const sidecar = await Sidecar.started();
  sidecar.refusal = "NOT_GRANTED";
  const error = await sample().serve({ socket: sidecar.path }).catch((thrown: unknown) => thrown);
  expect(error).toBeInstanceOf(AntiphonError);
  expect(error).toMatchObject({ reason: "NOT_GRANTED", remedy: "ASK_OPERATOR" });
});

test("what cannot be offered is refused when it is declared", () => {
  const agent = sample();
  expect(() => new Agent("Not A Name")).toThrow("lowercase");
  expect(() => new Agent("a", { concurrency: 0 })).toThrow("concurrency");
  expect(() => agent.capability("nodots", {}, () => null)).toThrow("text.summarize@1");
  expect(() => agent.capability("sample.any@1", {}, () => null)).toThrow("twice");
  expect(() => agent.capability("sample.bad@1", { input: { type: "nothing" } }, () => null)).toThrow("JSON Schema");
});

test("an agent without capabilities or without a socket says what to do", async () => {
  await expect(new Agent("empty").serve()).rejects.toThrow("offers nothing");
  await expect(sample().serve({ socket: "" })).rejects.toThrow("ANTIPHON_SOCKET");
  await expect(sample().serve({ socket: `/${"x".repeat(107)}` })).rejects.toThrow("longer than 107");
});

test("an agent that says more of itself than sidecars take is told what to do, and does not dial", async () => {
  const agent = new Agent("wordy", { logger: quiet });
  for (let number = 0; number < 66; number += 1) {
    agent.capability(`wordy.say${String(number)}@1`, { input: { description: "x".repeat(32_000) } }, () => null);
  }
  const sidecar = await Sidecar.started();
  const error = await agent.serve({ socket: sidecar.path }).catch((thrown: unknown) => thrown);
  expect(error).toBeInstanceOf(SetupError);
  expect((error as Error).message).toMatch(/66 capabilities have \d+ bytes.* larger than 2097152 bytes; shorten them/);
});

test("a trouble that is another one than before is told, and each once", async () => {
  const warned: string[] = [];
  const sidecar = new Sidecar();
  working(sample({ logger: { ...quiet, warn: (text) => { warned.push(text); } } }), sidecar);
  await eventually(() => warned.length > 0, "the first trouble");
  expect(warned[0]).toContain("is its sidecar running");
  sidecar.refusal = "OVERLOADED";
  await sidecar.start();
  await eventually(() => sidecar.refused > 2, "dials that are refused");
  const refusals = warned.filter((text) => !text.includes("is its sidecar running"));
  expect(refusals).toEqual([expect.stringContaining("refused: OVERLOADED")]);
  sidecar.refusal = undefined;
  await sidecar.line();
});

test("schemas give types", () => {
  const value: FromSchema<typeof PACKAGE> = { name: "a" };
  const files: number | undefined = value.files;
  // @ts-expect-error a number is no name
  const wrong: FromSchema<typeof PACKAGE> = { name: 1 };
  const either: FromSchema<{ anyOf: [{ type: "string" }, { type: "null" }] }> = null;
  const list: FromSchema<{ type: "array"; items: { enum: ["a", "b"] } }> = ["a", "b"];
  expect([files, wrong.name, either, list]).toEqual([undefined, 1, null, ["a", "b"]]);
});

test("what cannot be sent fails its own attempt, and no other", async () => {
  const agent = new Agent("wrong", { logger: quiet });
  const broken = { content: { $case: "inline", value: "no buffer" } } as unknown as Payload["message"];
  agent.capability("wrong.payload@1", {}, () => new Payload(broken));
  agent.capability("wrong.call@1", {}, async (_, task) => await task.call("a.b@1", null, { timeout: NaN }));
  agent.capability("wrong.kind@1", {}, () => { throw new Failure("ODD" as "PERMANENT", "odd"); });
  agent.capability("wrong.thrown@1", {}, () => { throw { toString: () => { throw new Error("even this"); } }; }); // eslint-disable-line
  agent.capability("wrong.big@1", {}, () => 1n);
  const { line } = await attached(agent);
  const names = ["payload", "call", "kind", "thrown", "big"];
  line.assign(...names.map((name) => assignment(`r/${name}/0/1`, `wrong.${name}@1`)));
  const failures = await Promise.all(names.map((name) => line.failure(`r/${name}/0/1`)));
  const { INVALID_OUTPUT, TRANSIENT } = FailureKind;
  expect(failures.map((one) => one.kind)).toEqual([INVALID_OUTPUT, TRANSIENT, TRANSIENT, TRANSIENT, INVALID_OUTPUT]);
});

/** An agent that asks for one thing by each of its capabilities, `big.NAME@1`; what it asks for is too large for any stream. */
function outsized(): { agent: Agent; names: string[] } {
  const huge = "x".repeat(5_000_000);
  const payload = Payload.inline(Buffer.from(huge), "text/plain");
  const asked: Record<string, (task: Task) => Promise<unknown>> = {
    call: (task) => task.call("a.b@1", huge),
    payload: (task) => task.call("a.b@1", payload),
    capability: (task) => task.call(huge),
    put: (task) => task.context.put("key", huge),
    blob: (task) => task.context.put("key", payload),
    labels: (task) => task.context.put("key", 1, { labels: [huge] }),
    key: (task) => task.context.get(huge),
    prefix: (task) => task.context.list(huge),
  };
  const agent = new Agent("big", { logger: quiet }).capability("big.wait@1", {}, async (_, task) => await task.call("c.d@1"));
  for (const [name, ask] of Object.entries(asked)) agent.capability(`big.${name}@1`, {}, async (_, task) => await ask(task));
  return { agent, names: Object.keys(asked) };
}

test("what is too large to be asked for fails its own attempt, and the stream goes on", async () => {
  const { agent, names } = outsized();
  const { line } = await attached(agent);
  line.assign(assignment("r/wait/0/1", "big.wait@1"));
  const { callId, attemptId } = await line.call();
  line.assign(...names.map((name) => assignment(`r/${name}/0/1`, `big.${name}@1`)));
  for (const name of names) {
    const failure = await line.failure(`r/${name}/0/1`);
    expect([name, failure.kind, failure.retryable]).toEqual([name, FailureKind.INVALID_OUTPUT, false]);
    expect(failure.message).toMatch(/bytes.*larger than \d+ bytes/);
  }
  line.send({ callResults: [{ callId, attemptId, outcome: { $case: "output", value: Payload.inline(Buffer.from("1")).message } }] });
  expect(await line.output("r/wait/0/1")).toBe(1);
  expect([line.calls, line.asks]).toEqual([[], []]);
});

test("a value that fits is asked for, and one byte more is not", async () => {
  const { line } = await attached();
  line.assign(assignment("r/a/0/1", "sample.ask@1", "x".repeat(65_534)));
  await line.call();
  line.assign(assignment("r/b/0/1", "sample.ask@1", "x".repeat(65_535)));
  expect((await line.failure("r/b/0/1")).message).toContain("65537 bytes, larger than 65536 bytes");
});

test("calls that are large without their inputs go out in messages that are within the limit", async () => {
  const agent = new Agent("many", { logger: quiet }).capability("many.call@1", {}, async (_, task) => {
    await Promise.all(Array.from({ length: 20 }, () => task.call(`a.${"b".repeat(300_000)}@1`)));
  });
  const { line } = await attached(agent);
  line.assign(assignment("r/a/0/1", "many.call@1"));
  await eventually(() => line.calls.length === 20, "the calls");
});

test("outcomes that are large without their content go out in messages that are within the limit", async () => {
  const labels = [{ key: "pii", value: "x".repeat(200_000), assertedBy: "" }];
  const referred = PayloadMessage.fromPartial({
    content: { $case: "blob", value: { digest: "0".repeat(64), size: 1 << 30 } }, labels,
  });
  const agent = new Agent("many", { logger: quiet, concurrency: 40 })
    .capability("many.labels@1", {}, () => new Payload(PayloadMessage.fromPartial({ labels })))
    .capability("many.references@1", {}, () => new Payload(referred));
  const { line } = await attached(agent);
  const names = ["labels", "references"].flatMap((name) => Array.from({ length: 20 }, (_, n) => ({ name, id: `${name}/${String(n)}` })));
  line.assign(...names.map(({ name, id }) => assignment(id, `many.${name}@1`)));
  await eventually(() => line.results.length === 40, "the outcomes");
  expect(Math.max(...line.batches)).toBe(5); // as many as are 1 MiB
});

test.each([["empty", ""], ["long", "😀".repeat(65)], ["half", "\ud83d"]])("a call by an id that is %s is not made", async (_, callId) => {
  const agent = new Agent("caller", { logger: quiet });
  agent.capability("caller.call@1", {}, async (_, task) => await task.call("a.b@1", null, { callId }));
  agent.capability("caller.well@1", {}, async (_, task) => await task.call("a.b@1", null, { callId: "😀".repeat(64) }));
  const { line } = await attached(agent);
  line.assign(assignment("r/a/0/1", "caller.call@1"), assignment("r/b/0/1", "caller.well@1"));
  expect((await line.failure("r/a/0/1")).message).toContain("use 1 to 64 characters");
  expect((await line.call()).attemptId).toBe("r/b/0/1");
});

test("a claim that is lost aborts what it protects, and says so", async () => {
  const agent = new Agent("holder", { logger: quiet }).capability("holder.hold@1", {}, async (_, task) => {
    const { context } = task;
    return await context.claim("plan", async (claim, signal) => {
      await new Promise<void>((resolve) => { signal.addEventListener("abort", () => { resolve(); }); });
      return claim;
    });
  });
  const { line } = await attached(agent);
  line.assign(assignment("r/a/0/1", "holder.hold@1"));
  const { requestId, kind, attemptId, attemptToken } = await line.ask();
  expect(kind).toMatchObject({ $case: "acquire", value: { name: "plan", ttl: { seconds: 30 } } });
  expect(attemptToken.toString()).toBe("token of r/a/0/1");
  const claim = { scope: { kind: undefined }, name: "plan", fence: 7 };
  const outcome = { $case: "acquire" as const, value: { claim: { claim } } };
  line.send({ contextResponses: [{ requestId, attemptId, outcome }] });
  line.send({ claimLosses: [{ attemptId, claim: { ...claim, fence: 6 } }, { attemptId, claim }] });
  const failure = await line.failure("r/a/0/1");
  expect(failure.message).toContain("claim plan is not held any more");
  expect(line.asks).toEqual([]); // what is lost is not released
});

test("streams that break while outcomes are on their way end no process and lose nothing", async () => {
  const { sidecar, line } = await attached();
  let current = line;
  for (let n = 0; n < 5; n += 1) {
    const attemptId = `r/t${String(n)}/0/1`;
    current.assign(assignment(attemptId, "sample.any@1", n));
    sidecar.stop();
    await sidecar.start();
    const next = await sidecar.line();
    // Assigned again, as a sidecar does: it is answered by what was worked out before, or worked out now.
    next.assign(assignment(attemptId, "sample.any@1", n));
    await eventually(() => next.results.some((one) => one.attemptId === attemptId), "the outcome");
    current = next;
  }
});
