// Generated from protos/antiphon/v1/error.proto; do not edit.

/** The registry of errors: the gRPC status code of each reason, and what code should do about it. */
export const REASONS = {
  /** {field} breaks a rule of the request; see the field violations */
  REQUEST_INVALID: { code: 3, remedy: "FIX_REQUEST" },
  /** {method} is not a method of this server; check client and server versions */
  METHOD_UNKNOWN: { code: 12, remedy: "FIX_REQUEST" },
  /** {method} needs a deadline; set a timeout on the call */
  DEADLINE_REQUIRED: { code: 3, remedy: "FIX_REQUEST" },
  /** the deadline of {method} passed */
  DEADLINE_EXCEEDED: { code: 4, remedy: "RETRY" },
  /** this is the listener for joining, where nobody shows a certificate; call that of `listen` (mutual TLS, port 7443 by default), with a certificate from: antiphon certs join TOKEN */
  CERTIFICATE_REQUIRED: { code: 16, remedy: "FIX_REQUEST" },
  /** the client certificate expired at {expire_time}; renew it and connect again */
  CERTIFICATE_EXPIRED: { code: 16, remedy: "FIX_REQUEST" },
  /** the client certificate is not accepted: {cause} */
  CERTIFICATE_NOT_ACCEPTED: { code: 16, remedy: "FIX_REQUEST" },
  /** a {kind} may not call {method} */
  ACCESS_DENIED: { code: 7, remedy: "ASK_OPERATOR" },
  /** policy denies {action}: {cause} (decision {decision_id}) */
  POLICY_DENIED: { code: 7, remedy: "ASK_OPERATOR" },
  /** the message is larger than {limit} bytes; send large values through PayloadService */
  MESSAGE_TOO_LARGE: { code: 8, remedy: "FIX_REQUEST" },
  /** more than {limit} calls a second from this identity */
  RATE_LIMITED: { code: 8, remedy: "RETRY" },
  /** {queue} is full */
  OVERLOADED: { code: 8, remedy: "RETRY" },
  /** the store is full: {cause} */
  STORE_FULL: { code: 8, remedy: "RETRY" },
  /** the store does not answer; try again, and look at it with antiphon orchestrator check */
  STORE_UNAVAILABLE: { code: 14, remedy: "RETRY" },
  /** the archive of finished runs does not answer; runs go on, and lists of RUNNING and PAUSED ones do without it; look at it with antiphon orchestrator check */
  ARCHIVE_UNAVAILABLE: { code: 14, remedy: "RETRY" },
  /** the server is {state}; try again, or at another address */
  NOT_SERVING: { code: 14, remedy: "RETRY" },
  /** an internal error; its log entry is {trace_id} */
  INTERNAL: { code: 13, remedy: "ASK_OPERATOR" },
  /** request_id {request_id} was used before with other content; use a new one */
  REQUEST_ID_REUSED: { code: 6, remedy: "FIX_REQUEST" },
  /** graph {graph} has {count} mistakes; see the field violations */
  GRAPH_INVALID: { code: 3, remedy: "FIX_REQUEST" },
  /** graph {graph} version {version} exists with other content; register a new version */
  GRAPH_VERSION_EXISTS: { code: 6, remedy: "FIX_REQUEST" },
  /** no graph {graph} in this namespace; register it with: antiphon graph register FILE */
  GRAPH_NOT_FOUND: { code: 5, remedy: "FIX_REQUEST" },
  /** the input does not fit the graph's schema at {field}: {cause} */
  INPUT_INVALID: { code: 3, remedy: "FIX_REQUEST" },
  /** no run {run_id} in this namespace */
  RUN_NOT_FOUND: { code: 5, remedy: "FIX_REQUEST" },
  /** no task {task_id} in run {run_id} */
  TASK_NOT_FOUND: { code: 5, remedy: "FIX_REQUEST" },
  /** the page token is not valid for this query; start again without one */
  PAGE_TOKEN_INVALID: { code: 3, remedy: "FIX_REQUEST" },
  /** cursor {cursor} lies beyond the run's last event {last} */
  CURSOR_INVALID: { code: 11, remedy: "REREAD" },
  /** no agent {agent} in this namespace */
  AGENT_NOT_FOUND: { code: 5, remedy: "FIX_REQUEST" },
  /** the certificate does not allow {what}; make a token that does: antiphon certs token --agent \u2026 --capability \u2026 */
  NOT_GRANTED: { code: 7, remedy: "ASK_OPERATOR" },
  /** {capability} is registered by {holder} with another schema ({difference}); announce a new version */
  CAPABILITY_CONFLICT: { code: 9, remedy: "FIX_REQUEST" },
  /** a newer stream of the same process has replaced this one */
  STREAM_REPLACED: { code: 10, remedy: "REREAD" },
  /** the stream broke the protocol: {cause} */
  PROTOCOL_VIOLATION: { code: 9, remedy: "FIX_REQUEST" },
  /** attempt {attempt_id} is not running here */
  ATTEMPT_NOT_FOUND: { code: 5, remedy: "REREAD" },
  /** the attempt token is not valid; use the one of the offer */
  ATTEMPT_TOKEN_INVALID: { code: 7, remedy: "FIX_REQUEST" },
  /** calls nest deeper than {depth} */
  CALL_TOO_DEEP: { code: 9, remedy: "FIX_REQUEST" },
  /** no payload {digest} in this namespace; upload it first */
  PAYLOAD_NOT_FOUND: { code: 5, remedy: "FIX_REQUEST" },
  /** the content has digest {actual}, announced was {expected} */
  PAYLOAD_DIGEST_MISMATCH: { code: 3, remedy: "FIX_REQUEST" },
  /** the join token is not accepted: {cause}; make a new one with: antiphon certs token */
  TOKEN_NOT_ACCEPTED: { code: 16, remedy: "ASK_OPERATOR" },
  /** the signing request cannot be used: {cause}; it must be PEM, P-256 and signed by its own key */
  SIGNING_REQUEST_INVALID: { code: 3, remedy: "FIX_REQUEST" },
  /** the certificate of {identity} was revoked at {revoke_time}: {cause}; whoever may come back needs a new join token: antiphon certs token */
  CERTIFICATE_REVOKED: { code: 16, remedy: "ASK_OPERATOR" },
  /** there are {limit} revocations, and there may be no more; they go when what they revoke has expired: see antiphon certs revocations */
  REVOCATIONS_EXHAUSTED: { code: 8, remedy: "ASK_OPERATOR" },
  /** the certificate is not given anew for its key: {cause}; join with a new token: antiphon certs token */
  RECOVERY_NOT_ACCEPTED: { code: 16, remedy: "ASK_OPERATOR" },
  /** run {run_id} has ended {state} and stays as it is; submit a new one */
  RUN_ENDED: { code: 9, remedy: "FIX_REQUEST" },
  /** no task of run {run_id} waits for signal {signal}; its graph knows {expected} */
  SIGNAL_NOT_EXPECTED: { code: 9, remedy: "FIX_REQUEST" },
  /** run {run_id} was sent {limit}: the most of one run */
  SIGNALS_EXHAUSTED: { code: 8, remedy: "FIX_REQUEST" },
  /** task {task_id} is {state}: {cause} */
  TASK_STATE_CONFLICT: { code: 9, remedy: "REREAD" },
  /** {name} is at work on the same input further up; that would go round for ever. Change the input, such as by a count of rounds */
  CALL_REPEATED: { code: 9, remedy: "FIX_REQUEST" },
  /** calls and sub-runs beneath one run have at most {limit} tasks in all */
  TOO_MUCH_BENEATH: { code: 8, remedy: "FIX_REQUEST" },
  /** nothing can be asked of run {run_id} now: {cause} */
  RUN_SET_ASIDE: { code: 9, remedy: "ASK_OPERATOR" },
  /** the policies have {count} mistakes, and nothing is changed; see the field violations */
  POLICY_INVALID: { code: 3, remedy: "FIX_REQUEST" },
  /** policy epoch {current} is in force, not {expected}; look at it with antiphon policy show, then try again */
  POLICY_EPOCH_CHANGED: { code: 10, remedy: "REREAD" },
  /** policy epoch {epoch} is not kept; see antiphon policy list */
  POLICY_EPOCH_NOT_FOUND: { code: 5, remedy: "FIX_REQUEST" },
  /** these policies would keep {principal} from changing them again ({cause}); permit it change_policy */
  POLICY_LOCKS_OUT: { code: 9, remedy: "FIX_REQUEST" },
  /** no entry {key} in {scope} */
  ENTRY_NOT_FOUND: { code: 5, remedy: "FIX_REQUEST" },
  /** entry {key} in {scope} has revision {revision}, not {expected}; read it again, then decide */
  ENTRY_CONFLICT: { code: 10, remedy: "REREAD" },
  /** the namespace may hold {limit} {what} of shared context; delete some, or have an operator raise the limit */
  CONTEXT_QUOTA_EXCEEDED: { code: 8, remedy: "FIX_REQUEST" },
  /** changes before revision {revision} are forgotten; list the entries again, then watch from the list's revision + 1 */
  HISTORY_COMPACTED: { code: 11, remedy: "REREAD" },
  /** claim {claim} is held by {holder} until {expire_time} */
  CLAIM_HELD: { code: 10, remedy: "REREAD" },
  /** claim {claim} with fence {fence} is not held any more; acquire it again, then read what it protects */
  CLAIM_LOST: { code: 10, remedy: "REREAD" },
  /** no audit chain {chain}; GetCheckpoint names all there are */
  AUDIT_CHAIN_NOT_FOUND: { code: 5, remedy: "FIX_REQUEST" },
  /** audit chain {chain} has no record {seq}; it holds {first} to {last} */
  AUDIT_RECORD_NOT_FOUND: { code: 5, remedy: "FIX_REQUEST" },
  /** shard {shard} is changing hands; ask again in a moment, of any replica */
  SHARD_MOVED: { code: 14, remedy: "RETRY" },
  /** replica {replica} does not answer, and without it the answer would not be whole */
  REPLICA_UNAVAILABLE: { code: 14, remedy: "RETRY" },
  /** where payloads are kept does not answer */
  PAYLOADS_UNAVAILABLE: { code: 14, remedy: "RETRY" },
  /** payload {digest} is damaged where it is kept */
  PAYLOAD_CORRUPT: { code: 15, remedy: "ASK_OPERATOR" },
  /** the report proves nothing: {cause}; run antiphon verify without --case until every case passes */
  VERIFY_REPORT_NOT_ACCEPTED: { code: 3, remedy: "FIX_REQUEST" },
} as const;
