package antiphon

import (
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"

	antiphonv1 "antiphon.dev/antiphon/v1"
)

// Kind decides which retry rule of a task applies to its failure.
type Kind = antiphonv1.FailureKind

// Limits of a failure's texts, in characters.
const (
	messageLimit = 4096
	codeLimit    = 128
	causeLimit   = 16384
	fieldLimit   = 1024
)

// Failure says that work ran and did not succeed. A handler returns one, wrapped or not, to say which kind; any other error it
// returns is TRANSIENT, since what nobody foresaw deserves another try, and the retry rule bounds it.
type Failure struct {
	// Kind decides the retry rule.
	Kind Kind
	// Message is for people.
	Message string
	// Code is a stable word of the agent's own, such as "quota_exceeded".
	Code string
	// Retryable is false when no retry can help, whatever the task's retry rules say.
	Retryable bool
	// Field is the JSON pointer of the value at fault; empty means the whole value.
	Field string

	cause error
}

// Error is the message.
func (f *Failure) Error() string { return f.Message }

// Unwrap gives the error that was named with %w.
func (f *Failure) Unwrap() error { return f.cause }

// WithCode sets the code and returns the failure.
func (f *Failure) WithCode(code string) *Failure {
	f.Code = code
	return f
}

// WithField sets the JSON pointer of the value at fault and returns the failure.
func (f *Failure) WithField(pointer string) *Failure {
	f.Field = pointer
	return f
}

// Transient says that it may succeed when tried again: a dependency was away, a rate limit. The message is formatted as by fmt.Errorf;
// an error named with %w becomes the cause.
func Transient(format string, arguments ...any) *Failure {
	failure := failed(antiphonv1.FailureKind_FAILURE_KIND_TRANSIENT, fmt.Errorf(format, arguments...))
	failure.Retryable = true
	return failure
}

// Permanent says that it will fail again with the same input. The message is formatted as by fmt.Errorf.
func Permanent(format string, arguments ...any) *Failure {
	return failed(antiphonv1.FailureKind_FAILURE_KIND_PERMANENT, fmt.Errorf(format, arguments...))
}

// InvalidInput says that the input does not fit; WithField says where. The message is formatted as by fmt.Errorf.
func InvalidInput(format string, arguments ...any) *Failure {
	return failed(antiphonv1.FailureKind_FAILURE_KIND_INVALID_INPUT, fmt.Errorf(format, arguments...))
}

// InvalidOutput says that the output does not fit; WithField says where. The message is formatted as by fmt.Errorf.
func InvalidOutput(format string, arguments ...any) *Failure {
	return failed(antiphonv1.FailureKind_FAILURE_KIND_INVALID_OUTPUT, fmt.Errorf(format, arguments...))
}

// BudgetExceeded says that a budget of cost or work is used up. The message is formatted as by fmt.Errorf.
func BudgetExceeded(format string, arguments ...any) *Failure {
	return failed(antiphonv1.FailureKind_FAILURE_KIND_BUDGET, fmt.Errorf(format, arguments...))
}

// Cancelled says that the attempt was cancelled. The message is formatted as by fmt.Errorf.
func Cancelled(format string, arguments ...any) *Failure {
	return failed(antiphonv1.FailureKind_FAILURE_KIND_CANCELLED, fmt.Errorf(format, arguments...))
}

func failed(kind Kind, text error) *Failure {
	return &Failure{Kind: kind, Message: text.Error(), cause: errors.Unwrap(text)}
}

// CallFailed says that a capability which a handler called failed. Returned by the handler, it fails its own attempt: TRANSIENT
// when the call's failure was worth a retry, else PERMANENT, since what the callee's input or policy got wrong is not the
// caller's own input or policy.
type CallFailed struct {
	// Capability that was called.
	Capability string
	// Recorded is the failure as it is in the record.
	Recorded *antiphonv1.Failure
}

// Error names the capability and what it said.
func (f *CallFailed) Error() string { return f.Capability + " failed: " + textOf(f.Recorded) }

func (f *CallFailed) failure() *Failure {
	kind := antiphonv1.FailureKind_FAILURE_KIND_PERMANENT
	switch f.Recorded.GetKind() {
	case antiphonv1.FailureKind_FAILURE_KIND_TRANSIENT, antiphonv1.FailureKind_FAILURE_KIND_LOST:
		if f.Recorded.GetRetryable() {
			kind = antiphonv1.FailureKind_FAILURE_KIND_TRANSIENT
		}
	}
	return &Failure{Kind: kind, Message: f.Error(), Code: f.Recorded.GetCode(), Retryable: f.Recorded.GetRetryable()}
}

// RunFailed says that a run did not succeed, or has not ended; OutputOf returns it.
type RunFailed struct {
	// RunID of the run.
	RunID string
	// State it is in.
	State antiphonv1.RunState
	// Recorded is its failure, nil when it has none.
	Recorded *antiphonv1.Failure
}

// Error names the run, its state and what it said.
func (f *RunFailed) Error() string {
	text := fmt.Sprintf("run %s is %s", f.RunID, strings.TrimPrefix(f.State.String(), "RUN_STATE_"))
	if f.Recorded.GetMessage() != "" {
		text += ": " + f.Recorded.GetMessage()
	}
	return text
}

func textOf(recorded *antiphonv1.Failure) string {
	if recorded.GetMessage() != "" {
		return recorded.GetMessage()
	}
	return recorded.GetKind().String()
}

// recordOf is the record of what a handler returned, cut to the contract's limits. `stack` is that of a panic.
func recordOf(err error, stack string) *antiphonv1.Failure {
	var failure *Failure
	var call *CallFailed
	switch {
	case errors.As(err, &failure):
	case errors.As(err, &call):
		failure = call.failure()
	default:
		failure = Transient("%s", err)
		failure.cause = errors.Unwrap(err)
	}
	message := err.Error() // with whatever wraps the failure
	if call != nil && message == call.Error() {
		message = failure.Message
	}
	cause := stack
	if cause == "" {
		cause = chain(failure.cause)
	}
	return &antiphonv1.Failure{
		Kind:      failure.Kind,
		Message:   cut(message, messageLimit),
		Code:      cut(failure.Code, codeLimit),
		Retryable: failure.Retryable,
		Cause:     cut(cause, causeLimit),
		Field:     cut(failure.Field, fieldLimit),
	}
}

// chain spells an error and what is behind it, a line each with its type.
func chain(err error) string {
	var lines []string
	for ; err != nil && len(lines) < 32; err = errors.Unwrap(err) {
		lines = append(lines, fmt.Sprintf("%T: %s", err, err))
	}
	return strings.Join(lines, "\n")
}

// cut bounds a text to `limit` characters and makes it valid UTF-8, which the wire needs.
func cut(text string, limit int) string {
	text = strings.ToValidUTF8(text, "\uFFFD")
	if len(text) <= limit || utf8.RuneCountInString(text) <= limit {
		return text
	}
	return string([]rune(text)[:limit])
}
