/**
 * How every call is made: with a deadline, with trace context, and again when the answer says that again is right.
 *
 * A RETRY error is repeated after the delay the server asks for, jittered, at most five times and within the deadline of
 * the whole. Streams that resume by a cursor go by the same rules, but what bounds them is the time since the first failure
 * of those in a row: one that has nothing to say is none.
 */
import { randomUUID } from "node:crypto";
import { performance } from "node:perf_hooks";

import { type ClientReadableStream, Metadata } from "@grpc/grpc-js";

import { type Connection, type Generation } from "./connection.js";
import { AntiphonError, errorOf, fromServiceError, isServiceError, RetryableError, Unavailable } from "./errors.js";
import { traceparent } from "./trace.js";
import { after, pause } from "./waiting.js";

/** How often a unary call is made again at most. */
export const RETRIES = 5;
const BACKOFF_FIRST = 100;
const BACKOFF_LAST = 2000;
/** Milliseconds after which a stream without a message is one to a server that is there: a dead peer is noticed before. */
const SETTLED = 40_000;

/** What a server says that cannot serve now, where another one may. */
const CANNOT_SERVE = new Set(["NOT_SERVING", "STORE_UNAVAILABLE"]);

/** A unary method as the generated service definitions describe it. */
export interface UnaryMethod<Request, Response> {
  readonly path: string;
  readonly requestStream: false;
  readonly responseStream: false;
  readonly requestSerialize: (value: Request) => Buffer;
  readonly responseDeserialize: (value: Buffer) => Response;
}

/** A method that answers with a stream. */
export interface ServerStreamMethod<Request, Response> {
  readonly path: string;
  readonly requestStream: false;
  readonly responseStream: true;
  readonly requestSerialize: (value: Request) => Buffer;
  readonly responseDeserialize: (value: Buffer) => Response;
}

/** How long one call may take. */
export interface CallTimes {
  /** Milliseconds for the whole, tries included; the client's own by default. */
  timeout?: number;
  /** Aborted to give the call up. */
  signal?: AbortSignal;
}

/** For what takes several calls: what the next of them may take, whenever it is asked. */
export function remaining(times: CallTimes): () => CallTimes {
  if (times.timeout === undefined) return () => times;
  const end = performance.now() + times.timeout;
  return () => ({ ...times, timeout: Math.max(1, Math.ceil(end - performance.now())) });
}

/** Do `work` with a signal that is aborted after the time there is. Rejects with DEADLINE_EXCEEDED then. */
export async function limited<Result>(
  times: CallTimes,
  what: string,
  work: (signal: AbortSignal | undefined) => Promise<Result>,
): Promise<Result> {
  if (times.timeout === undefined) return await work(times.signal);
  const late = errorOf("DEADLINE_EXCEEDED", `${what} within ${String(times.timeout)} ms`);
  const over = new AbortController();
  const stop = after(times.timeout, () => { over.abort(late); });
  try {
    return await work(times.signal === undefined ? over.signal : AbortSignal.any([times.signal, over.signal]));
  } finally {
    stop();
  }
}

/** The request id that was given; a new one in place of none and of an empty one. */
export function requestIdOf(given: string | undefined): string {
  return given === undefined || given === "" ? randomUUID() : given;
}

/** Call metadata: the trace context. */
export function metadata(trace = traceparent()): Metadata {
  const made = new Metadata();
  made.set("traceparent", trace);
  return made;
}

/** Milliseconds before the next try: what the server asks for and somewhat more, or a doubling back-off. */
export function pauseBefore(error: RetryableError, failures: number): number {
  if (error.retryAfter !== undefined) return error.retryAfter * (1 + Math.random() / 4);
  return Math.min(BACKOFF_LAST, BACKOFF_FIRST * 2 ** Math.min(failures, 10)) * (0.5 + Math.random() / 2);
}

/** Whether, when and on which channel to try again. */
export class Tries {
  #failures = 0;
  #end: number | undefined;
  #settled: NodeJS.Timeout | undefined;

  /** With `most` tries again all of them end within `limit` milliseconds; without, that bounds the time since the first failure. */
  constructor(
    readonly connection: Connection,
    readonly limit: number,
    readonly most = Infinity,
    readonly signal?: AbortSignal,
  ) {
    if (most !== Infinity) this.#end = performance.now() + limit;
  }

  /** There was progress: start counting anew. */
  heard(): void {
    this.#failures = 0;
    this.#end = undefined;
  }

  /** Milliseconds left for a call, more than 0. */
  get left(): number {
    return Math.max(1, (this.#end ?? Infinity) - performance.now());
  }

  /** The current generation for a stream, until it is given back. A server that has kept it for a while is there. */
  take(): Generation {
    const generation = this.connection.take();
    const look = (): void => { if (generation.connected) this.heard(); };
    this.#settled = setTimeout(look, Math.min(SETTLED, this.limit)).unref();
    return generation;
  }

  /** The stream on it is over. */
  giveBack(generation: Generation): void {
    clearTimeout(this.#settled);
    this.connection.giveBack(generation);
  }

  #expired(): AntiphonError | undefined {
    const when = this.connection.expired?.toISOString();
    if (when === undefined) return undefined;
    const text = `no server answers to a certificate that expired at ${when}; join again: antiphon certs join TOKEN`;
    return errorOf("CERTIFICATE_EXPIRED", text, { metadata: { expire_time: when } });
  }

  /** Resolves when it is time for another try. Rejects with what was told when there is to be none. */
  async after(told: AntiphonError, generation: Generation): Promise<void> {
    clearTimeout(this.#settled);
    this.signal?.throwIfAborted();
    const error = told instanceof Unavailable ? (this.#expired() ?? told) : told;
    if (error instanceof Unavailable || CANNOT_SERVE.has(error.reason)) this.connection.unreachable(generation);
    this.#failures += 1;
    this.#end ??= performance.now() + this.limit;
    // A stream may outlive the certificate it was opened with, or that may have been replaced a moment ago.
    if (
      error.reason === "CERTIFICATE_EXPIRED" &&
      (generation.retired || (this.#failures === 1 && (await this.connection.refresh())))
    ) {
      return;
    }
    if (!(error instanceof RetryableError) || this.#failures > this.most) throw error;
    const wait = pauseBefore(error, this.#failures - 1);
    if (performance.now() + wait >= this.#end) throw error;
    await pause(wait, this.signal);
  }
}

/** One unary call, once. Rejects with an `AntiphonError`, or with the signal's reason. */
export async function once<Request, Response>(
  generation: Generation,
  method: UnaryMethod<Request, Response>,
  request: Request,
  headers: Metadata,
  time: number,
  signal?: AbortSignal,
): Promise<Response> {
  signal?.throwIfAborted();
  const { path, requestSerialize, responseDeserialize } = method;
  const bytes = requestSerialize(request); // here a mistake is the caller's TypeError, there a broken call to try again
  return await new Promise<Response>((resolve, reject) => {
    const options = { deadline: Date.now() + time };
    const call = generation.channel.makeUnaryRequest(
      path, asIs, responseDeserialize, bytes, headers, options,
      (error, response) => {
        signal?.removeEventListener("abort", abort);
        if (error === null && response !== undefined) resolve(response);
        else if (signal?.aborted === true) reject(signal.reason as Error);
        else reject(errorOfCall(error));
      },
    );
    const abort = (): void => { call.cancel(); };
    signal?.addEventListener("abort", abort, { once: true });
  });
}

/** The answer to one call within `limit` milliseconds, tries and pauses included. Rejects with an `AntiphonError`. */
export async function call<Response>(
  connection: Connection,
  send: (generation: Generation, left: number) => Promise<Response>,
  limit: number,
  signal?: AbortSignal,
): Promise<Response> {
  const tries = new Tries(connection, limit, RETRIES, signal);
  for (;;) {
    const generation = connection.take();
    try {
      return await send(generation, tries.left);
    } catch (error) {
      if (!(error instanceof AntiphonError)) throw error;
      await tries.after(error, generation);
    } finally {
      connection.giveBack(generation);
    }
  }
}

/**
 * The messages of a stream that is opened again where it broke (`request` knows where), until it ends whole. Gives up
 * `patience` milliseconds after the first failure of those in a row. Rejects with an `AntiphonError`, or with the signal's reason.
 */
export async function* resume<Request, Response>(
  connection: Connection,
  method: ServerStreamMethod<Request, Response>,
  request: () => Request,
  patience: number,
  signal?: AbortSignal,
): AsyncGenerator<Response, void> {
  const tries = new Tries(connection, patience, Infinity, signal);
  for (;;) {
    signal?.throwIfAborted();
    const generation = tries.take();
    let stream: ClientReadableStream<Response> | undefined;
    const abort = (): void => { stream?.cancel(); };
    signal?.addEventListener("abort", abort, { once: true });
    try {
      stream = open(generation, method, request());
      for await (const message of stream as AsyncIterable<Response>) {
        tries.heard();
        yield message;
      }
      return;
    } catch (broken) {
      if (!isServiceError(broken)) throw broken;
      await tries.after(fromServiceError(broken), generation);
    } finally {
      signal?.removeEventListener("abort", abort);
      stream?.cancel();
      tries.giveBack(generation);
    }
  }
}

function open<Request, Response>(
  generation: Generation,
  method: ServerStreamMethod<Request, Response>,
  request: Request,
): ClientReadableStream<Response> {
  const { path, requestSerialize, responseDeserialize } = method;
  const { channel } = generation;
  const bytes = requestSerialize(request);
  const stream = channel.makeServerStreamRequest(path, asIs, responseDeserialize, bytes, metadata());
  stream.on("error", () => undefined); // reading tells; without a listener it would end the process
  return stream;
}

function asIs(bytes: Buffer): Buffer {
  return bytes;
}

function errorOfCall(error: unknown): Error {
  if (isServiceError(error)) return fromServiceError(error);
  return error instanceof Error ? error : new TypeError("the call ended without an answer");
}
