/** The attempts that run in this process: starts handlers, tells them to stop, sees that each ends in one outcome. */
import { errorOf } from "./errors.js";
import { CallFailed, Failure, failureOf, invalidOutput, permanent } from "./failures.js";
import { type Assignment, type CallPartial, CallRequest, type CallResponse } from "./gen/antiphon/v1/agent_service.js";
import { type ClaimLoss, ContextRequest, type ContextResponse } from "./gen/antiphon/v1/context_request.js";
import { type PartialOutput } from "./gen/antiphon/v1/run.js";
import { type Handler } from "./handler.js";
import { type Holding } from "./holding.js";
import { type Logger } from "./log.js";
import { type Outbox } from "./outbox.js";
import { EXTRAS, INLINE_LIMIT } from "./payload.js";
import { contentBytes } from "./pieces.js";
import { inTask, type Line, type OnPartial, Task } from "./task.js";
import { Deferred } from "./waiting.js";

/** Something that an attempt waits for. */
interface Waiting {
  readonly answer: { reject(error: unknown): void };
  /** Take it back, unless it was sent. */
  withdraw(): void;
  /** What it is answered when its attempt is over. */
  over(): Error;
}

/** A request whose answer somebody waits for, for as long as its attempt has time. */
interface Open<Request, Answer> extends Waiting {
  readonly request: Request;
  readonly size: number;
  readonly answer: Deferred<Answer>;
  readonly onPartial?: OnPartial | undefined;
}

/** Runs what is assigned and puts each outcome into the outbox. */
export class Attempts implements Line {
  readonly #handlers: ReadonlyMap<string, Handler>;
  readonly #outbox: Outbox;
  readonly #running = new Map<string, Task>();
  readonly #emitted = new Map<string, number>(); // bytes, of the pieces of those that have emitted some
  readonly #calls = new Map<string, Open<CallRequest, CallResponse>>();
  readonly #asks = new Map<string, Open<ContextRequest, ContextResponse>>();
  readonly #waiting = new Map<string, Set<Waiting>>(); // by attempt, of those that wait for something
  readonly #holdings = new Map<string, Holding>();
  #idle: Deferred | undefined;
  /** The largest inline payload in bytes. */
  inlineLimit = INLINE_LIMIT;

  constructor(
    handlers: ReadonlyMap<string, Handler>,
    outbox: Outbox,
    readonly logger: Logger,
  ) {
    this.#handlers = handlers;
    this.#outbox = outbox;
  }

  /** Ids of the attempts that have no outcome yet. */
  running(): Iterable<string> {
    return this.#running.keys();
  }

  /** Whether an attempt has no outcome yet. */
  has(attemptId: string): boolean {
    return this.#running.has(attemptId);
  }

  /** How many run. */
  get size(): number {
    return this.#running.size;
  }

  /** Start an attempt; one that runs already goes on undisturbed. `now` is of `performance.now()`. */
  assign(assignment: Assignment, now: number): void {
    const { attemptId } = assignment;
    if (this.#running.has(attemptId)) return;
    const key = `${assignment.capability}@${assignment.version}`;
    const handler = this.#handlers.get(key);
    if (handler === undefined) {
      this.#outbox.fail(attemptId, permanent(`this agent has no ${key}`, { code: "unknown_capability" }));
      return;
    }
    const task = new Task(assignment, this, now);
    this.#running.set(attemptId, task);
    void this.#run(task, handler); // settles by itself, and never rejects
  }

  /** Tell an attempt to stop; its outcome follows when its handler has ended. */
  cancel(attemptId: string, reason: string): void {
    const task = this.#running.get(attemptId);
    if (task === undefined || task.cancelled !== undefined) return;
    task.cancel(reason);
    // What it waits for here is given up; what it asks for from now on, to leave in order, is not.
    for (const { answer } of this.#waiting.get(attemptId) ?? []) answer.reject(task.cancelled);
  }

  /** No more will be assigned: what is gathered waits for nobody any longer. */
  flush(): void {
    for (const handler of this.#handlers.values()) handler.flush?.();
  }

  /** Resolves when nothing runs. */
  async idle(): Promise<void> {
    while (this.#running.size > 0) {
      this.#idle ??= new Deferred();
      await this.#idle.promise;
    }
  }

  /** Tell everything to stop; nobody waits for it. */
  stop(): void {
    for (const attemptId of this.#running.keys()) this.cancel(attemptId, "the agent stops");
  }

  // What tasks ask for

  progress(attemptId: string, fraction: number, message: string): void {
    if (this.#running.has(attemptId)) this.#outbox.progress(attemptId, { fraction, message });
  }

  emit(attemptId: string, pieces: readonly PartialOutput[]): void {
    if (!this.#running.has(attemptId)) return;
    for (const piece of pieces) {
      piece.offset = this.#emitted.get(attemptId) ?? 0;
      this.#emitted.set(attemptId, piece.offset + contentBytes(piece));
      this.#outbox.emit(attemptId, piece);
    }
  }

  async call(request: CallRequest, onPartial?: OnPartial): Promise<CallResponse> {
    const key = keyOf(request.attemptId, request.callId);
    if (this.#calls.has(key)) throw new TypeError(`callId ${request.callId} is in use by a call that has not ended`);
    const size = this.#fitting("the call", CallRequest.encode(request));
    const open = {
      request, size, answer: new Deferred<CallResponse>(), onPartial,
      withdraw: () => { this.#outbox.withdrawCall(request); },
      over: () => {
        const failure = new Failure("CANCELLED", "the attempt is over", { code: "ATTEMPT_NOT_FOUND" });
        return new CallFailed(request.capability, failureOf(failure));
      },
    };
    return await this.#open(this.#calls, key, open, () => { this.#outbox.call(request, size); });
  }

  async ask(request: ContextRequest): Promise<ContextResponse> {
    const key = keyOf(request.attemptId, request.requestId);
    const size = this.#fitting("the request to shared context", ContextRequest.encode(request));
    const { attemptId } = request;
    const open = {
      request, size, answer: new Deferred<ContextResponse>(),
      withdraw: () => { this.#outbox.withdrawAsk(request); },
      over: () => errorOf("ATTEMPT_NOT_FOUND", `attempt ${attemptId} is not running here`, { metadata: { attempt_id: attemptId } }),
    };
    return await this.#open(this.#asks, key, open, () => { this.#outbox.ask(request, size); });
  }

  holds(attemptId: string, holding: Holding): () => void {
    const key = keyOf(attemptId, String(holding.fence));
    this.#holdings.set(key, holding);
    return () => this.#holdings.delete(key);
  }

  // What the sidecar answers

  /** Hand the outcome of a call to who waits for it. */
  answer(response: CallResponse): void {
    this.#calls.get(keyOf(response.attemptId, response.callId))?.answer.resolve(response);
  }

  /** Show a piece of what a call is making to who waits for it. What that throws is what the call rejects with. */
  made({ attemptId, callId, partial }: CallPartial): void {
    const open = this.#calls.get(keyOf(attemptId, callId));
    if (open?.onPartial === undefined || partial === undefined) return;
    try {
      open.onPartial(partial);
    } catch (thrown) {
      open.answer.reject(thrown); // the handler's own code: its trouble alone, not the stream's
    }
  }

  /** Hand an answer of shared context to who waits for it. */
  told(response: ContextResponse): void {
    this.#asks.get(keyOf(response.attemptId, response.requestId))?.answer.resolve(response);
  }

  /** A claim is lost, as the orchestrator says. */
  claimLost(loss: ClaimLoss): void {
    this.#holdings.get(keyOf(loss.attemptId, String(loss.claim?.fence ?? 0)))?.lose();
  }

  /** Send every request without an answer again, on a new stream; the record answers calls that were made. */
  repeatRequests(): void {
    for (const { request, size } of this.#asks.values()) this.#outbox.ask(request, size);
    for (const { request, size } of this.#calls.values()) this.#outbox.call(request, size);
  }

  /** Bytes of a message; what cannot be encoded, or is far too large, would break the stream of all attempts. */
  #fitting(what: string, encoded: { finish(): Uint8Array }): number {
    const size = encoded.finish().length;
    const most = this.inlineLimit + EXTRAS;
    if (size <= most) return size;
    throw invalidOutput(`${what} has ${String(size)} bytes in all, larger than ${String(most)} bytes`);
  }

  async #open<Request extends { attemptId: string }, Answer>(
    all: Map<string, Open<Request, Answer>>,
    key: string,
    open: Open<Request, Answer>,
    send: () => void,
  ): Promise<Answer> {
    const { attemptId } = open.request;
    if (!this.#running.has(attemptId)) throw open.over();
    const waiting = this.#waiting.get(attemptId) ?? new Set();
    this.#waiting.set(attemptId, waiting.add(open));
    all.set(key, open);
    send();
    try {
      return await open.answer.promise;
    } finally {
      open.withdraw(); // it may have been given up before it was sent
      all.delete(key);
      waiting.delete(open);
      if (waiting.size === 0) this.#waiting.delete(attemptId);
    }
  }

  async #run(task: Task, handler: Handler): Promise<void> {
    const { attemptId } = task;
    try {
      const result = await inTask(task, () => handler.call(task));
      this.#outbox.succeed(attemptId, handler.answer(result, this.inlineLimit));
    } catch (thrown) {
      this.#fail(task, thrown); // whatever a handler throws is an outcome, and ends nothing else
    }
    this.#running.delete(attemptId);
    this.#emitted.delete(attemptId);
    for (const open of this.#waiting.get(attemptId) ?? []) {
      open.withdraw(); // at once: nothing is asked for an attempt with its outcome or after it
      open.answer.reject(open.over());
    }
    if (this.#running.size === 0) {
      this.#idle?.resolve();
      this.#idle = undefined;
    }
  }

  #fail(task: Task, thrown: unknown): void {
    const { cancelled } = task;
    if (cancelled !== undefined) {
      const aborted = thrown === cancelled || (thrown instanceof Error && thrown.name === "AbortError");
      const cause = aborted ? undefined : thrown;
      this.#outbox.fail(task.attemptId, new Failure("CANCELLED", cancelled.message, { cause }));
      return;
    }
    if (!(thrown instanceof Failure)) {
      // The text may quote the input, so it goes into the record, which has labels, and not into a log.
      this.logger.warn(`attempt ${task.attemptId} failed: ${nameOf(thrown)}${placeOf(thrown)}`);
    }
    this.#outbox.fail(task.attemptId, thrown);
  }
}

function keyOf(attemptId: string, id: string): string {
  return `${attemptId} ${id}`;
}

function nameOf(thrown: unknown): string {
  return thrown instanceof Error ? thrown.name : typeof thrown;
}

/** Where it was thrown: places alone, no values. */
function placeOf(thrown: unknown): string {
  const stack = thrown instanceof Error ? (thrown.stack ?? "") : "";
  const places = stack.split("\n").filter((line) => /^ {4}at .*:\d+:\d+\)?$/.test(line));
  return places.slice(0, 3).map((line) => `, ${line.trim()}`).join("");
}
