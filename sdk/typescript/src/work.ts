/**
 * The Work stream of an agent to its sidecar, dialled again for as long as it breaks.
 *
 * Invariants: one writer a stream; an outcome that could not be sent waits for the next stream; one that may have been
 * lost with a stream is repeated when the attempt is assigned again, and not worked out again; a refusal that another try
 * cannot change ends the worker with its error.
 */
import { performance } from "node:perf_hooks";

import { Client as Channel, type ClientDuplexStream, credentials, Metadata, status } from "@grpc/grpc-js";

import { Attempts } from "./attempts.js";
import { type AntiphonError, fromServiceError, isServiceError, Unavailable } from "./errors.js";
import {
  AgentServiceService,
  type Result,
  WorkRequest,
  type WorkResponse,
} from "./gen/antiphon/v1/agent_service.js";
import { type AgentDescription } from "./gen/antiphon/v1/registry.js";
import { type Handler } from "./handler.js";
import { type Logger } from "./log.js";
import { Outbox } from "./outbox.js";
import { talk, write } from "./stream.js";
import { Deferred, pause, TimedOut, within } from "./waiting.js";

const PROTOCOL_VERSION = 1;
const HELLO = 10_000;
const BACKOFF_FIRST = 50;
const BACKOFF_LAST = 2000;
const OPTIONS = {
  "grpc.max_receive_message_length": 4 << 20,
  "grpc.use_local_subchannel_pool": 1, // a new channel dials at once, whatever the back-off of the one before
};

type Stream = ClientDuplexStream<WorkRequest, WorkResponse>;

/** Works for the sidecar at one socket. `run` is the whole life; `drain` lets it end. */
export class Worker {
  readonly #path: string;
  readonly #description: AgentDescription;
  readonly #logger: Logger;
  readonly #outbox = new Outbox();
  readonly #attempts: Attempts;
  readonly #drained = new Deferred();
  #draining = false;
  #attached = false;
  #recalled: ReadonlyMap<string, Result> = new Map();
  #before: ReadonlySet<string> = new Set();

  constructor(path: string, description: AgentDescription, handlers: ReadonlyMap<string, Handler>, logger: Logger) {
    this.#path = path;
    this.#description = description;
    this.#logger = logger;
    this.#attempts = new Attempts(handlers, this.#outbox, logger);
  }

  /**
   * Work until drained; attempts may go on for `grace` milliseconds then. Whether all of them ended. Rejects with the
   * `AntiphonError` of a refusal, and with the signal's reason when it stops everything at once.
   */
  async run(grace: number, signal: AbortSignal): Promise<boolean> {
    const over = new AbortController();
    const stop = AbortSignal.any([signal, over.signal]);
    const life = this.#stayAttached(stop);
    try {
      await Promise.race([life, within(this.#drained.promise, undefined, stop)]);
      await within(life, grace, signal);
      return true;
    } catch (error) {
      if (!(error instanceof TimedOut)) throw error;
      this.#logger.warn(`${String(this.#attempts.size)} attempts did not end within ${String(grace)} ms and are given up`);
      return false;
    } finally {
      this.#attempts.stop();
      over.abort();
      await life.catch(() => undefined); // thrown above, or ended by us
    }
  }

  /** Finish what was assigned, take no more; then `run` resolves. */
  drain(): void {
    this.#draining = true;
    this.#outbox.drain();
    this.#drained.resolve();
  }

  async #stayAttached(stop: AbortSignal): Promise<void> {
    let failures = 0;
    let told = "";
    while (!(this.#draining && this.#attempts.size === 0 && this.#outbox.empty)) {
      const began = performance.now();
      let trouble = "the sidecar ended the stream";
      try {
        await this.#attach(stop);
      } catch (broken) {
        stop.throwIfAborted();
        trouble = troubleOf(broken);
      }
      // A sidecar gives up what an agent was working on when its stream ends, and would take this process for the agent
      // again in place of the one that has been started meanwhile.
      if (this.#draining) break;
      failures = performance.now() - began > BACKOFF_LAST ? 0 : failures + 1;
      if (failures <= 1 || trouble !== told) {
        // Once, and not for every try.
        told = trouble;
        this.#logger.warn(`no stream at ${this.#path}, dialling until there is one: ${trouble}`);
      }
      await pause(Math.min(BACKOFF_LAST, BACKOFF_FIRST * 2 ** Math.min(failures, 10)) * (0.5 + Math.random() / 2), stop);
    }
  }

  /** One stream, from hello to its end. Rejects with gRPC's error, or `TimedOut` when the other side is stuck. */
  async #attach(stop: AbortSignal): Promise<void> {
    // Else nothing was said since the stream before, and what that one may have lost still may be.
    if (this.#attached) this.#recalled = this.#outbox.recall();
    this.#attached = false;
    this.#before = new Set([...this.#outbox.waiting(), ...this.#attempts.running()]);
    const channel = new Channel(`unix:${this.#path}`, credentials.createInsecure(), OPTIONS);
    const { path, requestSerialize, responseDeserialize } = AgentServiceService.work;
    const stream = channel.makeBidiStreamRequest(path, requestSerialize, responseDeserialize, new Metadata());
    stream.on("error", () => undefined); // reading tells; without a listener it would end the process
    try {
      const messages = stream[Symbol.asyncIterator]() as AsyncIterator<WorkResponse, undefined>;
      const hello = { description: this.#description, protocolVersion: PROTOCOL_VERSION };
      // A refusal ends the stream before the message is written; reading tells why.
      void write(stream, WorkRequest.fromPartial({ hello }), stop).catch(() => undefined);
      const first = await within(messages.next(), HELLO, stop);
      if (first.done === true) return;
      const { welcome } = first.value;
      if (welcome !== undefined && welcome.inlineLimit > 0) this.#attempts.inlineLimit = welcome.inlineLimit;
      this.#logger.info(`attached as ${welcome?.agent ?? ""} in namespace ${welcome?.namespace ?? ""}`);
      this.#attached = true;
      this.#outbox.reopen();
      this.#attempts.repeatRequests();
      if (this.#draining) this.#outbox.drain();
      await talk(this.#read(messages, first.value), (ended) => this.#write(stream, ended), stop);
    } finally {
      stream.cancel();
      channel.close();
    }
  }

  async #read(messages: AsyncIterator<WorkResponse, undefined>, first: WorkResponse): Promise<void> {
    let closing = false;
    let ended = false;
    // By then there may be another stream, which is not the one that drains.
    const close = (): void => { if (!ended) this.#outbox.close(); };
    try {
      for (let message: WorkResponse | undefined = first; message !== undefined; message = (await messages.next()).value) {
        this.#receive(message);
        if (message.drain && !closing) {
          closing = true;
          this.#attempts.flush();
          void this.#attempts.idle().then(close);
        }
      }
    } finally {
      ended = true;
    }
  }

  #receive(message: WorkResponse): void {
    const now = performance.now();
    for (const assignment of message.assignments) {
      const known = this.#recalled.get(assignment.attemptId);
      if (known !== undefined) this.#outbox.repeat(known);
      // What was begun before this stream and has ended since has its outcome on its way.
      else if (!this.#before.has(assignment.attemptId) || this.#attempts.has(assignment.attemptId)) {
        this.#attempts.assign(assignment, now);
      }
    }
    for (const { attemptId, reason } of message.cancels) this.#attempts.cancel(attemptId, reason);
    for (const partial of message.callPartials) this.#attempts.made(partial);
    for (const response of message.callResults) this.#attempts.answer(response);
    for (const response of message.contextResponses) this.#attempts.told(response);
    for (const loss of message.claimLosses) this.#attempts.claimLost(loss);
  }

  async #write(stream: Stream, ended: AbortSignal): Promise<void> {
    ended.addEventListener("abort", () => { this.#outbox.stir(); }, { once: true });
    for (;;) {
      const request = await this.#outbox.take(ended);
      if (request === undefined) break;
      try {
        await write(stream, request, ended);
      } catch (error) {
        this.#outbox.putBack(request);
        throw error;
      }
      this.#outbox.sent(request);
    }
    if (!ended.aborted) stream.end();
  }
}

/** What to say of a broken stream. Throws when dialling again would be answered the same way. */
function troubleOf(broken: unknown): string {
  if (broken instanceof TimedOut) return "the sidecar does not answer";
  if (!isServiceError(broken)) throw broken;
  const error = fromServiceError(broken);
  if (isFinal(error)) throw error;
  const hint = error instanceof Unavailable ? "; is its sidecar running, and may this process open the socket?" : "";
  return error.message + hint;
}

function isFinal(error: AntiphonError): boolean {
  if (error.reason === "INTERNAL") return false; // a bug of the sidecar may pass with its next start
  if (error.reason === "") return error.code === status.UNIMPLEMENTED; // something else listens on that socket
  return error.remedy !== undefined && error.remedy !== "RETRY";
}
