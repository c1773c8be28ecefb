package antiphon

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"iter"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	antiphonv1 "antiphon.dev/antiphon/v1"
)

const (
	waitStep = 5 * time.Minute
	// aside is how long whoever stops waiting for a run is kept, at most, to learn which one goes on.
	aside = time.Second
)

// Source is the graph of a run: Registered or Inline.
type Source func(*antiphonv1.SubmitRunRequest)

// Registered is a registered graph, "NAME" or "NAME@VERSION"; without a version the highest at this moment.
func Registered(graph string) Source {
	name, version, _ := strings.Cut(graph, "@")
	return func(request *antiphonv1.SubmitRunRequest) {
		request.Source = &antiphonv1.SubmitRunRequest_Registered{
			Registered: &antiphonv1.GraphReference{Name: name, Version: version},
		}
	}
}

// Inline is a graph of this run alone.
func Inline(graph *antiphonv1.Graph) Source {
	return func(request *antiphonv1.SubmitRunRequest) {
		request.Source = &antiphonv1.SubmitRunRequest_Inline{Inline: graph}
	}
}

// SubmitOption is what a submission may say besides its graph and its input.
type SubmitOption func(*antiphonv1.SubmitRunRequest)

// RequestID makes a submission repeatable: the same id, 1 to 64 characters, with the same content is the same run. A new one by
// default, and for an empty one.
func RequestID(id string) SubmitOption {
	return func(request *antiphonv1.SubmitRunRequest) { request.RequestId = id }
}

// Deadline is the longest duration of the run; the smaller of this and the graph's own holds.
func Deadline(longest time.Duration) SubmitOption {
	return func(request *antiphonv1.SubmitRunRequest) { request.Deadline = durationpb.New(longest) }
}

// RunLabels are for search.
func RunLabels(labels map[string]string) SubmitOption {
	return func(request *antiphonv1.SubmitRunRequest) { request.Labels = labels }
}

// Priority is added to the priority of each task, 0 to 9.
func Priority(priority uint32) SubmitOption {
	return func(request *antiphonv1.SubmitRunRequest) { request.Priority = priority }
}

// Wait has the run answered as it ended. Without it the answer is the run as it was committed.
func Wait() SubmitOption {
	return func(request *antiphonv1.SubmitRunRequest) { request.Wait = true }
}

func (c *Client) submission(
	ctx context.Context, source Source, input any, options []SubmitOption,
) (*antiphonv1.SubmitRunRequest, error) {
	request := &antiphonv1.SubmitRunRequest{Traceparent: traceparent(ctx)}
	source(request)
	for _, option := range options {
		option(request)
	}
	if request.RequestId == "" {
		request.RequestId = rand.Text()
	}
	if input != nil {
		payload, err := c.travelling(ctx, input)
		if err != nil {
			return nil, err
		}
		request.Input = payload
	}
	return request, checked(request)
}

// Submit submits a run and returns it: as it was committed, or with Wait as it ended, whether it succeeded or not (OutputOf tells),
// after as long as it takes unless ctx ends; the run goes on then, and the error, which comes within a second, names it in its
// Metadata as run_id where it is known. The input is anything that travels as JSON, nil for null, or a *Payload; a large one is
// uploaded first. Reasons: GraphNotFound, GraphInvalid, InputInvalid, RequestIdReused.
func (c *Client) Submit(
	ctx context.Context, source Source, input any, options ...SubmitOption,
) (*antiphonv1.Run, error) {
	request, err := c.submission(ctx, source, input, options)
	if err != nil {
		return nil, err
	}
	if !request.GetWait() {
		answer, err := ask(ctx, c, runs, antiphonv1.RunServiceClient.SubmitRun, request)
		return answer.GetRun(), err
	}
	if ctx.Err() != nil {
		return nil, failureOf(ctx, ctx.Err()) // nothing was sent, and nothing is to be
	}
	// In steps, each a call with a deadline of its own: the same request id is the same run, however often.
	again := streamTries(c.connection, c.patience)
	for {
		run, err := c.submitStep(ctx, request)
		if err == nil {
			return run, nil
		}
		failure := failureOf(ctx, err)
		if ctx.Err() != nil {
			return nil, c.named(ctx, request, failure)
		}
		if failure.Reason == DeadlineExceeded {
			again.heard() // the server is there, and the run goes on
		} else if err := again.after(ctx, failure); err != nil {
			return nil, err
		}
	}
}

// named is the error of a caller that waits no longer, with the run that goes on: the same request id is the same run.
func (c *Client) named(ctx context.Context, request *antiphonv1.SubmitRunRequest, failure *Error) error {
	brief, end := context.WithTimeout(context.WithoutCancel(ctx), aside)
	defer end()
	request.Wait = false
	run, err := c.submitStep(brief, request)
	if err != nil {
		return failure // nobody knows whether it was committed
	}
	failure.Message = fmt.Sprintf("run %s has not ended; %s", run.GetRunId(), failure.Message)
	failure.Metadata = map[string]string{"run_id": run.GetRunId()}
	return failure
}

func (c *Client) submitStep(ctx context.Context, request *antiphonv1.SubmitRunRequest) (*antiphonv1.Run, error) {
	lent, giveBack, err := c.connection.use()
	if err != nil {
		return nil, err
	}
	defer giveBack()
	step, end := context.WithTimeout(withTrace(ctx), waitStep)
	defer end()
	answer, err := runs(lent).SubmitRun(step, request)
	return answer.GetRun(), err
}

// GetRun reads a run with its totals. Reasons: RunNotFound.
func (c *Client) GetRun(ctx context.Context, runID string) (*antiphonv1.Run, error) {
	answer, err := ask(ctx, c, runs, antiphonv1.RunServiceClient.GetRun, &antiphonv1.GetRunRequest{RunId: runID})
	return answer.GetRun(), err
}

// RunFilter says which runs are listed: those that fit all that it says. The zero value is all of them.
type RunFilter struct {
	// States are those of the runs, such as RunState_RUN_STATE_FAILED.
	States []antiphonv1.RunState
	// Graph is the name of their graph, or NAME@VERSION for one version of it.
	Graph string
	// CreatedAfter and CreatedBefore bound when they were created; the first moment belongs to it, the last one does not.
	CreatedAfter, CreatedBefore time.Time
	// Labels are among theirs, with these values.
	Labels map[string]string
	// Parent is the id of the run, or of the attempt, that called for them.
	Parent string
	// Failure is a part of the message with which they failed.
	Failure string
	// WaitingForPerson asks for those alone in which a task is ESCALATED or QUARANTINED.
	WaitingForPerson bool
	// WaitingForSignal asks for those alone in which a task waits for a signal; with WaitingForPerson as well, for those in
	// which one waits for either.
	WaitingForSignal bool
	// PageSize is how many are fetched at once, the server's own choice when 0.
	PageSize int32
}

// ListRuns gives runs, live and archived, newest first, without payloads; pages are fetched as needed.
//
//	week := antiphon.RunFilter{Graph: "review", CreatedAfter: time.Now().AddDate(0, 0, -7)}
//	for run, err := range client.ListRuns(ctx, week) {
func (c *Client) ListRuns(ctx context.Context, filter RunFilter) iter.Seq2[*antiphonv1.Run, error] {
	request := &antiphonv1.ListRunsRequest{
		States: filter.States, GraphName: filter.Graph, Labels: filter.Labels, Parent: filter.Parent,
		FailureText: filter.Failure, WaitingForPerson: filter.WaitingForPerson, WaitingForSignal: filter.WaitingForSignal,
		PageSize: filter.PageSize,
	}
	if !filter.CreatedAfter.IsZero() {
		request.CreatedAfter = timestamppb.New(filter.CreatedAfter)
	}
	if !filter.CreatedBefore.IsZero() {
		request.CreatedBefore = timestamppb.New(filter.CreatedBefore)
	}
	return pages(func(token string) (*antiphonv1.ListRunsResponse, error) {
		request.PageToken = token
		return ask(ctx, c, runs, antiphonv1.RunServiceClient.ListRuns, request)
	}, func(page *antiphonv1.ListRunsResponse) ([]*antiphonv1.Run, string) {
		return page.GetRuns(), page.GetNextPageToken()
	})
}

// ListTasks gives the tasks of a run in the order of its graph, members of a for_each after their task. The request names the run;
// its pages are fetched as needed. Reasons: RunNotFound.
func (c *Client) ListTasks(ctx context.Context, request *antiphonv1.ListTasksRequest) iter.Seq2[*antiphonv1.Task, error] {
	return pages(func(token string) (*antiphonv1.ListTasksResponse, error) {
		request.PageToken = token
		return ask(ctx, c, runs, antiphonv1.RunServiceClient.ListTasks, request)
	}, func(page *antiphonv1.ListTasksResponse) ([]*antiphonv1.Task, string) {
		return page.GetTasks(), page.GetNextPageToken()
	})
}

// GetTask reads a task with its payloads; member counts a for_each from 1, 0 is the task itself. Reasons: TaskNotFound.
func (c *Client) GetTask(ctx context.Context, runID, taskID string, member uint32) (*antiphonv1.Task, error) {
	answer, err := ask(ctx, c, runs, antiphonv1.RunServiceClient.GetTask,
		&antiphonv1.GetTaskRequest{RunId: runID, Key: keyOf(taskID, member)})
	return answer.GetTask(), err
}

// ListAttempts gives the attempts of a task, oldest first. Reasons: TaskNotFound.
func (c *Client) ListAttempts(
	ctx context.Context, runID, taskID string, member uint32,
) iter.Seq2[*antiphonv1.Attempt, error] {
	request := &antiphonv1.ListAttemptsRequest{RunId: runID, Key: keyOf(taskID, member)}
	return pages(func(token string) (*antiphonv1.ListAttemptsResponse, error) {
		request.PageToken = token
		return ask(ctx, c, runs, antiphonv1.RunServiceClient.ListAttempts, request)
	}, func(page *antiphonv1.ListAttemptsResponse) ([]*antiphonv1.Attempt, string) {
		return page.GetAttempts(), page.GetNextPageToken()
	})
}

// WatchOption asks for more than events.
type WatchOption func(*antiphonv1.WatchRunRequest)

// WithProgress adds what handlers say of their progress.
func WithProgress() WatchOption {
	return func(request *antiphonv1.WatchRunRequest) { request.IncludeProgress = true }
}

// WithPartials adds the pieces of output that handlers emit.
func WithPartials() WatchOption {
	return func(request *antiphonv1.WatchRunRequest) { request.IncludePartials = true }
}

// Watch gives the events of a run after cursor (the event_seq last seen, 0 for all), in order, without gap or repeat, to its end.
// Progress and pieces of output, when asked for, have no number, and who reads too slowly loses some of them, but no events. It goes
// on by itself after a broken stream; an error is the last it gives. Reasons: RunNotFound, CursorInvalid.
func (c *Client) Watch(
	ctx context.Context, runID string, cursor uint64, options ...WatchOption,
) iter.Seq2[*antiphonv1.RunEvent, error] {
	return func(yield func(*antiphonv1.RunEvent, error) bool) {
		for message, err := range c.watch(ctx, runID, cursor, options) {
			if err != nil {
				yield(nil, err)
				return
			}
			for _, event := range message.GetEvents() {
				if !yield(event, nil) {
					return
				}
			}
		}
	}
}

func (c *Client) watch(
	ctx context.Context, runID string, cursor uint64, options []WatchOption,
) iter.Seq2[*antiphonv1.WatchRunResponse, error] {
	request := &antiphonv1.WatchRunRequest{RunId: runID, Cursor: cursor}
	for _, option := range options {
		option(request)
	}
	messages := resume(ctx, c.connection, c.patience, request,
		func(ctx context.Context, g *generation) (grpc.ServerStreamingClient[antiphonv1.WatchRunResponse], error) {
			return runs(g).WatchRun(ctx, request)
		})
	return func(yield func(*antiphonv1.WatchRunResponse, error) bool) {
		for message, err := range messages {
			for _, event := range message.GetEvents() {
				request.Cursor = max(request.Cursor, event.GetEventSeq())
			}
			if !yield(message, err) {
				return
			}
		}
	}
}

// WaitForRun returns the run as it ended, succeeded or not, after as long as it takes unless ctx ends. Reasons: RunNotFound.
func (c *Client) WaitForRun(ctx context.Context, runID string) (*antiphonv1.Run, error) {
	for message, err := range c.watch(ctx, runID, 0, nil) {
		if err != nil {
			return nil, err
		}
		if message.GetRun() != nil {
			return message.GetRun(), nil
		}
	}
	return c.GetRun(ctx, runID)
}

// Cancel asks a run to end; one that has ended stays as it is. Reasons: RunNotFound.
func (c *Client) Cancel(ctx context.Context, runID, reason string) (*antiphonv1.Run, error) {
	answer, err := ask(ctx, c, runs, antiphonv1.RunServiceClient.CancelRun,
		&antiphonv1.CancelRunRequest{RunId: runID, Reason: reason})
	return answer.GetRun(), err
}

// Explain tells how a task came to be where it is: dependencies, attempts, placements, policy. Reasons: TaskNotFound.
func (c *Client) Explain(
	ctx context.Context, runID, taskID string, member uint32,
) (*antiphonv1.ExplainTaskResponse, error) {
	return ask(ctx, c, runs, antiphonv1.RunServiceClient.ExplainTask,
		&antiphonv1.ExplainTaskRequest{RunId: runID, Key: keyOf(taskID, member)})
}

// OutputOf is what a run answered, as a T, strictly. The error is a *RunFailed for a run that did not succeed; see [Decode].
func OutputOf[T any](run *antiphonv1.Run) (T, error) {
	if run.GetState() != antiphonv1.RunState_RUN_STATE_SUCCEEDED {
		var none T
		return none, &RunFailed{RunID: run.GetRunId(), State: run.GetState(), Recorded: run.GetFailure()}
	}
	output, err := Decode[T](run.GetOutput())
	var wrong *Failure
	if errors.As(err, &wrong) {
		err = InvalidOutput("the output of run %s does not fit: %s", run.GetRunId(), wrong.Message).WithField(wrong.Field)
	}
	return output, err
}

func keyOf(taskID string, member uint32) *antiphonv1.TaskKey {
	return &antiphonv1.TaskKey{TaskId: taskID, Member: member}
}
