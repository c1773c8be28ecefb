/**
 * An agent: a program whose functions handle tasks.
 *
 *     const agent = new Agent("license-classifier");
 *
 *     agent.capability("license.classify@1", { input, output }, async (input, task) => …);
 *
 *     await agent.run();
 */
import { type BatchFunction, Batches, type BatchRule, checkRule } from "./batches.js";
import { AntiphonError, SetupError } from "./errors.js";
import { AgentDescription } from "./gen/antiphon/v1/registry.js";
import {
  type CapabilityOptions,
  type Handler,
  type HandlerFunction,
  handlerOf,
  type InputOf,
  type OutputOf,
} from "./handler.js";
import { type Logger, stderrLogger } from "./log.js";
import { type Payload } from "./payload.js";
import { type JsonSchema } from "./schema.js";
import { VERSION } from "./version.js";
import { Worker } from "./work.js";

const NAME = /^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$/;
const SOCKET = "ANTIPHON_SOCKET";
const PATH_LIMIT = 107;
const ANNOUNCED = 2 << 20; // bytes of a description, that sidecars take
const PREFETCH_FROM = 8;
const GRACE = 30_000;

/** What an agent says of itself. */
export interface AgentOptions {
  /** Attempts at work at once; 1 to 10,000, 32 by default. */
  concurrency?: number;
  /**
   * Attempts its sidecar may hold ready beyond that; by default as many as `concurrency`, and 0 below 8: a slow, scarce
   * agent should not hoard what another instance could begin.
   */
  prefetch?: number;
  /** Of the agent's own code, for people. */
  version?: string;
  /** What constraints of a graph match. */
  labels?: Readonly<Record<string, string>>;
  /** Where it says what happens; standard error by default. */
  logger?: Logger;
}

/** How to work. */
export interface ServeOptions {
  /** Path of the sidecar's socket; `ANTIPHON_SOCKET` by default. */
  socket?: string;
  /** Milliseconds that attempts may go on when drained; 30,000 by default. */
  grace?: number;
  /** Aborted to finish what was assigned and take no more. */
  drain?: AbortSignal;
  /** Aborted to stop at once. */
  signal?: AbortSignal;
}

/** A named set of capabilities. Making one does no I/O. */
export class Agent {
  readonly #handlers = new Map<string, Handler>();
  readonly #logger: Logger;
  readonly #options: AgentOptions;
  readonly #concurrency: number;

  /** Throws a `TypeError` for a name or a number that cannot be. */
  constructor(
    readonly name: string,
    options: AgentOptions = {},
  ) {
    if (!NAME.test(name)) {
      throw new TypeError(`agent name '${name}' must be 1-63 lowercase letters, digits and inner hyphens`);
    }
    const { concurrency = 32 } = options;
    if (!Number.isInteger(concurrency) || concurrency < 1 || concurrency > 10_000) {
      throw new TypeError(`concurrency ${String(concurrency)} must be 1 to 10,000`);
    }
    this.#concurrency = concurrency;
    this.#options = options;
    this.#logger = options.logger ?? stderrLogger;
  }

  /**
   * Offer a function as a capability, such as "text.summarize@1"; schemas give its types and are announced. Input and
   * output are checked against them. Throws a `TypeError` for what cannot be offered.
   */
  capability<
    const Input extends JsonSchema | typeof Payload | undefined = undefined,
    const Output extends JsonSchema | undefined = undefined,
  >(name: string, options: CapabilityOptions<Input, Output>, handle: HandlerFunction<Input, Output>): this {
    return this.#offer(name, handlerOf(name, options, handle));
  }

  /**
   * Offer a function that handles several tasks at once. To graphs and to the orchestrator it is a capability like any other,
   * with the schemas of one task. What the function throws fails all of its tasks, and each is tried again as its own rules
   * say. A task that is cancelled has its outcome at once; `signal` is aborted when all of them are. Throws a `TypeError`
   * for what cannot be offered.
   *
   * Waiting takes a place of the agent, too: where many batches are to fill while others run, give it a concurrency of
   * several batches.
   */
  batch<
    const Input extends JsonSchema | typeof Payload | undefined = undefined,
    const Output extends JsonSchema | undefined = undefined,
  >(
    name: string,
    options: CapabilityOptions<Input, Output> & BatchRule,
    handle: BatchFunction<InputOf<Input>, OutputOf<Output>>,
  ): this {
    checkRule(name, options, this.#concurrency);
    const batches = new Batches(options, handle);
    const join = ((input, task) => batches.join(input, task)) as HandlerFunction<Input, Output>;
    return this.#offer(name, { ...handlerOf(name, options, join), flush: () => { batches.flush(); } });
  }

  #offer(name: string, handler: Handler): this {
    if (this.#handlers.has(handler.key)) throw new TypeError(`${name} is offered twice by ${this.name}`);
    this.#handlers.set(handler.key, handler);
    return this;
  }

  /** What the agent announces. Throws a `TypeError` for an option that is of another type than declared. */
  describe(): AgentDescription {
    const prefetch = this.#options.prefetch ?? (this.#concurrency >= PREFETCH_FROM ? this.#concurrency : 0);
    const description = AgentDescription.fromPartial({
      name: this.name,
      version: this.#options.version ?? "",
      capabilities: [...this.#handlers.values()].map((handler) => handler.capability),
      concurrency: this.#concurrency,
      prefetch,
      labels: { ...this.#options.labels },
      runtime: `typescript/${VERSION}`,
    });
    AgentDescription.encode(description); // now, and not in a stream that would be dialled for ever
    return description;
  }

  /**
   * Work until drained, for embedding in a program of one's own; whether every attempt ended within `grace`. A sidecar that
   * is away is dialled for ever. Rejects with a `SetupError`, or the `AntiphonError` of a refusal.
   */
  async serve(options: ServeOptions = {}): Promise<boolean> {
    if (this.#handlers.size === 0) {
      throw new SetupError(`agent ${this.name} offers nothing; declare a function with agent.capability(…)`);
    }
    const description = this.describe();
    const size = AgentDescription.encode(description).finish().length;
    // From 4 MiB on a sidecar refuses the message without a word of ours, as it does what may pass.
    if (size > ANNOUNCED) {
      throw new SetupError(
        `agent ${this.name} cannot be announced: its ${String(this.#handlers.size)} capabilities have ${String(size)} bytes ` +
          `with their schemas and descriptions, larger than ${String(ANNOUNCED)} bytes; shorten them, or offer some of them ` +
          "in another agent",
      );
    }
    const worker = new Worker(socketPath(options.socket), description, this.#handlers, this.#logger);
    const drain = (): void => { worker.drain(); };
    if (options.drain?.aborted === true) drain();
    options.drain?.addEventListener("abort", drain, { once: true });
    try {
      return await worker.run(options.grace ?? GRACE, options.signal ?? new AbortController().signal);
    } finally {
      options.drain?.removeEventListener("abort", drain);
    }
  }

  /**
   * The whole life of an agent process. SIGTERM or SIGINT drains, a second one stops at once.
   *
   * Resolves when drained. Otherwise the process exits, with one line on standard error: status 2 when it is not set up, 1
   * when the sidecar refuses it or attempts did not end in time, 130 when stopped at once.
   */
  async run(options: Omit<ServeOptions, "drain" | "signal"> = {}): Promise<void> {
    const drain = new AbortController();
    const stop = new AbortController();
    const heard = (): void => { (drain.signal.aborted ? stop : drain).abort(); };
    const signals = ["SIGTERM", "SIGINT"] as const;
    for (const name of signals) process.on(name, heard);
    try {
      const ended = await this.serve({ ...options, drain: drain.signal, signal: stop.signal });
      if (!ended) process.exit(1); // what was given up may hold the process for ever
    } catch (error) {
      if (stop.signal.aborted) process.exit(130);
      if (!(error instanceof AntiphonError)) throw error;
      process.stderr.write(`${this.name}: ${error.message}\n`);
      process.exit(error instanceof SetupError ? 2 : 1);
    } finally {
      for (const name of signals) process.off(name, heard);
    }
  }
}

function socketPath(given: string | undefined): string {
  const path = given ?? process.env[SOCKET] ?? "";
  if (path === "") {
    throw new SetupError(`${SOCKET} is not set; start the agent through its sidecar: antiphon sidecar run -- node my-agent.js`);
  }
  if (Buffer.byteLength(path) > PATH_LIMIT) {
    throw new SetupError(`the socket path ${path} is longer than ${String(PATH_LIMIT)} bytes; choose a shorter folder`);
  }
  return path;
}
