/**
 * Failures: work ran and did not succeed. A handler throws one to say which kind, and with it which retry rule applies.
 *
 * Anything else that a handler throws is TRANSIENT with its stack as cause, as users of durable execution expect: what
 * nobody foresaw deserves another try, and the retry rule bounds it. An error is another thing, a refused call:
 * `errors.ts`.
 */
import { FailureKind, Failure as FailureMessage } from "./gen/antiphon/v1/failure.js";

const MESSAGE = 4096;
const CODE = 128;
const CAUSE = 16384;
const FIELD = 1024;

/** The name of a kind of failure, such as "TRANSIENT"; it decides which retry rule applies. */
export type Kind = Exclude<keyof typeof FailureKind, "UNSPECIFIED">;

/** What a failure may say besides its kind and message. */
export interface FailureOptions {
  /** A stable word of the agent's own, such as "quota_exceeded". */
  code?: string;
  /** False: no retry can help, whatever the task's retry rules say. By default true for TRANSIENT alone. */
  retryable?: boolean;
  /** JSON pointer of the value at fault; empty means the whole value. */
  field?: string;
  /** What is behind it; its stack goes into the record. */
  cause?: unknown;
}

/** Work did not succeed. Making one of an unknown kind throws a `TypeError`. */
export class Failure extends Error {
  override readonly name: string = "Failure";
  readonly code: string;
  readonly retryable: boolean;
  readonly field: string;

  constructor(
    readonly kind: Kind,
    message: string,
    options: FailureOptions = {},
  ) {
    super(message, options.cause === undefined ? undefined : { cause: options.cause });
    // Programs in plain JavaScript may say anything.
    if (kind === ("UNSPECIFIED" as string) || typeof FailureKind[kind] !== "number") {
      throw new TypeError(`${kind} is not a kind of failure`);
    }
    this.code = options.code ?? "";
    this.retryable = options.retryable ?? kind === "TRANSIENT";
    this.field = options.field ?? "";
  }
}

/** May succeed when tried again: a dependency was away, a rate limit. */
export function transient(message: string, options?: FailureOptions): Failure {
  return new Failure("TRANSIENT", message, options);
}

/** Will fail again with the same input. */
export function permanent(message: string, options?: FailureOptions): Failure {
  return new Failure("PERMANENT", message, options);
}

/** The input does not fit; `field` is the JSON pointer of the value at fault. */
export function invalidInput(message: string, options?: FailureOptions): Failure {
  return new Failure("INVALID_INPUT", message, options);
}

/** The output does not fit; `field` is the JSON pointer of the value at fault. */
export function invalidOutput(message: string, options?: FailureOptions): Failure {
  return new Failure("INVALID_OUTPUT", message, options);
}

/** A budget of cost or work is used up. */
export function budgetExceeded(message: string, options?: FailureOptions): Failure {
  return new Failure("BUDGET", message, options);
}

/** A failure out of a record; `failure` is the message as recorded. */
export class RecordedFailure extends Failure {
  constructor(
    kind: Kind,
    message: string,
    readonly failure: FailureMessage,
    field = failure.field,
  ) {
    super(kind, message, { code: failure.code, retryable: failure.retryable, field });
  }
}

/**
 * A capability the handler called failed. Uncaught, it fails the handler's own attempt.
 *
 * The kind is then TRANSIENT when the call's failure was worth a retry, else PERMANENT: what the callee's input or policy
 * got wrong is not the caller's own input or policy.
 */
export class CallFailed extends RecordedFailure {
  override readonly name = "CallFailed";

  constructor(capability: string, failure: FailureMessage) {
    const again =
      failure.retryable && (failure.kind === FailureKind.TRANSIENT || failure.kind === FailureKind.LOST);
    const text = failure.message || kindOf(failure);
    super(again ? "TRANSIENT" : "PERMANENT", `${capability} failed: ${text}`, failure, "");
  }
}

/** A run ended FAILED or CANCELLED, or has not ended. */
export class RunFailed extends RecordedFailure {
  override readonly name = "RunFailed";

  constructor(message: string, failure: FailureMessage) {
    super(kindOf(failure), message, failure);
  }
}

/** The kind of a recorded failure; one of a newer version is read as PERMANENT. */
export function kindOf(failure: FailureMessage): Kind {
  const name = FailureKind[failure.kind] as keyof typeof FailureKind | undefined;
  return name === undefined || name === "UNSPECIFIED" ? "PERMANENT" : name;
}

/** The record of what a handler threw, cut to the contract's limits. */
export function failureOf(thrown: unknown): FailureMessage {
  if (thrown instanceof Failure) {
    return FailureMessage.fromPartial({
      kind: FailureKind[thrown.kind],
      message: cut(thrown.message, MESSAGE),
      code: cut(text(thrown.code), CODE),
      retryable: thrown.retryable,
      field: cut(text(thrown.field), FIELD),
      cause: thrown.cause === undefined ? "" : trace(thrown.cause),
    });
  }
  return FailureMessage.fromPartial({
    kind: FailureKind.TRANSIENT,
    message: cut(thrown instanceof Error ? text(thrown) : `thrown: ${text(thrown)}`, MESSAGE),
    retryable: true,
    cause: trace(thrown),
  });
}

/** A stack with those behind it; the beginning, which names the error and the innermost places, says most. */
function trace(thrown: unknown): string {
  const parts: string[] = [];
  let one = thrown;
  for (let depth = 0; depth < 8 && one !== undefined; depth += 1) {
    parts.push(one instanceof Error ? (one.stack ?? text(one)) : text(one));
    one = one instanceof Error ? one.cause : undefined;
  }
  return cut(parts.join("\ncaused by "), CAUSE);
}

/** Whatever somebody threw or said, as text; even its conversion may throw. */
function text(value: unknown): string {
  try {
    return String(value);
  } catch {
    return `a value of type ${typeof value}`;
  }
}

/** At most so many characters as the contract counts them, Unicode code points, and well-formed. */
function cut(value: string, limit: number): string {
  const whole = value.toWellFormed();
  return whole.length <= limit ? whole : Array.from(whole.slice(0, 2 * limit)).slice(0, limit).join("").toWellFormed();
}
