// Code generated from protos/antiphon/v1/error.proto by make gen. DO NOT EDIT.

package antiphon

import "google.golang.org/grpc/codes"

// The reasons of the registry, without their prefix: errors.Is(err, antiphon.RunNotFound).
const (
	// RequestInvalid: {field} breaks a rule of the request; see the field violations.
	RequestInvalid Reason = "REQUEST_INVALID"
	// MethodUnknown: {method} is not a method of this server; check client and server versions.
	MethodUnknown Reason = "METHOD_UNKNOWN"
	// DeadlineRequired: {method} needs a deadline; set a timeout on the call.
	DeadlineRequired Reason = "DEADLINE_REQUIRED"
	// DeadlineExceeded: the deadline of {method} passed.
	DeadlineExceeded Reason = "DEADLINE_EXCEEDED"
	// CertificateRequired: this is the listener for joining, where nobody shows a certificate; call that of `listen` (mutual TLS, port 7443 by default), with a certificate from: antiphon certs join TOKEN.
	CertificateRequired Reason = "CERTIFICATE_REQUIRED"
	// CertificateExpired: the client certificate expired at {expire_time}; renew it and connect again.
	CertificateExpired Reason = "CERTIFICATE_EXPIRED"
	// CertificateNotAccepted: the client certificate is not accepted: {cause}.
	CertificateNotAccepted Reason = "CERTIFICATE_NOT_ACCEPTED"
	// AccessDenied: a {kind} may not call {method}.
	AccessDenied Reason = "ACCESS_DENIED"
	// PolicyDenied: policy denies {action}: {cause} (decision {decision_id}).
	PolicyDenied Reason = "POLICY_DENIED"
	// MessageTooLarge: the message is larger than {limit} bytes; send large values through PayloadService.
	MessageTooLarge Reason = "MESSAGE_TOO_LARGE"
	// RateLimited: more than {limit} calls a second from this identity.
	RateLimited Reason = "RATE_LIMITED"
	// Overloaded: {queue} is full.
	Overloaded Reason = "OVERLOADED"
	// StoreFull: the store is full: {cause}.
	StoreFull Reason = "STORE_FULL"
	// StoreUnavailable: the store does not answer; try again, and look at it with antiphon orchestrator check.
	StoreUnavailable Reason = "STORE_UNAVAILABLE"
	// ArchiveUnavailable: the archive of finished runs does not answer; runs go on, and lists of RUNNING and PAUSED ones do without it; look at it with antiphon orchestrator check.
	ArchiveUnavailable Reason = "ARCHIVE_UNAVAILABLE"
	// NotServing: the server is {state}; try again, or at another address.
	NotServing Reason = "NOT_SERVING"
	// Internal: an internal error; its log entry is {trace_id}.
	Internal Reason = "INTERNAL"
	// RequestIdReused: request_id {request_id} was used before with other content; use a new one.
	RequestIdReused Reason = "REQUEST_ID_REUSED"
	// GraphInvalid: graph {graph} has {count} mistakes; see the field violations.
	GraphInvalid Reason = "GRAPH_INVALID"
	// GraphVersionExists: graph {graph} version {version} exists with other content; register a new version.
	GraphVersionExists Reason = "GRAPH_VERSION_EXISTS"
	// GraphNotFound: no graph {graph} in this namespace; register it with: antiphon graph register FILE.
	GraphNotFound Reason = "GRAPH_NOT_FOUND"
	// InputInvalid: the input does not fit the graph's schema at {field}: {cause}.
	InputInvalid Reason = "INPUT_INVALID"
	// RunNotFound: no run {run_id} in this namespace.
	RunNotFound Reason = "RUN_NOT_FOUND"
	// TaskNotFound: no task {task_id} in run {run_id}.
	TaskNotFound Reason = "TASK_NOT_FOUND"
	// PageTokenInvalid: the page token is not valid for this query; start again without one.
	PageTokenInvalid Reason = "PAGE_TOKEN_INVALID"
	// CursorInvalid: cursor {cursor} lies beyond the run's last event {last}.
	CursorInvalid Reason = "CURSOR_INVALID"
	// AgentNotFound: no agent {agent} in this namespace.
	AgentNotFound Reason = "AGENT_NOT_FOUND"
	// NotGranted: the certificate does not allow {what}; make a token that does: antiphon certs token --agent … --capability ….
	NotGranted Reason = "NOT_GRANTED"
	// CapabilityConflict: {capability} is registered by {holder} with another schema ({difference}); announce a new version.
	CapabilityConflict Reason = "CAPABILITY_CONFLICT"
	// StreamReplaced: a newer stream of the same process has replaced this one.
	StreamReplaced Reason = "STREAM_REPLACED"
	// ProtocolViolation: the stream broke the protocol: {cause}.
	ProtocolViolation Reason = "PROTOCOL_VIOLATION"
	// AttemptNotFound: attempt {attempt_id} is not running here.
	AttemptNotFound Reason = "ATTEMPT_NOT_FOUND"
	// AttemptTokenInvalid: the attempt token is not valid; use the one of the offer.
	AttemptTokenInvalid Reason = "ATTEMPT_TOKEN_INVALID"
	// CallTooDeep: calls nest deeper than {depth}.
	CallTooDeep Reason = "CALL_TOO_DEEP"
	// PayloadNotFound: no payload {digest} in this namespace; upload it first.
	PayloadNotFound Reason = "PAYLOAD_NOT_FOUND"
	// PayloadDigestMismatch: the content has digest {actual}, announced was {expected}.
	PayloadDigestMismatch Reason = "PAYLOAD_DIGEST_MISMATCH"
	// TokenNotAccepted: the join token is not accepted: {cause}; make a new one with: antiphon certs token.
	TokenNotAccepted Reason = "TOKEN_NOT_ACCEPTED"
	// SigningRequestInvalid: the signing request cannot be used: {cause}; it must be PEM, P-256 and signed by its own key.
	SigningRequestInvalid Reason = "SIGNING_REQUEST_INVALID"
	// CertificateRevoked: the certificate of {identity} was revoked at {revoke_time}: {cause}; whoever may come back needs a new join token: antiphon certs token.
	CertificateRevoked Reason = "CERTIFICATE_REVOKED"
	// RevocationsExhausted: there are {limit} revocations, and there may be no more; they go when what they revoke has expired: see antiphon certs revocations.
	RevocationsExhausted Reason = "REVOCATIONS_EXHAUSTED"
	// RecoveryNotAccepted: the certificate is not given anew for its key: {cause}; join with a new token: antiphon certs token.
	RecoveryNotAccepted Reason = "RECOVERY_NOT_ACCEPTED"
	// RunEnded: run {run_id} has ended {state} and stays as it is; submit a new one.
	RunEnded Reason = "RUN_ENDED"
	// SignalNotExpected: no task of run {run_id} waits for signal {signal}; its graph knows {expected}.
	SignalNotExpected Reason = "SIGNAL_NOT_EXPECTED"
	// SignalsExhausted: run {run_id} was sent {limit}: the most of one run.
	SignalsExhausted Reason = "SIGNALS_EXHAUSTED"
	// TaskStateConflict: task {task_id} is {state}: {cause}.
	TaskStateConflict Reason = "TASK_STATE_CONFLICT"
	// CallRepeated: {name} is at work on the same input further up; that would go round for ever. Change the input, such as by a count of rounds.
	CallRepeated Reason = "CALL_REPEATED"
	// TooMuchBeneath: calls and sub-runs beneath one run have at most {limit} tasks in all.
	TooMuchBeneath Reason = "TOO_MUCH_BENEATH"
	// RunSetAside: nothing can be asked of run {run_id} now: {cause}.
	RunSetAside Reason = "RUN_SET_ASIDE"
	// PolicyInvalid: the policies have {count} mistakes, and nothing is changed; see the field violations.
	PolicyInvalid Reason = "POLICY_INVALID"
	// PolicyEpochChanged: policy epoch {current} is in force, not {expected}; look at it with antiphon policy show, then try again.
	PolicyEpochChanged Reason = "POLICY_EPOCH_CHANGED"
	// PolicyEpochNotFound: policy epoch {epoch} is not kept; see antiphon policy list.
	PolicyEpochNotFound Reason = "POLICY_EPOCH_NOT_FOUND"
	// PolicyLocksOut: these policies would keep {principal} from changing them again ({cause}); permit it change_policy.
	PolicyLocksOut Reason = "POLICY_LOCKS_OUT"
	// EntryNotFound: no entry {key} in {scope}.
	EntryNotFound Reason = "ENTRY_NOT_FOUND"
	// EntryConflict: entry {key} in {scope} has revision {revision}, not {expected}; read it again, then decide.
	EntryConflict Reason = "ENTRY_CONFLICT"
	// ContextQuotaExceeded: the namespace may hold {limit} {what} of shared context; delete some, or have an operator raise the limit.
	ContextQuotaExceeded Reason = "CONTEXT_QUOTA_EXCEEDED"
	// HistoryCompacted: changes before revision {revision} are forgotten; list the entries again, then watch from the list's revision + 1.
	HistoryCompacted Reason = "HISTORY_COMPACTED"
	// ClaimHeld: claim {claim} is held by {holder} until {expire_time}.
	ClaimHeld Reason = "CLAIM_HELD"
	// ClaimLost: claim {claim} with fence {fence} is not held any more; acquire it again, then read what it protects.
	ClaimLost Reason = "CLAIM_LOST"
	// AuditChainNotFound: no audit chain {chain}; GetCheckpoint names all there are.
	AuditChainNotFound Reason = "AUDIT_CHAIN_NOT_FOUND"
	// AuditRecordNotFound: audit chain {chain} has no record {seq}; it holds {first} to {last}.
	AuditRecordNotFound Reason = "AUDIT_RECORD_NOT_FOUND"
	// ShardMoved: shard {shard} is changing hands; ask again in a moment, of any replica.
	ShardMoved Reason = "SHARD_MOVED"
	// ReplicaUnavailable: replica {replica} does not answer, and without it the answer would not be whole.
	ReplicaUnavailable Reason = "REPLICA_UNAVAILABLE"
	// PayloadsUnavailable: where payloads are kept does not answer.
	PayloadsUnavailable Reason = "PAYLOADS_UNAVAILABLE"
	// PayloadCorrupt: payload {digest} is damaged where it is kept.
	PayloadCorrupt Reason = "PAYLOAD_CORRUPT"
	// VerifyReportNotAccepted: the report proves nothing: {cause}; run antiphon verify without --case until every case passes.
	VerifyReportNotAccepted Reason = "VERIFY_REPORT_NOT_ACCEPTED"
)

// registry is what the contracts say of each reason.
var registry = map[Reason]reasonSpec{
	RequestInvalid:          {codes.Code(3), FixRequest},
	MethodUnknown:           {codes.Code(12), FixRequest},
	DeadlineRequired:        {codes.Code(3), FixRequest},
	DeadlineExceeded:        {codes.Code(4), Retry},
	CertificateRequired:     {codes.Code(16), FixRequest},
	CertificateExpired:      {codes.Code(16), FixRequest},
	CertificateNotAccepted:  {codes.Code(16), FixRequest},
	AccessDenied:            {codes.Code(7), AskOperator},
	PolicyDenied:            {codes.Code(7), AskOperator},
	MessageTooLarge:         {codes.Code(8), FixRequest},
	RateLimited:             {codes.Code(8), Retry},
	Overloaded:              {codes.Code(8), Retry},
	StoreFull:               {codes.Code(8), Retry},
	StoreUnavailable:        {codes.Code(14), Retry},
	ArchiveUnavailable:      {codes.Code(14), Retry},
	NotServing:              {codes.Code(14), Retry},
	Internal:                {codes.Code(13), AskOperator},
	RequestIdReused:         {codes.Code(6), FixRequest},
	GraphInvalid:            {codes.Code(3), FixRequest},
	GraphVersionExists:      {codes.Code(6), FixRequest},
	GraphNotFound:           {codes.Code(5), FixRequest},
	InputInvalid:            {codes.Code(3), FixRequest},
	RunNotFound:             {codes.Code(5), FixRequest},
	TaskNotFound:            {codes.Code(5), FixRequest},
	PageTokenInvalid:        {codes.Code(3), FixRequest},
	CursorInvalid:           {codes.Code(11), Reread},
	AgentNotFound:           {codes.Code(5), FixRequest},
	NotGranted:              {codes.Code(7), AskOperator},
	CapabilityConflict:      {codes.Code(9), FixRequest},
	StreamReplaced:          {codes.Code(10), Reread},
	ProtocolViolation:       {codes.Code(9), FixRequest},
	AttemptNotFound:         {codes.Code(5), Reread},
	AttemptTokenInvalid:     {codes.Code(7), FixRequest},
	CallTooDeep:             {codes.Code(9), FixRequest},
	PayloadNotFound:         {codes.Code(5), FixRequest},
	PayloadDigestMismatch:   {codes.Code(3), FixRequest},
	TokenNotAccepted:        {codes.Code(16), AskOperator},
	SigningRequestInvalid:   {codes.Code(3), FixRequest},
	CertificateRevoked:      {codes.Code(16), AskOperator},
	RevocationsExhausted:    {codes.Code(8), AskOperator},
	RecoveryNotAccepted:     {codes.Code(16), AskOperator},
	RunEnded:                {codes.Code(9), FixRequest},
	SignalNotExpected:       {codes.Code(9), FixRequest},
	SignalsExhausted:        {codes.Code(8), FixRequest},
	TaskStateConflict:       {codes.Code(9), Reread},
	CallRepeated:            {codes.Code(9), FixRequest},
	TooMuchBeneath:          {codes.Code(8), FixRequest},
	RunSetAside:             {codes.Code(9), AskOperator},
	PolicyInvalid:           {codes.Code(3), FixRequest},
	PolicyEpochChanged:      {codes.Code(10), Reread},
	PolicyEpochNotFound:     {codes.Code(5), FixRequest},
	PolicyLocksOut:          {codes.Code(9), FixRequest},
	EntryNotFound:           {codes.Code(5), FixRequest},
	EntryConflict:           {codes.Code(10), Reread},
	ContextQuotaExceeded:    {codes.Code(8), FixRequest},
	HistoryCompacted:        {codes.Code(11), Reread},
	ClaimHeld:               {codes.Code(10), Reread},
	ClaimLost:               {codes.Code(10), Reread},
	AuditChainNotFound:      {codes.Code(5), FixRequest},
	AuditRecordNotFound:     {codes.Code(5), FixRequest},
	ShardMoved:              {codes.Code(14), Retry},
	ReplicaUnavailable:      {codes.Code(14), Retry},
	PayloadsUnavailable:     {codes.Code(14), Retry},
	PayloadCorrupt:          {codes.Code(15), AskOperator},
	VerifyReportNotAccepted: {codes.Code(3), FixRequest},
}
