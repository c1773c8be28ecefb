/**
 * The way to the orchestrators: generations of mutual-TLS channels, one current at a time.
 *
 * A certificate is checked when a connection is made, so a new one needs a new channel. When the files change, a new
 * generation is made, proven ready, and only then takes over (make before break); calls on the old one end in peace, and
 * the last of them closes it. The next address, where there are several, is a new generation too; to those it was told at
 * the start come the replicas that are there, which the one in use is asked for now and then.
 */
import { X509Certificate } from "node:crypto";

import { Client as Channel, type ChannelCredentials, connectivityState, credentials as grpcCredentials } from "@grpc/grpc-js";

import { metadata, once } from "./calls.js";
import { type Credentials, type Pem, SERVER_NAME } from "./credentials.js";
import { AntiphonError, SetupError } from "./errors.js";
import { ClusterServiceService, GetClusterRequest, type GetClusterResponse } from "./gen/antiphon/v1/cluster_service.js";
import { type Logger } from "./log.js";

const LOOK = 10_000;
const READY = 10_000;
const LEARN = 5000;
const OPTIONS = {
  "grpc.ssl_target_name_override": SERVER_NAME,
  "grpc.default_authority": SERVER_NAME,
  "grpc.max_receive_message_length": 4 << 20,
  // A dead peer is noticed within half a minute, on idle streams too; servers of ours permit it.
  "grpc.keepalive_time_ms": 20_000,
  "grpc.keepalive_timeout_ms": 10_000,
  "grpc.keepalive_permit_without_calls": 1,
  // We retry with our own back-off; the channel's must not be slower, nor retry on its own.
  "grpc.initial_reconnect_backoff_ms": 100,
  "grpc.max_reconnect_backoff_ms": 2000,
  "grpc.enable_retries": 0,
  "grpc.use_local_subchannel_pool": 1,
};

/** One channel and how many calls use it. */
export class Generation {
  readonly channel: Channel;
  users = 0;
  retired = false;

  /** Throws a `SetupError` when key and certificate cannot be used together. */
  constructor(address: string, pem: Pem) {
    this.channel = new Channel(address, secured(pem), OPTIONS);
  }

  /** Whether there is a server at the other end. */
  get connected(): boolean {
    return this.channel.getChannel().getConnectivityState(false) === connectivityState.READY;
  }
}

/** Opens with `open`, ends with `close`; `use` lends the current generation for one call or stream. */
export class Connection {
  readonly #seeds: readonly string[];
  #addresses: readonly string[];
  readonly #credentials: Credentials;
  readonly #logger: Logger;
  readonly #generations: Generation[] = [];
  #place = 0;
  #pem: Pem;
  #watch: NodeJS.Timeout | undefined;
  #refreshing: Promise<boolean> | undefined;

  private constructor(addresses: readonly string[], credentials: Credentials, pem: Pem, logger: Logger) {
    this.#seeds = addresses;
    this.#addresses = addresses;
    this.#credentials = credentials;
    this.#pem = pem;
    this.#logger = logger;
    this.#generations.push(this.#make(pem));
    // It keeps no process alive that has nothing else to do.
    this.#watch = setInterval(() => void this.refresh().then(() => this.#learn()), LOOK).unref();
  }

  /** The first channel; it connects with the first call. Rejects with a `SetupError`. */
  static async open(addresses: readonly string[], credentials: Credentials, logger: Logger): Promise<Connection> {
    return new Connection(addresses, credentials, await credentials.read(), logger);
  }

  /** End every call and channel. */
  close(): void {
    clearInterval(this.#watch);
    for (const { channel } of this.#generations.splice(0)) channel.close();
  }

  /** Lend the current generation, which stays open for as long as `work` takes. Rejects with a `SetupError` when closed. */
  async use<Result>(work: (generation: Generation) => Promise<Result>): Promise<Result> {
    const generation = this.take();
    try {
      return await work(generation);
    } finally {
      this.giveBack(generation);
    }
  }

  /** The current generation, until it is given back. Throws a `SetupError` when closed. */
  take(): Generation {
    const generation = this.#generations.at(-1);
    if (generation === undefined) throw new SetupError("the client is closed; make another with Client.connect()");
    generation.users += 1;
    return generation;
  }

  /** Nobody uses it for that any more. */
  giveBack(generation: Generation): void {
    generation.users -= 1;
    this.#closeUnused(generation);
  }

  /** A call found nobody there who can serve: try the next address, unless another call has moved on already. */
  unreachable(generation: Generation): void {
    if (this.#addresses.length > 1 && generation === this.#generations.at(-1)) {
      this.#place += 1;
      this.#takeOver(this.#make(this.#pem));
    }
  }

  /** When the certificate in use has ended, if it has: no server takes it then, or says why. */
  get expired(): Date | undefined {
    const ended = new Date(new X509Certificate(this.#pem.chain).validTo);
    return ended.getTime() <= Date.now() ? ended : undefined;
  }

  /** Look at the files now: whether there is a new generation. What cannot be used leaves the current one. */
  async refresh(): Promise<boolean> {
    this.#refreshing ??= this.#refresh().finally(() => { this.#refreshing = undefined; });
    return await this.#refreshing;
  }

  async #refresh(): Promise<boolean> {
    let pem: Pem;
    try {
      pem = await this.#credentials.read();
    } catch (error) {
      this.#logger.warn(`the certificate in use is kept: ${(error as Error).message}`);
      return false;
    }
    if (same(pem, this.#pem)) return false;
    const problem = await this.#tryOut(pem);
    if (problem !== undefined) {
      // A key and a certificate that were not written at the same moment look like this, too.
      this.#logger.warn(`the certificate in use is kept: no connection with the new one to ${this.#address}: ${problem}`);
    }
    return problem === undefined;
  }

  /** Make a generation and let it take over when it is ready; else why not. */
  async #tryOut(pem: Pem): Promise<string | undefined> {
    let generation: Generation;
    try {
      generation = this.#make(pem);
    } catch (error) {
      return (error as Error).message; // cut off, or a key of another certificate
    }
    const failed = await new Promise<Error | undefined>((resolve) => {
      generation.channel.waitForReady(Date.now() + READY, resolve);
    });
    if (failed !== undefined || this.#generations.length === 0) {
      generation.channel.close();
      return failed?.message ?? "the client is closed";
    }
    this.#pem = pem;
    this.#takeOver(generation);
    return undefined;
  }

  /** Where else to turn, should the replica in use go away. One that cannot tell changes nothing. */
  async #learn(): Promise<void> {
    const ask = (to: Generation): Promise<GetClusterResponse> =>
      once(to, ClusterServiceService.getCluster, GetClusterRequest.fromPartial({}), metadata(), LEARN);
    let found: GetClusterResponse;
    try {
      found = await this.use(ask);
    } catch (error) {
      if (!(error instanceof AntiphonError)) throw error;
      this.#logger.debug(`the replicas are not known: ${error.message}`);
      return;
    }
    const there = found.replicas.filter(({ leaving }) => !leaving).map(({ address }) => address);
    // The one in use stays the first, so that learning moves nobody.
    this.#addresses = [...new Set([this.#address, ...this.#seeds, ...there])];
    this.#place = 0;
  }

  get #address(): string {
    return this.#addresses[this.#place % this.#addresses.length] ?? "";
  }

  #make(pem: Pem): Generation {
    return new Generation(this.#address, pem);
  }

  #takeOver(generation: Generation): void {
    const old = this.#generations.at(-1);
    this.#generations.push(generation);
    if (old === undefined) return;
    old.retired = true;
    this.#closeUnused(old);
  }

  #closeUnused(generation: Generation): void {
    const place = this.#generations.indexOf(generation);
    if (!generation.retired || generation.users > 0 || place < 0) return;
    this.#generations.splice(place, 1);
    generation.channel.close();
  }
}

function secured(pem: Pem): ChannelCredentials {
  try {
    return grpcCredentials.createSsl(pem.bundle, pem.key, pem.chain);
  } catch (error) {
    throw new SetupError(`the certificate cannot be used: ${(error as Error).message}`, error);
  }
}

function same(one: Pem, other: Pem): boolean {
  return one.key.equals(other.key) && one.chain.equals(other.chain) && one.bundle.equals(other.bundle);
}
