/**
 * What an agent has to say to its sidecar, gathered into messages until the one writer can send the next.
 *
 * Bounds: a message holds at most 256 items of a kind, about 1 MiB of outcomes and as much of requests, so that with progress
 * and pieces it stays below the 4 MiB that a sidecar takes; what is gathered is bounded by the attempts that run; what is
 * remembered by `REMEMBERED`.
 */
import { type CallRequest, Result, WorkRequest } from "./gen/antiphon/v1/agent_service.js";
import { type ContextRequest } from "./gen/antiphon/v1/context_request.js";
import { type PartialOutput, type Progress } from "./gen/antiphon/v1/run.js";
import { failureOf } from "./failures.js";
import { type Outcome } from "./handler.js";
import { Pieces } from "./pieces.js";

const ITEMS = 256;
const BYTES = 1 << 20;
const REMEMBERED = 8;

/** A request and its bytes. */
interface Sized<Request> {
  readonly request: Request;
  readonly size: number;
}

/** Gathers; `take` gives the next message. */
export class Outbox {
  #results: Result[] = [];
  #progress = new Map<string, Progress>();
  readonly #pieces = new Pieces();
  #calls: Sized<CallRequest>[] = [];
  #asks: Sized<ContextRequest>[] = [];
  #drain = false;
  #closing = false;
  #wake: (() => void) | undefined;
  #sent: Result[][] = [];

  /** Add a success. */
  succeed(attemptId: string, outcome: Outcome): void {
    this.repeat({ attemptId, outcome });
  }

  /** Add a failure. */
  fail(attemptId: string, thrown: unknown): void {
    this.repeat({ attemptId, outcome: { $case: "failure", value: failureOf(thrown) } });
  }

  /** Add an outcome as it was sent before. */
  repeat(result: Result): void {
    this.#progress.delete(result.attemptId); // out of date
    this.#results.push(result);
    this.#something();
  }

  /** Add progress; an older one of the attempt that was not sent yet is dropped. */
  progress(attemptId: string, progress: Progress): void {
    this.#progress.set(attemptId, progress);
    this.#something();
  }

  /** Add a piece of output; one that finds no room is left out. */
  emit(attemptId: string, piece: PartialOutput): void {
    this.#pieces.add(attemptId, piece);
    this.#something();
  }

  /** Add a call of so many bytes. */
  call(request: CallRequest, size: number): void {
    this.#calls.push({ request, size });
    this.#something();
  }

  /** Add a request to shared context of so many bytes. */
  ask(request: ContextRequest, size: number): void {
    this.#asks.push({ request, size });
    this.#something();
  }

  /** Take back a call that nobody waits for any more, unless it was sent. */
  withdrawCall(request: CallRequest): void {
    this.#calls = this.#calls.filter((one) => one.request !== request);
  }

  /** Take back a request to shared context in the same way. */
  withdrawAsk(request: ContextRequest): void {
    this.#asks = this.#asks.filter((one) => one.request !== request);
  }

  /** Ask for no more work. */
  drain(): void {
    this.#drain = true;
    this.#something();
  }

  /** Whether everything was handed to the writer. */
  get empty(): boolean {
    const gathered = this.#results.length + this.#progress.size + this.#calls.length + this.#asks.length;
    return !this.#drain && gathered === 0 && this.#pieces.empty;
  }

  /** Nothing will be added for this stream. */
  close(): void {
    this.#closing = true;
    this.#something();
  }

  /** Let who waits in `take` look at its signal. */
  stir(): void {
    this.#something();
  }

  /**
   * The next message, as soon as there is something to say; undefined when all is said and the box closed, or the stream has
   * ended (call `stir` then).
   */
  async take(ended: AbortSignal): Promise<WorkRequest | undefined> {
    while (this.empty) {
      if (this.#closing || ended.aborted) return undefined;
      await new Promise<void>((resolve) => {
        this.#wake = resolve;
      });
      this.#wake = undefined;
      // What ends in the same turn of the event loop travels together.
      await new Promise((resolve) => setImmediate(resolve));
    }
    const request = WorkRequest.fromPartial({});
    // With or before the outcome of their attempt: afterwards nobody listens.
    request.partials = this.#pieces.take();
    // Of the whole: labels, references and what a failure tells can be larger than any content.
    request.results = within(this.#results, (result) => Result.encode(result).finish().length, BYTES).items;
    for (const [attemptId, progress] of this.#progress) {
      if (request.progress.length === ITEMS) break;
      this.#progress.delete(attemptId);
      request.progress.push({ attemptId, progress });
    }
    const calls = within(this.#calls, ({ size }) => size, BYTES);
    request.calls = calls.items.map((call) => call.request);
    const asks = within(this.#asks, ({ size }) => size, BYTES - calls.bytes);
    request.contextRequests = asks.items.map((ask) => ask.request);
    if (this.#results.length === 0) {
      // Drain comes last, so that the sidecar has every outcome before it looks whether anything is left.
      request.drain = this.#drain;
      this.#drain = false;
    }
    return request;
  }

  /**
   * A message that could not be sent goes first next time, without pieces, which are late by then; calls are the business of
   * who waits for them.
   */
  putBack(request: WorkRequest): void {
    this.#results = [...request.results, ...this.#results];
    for (const { attemptId, progress } of request.progress) {
      if (progress !== undefined && !this.#progress.has(attemptId)) this.#progress.set(attemptId, progress);
    }
  }

  /** Remember the outcomes in a message that was handed to the transport, in case they did not arrive. */
  sent(request: WorkRequest): void {
    if (request.results.length === 0) return;
    this.#sent.push(request.results);
    if (this.#sent.length > REMEMBERED) this.#sent.shift();
  }

  /** The newest outcomes handed to a stream that has broken since, by attempt id; forgets all others. */
  recall(): Map<string, Result> {
    const recalled = new Map(this.#sent.flat().map((result) => [result.attemptId, result]));
    this.#sent = [];
    return recalled;
  }

  /** Ids of attempts whose outcomes were not sent yet. */
  waiting(): string[] {
    return this.#results.map((result) => result.attemptId);
  }

  /** Begin a new stream: calls and drain, which concern a stream, are to be said anew. */
  reopen(): void {
    this.#calls = [];
    this.#asks = [];
    this.#drain = this.#closing = false;
  }

  #something(): void {
    this.#wake?.();
  }
}

/** Takes the first items, as many as one message may hold and there is room for; at least one, if there is any. */
function within<Item>(items: Item[], size: (item: Item) => number, room: number): { items: Item[]; bytes: number } {
  let count = 0;
  let bytes = 0;
  for (const item of items) {
    const more = size(item);
    if (count === ITEMS || (count > 0 && bytes + more > room)) break;
    count += 1;
    bytes += more;
  }
  return { items: items.splice(0, count), bytes };
}
