package antiphon

import (
	"context"
	"crypto/rand"

	antiphonv1 "antiphon.dev/antiphon/v1"
)

// Signal is one signal to a run.
type Signal struct {
	// Name as a task of the run's graph has it.
	Name string
	// Data is anything that travels as JSON, or a *Payload; it becomes the output of the task that waits. Nil means none.
	Data any
	// RequestID makes it repeatable: the same id is the same signal. A new one when empty.
	RequestID string
}

// Signal sends a signal to a run, for the task that waits for it or will. The answer names the task; nil means that it is kept for
// one. Reasons: RunNotFound, RunEnded, SignalNotExpected, RequestIdReused.
func (c *Client) Signal(ctx context.Context, runID string, signal Signal) (*antiphonv1.TaskKey, error) {
	request := &antiphonv1.SignalRunRequest{RequestId: signal.RequestID, RunId: runID, Signal: signal.Name}
	if request.RequestId == "" {
		request.RequestId = rand.Text()
	}
	if signal.Data != nil {
		payload, err := c.travelling(ctx, signal.Data)
		if err != nil {
			return nil, err
		}
		request.Payload = payload
	}
	answer, err := ask(ctx, c, runs, antiphonv1.RunServiceClient.SignalRun, request)
	return answer.GetKey(), err
}

// Pause holds a run: attempts that are out go on, nothing else begins. Reasons: RunNotFound, RunEnded.
func (c *Client) Pause(ctx context.Context, runID, reason string) (*antiphonv1.Run, error) {
	answer, err := ask(ctx, c, runs, antiphonv1.RunServiceClient.PauseRun,
		&antiphonv1.PauseRunRequest{RunId: runID, Reason: reason})
	return answer.GetRun(), err
}

// Resume lets a paused run go on. Reasons: RunNotFound, RunEnded.
func (c *Client) Resume(ctx context.Context, runID, reason string) (*antiphonv1.Run, error) {
	answer, err := ask(ctx, c, runs, antiphonv1.RunServiceClient.ResumeRun,
		&antiphonv1.ResumeRunRequest{RunId: runID, Reason: reason})
	return answer.GetRun(), err
}

// TaskOption says something of an act upon a task.
type TaskOption func(*taskAct)

type taskAct struct {
	member     uint32
	reason     string
	dependents bool
}

// Member is that of a for_each, counted from 1; the task itself by default.
func Member(number uint32) TaskOption { return func(act *taskAct) { act.member = number } }

// Because is why, for the record.
func Because(reason string) TaskOption { return func(act *taskAct) { act.reason = reason } }

// Dependents has CancelTask end all that need the task, too, directly or through others.
func Dependents() TaskOption { return func(act *taskAct) { act.dependents = true } }

func actOf(options []TaskOption) taskAct {
	var act taskAct
	for _, option := range options {
		option(&act)
	}
	return act
}

// CancelTask ends a task of a run; one that has ended stays as it is. Reasons: TaskNotFound, RunEnded.
func (c *Client) CancelTask(
	ctx context.Context, runID, taskID string, options ...TaskOption,
) (*antiphonv1.Task, error) {
	act := actOf(options)
	answer, err := ask(ctx, c, runs, antiphonv1.RunServiceClient.CancelTask, &antiphonv1.CancelTaskRequest{
		RunId: runID, Key: keyOf(taskID, act.member), Dependents: act.dependents, Reason: act.reason,
	})
	return answer.GetTask(), err
}

// RetryTask takes up a failed task of a run that has not ended, and with it what was skipped because of it. It looks the task up first,
// so that a call which has to be repeated does not retry twice. Reasons: TaskNotFound, TaskStateConflict, RunEnded.
func (c *Client) RetryTask(
	ctx context.Context, runID, taskID string, options ...TaskOption,
) (*antiphonv1.Task, error) {
	act := actOf(options)
	seen, err := c.GetTask(ctx, runID, taskID, act.member)
	if err != nil {
		return nil, err
	}
	answer, err := ask(ctx, c, runs, antiphonv1.RunServiceClient.RetryTask, &antiphonv1.RetryTaskRequest{
		RunId: runID, Key: keyOf(taskID, act.member), ExpectedEndTime: seen.GetEndTime(), Reason: act.reason,
	})
	return answer.GetTask(), err
}

// ResolveTask has a task that is ESCALATED succeed with an output: anything that travels as JSON, nil for null, or a *Payload.
// Reasons: TaskNotFound, TaskStateConflict, RunEnded.
func (c *Client) ResolveTask(
	ctx context.Context, runID, taskID string, output any, options ...TaskOption,
) (*antiphonv1.Task, error) {
	payload, err := c.travelling(ctx, output)
	if err != nil {
		return nil, err
	}
	act := actOf(options)
	answer, err := ask(ctx, c, runs, antiphonv1.RunServiceClient.ResolveTask, &antiphonv1.ResolveTaskRequest{
		RunId: runID, Key: keyOf(taskID, act.member), Reason: act.reason,
		Answer: &antiphonv1.ResolveTaskRequest_Output{Output: payload},
	})
	return answer.GetTask(), err
}

// FailTask has a task that is ESCALATED fail with a message. Reasons: TaskNotFound, TaskStateConflict, RunEnded.
func (c *Client) FailTask(
	ctx context.Context, runID, taskID, failure string, options ...TaskOption,
) (*antiphonv1.Task, error) {
	act := actOf(options)
	answer, err := ask(ctx, c, runs, antiphonv1.RunServiceClient.ResolveTask, &antiphonv1.ResolveTaskRequest{
		RunId: runID, Key: keyOf(taskID, act.member), Reason: act.reason,
		Answer: &antiphonv1.ResolveTaskRequest_Failure{Failure: failure},
	})
	return answer.GetTask(), err
}
