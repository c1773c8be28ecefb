/**
 * Errors: a call was refused. Each has a reason of the registry (`protos/antiphon/v1/error.proto`) and a remedy, which is
 * its class:
 *
 *     AntiphonError
 *     ├── RequestError     the request is wrong and stays wrong: change it
 *     │   └── SetupError   this process lacks what it needs to connect
 *     ├── RetryableError   send the same again, after `retryAfter`
 *     │   └── Unavailable  no server answered
 *     ├── StaleError       the caller's view is old: read again, then decide
 *     └── OperatorError    only a person with other rights can help
 *
 *     catch (error) { if (error instanceof AntiphonError && error.reason === "RUN_NOT_FOUND") … }
 */
import { status, type ServiceError } from "@grpc/grpc-js";

import { type Error as ErrorMessage, ErrorReason } from "./gen/antiphon/v1/error.js";
import { type Duration } from "./gen/google/protobuf/duration.js";
import { BadRequest, ErrorInfo, RetryInfo } from "./gen/google/rpc/error_details.js";
import { Status } from "./gen/google/rpc/status.js";
import { REASONS } from "./gen/reasons.js";

const DOMAIN = "antiphon.v1";
const TYPE = "type.googleapis.com/google.rpc.";

/** A reason of the registry. A newer server may give others, which are kept as they came. */
export type Reason = keyof typeof REASONS;

/** What code should do about an error. */
export type Remedy = "FIX_REQUEST" | "RETRY" | "REREAD" | "ASK_OPERATOR";

/** One field at fault: its path, such as `graph.tasks[3].when`, and what is wrong with it. */
export interface FieldViolation {
  field: string;
  message: string;
}

/** What is known of a refusal besides its text. */
export interface ErrorDetails {
  reason?: string;
  code?: status;
  metadata?: Readonly<Record<string, string>>;
  violations?: readonly FieldViolation[];
  retryAfter?: number | undefined;
  cause?: unknown;
}

/** A call was refused. `message` is one line for people, the rest is for code. */
export class AntiphonError extends Error {
  override readonly name: string = "AntiphonError";
  /** What to do; undefined when the reason is unknown here. */
  readonly remedy: Remedy | undefined = undefined;
  /** The reason in the registry; empty when no server of ours said it. */
  readonly reason: Reason | "" | (string & Record<never, never>);
  /** The gRPC status code. */
  readonly code: status;
  /** The variables of the message. */
  readonly metadata: Readonly<Record<string, string>>;
  /** The fields at fault, for errors about content. */
  readonly violations: readonly FieldViolation[];
  /** Milliseconds to wait before sending the same again; only with the remedy RETRY, and not even always then. */
  readonly retryAfter: number | undefined;

  constructor(message: string, details: ErrorDetails = {}) {
    const more = (details.violations ?? [])
      .map((one) => `${one.field}: ${one.message}`)
      .filter((text) => !message.includes(text));
    super([message, ...more].join("; "), details.cause === undefined ? undefined : { cause: details.cause });
    this.reason = details.reason ?? "";
    this.code = details.code ?? registered(this.reason)?.code ?? status.UNKNOWN;
    this.metadata = details.metadata ?? {};
    this.violations = details.violations ?? [];
    this.retryAfter = details.retryAfter;
  }
}

/** The request is wrong and stays wrong: change it. */
export class RequestError extends AntiphonError {
  override readonly name: string = "RequestError";
  override readonly remedy = "FIX_REQUEST";
}

/** Send the same again, after `retryAfter` where given. */
export class RetryableError extends AntiphonError {
  override readonly name: string = "RetryableError";
  override readonly remedy = "RETRY";
}

/** The caller's view is old: read again, then decide. */
export class StaleError extends AntiphonError {
  override readonly name = "StaleError";
  override readonly remedy = "REREAD";
}

/** Only a person with other rights can help. */
export class OperatorError extends AntiphonError {
  override readonly name = "OperatorError";
  override readonly remedy = "ASK_OPERATOR";
}

/** This process lacks what it needs to connect: a socket, a profile, a certificate. The message names the remedy. */
export class SetupError extends RequestError {
  override readonly name = "SetupError";

  constructor(message: string, cause?: unknown) {
    super(message, { code: status.FAILED_PRECONDITION, cause });
  }
}

/** No server could be reached, or the connection broke before the answer. The call may have had its effect. */
export class Unavailable extends RetryableError {
  override readonly name = "Unavailable";
}

const BY_REMEDY = {
  FIX_REQUEST: RequestError,
  RETRY: RetryableError,
  REREAD: StaleError,
  ASK_OPERATOR: OperatorError,
} as const;

/** The error for a reason of the registry; unknown reasons keep all they came with. */
export function errorOf(reason: string, message: string, details: Omit<ErrorDetails, "reason"> = {}): AntiphonError {
  const known = registered(reason);
  const kind =
    known !== undefined ? BY_REMEDY[known.remedy] : details.retryAfter !== undefined ? RetryableError : AntiphonError;
  return new kind(message, { ...details, reason });
}

/** The error for an `antiphon.v1.Error`, as streams answer item by item. */
export function fromErrorMessage(error: ErrorMessage): AntiphonError {
  const reason = (ErrorReason[error.reason] as string | undefined) ?? String(error.reason); // a newer server's
  return errorOf(reason, error.message, {
    metadata: error.metadata,
    violations: error.violations.map(({ field, message }) => ({ field, message })),
    retryAfter: error.retryDelay === undefined ? undefined : milliseconds(error.retryDelay),
  });
}

// What gRPC itself says of a connection that broke. A server of ours never sends one of these without its ErrorInfo.
const BROKEN = new Set([status.UNAVAILABLE, status.CANCELLED, status.INTERNAL]);

/** The error for a failed call: by its ErrorInfo, or by its code when no server of ours answered. */
export function fromServiceError(error: ServiceError): AntiphonError {
  const { code, details: text } = error;
  const found = detailsOf(error);
  if (found?.info.domain === DOMAIN) {
    const { info, violations, retryAfter } = found;
    return errorOf(info.reason, text, { code, metadata: info.metadata, violations, retryAfter });
  }
  if (code === status.DEADLINE_EXCEEDED) {
    return errorOf("DEADLINE_EXCEEDED", "the deadline of the call passed; no answer came", { code });
  }
  if (BROKEN.has(code)) {
    return new Unavailable(`no answer from the server: ${text || status[code].toLowerCase()}`, { code });
  }
  return new AntiphonError(`the call failed with ${status[code]}: ${text}`, { code });
}

/** Whether an error is one of gRPC's; ours have a status and metadata as well, of another kind. */
export function isServiceError(error: unknown): error is ServiceError {
  if (!(error instanceof Error) || error instanceof AntiphonError) return false;
  return typeof (error as Partial<ServiceError>).code === "number" && "metadata" in error;
}

/** A duration of the contracts in milliseconds. */
export function milliseconds(duration: Duration): number {
  return duration.seconds * 1000 + duration.nanos / 1e6;
}

/** Milliseconds as a duration of the contracts. */
export function durationOf(time: number): Duration {
  const whole = Math.trunc(time / 1000);
  const nanos = Math.round((time - whole * 1000) * 1e6);
  return Math.abs(nanos) < 1e9 ? { seconds: whole, nanos } : { seconds: whole + Math.sign(nanos), nanos: 0 };
}

interface Found {
  info: ErrorInfo;
  violations: FieldViolation[];
  retryAfter: number | undefined;
}

function detailsOf(error: ServiceError): Found | undefined {
  const [bytes] = error.metadata.get("grpc-status-details-bin");
  if (!Buffer.isBuffer(bytes)) return undefined;
  const found: Found = { info: ErrorInfo.fromPartial({}), violations: [], retryAfter: undefined };
  try {
    for (const { typeUrl, value } of Status.decode(bytes).details) {
      if (typeUrl === `${TYPE}ErrorInfo`) found.info = ErrorInfo.decode(value);
      else if (typeUrl === `${TYPE}BadRequest`) {
        found.violations = BadRequest.decode(value).fieldViolations.map((one) => ({
          field: one.field,
          message: one.description,
        }));
      } else if (typeUrl === `${TYPE}RetryInfo`) {
        const { retryDelay } = RetryInfo.decode(value);
        found.retryAfter = retryDelay === undefined ? undefined : milliseconds(retryDelay);
      }
    }
  } catch {
    return undefined; // somebody else's bytes under gRPC's name: judge by the code alone
  }
  return found;
}

function registered(reason: string): { code: status; remedy: Remedy } | undefined {
  return Object.hasOwn(REASONS, reason) ? REASONS[reason as Reason] : undefined;
}
