/** The part of the client that reads and writes shared context. */
import { type CallTimes, remaining } from "./calls.js";
import { Caller, type PageOptions, there } from "./caller.js";
import { type ChangeOptions, deleteRequest, type EntryOptions, putRequest, type PutOptions, scopeOf } from "./entries.js";
import { type Claim, type Entry, type EntryEvent } from "./gen/antiphon/v1/context.js";
import {
  ContextServiceService,
  GetEntryRequest,
  GetLineageRequest,
  type GetLineageResponse,
  ListEntriesRequest,
  type PutEntryResponse,
  WatchEntriesRequest,
} from "./gen/antiphon/v1/context_service.js";
import { type ClaimOptions, type Claims, Holding } from "./holding.js";
import { payloadOf } from "./payload.js";
import { inputOf } from "./submission.js";

const SNAPSHOT_PAGE = 500;

/** Entries and claims of shared context. */
export class ContextCalls extends Caller {
  /** An entry; `entryValue` gives its value. Throws ENTRY_NOT_FOUND. */
  async getEntry(key: string, options: EntryOptions & CallTimes = {}): Promise<Entry> {
    const request = GetEntryRequest.fromPartial({ scope: scopeOf(options.scope), key });
    return there((await this.ask(ContextServiceService.getEntry, request, options)).entry);
  }

  /**
   * Write an entry whole: anything JSON can hold, or a `Payload`; a large one is uploaded first. Throws ENTRY_CONFLICT,
   * CONTEXT_QUOTA_EXCEEDED, CLAIM_LOST.
   */
  async putEntry(key: string, value: unknown, options: PutOptions & CallTimes = {}): Promise<PutEntryResponse> {
    const left = remaining(options);
    const payload = (await inputOf((data) => this.uploadPayload(data, "", left()), value)) ?? payloadOf(null);
    const request = putRequest(key, payload, options);
    return await this.ask(ContextServiceService.putEntry, request, left());
  }

  /** Remove an entry: the revision of the removal, 0 when there was none. Throws ENTRY_CONFLICT, CLAIM_LOST. */
  async deleteEntry(key: string, options: ChangeOptions & CallTimes = {}): Promise<number> {
    return (await this.ask(ContextServiceService.deleteEntry, deleteRequest(key, options), options)).revision;
  }

  /** Entries whose keys begin with `prefix`, in an order that does not change. */
  listEntries(prefix = "", options: EntryOptions & PageOptions = {}): AsyncGenerator<Entry, void> {
    const request = ListEntriesRequest.fromPartial({
      scope: scopeOf(options.scope),
      prefix,
      pageSize: options.pageSize ?? 0,
    });
    return this.pages(ContextServiceService.listEntries, request, (page) => page.entries, options);
  }

  /** All entries whose keys begin with `prefix`, and the revision to watch from so that nothing is missed. */
  async snapshotEntries(
    prefix = "",
    options: EntryOptions & CallTimes = {},
  ): Promise<{ entries: Entry[]; fromRevision: number }> {
    const entries: Entry[] = [];
    const request = ListEntriesRequest.fromPartial({ scope: scopeOf(options.scope), prefix, pageSize: SNAPSHOT_PAGE });
    for (;;) {
      const page = await this.ask(ContextServiceService.listEntries, request, options);
      entries.push(...page.entries);
      if (page.nextPageToken === "") return { entries, fromRevision: page.revision + 1 };
      request.pageToken = page.nextPageToken;
    }
  }

  /**
   * Changes of entries whose keys begin with `prefix`, without end, gap or repeat; from now on by default.
   *
   * To have what is there and everything after it, begin with `snapshotEntries`. Goes on by itself after a broken stream.
   * Throws HISTORY_COMPACTED when too much has happened meanwhile: take another snapshot.
   */
  async *watchEntries(
    prefix = "",
    options: EntryOptions & { fromRevision?: number; signal?: AbortSignal } = {},
  ): AsyncGenerator<EntryEvent, void> {
    const request = WatchEntriesRequest.fromPartial({
      scope: scopeOf(options.scope),
      prefix,
      fromRevision: options.fromRevision ?? 0,
    });
    for await (const message of this.stream(ContextServiceService.watchEntries, () => request, options.signal)) {
      request.fromRevision = message.revision + 1;
      yield* message.events;
    }
  }

  /** What an entry was made from, nearest first, as far as that is still there. Throws ENTRY_NOT_FOUND. */
  async lineage(key: string, options: EntryOptions & CallTimes = {}): Promise<GetLineageResponse> {
    const request = GetLineageRequest.fromPartial({ scope: scopeOf(options.scope), key });
    return await this.ask(ContextServiceService.getLineage, request, options);
  }

  /**
   * Hold a claim while `work` runs; by convention its name is the key, or the prefix, that it protects.
   *
   *     await client.claim("plan", async (claim, signal) => {
   *       await client.putEntry("plan", plan, { claim });
   *     });
   *
   * It is renewed meanwhile; without us it ends after `ttl`. Throws CLAIM_HELD when somebody else has it after `wait`. When it
   * is lost, the signal is aborted, and CLAIM_LOST thrown once `work` has ended.
   */
  async claim<Result>(
    name: string,
    work: (claim: Claim, signal: AbortSignal) => Promise<Result>,
    options: ClaimOptions = {},
  ): Promise<Result> {
    const claims: Claims = {
      acquire: async (request) => there((await this.ask(ContextServiceService.acquireClaim, request)).claim),
      renew: async (request) => there((await this.ask(ContextServiceService.renewClaim, request)).claim),
      release: async (request) => {
        await this.ask(ContextServiceService.releaseClaim, request);
      },
    };
    return await Holding.during(claims, name, options, this.logger, () => () => undefined, work);
  }
}
