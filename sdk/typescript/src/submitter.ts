/**
 * Many submissions over one stream: batched, answered in any order, held back when too many are on their way.
 *
 * Invariants: at most `inFlight` submissions have no answer; each is answered once, by a run or by an error; after a broken
 * stream everything unanswered is sent again with the same request ids, which are the same runs.
 */
import { type ClientDuplexStream } from "@grpc/grpc-js";

import { metadata, pauseBefore, RETRIES, Tries } from "./calls.js";
import { type Connection, type Generation } from "./connection.js";
import { type AntiphonError, fromErrorMessage, fromServiceError, isServiceError, RetryableError, SetupError, Unavailable } from "./errors.js";
import { ErrorReason } from "./gen/antiphon/v1/error.js";
import { type Run } from "./gen/antiphon/v1/run.js";
import {
  RunServiceService,
  type SubmitRunRequest,
  type SubmitRunResult,
  type SubmitRunsRequest,
  type SubmitRunsResponse,
} from "./gen/antiphon/v1/run_service.js";
import { type Payload } from "./payload.js";
import { talk, write } from "./stream.js";
import { type GraphSource, submission, type SubmitOptions } from "./submission.js";
import { Deferred, TimedOut } from "./waiting.js";

const ITEMS = 256;
const BYTES = 1 << 20;
/** Bytes of a message with one submission: a server ends the stream for more, and with it all that is on its way. */
const MOST = 4 << 20;
/** Bytes of a message around its one submission, and some. */
const FRAME = 16;

type Stream = ClientDuplexStream<SubmitRunsRequest, SubmitRunsResponse>;

interface Pending {
  readonly request: SubmitRunRequest;
  /** Bytes of it. */
  readonly size: number;
  readonly answer: Deferred<Run>;
  failures: number;
  /** When it was refused first. */
  since: number | undefined;
  later: NodeJS.Timeout | undefined;
}

/** A submission that was taken. */
export interface Submitted {
  /** The run, as it was committed or as it ended. Rejects with an `AntiphonError` when it is refused. */
  readonly answer: Promise<Run>;
}

/** Submits runs through one stream; made by `Client.submitter`, ended by `close` or `await using`. */
export class Submitter {
  readonly #upload: (data: Buffer) => Promise<Payload>;
  readonly #tries: Tries;
  readonly #patience: number;
  readonly #stop = new AbortController();
  readonly #life: Promise<void>;
  readonly #pending = new Map<string, Pending>();
  readonly #waiting: Deferred[] = [];
  #places: number;
  #unsent: Pending[] = [];
  #wake: (() => void) | undefined;
  #idle: Deferred | undefined;
  #ended: unknown;
  #closed = false;

  /** For the client. */
  constructor(connection: Connection, upload: (data: Buffer) => Promise<Payload>, inFlight: number, patience: number) {
    this.#upload = upload;
    this.#places = inFlight;
    this.#patience = patience;
    this.#tries = new Tries(connection, patience, Infinity, this.#stop.signal);
    this.#life = this.#stayConnected().catch((error: unknown) => {
      if (!this.#stop.signal.aborted) this.#ended = error; // else it is the end that `close` asked for
      this.#giveUp(error);
    });
  }

  /**
   * Take a submission as soon as there is room for it, and return what will be its answer. Arguments as of `Client.submit`.
   * Rejects with the error that ended the stream, if one did.
   */
  async submit(graph: GraphSource, input?: unknown, options: SubmitOptions = {}): Promise<Submitted> {
    const request = await submission(this.#upload, graph, input, options);
    const size = RunServiceService.submitRun.requestSerialize(request).length; // what cannot be encoded would break the stream of all
    if (size + FRAME > MOST) {
      const answer = Promise.reject<Run>(tooLarge());
      answer.catch(() => undefined); // as below
      return { answer };
    }
    while (!this.#taken()) {
      const turn = new Deferred();
      this.#waiting.push(turn);
      await turn.promise;
    }
    // From the place on nothing is awaited: what is not registered yet, neither an answer nor the end would reach.
    if (this.#pending.has(request.requestId)) {
      this.#free();
      throw new TypeError(`requestId ${request.requestId} is on its way already`);
    }
    const pending: Pending = { request, size, answer: new Deferred<Run>(), failures: 0, since: undefined, later: undefined };
    // Whoever does not look at an answer does not want to be ended by it.
    pending.answer.promise.catch(() => undefined);
    this.#pending.set(request.requestId, pending);
    this.#queue(pending);
    return { answer: pending.answer.promise };
  }

  /** Wait for all answers, and end the stream. Rejects with what ended it before its time. */
  async close(): Promise<void> {
    this.#closed = true;
    if (this.#pending.size > 0 && this.#ended === undefined) {
      this.#idle = new Deferred();
      await Promise.race([this.#idle.promise, this.#life]);
    }
    const error = this.#ended;
    this.#stop.abort(new SetupError("the submitter is closed"));
    await this.#life;
    if (error !== undefined) throw error as Error;
  }

  /** `close`, for `await using`. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  /** Whether there was a place, which is taken now. Throws what has ended the submitter. */
  #taken(): boolean {
    if (this.#closed) throw new SetupError("the submitter is closed; make another with client.submitter()");
    if (this.#ended !== undefined) throw this.#ended as Error;
    if (this.#places === 0) return false;
    this.#places -= 1;
    return true;
  }

  #free(): void {
    this.#places += 1;
    this.#waiting.shift()?.resolve();
  }

  async #stayConnected(): Promise<void> {
    for (;;) {
      const generation = this.#tries.take();
      try {
        const error = await this.#attach(generation);
        if (this.#pending.size === 0) this.#tries.heard(); // a stream that nobody uses may be ended at will
        await this.#tries.after(error, generation);
      } finally {
        this.#tries.giveBack(generation);
      }
    }
  }

  /** One stream to its end: why it ended. */
  async #attach(generation: Generation): Promise<AntiphonError> {
    this.#unsent = [...this.#pending.values()].filter((one) => one.later === undefined);
    const { path, requestSerialize, responseDeserialize } = RunServiceService.submitRuns;
    const stream = generation.channel.makeBidiStreamRequest(path, requestSerialize, responseDeserialize, metadata());
    stream.on("error", () => undefined); // reading tells; without a listener it would end the process
    try {
      await talk(this.#read(stream), (ended) => this.#write(stream, ended), this.#stop.signal);
      return new Unavailable("the server ended the stream");
    } catch (broken) {
      if (isServiceError(broken)) return fromServiceError(broken);
      if (broken instanceof TimedOut) return new Unavailable(broken.message);
      throw broken;
    } finally {
      stream.cancel();
    }
  }

  async #read(stream: Stream): Promise<void> {
    for await (const response of stream as AsyncIterable<SubmitRunsResponse>) {
      this.#tries.heard();
      for (const result of response.results) this.#answer(result);
    }
  }

  async #write(stream: Stream, ended: AbortSignal): Promise<void> {
    ended.addEventListener("abort", () => this.#wake?.(), { once: true });
    while (!ended.aborted) {
      if (this.#unsent.length === 0) {
        await new Promise<void>((resolve) => { this.#wake = resolve; });
        await new Promise((resolve) => setImmediate(resolve)); // what is submitted in one turn travels together
        continue;
      }
      await write(stream, { submissions: this.#batch() }, ended);
    }
  }

  #batch(): SubmitRunRequest[] {
    let count = 0;
    let bytes = 0;
    for (const { size } of this.#unsent) {
      bytes += size;
      if (count === ITEMS || (count > 0 && bytes > BYTES)) break;
      count += 1;
    }
    return this.#unsent.splice(0, count).map((one) => one.request);
  }

  #queue(pending: Pending): void {
    pending.later = undefined;
    this.#unsent.push(pending);
    this.#wake?.();
  }

  #answer(result: SubmitRunResult): void {
    const pending = this.#pending.get(result.requestId);
    if (pending === undefined) return; // answered before, on a stream that broke
    if (result.result?.$case === "run") {
      pending.answer.resolve(result.result.value);
    } else {
      const error = result.result === undefined ? new Unavailable("the answer is empty") : fromErrorMessage(result.result.value);
      pending.since ??= performance.now();
      // A shard changes hands for longer than a few tries take, when its owner ends and the machine is busy.
      const patient = error.reason === "SHARD_MOVED" && performance.now() - pending.since < this.#patience;
      if (error instanceof RetryableError && (pending.failures < RETRIES || patient)) {
        pending.later = setTimeout(() => { this.#queue(pending); }, pauseBefore(error, pending.failures));
        pending.failures += 1;
        return;
      }
      pending.answer.reject(error);
    }
    this.#pending.delete(result.requestId);
    this.#free();
    if (this.#pending.size === 0) this.#idle?.resolve();
  }

  #giveUp(error: unknown): void {
    for (const pending of this.#pending.values()) {
      clearTimeout(pending.later);
      pending.answer.reject(error);
    }
    this.#pending.clear();
    this.#unsent = [];
    for (const turn of this.#waiting.splice(0)) turn.resolve();
  }
}

/** What a server says of one that comes by `Client.submit`. */
function tooLarge(): AntiphonError {
  return fromErrorMessage({
    reason: ErrorReason.MESSAGE_TOO_LARGE,
    message: `the message is larger than ${String(MOST)} bytes; send large values through PayloadService`,
    metadata: { limit: String(MOST) },
    violations: [],
    retryDelay: undefined,
  });
}
