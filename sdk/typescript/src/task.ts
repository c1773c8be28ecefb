/**
 * What a handler can know of its attempt and do on its behalf.
 *
 * A task reads its assignment when asked: most handlers ask nothing, and thousands run each second.
 */
import { AsyncLocalStorage } from "node:async_hooks";
import { performance } from "node:perf_hooks";

import { durationOf, milliseconds } from "./errors.js";
import { CallFailed, Failure, invalidOutput } from "./failures.js";
import { type Assignment, CallRequest, type CallResponse } from "./gen/antiphon/v1/agent_service.js";
import { type ContextRequest, type ContextResponse } from "./gen/antiphon/v1/context_request.js";
import { type PartialOutput } from "./gen/antiphon/v1/run.js";
import { type Holding } from "./holding.js";
import { type Logger, taskLogger } from "./log.js";
import { Payload, payloadOf, travelling, valueOf } from "./payload.js";
import { piecesOf } from "./pieces.js";
import { checkOf, type FromSchema, type JsonSchema } from "./schema.js";
import { SharedContext } from "./shared.js";
import { begin } from "./waiting.js";

const MESSAGE = 1024;
const CALL_ID = 64; // characters; a sidecar answers longer ones cut, so that their answers find nobody

/** What a task needs of its worker. */
export interface Line {
  readonly logger: Logger;
  /** The largest inline payload in bytes. */
  readonly inlineLimit: number;
  progress(attemptId: string, fraction: number, message: string): void;
  emit(attemptId: string, pieces: readonly PartialOutput[]): void;
  call(request: CallRequest, onPartial?: OnPartial): Promise<CallResponse>;
  ask(request: ContextRequest): Promise<ContextResponse>;
  holds(attemptId: string, holding: Holding): () => void;
}

/** Is shown a piece of what a call is making. */
export type OnPartial = (piece: PartialOutput) => void;

/** How to call another capability. */
export interface CallOptions<Schema> {
  /** What the answer must be: a JSON Schema, which gives its type, or `Payload` for the envelope itself. */
  returns?: Schema;
  /** The same when the handler runs again, 1 to 64 characters; by default calls are numbered in their order. */
  callId?: string;
  /** Longest wait in milliseconds; by default what the attempt has left. */
  timeout?: number;
  /** Shown the pieces that the called agent emits, as far as they come; what it throws ends the call. */
  onPartial?: OnPartial;
}

/** What a call answers. */
export type Answer<Schema> = Schema extends typeof Payload
  ? Payload
  : Schema extends JsonSchema
    ? FromSchema<Schema>
    : unknown;

const current = new AsyncLocalStorage<Task>();

/** The task that this code runs for; undefined outside of a handler. */
export function currentTask(): Task | undefined {
  return current.getStore();
}

/** Run a handler so that `currentTask` knows its task. */
export function inTask<Result>(task: Task, run: () => Result): Result {
  return current.run(task, run);
}

/** One attempt, seen by its handler. */
export class Task {
  readonly #assignment: Assignment;
  readonly #line: Line;
  readonly #expires: number | undefined;
  #calls = 0;
  #cancelled: Failure | undefined;
  #controller: AbortController | undefined;

  /** For the worker. `received` is when the assignment came, in milliseconds of `performance.now()`. */
  constructor(assignment: Assignment, line: Line, received: number) {
    this.#assignment = assignment;
    this.#line = line;
    const left = assignment.remainingTimeout;
    this.#expires = left === undefined ? undefined : received + milliseconds(left);
  }

  /** Identifies this try. */
  get attemptId(): string {
    return this.#assignment.attemptId;
  }

  /** Number of the attempt, counted from 1. */
  get number(): number {
    return this.#assignment.number;
  }

  /** The same for every attempt of the task; hand it to whatever takes effect. */
  get idempotencyKey(): string {
    return this.#assignment.idempotencyKey;
  }

  /** The run the task belongs to. */
  get runId(): string {
    return this.#assignment.attemptId.split("/", 1)[0] ?? "";
  }

  /** Name and version, such as text.summarize@1. */
  get capability(): string {
    return `${this.#assignment.capability}@${this.#assignment.version}`;
  }

  /** The tenant. */
  get namespace(): string {
    return this.#assignment.namespace;
  }

  /** SPIFFE id on whose behalf the run works. */
  get principal(): string {
    return this.#assignment.principal;
  }

  /** Attempts, outermost first, that called for this one. */
  get delegation(): readonly string[] {
    return this.#assignment.delegation;
  }

  /** W3C traceparent of this attempt; pass it on in calls to other services. */
  get traceparent(): string {
    return this.#assignment.traceparent;
  }

  /** The input as it came, with media type and labels. */
  get input(): Payload {
    return new Payload(this.#assignment.input ?? payloadOf(null));
  }

  /** When the attempt will be cancelled; undefined when it has no timeout. */
  get deadline(): Date | undefined {
    const left = this.remaining;
    return left === undefined ? undefined : new Date(Date.now() + left);
  }

  /** Milliseconds left, never negative; undefined when the attempt has no timeout. */
  get remaining(): number | undefined {
    return this.#expires === undefined ? undefined : Math.max(0, this.#expires - performance.now());
  }

  /**
   * Aborted when the attempt is to stop, with a CANCELLED failure as its reason. Hand it to everything that takes one: a
   * handler that does not look goes on, and keeps its place, until it ends.
   */
  get signal(): AbortSignal {
    if (this.#controller === undefined) {
      this.#controller = new AbortController();
      if (this.#cancelled !== undefined) this.#controller.abort(this.#cancelled);
    }
    return this.#controller.signal;
  }

  /** A logger that adds the ids of this attempt. It adds no payload; neither should its user. */
  get log(): Logger {
    const { attemptId, runId, capability } = this;
    return taskLogger(this.#line.logger, attemptId, { run_id: runId, attempt_id: attemptId, capability });
  }

  /**
   * Say how far the attempt is: `fraction` 0 to 1 (0 when unknown) and a text of at most 1,024 characters. Never waits;
   * only the newest of several is sent.
   */
  progress(fraction: number, message = ""): void {
    const sound = Number.isNaN(fraction) ? 0 : Math.min(Math.max(fraction, 0), 1);
    this.#line.progress(this.attemptId, sound, message.slice(0, MESSAGE).toWellFormed());
  }

  /**
   * Show a piece of the output before the output: a string as text, as a language model makes it, or any value as JSON.
   *
   * Whoever watches the run, or has called this attempt, sees pieces within moments and under the rules of the output: where
   * policy refuses or redacts that, its pieces are withheld. A `Payload` carries labels of its own. Never waits: what finds
   * no room on its way is left out. What the handler returns is the output; pieces are kept nowhere. Throws an
   * INVALID_OUTPUT failure for what cannot travel, or for more than 16 KiB of JSON.
   */
  emit(value: unknown): void {
    this.#line.emit(this.attemptId, piecesOf(value));
  }

  /** What the team shares: entries and claims, with the rights of this task. */
  get context(): SharedContext {
    return new SharedContext(this, this.#assignment.attemptToken, this.#line);
  }

  /**
   * Ask for another capability, such as "text.summarize@1", on behalf of this attempt, and return its output.
   *
   * When the handler runs again, the call with the same `callId` and input is answered from the record and not made
   * again, unless it failed; without one, calls are numbered in their order, so make them in the same order each time.
   * Throws `CallFailed`; an INVALID_OUTPUT failure when the input cannot travel, is larger than 2 MiB (upload it, and
   * hand on the `Payload`), or the answer does not fit `returns`; a `TypeError` for a `callId` that is none.
   */
  call<const Schema extends JsonSchema | typeof Payload | undefined = undefined>(
    capability: string,
    input?: unknown,
    options: CallOptions<Schema> = {},
  ): Promise<Answer<Schema>> {
    return begin(() => this.#call(capability, input, options));
  }

  /** For the worker: the attempt is to stop; why, if it is. */
  get cancelled(): Failure | undefined {
    return this.#cancelled;
  }

  /** For the worker: tell the handler to stop. */
  cancel(reason: string): void {
    if (this.#cancelled !== undefined) return;
    this.#cancelled = new Failure("CANCELLED", `cancelled while it ran${reason === "" ? "" : `: ${reason}`}`);
    this.#controller?.abort(this.#cancelled);
  }

  async #call<Schema extends JsonSchema | typeof Payload | undefined>(
    capability: string,
    input: unknown,
    options: CallOptions<Schema>,
  ): Promise<Answer<Schema>> {
    this.#calls += 1;
    const request = CallRequest.fromPartial({
      callId: callIdOf(options.callId ?? String(this.#calls)),
      attemptId: this.attemptId,
      attemptToken: this.#assignment.attemptToken,
      capability,
    });
    request.input = travelling(`the input of the call to ${capability}`, input, this.#line.inlineLimit);
    if (options.timeout !== undefined) request.timeout = durationOf(options.timeout);
    const { outcome } = await this.#line.call(request, options.onPartial);
    if (outcome?.$case === "failure") throw new CallFailed(capability, outcome.value);
    if (options.returns === Payload) return new Payload(outcome?.value ?? payloadOf(null)) as Answer<Schema>;
    return answerOf(capability, () => valueOf(outcome?.value), options.returns) as Answer<Schema>;
  }
}

/** Throws a `TypeError` for what the answer could not be told by. */
function callIdOf(callId: string): string {
  if (callId !== "" && callId.isWellFormed() && Array.from(callId.slice(0, 2 * CALL_ID + 1)).length <= CALL_ID) return callId;
  throw new TypeError(`callId ${JSON.stringify(callId.slice(0, CALL_ID))} is none; use 1 to ${String(CALL_ID)} characters`);
}

function answerOf(capability: string, take: () => unknown, schema: JsonSchema | typeof Payload | undefined): unknown {
  let value: unknown;
  try {
    value = take();
  } catch (cause) {
    throw invalidOutput(`the answer of ${capability} does not fit: ${(cause as Error).message}`, { cause });
  }
  if (schema === undefined || schema === Payload) return value;
  const mismatch = checkOf(schema as JsonSchema)(value);
  if (mismatch === undefined) return value;
  const place = mismatch.field === "" ? "" : `${mismatch.field} `;
  throw invalidOutput(`the answer of ${capability} does not fit: ${place}${mismatch.message}`, { field: mismatch.field });
}
