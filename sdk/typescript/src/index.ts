/**
 * Antiphon for TypeScript: write agents, submit runs.
 *
 * What this module exports is the API. The messages of the contracts are in `@antiphon/sdk/v1`.
 */
export { Agent, type AgentOptions, type ServeOptions } from "./agent.js";
export { type BatchFunction, type BatchRule } from "./batches.js";
export { type CallTimes } from "./calls.js";
export { type PageOptions } from "./caller.js";
export { Client, type ConnectOptions, outputOf } from "./client.js";
export { type AuditFilter, type Revoked } from "./client-operator.js";
export { type ActOptions, type MemberOptions } from "./client-steering.js";
export { Credentials } from "./credentials.js";
export { type ChangeOptions, type EntryOptions, entryValue, type PutOptions, type Scope } from "./entries.js";
export {
  AntiphonError,
  type ErrorDetails,
  type FieldViolation,
  OperatorError,
  type Reason,
  type Remedy,
  RequestError,
  RetryableError,
  SetupError,
  StaleError,
  Unavailable,
} from "./errors.js";
export {
  budgetExceeded,
  CallFailed,
  Failure,
  type FailureOptions,
  invalidInput,
  invalidOutput,
  type Kind,
  permanent,
  RecordedFailure,
  RunFailed,
  transient,
} from "./failures.js";
export {
  type Compensate,
  Graph,
  type GraphOptions,
  type Hedge,
  index,
  item,
  type Quorum,
  Ref,
  ref,
  type Retry,
  type SubRunOptions,
  type TaskOptions,
  TaskRef,
  type Until,
  type WaitCause,
  type WaitOptions,
} from "./graph.js";
export { type CapabilityOptions, type HandlerFunction, type InputOf, type OutputOf } from "./handler.js";
export { type ClaimOptions } from "./holding.js";
export { type Logger } from "./log.js";
export { Payload } from "./payload.js";
export { type FromSchema, type JsonSchema } from "./schema.js";
export { type SharedContext } from "./shared.js";
export { type GraphSource, type SubmitOptions } from "./submission.js";
export { Subgraph } from "./subgraph.js";
export { type Submitted, type Submitter } from "./submitter.js";
export { type Answer, type CallOptions, currentTask, type OnPartial, type Task } from "./task.js";
