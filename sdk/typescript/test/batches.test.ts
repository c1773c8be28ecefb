/** Batches and pieces of output, at a sidecar double's real socket. */
import { expect, onTestFinished, test } from "vitest";

import { Agent, Payload, permanent, type Task } from "../src/index.js";
import { contentBytes, Pieces, piecesOf } from "../src/pieces.js";
import { FailureKind, type PartialOutput } from "../src/v1.js";
import { assignment, eventually, type Line, Sidecar } from "./sidecar.js";

const quiet = { debug: () => undefined, info: () => undefined, warn: () => undefined, error: () => undefined };
const NEVER = 60_000; // a batch that waits for so long begins for another reason

interface Begun {
  inputs: number[];
  tasks: Task[];
  signal: AbortSignal;
}

/** An agent that doubles numbers, two or more at once, at work. Each batch is told, and goes on when the gate is open. */
async function doubler(maxSize: number, maxWait = NEVER): Promise<{ line: Line; begun: Begun[]; open: () => void }> {
  const begun: Begun[] = [];
  let open = (): void => undefined;
  const gate = new Promise<void>((resolve) => { open = resolve; });
  const agent = new Agent("doubler", { logger: quiet, concurrency: 8 });
  agent.batch(
    "work.double@1",
    { input: { type: "integer" }, output: { type: "integer" }, maxSize, maxWait },
    async (inputs, tasks, signal) => {
      begun.push({ inputs, tasks, signal });
      await Promise.race([gate, new Promise((resolve) => { signal.addEventListener("abort", resolve); })]);
      if (inputs.includes(99)) throw new RangeError("no such number");
      if (inputs.includes(98)) return [];
      return inputs.map((input) => (input < 0 ? permanent(`${String(input)} is too small`) : 2 * input));
    },
  );
  const sidecar = await Sidecar.started();
  const stop = new AbortController();
  const life = agent.serve({ socket: sidecar.path, signal: stop.signal });
  onTestFinished(async () => {
    stop.abort(new Error("the test is over"));
    await life.catch(() => undefined);
  });
  return { line: await sidecar.line(), begun, open };
}

function asked(number: number, input: unknown): ReturnType<typeof assignment> {
  return assignment(`r/t${String(number)}/0/1`, "work.double@1", input);
}

test("a batch begins when it is full, and each task has its own outcome", async () => {
  const { line, begun, open } = await doubler(3);
  open();
  line.assign(asked(9, "no"));
  expect(await line.failure("r/t9/0/1")).toMatchObject({ kind: FailureKind.INVALID_INPUT });
  line.assign(asked(1, -1), asked(2, 0), asked(3, 21));
  expect(await line.output("r/t3/0/1")).toBe(42);
  expect(await line.failure("r/t1/0/1")).toMatchObject({ kind: FailureKind.PERMANENT, message: "-1 is too small" });
  expect(begun.map(({ inputs }) => inputs)).toEqual([[-1, 0, 21]]);
  expect(begun[0]?.tasks.map((task) => task.attemptId)).toEqual(["r/t1/0/1", "r/t2/0/1", "r/t3/0/1"]);
});

test("a batch begins once its first task has waited, or would lose half of its time", async () => {
  const soon = await doubler(8, 1);
  soon.open();
  soon.line.assign(asked(1, 1));
  expect(await soon.line.output("r/t1/0/1")).toBe(2);
  const late = await doubler(8);
  late.open();
  late.line.assign(asked(1, 1), { ...asked(2, 2), remainingTimeout: { seconds: 10, nanos: 0 } });
  expect(await late.line.output("r/t1/0/1")).toBe(2);
});

test("who leaves a batch has its outcome, and the rest goes on until nobody is left", async () => {
  const { line, begun } = await doubler(2);
  line.assign(asked(1, 1), asked(2, 2));
  const { signal } = await eventually(() => begun[0], "a batch");
  for (const attemptId of ["r/t1/0/1", "r/t2/0/1"]) {
    expect(signal.aborted).toBe(false);
    line.cancel(attemptId);
    expect(await line.failure(attemptId)).toMatchObject({ kind: FailureKind.CANCELLED });
  }
  expect(signal.aborted).toBe(true);
});

test("one that is cancelled before its batch begins is not in it", async () => {
  const { line, begun, open } = await doubler(2);
  open();
  line.assign(asked(1, 1));
  line.cancel("r/t1/0/1");
  expect(await line.failure("r/t1/0/1")).toMatchObject({ kind: FailureKind.CANCELLED });
  line.assign(asked(2, 2), asked(3, 3));
  expect(await line.output("r/t3/0/1")).toBe(6);
  expect(begun.map(({ inputs }) => inputs)).toEqual([[2, 3]]);
});

test.each([
  [99, FailureKind.TRANSIENT, "no such number"],
  [98, FailureKind.INVALID_OUTPUT, "2 tasks were handed over and 0 outcomes came back"],
])("what a batch throws or leaves out fails all of it: %s", async (input, kind, message) => {
  const { line, open } = await doubler(2);
  open();
  line.assign(asked(1, 1), asked(2, input));
  for (const attemptId of ["r/t1/0/1", "r/t2/0/1"]) {
    const failure = await line.failure(attemptId);
    expect(failure.kind).toBe(kind);
    expect(failure.message).toContain(message);
  }
});

test("an agent that is told to drain begins what is gathered", async () => {
  const { line, open } = await doubler(8);
  open();
  line.assign(asked(1, 21));
  line.send({ drain: true });
  expect(await line.output("r/t1/0/1")).toBe(42);
});

test("a batch that cannot be offered is refused where it is declared", () => {
  const agent = new Agent("wrong", { concurrency: 4 });
  expect(() => agent.batch("work.a@1", { maxSize: 5, maxWait: 1 }, () => [])).toThrow("maxSize 5");
  expect(() => agent.batch("work.a@1", { maxSize: 2, maxWait: 0 }, () => [])).toThrow("maxWait 0");
});

function emitted(box: Pieces, offset: number, ...values: unknown[]): number {
  let end = offset;
  for (const piece of values.flatMap(piecesOf)) {
    piece.offset = end;
    end += contentBytes(piece);
    box.add("a", piece);
  }
  return end;
}

function taken(box: Pieces): PartialOutput[] {
  return box.take().flatMap(({ partial }) => partial ?? []);
}

test("text that follows text is joined, and nothing else is", () => {
  const box = new Pieces();
  const labelled = Payload.inline(Buffer.from('"d"'));
  labelled.message.labels = [{ key: "pii", value: "", assertedBy: "" }];
  emitted(box, 0, "ab", "ü", labelled, { e: 1 }, "f", "g");
  expect(taken(box).map(({ content }) => content?.value.toString())).toEqual(["abü", "d", '{"e":1}', "fg"]);
  expect(box.empty).toBe(true);
});

test("no more pieces wait than there is room for, and the gap shows", () => {
  const box = new Pieces();
  const offset = emitted(box, 0, "x".repeat(200_000));
  const kept = taken(box).reduce((sum, piece) => sum + contentBytes(piece), 0);
  expect(kept).toBeGreaterThan(0);
  expect(kept).toBeLessThanOrEqual(65_536);
  emitted(box, offset, "end");
  expect(taken(box)[0]).toMatchObject({ offset: 200_000, content: { value: "end" } });
});

test("a text is cut between characters", () => {
  const text = "x" + "😀".repeat(5000);
  const pieces = piecesOf(text);
  expect(pieces.length).toBeGreaterThan(1);
  expect(pieces.map(({ content }) => content?.value).join("")).toBe(text);
  for (const { content } of pieces) expect(content?.value.toString().isWellFormed()).toBe(true);
});

const labels = Array.from({ length: 64 }, () => ({ key: "pii", value: "x".repeat(256), assertedBy: "" }));
const labelled = new Payload({ ...Payload.inline(Buffer.from("1")).message, labels });

test.each([[NaN], [["x".repeat(16_384)]], [Payload.inline(Buffer.from("x"), "image/png")], [labelled]])(
  "what cannot travel is refused where it is emitted: %s",
  (value) => {
    expect(() => piecesOf(value)).toThrow("what is emitted");
  },
);
