package antiphon

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	antiphonv1 "antiphon.dev/antiphon/v1"
)

const (
	errorDomain  = "antiphon.v1"
	reasonPrefix = "ERROR_REASON_"
)

// Reason is the name of a reason in the error registry, such as RUN_NOT_FOUND. It is a target of errors.Is.
type Reason string

// Error makes a Reason a target of errors.Is; nothing returns one as an error.
func (r Reason) Error() string { return string(r) }

// Reasons that are said here and never on the wire.
const (
	// Unavailable: no server could be reached, or the connection broke before the answer. The call may have had its effect.
	Unavailable Reason = "UNAVAILABLE"
	// NotSetUp: this process lacks what it needs: a socket, a profile, a certificate. The message names the remedy.
	NotSetUp Reason = "NOT_SET_UP"
)

// Remedy is what code should do about an error.
type Remedy string

const (
	// FixRequest: the request is wrong and stays wrong; change it.
	FixRequest Remedy = "FIX_REQUEST"
	// Retry: send the same again, after RetryAfter where given.
	Retry Remedy = "RETRY"
	// Reread: the caller's view is old; read again, then decide.
	Reread Remedy = "REREAD"
	// AskOperator: only a person with other rights can help.
	AskOperator Remedy = "ASK_OPERATOR"
)

type reasonSpec struct {
	code   codes.Code
	remedy Remedy
}

// FieldViolation is one field at fault: its path, such as graph.tasks[3].when, and what is wrong with it.
type FieldViolation struct {
	Field   string
	Message string
}

// Error says that a call was refused. Find it with errors.As, or ask for one reason: errors.Is(err, antiphon.RunNotFound).
type Error struct {
	// Reason in the registry; empty when neither a server of ours nor this package knows one.
	Reason Reason
	// Remedy is what to do; empty when the reason is unknown here.
	Remedy Remedy
	// Code is the gRPC status code.
	Code codes.Code
	// Message is one line for people.
	Message string
	// Metadata holds the variables of the message.
	Metadata map[string]string
	// Violations are the fields at fault, for errors about content.
	Violations []FieldViolation
	// RetryAfter is how long to wait before sending the same again; only with the remedy Retry, 0 when not said.
	RetryAfter time.Duration

	cause error
}

// Error is the message with the fields at fault.
func (e *Error) Error() string {
	text := e.Message
	for _, one := range e.Violations {
		if more := one.Field + ": " + one.Message; !strings.Contains(e.Message, more) {
			text += "; " + more
		}
	}
	return text
}

// Is reports whether target is this error's reason.
func (e *Error) Is(target error) bool {
	reason, ok := target.(Reason)
	return ok && reason != "" && reason == e.Reason
}

// Unwrap gives what is behind it: the context's error when the caller's own context ended the call.
func (e *Error) Unwrap() error { return e.cause }

func newError(reason Reason, message string) *Error {
	spec := registry[reason]
	return &Error{Reason: reason, Remedy: spec.remedy, Code: spec.code, Message: message}
}

func setupError(format string, arguments ...any) *Error {
	return &Error{
		Reason: NotSetUp, Remedy: FixRequest, Code: codes.FailedPrecondition, Message: fmt.Sprintf(format, arguments...),
	}
}

func unavailable(code codes.Code, text string) *Error {
	return &Error{Reason: Unavailable, Remedy: Retry, Code: code, Message: "no answer from the server: " + text}
}

// ended is the error of a call that ended because its caller's context did.
func ended(ctx context.Context, what string) *Error {
	cause := ctx.Err()
	if errors.Is(cause, context.DeadlineExceeded) {
		e := newError(DeadlineExceeded, "the deadline of "+what+" passed; no answer came")
		e.cause = cause
		return e
	}
	return &Error{Code: codes.Canceled, Message: what + " was cancelled by its caller", cause: cause}
}

// fromMessage turns an antiphon.v1.Error, as streams answer item by item, into an Error.
func fromMessage(message *antiphonv1.Error) *Error {
	e := newError(Reason(strings.TrimPrefix(message.GetReason().String(), reasonPrefix)), message.GetMessage())
	e.Metadata = message.GetMetadata()
	for _, one := range message.GetViolations() {
		e.Violations = append(e.Violations, FieldViolation{one.GetField(), one.GetMessage()})
	}
	e.retryAfter(message.GetRetryDelay().AsDuration(), message.RetryDelay != nil)
	return e
}

// fromStatus turns the error of a gRPC call into an Error: by its ErrorInfo, or by its code when no server of ours answered.
func fromStatus(err error) *Error {
	said := status.Convert(err)
	var info *errdetails.ErrorInfo
	var violations []FieldViolation
	var delay time.Duration
	delayed := false
	for _, detail := range said.Details() {
		switch one := detail.(type) {
		case *errdetails.ErrorInfo:
			info = one
		case *errdetails.BadRequest:
			for _, violation := range one.GetFieldViolations() {
				violations = append(violations, FieldViolation{violation.GetField(), violation.GetDescription()})
			}
		case *errdetails.RetryInfo:
			delay, delayed = one.GetRetryDelay().AsDuration(), true
		}
	}
	if info.GetDomain() == errorDomain {
		e := newError(Reason(info.GetReason()), said.Message())
		e.Code, e.Metadata, e.Violations = said.Code(), info.GetMetadata(), violations
		e.retryAfter(delay, delayed)
		return e
	}
	switch said.Code() {
	case codes.DeadlineExceeded:
		return newError(DeadlineExceeded, "the deadline of the call passed; no answer came")
	// What gRPC itself says of a connection that broke. A server of ours never sends one of these without its ErrorInfo.
	case codes.Unavailable, codes.Canceled, codes.Internal:
		return unavailable(said.Code(), said.Message())
	}
	return &Error{Code: said.Code(), Message: fmt.Sprintf("the call failed with %s: %s", said.Code(), said.Message())}
}

// retryAfter notes a delay. A reason of a newer server that says when to retry is to be retried.
func (e *Error) retryAfter(delay time.Duration, given bool) {
	if given {
		e.RetryAfter = max(delay, 0)
		if e.Remedy == "" {
			e.Remedy = Retry
		}
	}
}
