/** Requests to shared context from what a user says, for clients and for tasks; both spell scopes and values alike. */
import { requestIdOf } from "./calls.js";
import { durationOf } from "./errors.js";
import { type Claim, type ContextScope, type Entry } from "./gen/antiphon/v1/context.js";
import { DeleteEntryRequest, PutEntryRequest } from "./gen/antiphon/v1/context_service.js";
import { type Payload, valueOf } from "./payload.js";

/** `namespace` (the default), `run:ID` or `graph:NAME`; in a task `run` and `graph` are its own. */
export type Scope = "namespace" | "run" | "graph" | `run:${string}` | `graph:${string}`;

/** Where an entry is. */
export interface EntryOptions {
  scope?: Scope;
}

/** What a change of an entry may depend on. */
export interface ChangeOptions extends EntryOptions {
  /** The revision it must have, 0 for none there; any by default. */
  expectedRevision?: number;
  /** A claim that must still be ours. */
  claim?: Claim;
  /** Makes it repeatable: the same id with the same content has one effect. A new one by default. */
  requestId?: string;
}

/** How to write an entry. */
export interface PutOptions extends ChangeOptions {
  /** Milliseconds that it is there; for ever by default. */
  ttl?: number;
  /** What it is, such as "pii" or "region=eu". */
  labels?: readonly string[];
}

/** The scope as the contracts have it. Throws a `TypeError`. */
export function scopeOf(scope = "namespace"): ContextScope {
  const [kind, name] = partition(scope, ":");
  if (kind === "run") return { kind: { $case: "runId", value: name } };
  if (kind === "graph") return { kind: { $case: "graph", value: name } };
  if (scope !== "namespace") throw new TypeError(`${scope} is not a scope; write namespace, run:ID or graph:NAME`);
  return { kind: undefined };
}

/** The value of an entry, which is JSON. Throws an `Error` for other media and references. */
export function entryValue(entry: Entry): unknown {
  return valueOf(entry.value);
}

/** An entry to write, whose value is `payload` with the labels of `options`. Throws a `TypeError`. */
export function putRequest(key: string, payload: Payload["message"], options: PutOptions): PutEntryRequest {
  const said = (options.labels ?? []).map((label) => partition(label, "="));
  const labels = [...payload.labels, ...said.map(([name, text]) => ({ key: name, value: text, assertedBy: "" }))];
  return PutEntryRequest.fromPartial({
    requestId: requestIdOf(options.requestId),
    scope: scopeOf(options.scope),
    key,
    value: { ...payload, labels },
    expectedRevision: options.expectedRevision,
    claim: options.claim?.claim,
    ttl: options.ttl === undefined ? undefined : durationOf(options.ttl),
  });
}

/** An entry to remove. Throws a `TypeError`. */
export function deleteRequest(key: string, options: ChangeOptions): DeleteEntryRequest {
  return DeleteEntryRequest.fromPartial({
    requestId: requestIdOf(options.requestId),
    scope: scopeOf(options.scope),
    key,
    expectedRevision: options.expectedRevision,
    claim: options.claim?.claim,
  });
}

/** A text before and after the first separator; all of it and nothing when there is none. */
export function partition(text: string, separator: string): [string, string] {
  const place = text.indexOf(separator);
  return place < 0 ? [text, ""] : [text.slice(0, place), text.slice(place + separator.length)];
}
