package antiphon

import (
	"context"
	"errors"
	"log/slog"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	antiphonv1 "antiphon.dev/antiphon/v1"
)

const progressLimit = 1024

// Task is one attempt, seen by its handler. It is a context: done when the attempt is to stop, with the deadline of the attempt.
type Task struct {
	context.Context
	assignment *antiphonv1.Assignment
	worker     *worker
	cancel     context.CancelCauseFunc
	calls      atomic.Int64
	emitted    uint64 // bytes of the pieces of its output so far; the attempts' mutex guards it
	requests   int    // calls and requests to shared context that wait for an answer; the same mutex guards it
}

type taskKey struct{}

// Value gives the task itself to TaskOf, and all else from the context within.
func (t *Task) Value(key any) any {
	if key == (taskKey{}) {
		return t
	}
	return t.Context.Value(key)
}

// TaskOf is the task whose context ctx is, or is derived from; nil outside of a handler.
func TaskOf(ctx context.Context) *Task {
	task, _ := ctx.Value(taskKey{}).(*Task)
	return task
}

func newTask(parent context.Context, assignment *antiphonv1.Assignment, worker *worker, received time.Time) *Task {
	ctx, cancel := context.WithCancelCause(parent)
	task := &Task{Context: ctx, assignment: assignment, worker: worker, cancel: cancel}
	if left := assignment.GetRemainingTimeout(); left != nil {
		limited, release := context.WithDeadline(ctx, received.Add(left.AsDuration()))
		task.Context = limited
		task.cancel = func(cause error) {
			cancel(cause)
			release()
		}
	}
	return task
}

// AttemptID identifies this try.
func (t *Task) AttemptID() string { return t.assignment.GetAttemptId() }

// Number of the attempt, counted from 1.
func (t *Task) Number() int { return int(t.assignment.GetNumber()) }

// IdempotencyKey is the same for every attempt of the task; hand it to whatever takes effect.
func (t *Task) IdempotencyKey() string { return t.assignment.GetIdempotencyKey() }

// RunID is that of the run the task belongs to.
func (t *Task) RunID() string {
	id, _, _ := strings.Cut(t.AttemptID(), "/")
	return id
}

// Capability is the name and version, such as text.summarize@1.
func (t *Task) Capability() string {
	return t.assignment.GetCapability() + "@" + t.assignment.GetVersion()
}

// Namespace is the tenant.
func (t *Task) Namespace() string { return t.assignment.GetNamespace() }

// Principal is the SPIFFE id on whose behalf the run works.
func (t *Task) Principal() string { return t.assignment.GetPrincipal() }

// Delegation lists the attempts, outermost first, that called for this one.
func (t *Task) Delegation() []string { return t.assignment.GetDelegation() }

// Traceparent is the W3C traceparent of this attempt; pass it on in calls to other services.
func (t *Task) Traceparent() string { return t.assignment.GetTraceparent() }

// Input is the input as it came, with media type and labels.
func (t *Task) Input() *Payload { return t.assignment.GetInput() }

// Logger adds the ids of this attempt. It adds no payload; neither should its user.
func (t *Task) Logger() *slog.Logger {
	return t.worker.agent.log.With("run_id", t.RunID(), "attempt_id", t.AttemptID(), "capability", t.Capability())
}

// Progress says how far the attempt is: 0 to 1 (0 when unknown) and a text of at most 1,024 characters. It never waits, and only
// the newest of several is sent.
func (t *Task) Progress(fraction float64, message string) {
	t.worker.progress(t.AttemptID(), &antiphonv1.Progress{
		Fraction: min(max(fraction, 0), 1), Message: cut(message, progressLimit),
	})
}

// Emit shows a piece of the output before the output: a string as text, as a language model makes it, or any value as JSON. Whoever
// watches the run, or has called this attempt, sees pieces within moments and under the rules of the output: where policy refuses
// or redacts that, its pieces are withheld. A *Payload carries labels of its own. It never waits: what finds no room on its way is
// left out. What the handler returns is the output; pieces are kept nowhere. The error is an INVALID_OUTPUT *Failure for what cannot
// travel, or for more than 16 KiB of JSON.
func (t *Task) Emit(value any) error {
	made, err := piecesOf(value)
	if err == nil {
		t.worker.emit(t.AttemptID(), made)
	}
	return err
}

// Shared is what the team shares: entries and claims, with the rights of this task. What a task reads becomes the provenance of
// what it writes, and its labels join those of what it writes and answers.
func (t *Task) Shared() *SharedContext { return &SharedContext{asker: t, logger: t.Logger()} }

// CallOption says something of a call to another capability.
type CallOption func(*outgoing)

type outgoing struct {
	request   *antiphonv1.CallRequest
	onPartial func(*PartialOutput)
}

// CallID names a call within its task, in 1 to 64 characters: when the handler runs again, the call with the same id and input is
// answered from the record and not made again, unless it failed. Without it, or with an empty one, calls are numbered in their order,
// so make them in the same order each time.
func CallID(id string) CallOption {
	return func(call *outgoing) { call.request.CallId = id }
}

// CallTimeout is the longest wait; the time that the attempt has left by default.
func CallTimeout(limit time.Duration) CallOption {
	return func(call *outgoing) { call.request.Timeout = durationpb.New(limit) }
}

// OnPartial is shown the pieces that the called agent emits, as far as they come, in the goroutine of the call and before its
// outcome.
func OnPartial(show func(*PartialOutput)) CallOption {
	return func(call *outgoing) { call.onPartial = show }
}

// Call asks for another capability, such as "text.summarize@1", on behalf of the task that ctx is or is derived from, and returns
// its output. The error is a *CallFailed when the capability failed, an INVALID_OUTPUT *Failure when the input cannot travel or
// the answer is no Out, and the context's when that ended first; what was called may go on then.
func Call[Out any](ctx context.Context, capability string, input any, options ...CallOption) (Out, error) {
	var output Out
	task := TaskOf(ctx)
	if task == nil {
		return output, errors.New("antiphon.Call works in a handler; give it the handler's task, or a context derived from it")
	}
	payload, err := encode(input, task.worker.limit())
	if err != nil {
		return output, err
	}
	number := strconv.FormatInt(task.calls.Add(1), 10)
	request := &antiphonv1.CallRequest{
		AttemptId:    task.AttemptID(),
		AttemptToken: task.assignment.GetAttemptToken(),
		Capability:   capability,
		Input:        payload,
	}
	call := outgoing{request: request}
	for _, option := range options {
		option(&call)
	}
	if request.CallId == "" {
		request.CallId = number
	}
	response, err := task.worker.call(ctx, request, call.onPartial)
	if err != nil {
		return output, err
	}
	if failure := response.GetFailure(); failure != nil {
		return output, &CallFailed{Capability: capability, Recorded: failure}
	}
	output, err = Decode[Out](response.GetOutput())
	var wrong *Failure
	if errors.As(err, &wrong) {
		err = InvalidOutput("the answer of %s does not fit: %s", capability, wrong.Message)
	}
	return output, err
}
