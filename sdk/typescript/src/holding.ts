/**
 * Holding a claim for as long as a function runs.
 *
 * It is renewed at a third of its time. When it is lost, whatever the reason, the function's signal is aborted and the
 * error thrown in its place: what the claim protects must not go on. Writes that name the claim are refused by then
 * anyway; that is what makes it safe, not the signal.
 */
import { randomUUID } from "node:crypto";
import { performance } from "node:perf_hooks";

import { scopeOf, type Scope } from "./entries.js";
import { AntiphonError, durationOf, errorOf, RetryableError } from "./errors.js";
import { type Claim } from "./gen/antiphon/v1/context.js";
import { AcquireClaimRequest, ReleaseClaimRequest, RenewClaimRequest } from "./gen/antiphon/v1/context_service.js";
import { type Logger } from "./log.js";
import { pause, TimedOut, within } from "./waiting.js";

const LOOK = 250; // between two tries to take a claim that somebody holds
const RELEASE = 2000; // to give a claim up: it ends by itself, and a handler that was cancelled must not wait for long

/** Whoever asks the orchestrator: a client, or a task through its sidecar. */
export interface Claims {
  acquire(request: AcquireClaimRequest): Promise<Claim>;
  renew(request: RenewClaimRequest): Promise<Claim>;
  release(request: ReleaseClaimRequest): Promise<void>;
}

/** How to hold a claim. */
export interface ClaimOptions {
  scope?: Scope;
  /** Milliseconds after which it ends without us, 1 s to an hour; 30 s by default. */
  ttl?: number;
  /** Milliseconds to wait for somebody else to give it up; 0 by default. */
  wait?: number;
  /** Ends the waiting, and aborts the function's signal. */
  signal?: AbortSignal;
}

/** One claim that is held. */
export class Holding {
  readonly #claims: Claims;
  readonly #ttl: number;
  readonly #logger: Logger;
  readonly #controller = new AbortController();
  #claim: Claim;
  #until: number;
  #lost: AntiphonError | undefined;

  private constructor(claims: Claims, ttl: number, logger: Logger, claim: Claim, until: number) {
    this.#claims = claims;
    this.#ttl = ttl;
    this.#logger = logger;
    this.#claim = claim;
    this.#until = until;
  }

  /**
   * Run `work` while the claim is held. `held` is told of it, and answers how to forget it. Throws CLAIM_HELD when
   * somebody else has it after `wait`, and CLAIM_LOST in the place of what `work` gives when it was lost meanwhile.
   */
  static async during<Result>(
    claims: Claims,
    name: string,
    options: ClaimOptions,
    logger: Logger,
    held: (holding: Holding) => () => void,
    work: (claim: Claim, signal: AbortSignal) => Promise<Result>,
  ): Promise<Result> {
    const { ttl = 30_000, wait = 0, signal } = options;
    const request: AcquireClaimRequest = AcquireClaimRequest.fromPartial({
      requestId: randomUUID(),
      scope: scopeOf(options.scope),
      name,
      ttl: durationOf(ttl),
    });
    const end = performance.now() + wait;
    let holding: Holding | undefined;
    while (holding === undefined) {
      // From before the request left, so that we stop early rather than late.
      const until = performance.now() + ttl;
      try {
        holding = new Holding(claims, ttl, logger, await claims.acquire(request), until);
      } catch (error) {
        const held = error instanceof AntiphonError && error.reason === "CLAIM_HELD";
        if (!held || performance.now() >= end) throw error;
        await pause(LOOK, signal);
      }
    }
    return await holding.#hold(held, work, signal);
  }

  /** The number that tells this holding from others of the same claim. */
  get fence(): number {
    return this.#claim.claim?.fence ?? 0;
  }

  /** It is held no more, as the orchestrator says, or cannot be kept: `error` tells why. */
  lose(error?: AntiphonError): void {
    const name = this.#claim.claim?.name ?? "";
    this.#lost ??=
      error ??
      errorOf("CLAIM_LOST", `claim ${name} is not held any more`, {
        metadata: { claim: name, fence: String(this.fence) },
      });
    this.#controller.abort(this.#lost);
  }

  async #hold<Result>(
    held: (holding: Holding) => () => void,
    work: (claim: Claim, signal: AbortSignal) => Promise<Result>,
    outer: AbortSignal | undefined,
  ): Promise<Result> {
    const over = new AbortController();
    const forget = held(this);
    const keeper = this.#keep(over.signal);
    const signal = outer === undefined ? this.#controller.signal : AbortSignal.any([outer, this.#controller.signal]);
    try {
      const result = await work(this.#claim, signal);
      if (this.#lost !== undefined) throw this.#lost;
      return result;
    } catch (error) {
      throw this.#lost ?? error;
    } finally {
      forget();
      over.abort();
      await keeper;
      if (this.#lost === undefined) await this.#release();
    }
  }

  async #release(): Promise<void> {
    try {
      await within(this.#claims.release(ReleaseClaimRequest.fromPartial({ claim: this.#claim.claim })), RELEASE);
    } catch (error) {
      if (!(error instanceof AntiphonError || error instanceof TimedOut)) throw error;
      this.#logger.warn(`claim ${this.#claim.claim?.name ?? ""} was not released and ends by itself: ${error.message}`);
    }
  }

  async #keep(over: AbortSignal): Promise<void> {
    const request = RenewClaimRequest.fromPartial({ claim: this.#claim.claim, ttl: durationOf(this.#ttl) });
    while (this.#lost === undefined) {
      try {
        await pause(this.#ttl / 3, over);
      } catch {
        return; // held no more, as it should be
      }
      const until = performance.now() + this.#ttl;
      try {
        await within(this.#claims.renew(request), Math.max(1, this.#until - performance.now()), over);
        this.#until = until;
      } catch (error) {
        if (over.aborted) return;
        if (error instanceof RetryableError || error instanceof TimedOut) {
          if (performance.now() >= this.#until) this.lose();
        } else {
          this.lose(error instanceof AntiphonError ? error : new AntiphonError("the claim cannot be kept", { cause: error }));
        }
      }
    }
  }
}
