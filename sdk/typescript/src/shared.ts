/**
 * Shared context as a task sees it: through its sidecar, with the rights of the task.
 *
 * What a task reads is remembered beside it: it becomes the provenance of what the task writes, and its labels join those
 * of what the task writes and answers.
 */
import { randomUUID } from "node:crypto";

import { type ChangeOptions, deleteRequest, type EntryOptions, entryValue, putRequest, type PutOptions, scopeOf } from "./entries.js";
import { fromErrorMessage, RetryableError } from "./errors.js";
import { type Claim, type Entry, type EntryEvent } from "./gen/antiphon/v1/context.js";
import { type ContextRequest, type ContextResponse } from "./gen/antiphon/v1/context_request.js";
import {
  GetEntryRequest,
  GetLineageRequest,
  type GetLineageResponse,
  ListEntriesRequest,
  WatchEntriesRequest,
} from "./gen/antiphon/v1/context_service.js";
import { type ClaimOptions, Holding } from "./holding.js";
import { travelling } from "./payload.js";
import { type Line, type Task } from "./task.js";
import { begin, pause } from "./waiting.js";

const PAUSE = 1000; // before a request is repeated that is to be repeated and does not say when

type Ask = NonNullable<ContextRequest["kind"]>;
type Told<Case> = Extract<NonNullable<ContextResponse["outcome"]>, { $case: Case }>["value"];

/**
 * `task.context`. Every method throws an `AntiphonError` with the reason the orchestrator gives, such as POLICY_DENIED, and
 * ATTEMPT_NOT_FOUND once the attempt is over.
 */
export class SharedContext {
  readonly #task: Task;
  readonly #token: Buffer;
  readonly #line: Line;

  constructor(task: Task, token: Buffer, line: Line) {
    this.#task = task;
    this.#token = token;
    this.#line = line;
  }

  /** The value of an entry. Throws ENTRY_NOT_FOUND; an `Error` when the value is not inline JSON. */
  get(key: string, options: EntryOptions = {}): Promise<unknown> {
    return begin(async () => {
      return entryValue(await this.entry(key, options));
    });
  }

  /** An entry with revision, labels and provenance. Throws ENTRY_NOT_FOUND. */
  entry(key: string, options: EntryOptions = {}): Promise<Entry> {
    return begin(async () => {
      const value = GetEntryRequest.fromPartial({ scope: scopeOf(options.scope), key });
      return there((await this.#ask({ $case: "get", value })).entry);
    });
  }

  /**
   * Write an entry whole and return its revision: anything JSON can hold up to 2 MiB, or a `Payload`. Throws
   * ENTRY_CONFLICT, CONTEXT_QUOTA_EXCEEDED, CLAIM_LOST; an INVALID_OUTPUT failure for what cannot travel or is larger.
   */
  put(key: string, value: unknown, options: PutOptions = {}): Promise<number> {
    return begin(async () => {
      const request = putRequest(key, travelling("the value", value, this.#line.inlineLimit), options);
      return (await this.#ask({ $case: "put", value: request })).revision;
    });
  }

  /** Remove an entry: the revision of the removal, 0 when there was none. Throws ENTRY_CONFLICT, CLAIM_LOST. */
  delete(key: string, options: ChangeOptions = {}): Promise<number> {
    return begin(async () => {
      return (await this.#ask({ $case: "delete", value: deleteRequest(key, options) })).revision;
    });
  }

  /** All entries whose keys begin with `prefix`, in an order that does not change. */
  list(prefix = "", options: EntryOptions = {}): Promise<Entry[]> {
    return begin(async () => {
      const entries: Entry[] = [];
      const value = ListEntriesRequest.fromPartial({ scope: scopeOf(options.scope), prefix });
      for (;;) {
        const page = await this.#ask({ $case: "list", value });
        entries.push(...page.entries);
        if (page.nextPageToken === "") return entries;
        value.pageToken = page.nextPageToken;
      }
    });
  }

  /**
   * Changes of entries whose keys begin with `prefix`, without gap or repeat; from now on by default.
   *
   * It has no end: leave the loop when you have seen enough. The task keeps its place at the agent meanwhile. Throws
   * HISTORY_COMPACTED when too much has happened since `fromRevision`: list again.
   */
  async *watch(prefix = "", options: EntryOptions & { fromRevision?: number } = {}): AsyncGenerator<EntryEvent, never> {
    const value = WatchEntriesRequest.fromPartial({
      scope: scopeOf(options.scope),
      prefix,
      fromRevision: options.fromRevision ?? 0,
    });
    for (;;) {
      const answer = await this.#ask({ $case: "watch", value });
      value.fromRevision = answer.revision + 1;
      yield* answer.events;
    }
  }

  /** What an entry was made from, nearest first. Throws ENTRY_NOT_FOUND. */
  lineage(key: string, options: EntryOptions = {}): Promise<GetLineageResponse> {
    return begin(async () => {
      const value = GetLineageRequest.fromPartial({ scope: scopeOf(options.scope), key });
      return await this.#ask({ $case: "lineage", value });
    });
  }

  /**
   * Hold a claim while `work` runs, as `client.claim`. It ends with the attempt at the latest, and `work` gets a signal that
   * is aborted when it is lost or the attempt is to stop.
   */
  claim<Result>(
    name: string,
    work: (claim: Claim, signal: AbortSignal) => Promise<Result>,
    options: ClaimOptions = {},
  ): Promise<Result> {
    return begin(async () => {
      const claims = {
        acquire: async (value: Extract<Ask, { $case: "acquire" }>["value"]) =>
          there((await this.#ask({ $case: "acquire", value })).claim),
        renew: async (value: Extract<Ask, { $case: "renew" }>["value"]) =>
          there((await this.#ask({ $case: "renew", value })).claim),
        release: async (value: Extract<Ask, { $case: "release" }>["value"]) => {
          await this.#ask({ $case: "release", value });
        },
      };
      const signal =
        options.signal === undefined ? this.#task.signal : AbortSignal.any([options.signal, this.#task.signal]);
      const held = (holding: Holding): (() => void) => this.#line.holds(this.#task.attemptId, holding);
      return await Holding.during(claims, name, { ...options, signal }, this.#task.log, held, work);
    });
  }

  /** The answer to one request, asked again when the answer says so; the attempt's time bounds it. */
  async #ask<Kind extends Ask>(kind: Kind): Promise<Told<Kind["$case"]>> {
    for (;;) {
      const { outcome } = await this.#line.ask({
        requestId: randomUUID(),
        attemptId: this.#task.attemptId,
        attemptToken: this.#token,
        kind,
        reads: undefined,
      });
      if (outcome?.$case === kind.$case) return outcome.value as Told<Kind["$case"]>;
      if (outcome?.$case !== "error") throw new TypeError(`the sidecar answered ${outcome?.$case ?? "nothing"} to ${kind.$case}`);
      const error = fromErrorMessage(outcome.value);
      if (!(error instanceof RetryableError)) throw error;
      await pause(error.retryAfter ?? PAUSE, this.#task.signal);
    }
  }
}

/** What the contract says is always there. */
function there<Value>(value: Value | undefined): Value {
  if (value === undefined) throw new TypeError("the answer lacks what was asked for");
  return value;
}
