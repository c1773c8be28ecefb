package antiphon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	antiphonv1 "antiphon.dev/antiphon/v1"
)

// world is an orchestrator and the credential folder of a client.
func world(t *testing.T, options ...ClientOption) (*orchestrator, *Client, *authority, string) {
	t.Helper()
	authority := newAuthority(t)
	orchestrator := newOrchestrator(t, authority)
	folder := t.TempDir()
	authority.store(folder, "first")
	client := connect(t, append([]ClientOption{WithAddresses(orchestrator.address), WithCredentials(CredentialFolder(folder))}, options...)...)
	return orchestrator, client, authority, folder
}

func connect(t *testing.T, options ...ClientOption) *Client {
	t.Helper()
	client, err := Connect(append([]ClientOption{WithClientLogger(quiet)}, options...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	return client
}

func soon() *errdetails.RetryInfo {
	return &errdetails.RetryInfo{RetryDelay: durationpb.New(time.Millisecond)}
}

func TestARefusalIsTypedByTheRegistry(t *testing.T) {
	orchestrator, client, _, _ := world(t)
	orchestrator.get = func(context.Context, *antiphonv1.GetRunRequest) (*antiphonv1.GetRunResponse, error) {
		return nil, refusalOf(RunNotFound, "no run r", nil)
	}
	_, err := client.GetRun(t.Context(), "r")
	var refusal *Error
	if !errors.As(err, &refusal) || !errors.Is(err, RunNotFound) || errors.Is(err, TaskNotFound) {
		t.Fatal(err)
	}
	if refusal.Remedy != FixRequest || refusal.Code != codes.NotFound || refusal.Metadata["run_id"] != "r" || refusal.Message != "no run r" {
		t.Errorf("%+v", refusal)
	}
	if calls := orchestrator.seen(); len(calls) != 1 || !calls[0].deadline || calls[0].caller != "first" ||
		!regexp.MustCompile(`^00-[0-9a-f]{32}-[0-9a-f]{16}-01$`).MatchString(calls[0].trace) {
		t.Errorf("%+v", calls)
	}
}

func TestOnlyWhatIsToBeRetriedIsRetriedAndNotForEver(t *testing.T) {
	orchestrator, client, _, _ := world(t)
	left := 3
	orchestrator.get = func(context.Context, *antiphonv1.GetRunRequest) (*antiphonv1.GetRunResponse, error) {
		if left--; left >= 0 {
			return nil, refusalOf(Overloaded, "full", soon())
		}
		return &antiphonv1.GetRunResponse{Run: &antiphonv1.Run{RunId: "r"}}, nil
	}
	if run, err := client.GetRun(t.Context(), "r"); err != nil || run.GetRunId() != "r" {
		t.Error(run, err)
	}
	left = 1000
	before := len(orchestrator.seen())
	if _, err := client.GetRun(t.Context(), "r"); !errors.Is(err, Overloaded) {
		t.Error(err)
	}
	if tries := len(orchestrator.seen()) - before; tries != 1+mostRetries {
		t.Error(tries)
	}
}

func TestADelayThatTheDeadlineForbidsIsNotWaitedFor(t *testing.T) {
	orchestrator, client, _, _ := world(t)
	hour := &errdetails.RetryInfo{RetryDelay: durationpb.New(time.Hour)}
	orchestrator.get = func(context.Context, *antiphonv1.GetRunRequest) (*antiphonv1.GetRunResponse, error) {
		return nil, refusalOf(RateLimited, "slower", hour)
	}
	_, err := client.GetRun(t.Context(), "r")
	var refusal *Error
	if !errors.As(err, &refusal) || refusal.RetryAfter != time.Hour || len(orchestrator.seen()) != 1 {
		t.Error(err)
	}
}

func TestACallerWhoseContextEndsIsToldSo(t *testing.T) {
	orchestrator, client, _, _ := world(t)
	arrived := make(chan struct{}, 1)
	orchestrator.get = func(ctx context.Context, _ *antiphonv1.GetRunRequest) (*antiphonv1.GetRunResponse, error) {
		arrived <- struct{}{}
		<-ctx.Done()
		return nil, ctx.Err()
	}
	ctx, end := context.WithCancel(t.Context())
	go func() {
		<-arrived
		end()
	}()
	if _, err := client.GetRun(ctx, "r"); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	short := connect(t, WithAddresses(orchestrator.address), WithCredentials(client.connection.credentials), WithTimeout(time.Second))
	orchestrator.get = func(ctx context.Context, _ *antiphonv1.GetRunRequest) (*antiphonv1.GetRunResponse, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	if _, err := short.GetRun(t.Context(), "r"); !errors.Is(err, DeadlineExceeded) {
		t.Error(err)
	}
}

func TestNobodyThereIsUnavailableAndAnotherAddressIsTried(t *testing.T) {
	orchestrator, client, _, _ := world(t, WithTimeout(time.Second))
	orchestrator.get = func(context.Context, *antiphonv1.GetRunRequest) (*antiphonv1.GetRunResponse, error) {
		return &antiphonv1.GetRunResponse{Run: &antiphonv1.Run{RunId: "r"}}, nil
	}
	credentials := WithCredentials(client.connection.credentials)
	both := connect(t, WithAddresses("127.0.0.1:9", orchestrator.address), credentials)
	if run, err := both.GetRun(t.Context(), "r"); err != nil || run.GetRunId() != "r" {
		t.Error(run, err)
	}
	_, err := connect(t, WithAddresses("127.0.0.1:9"), credentials, WithTimeout(time.Second)).GetRun(t.Context(), "r")
	var refusal *Error
	if !errors.Is(err, Unavailable) || !errors.As(err, &refusal) || refusal.Remedy != Retry {
		t.Error(err)
	}
}

func TestAClientTurnsToTheReplicasThatItHasLearned(t *testing.T) {
	authority := newAuthority(t)
	get := func(context.Context, *antiphonv1.GetRunRequest) (*antiphonv1.GetRunResponse, error) {
		return &antiphonv1.GetRunResponse{}, nil
	}
	other := newOrchestrator(t, authority, func(o *orchestrator) { o.get = get })
	leaving := newOrchestrator(t, authority, func(o *orchestrator) { o.get = get })
	asked := make(chan struct{}) // without room: who asks again has heeded the answer before
	first := newOrchestrator(t, authority, func(o *orchestrator) {
		o.get = get
		o.cluster = func() (*antiphonv1.GetClusterResponse, error) {
			asked <- struct{}{}
			return &antiphonv1.GetClusterResponse{Replicas: []*antiphonv1.ReplicaStatus{
				{Address: o.address}, {Address: leaving.address, Leaving: true}, {Address: other.address},
			}}, nil
		}
	})
	folder := t.TempDir()
	authority.store(folder, "first")
	client := connect(t, WithAddresses(first.address), WithCredentials(CredentialFolder(folder)),
		func(o *clientOptions) { o.look = time.Millisecond })
	if _, err := client.GetRun(t.Context(), "r"); err != nil {
		t.Fatal(err)
	}
	receive(t, asked, "a question for the replicas")
	receive(t, asked, "another")
	first.server.Stop()
	if _, err := client.GetRun(t.Context(), "r"); err != nil || len(other.seen()) != 1 {
		t.Error(err, other.seen())
	}
	authority.store(folder, "second")
	for began := time.Now(); other.seen()[len(other.seen())-1].caller != "second"; { // which refuses to tell: what is known stays
		if _, err := client.GetRun(t.Context(), "r"); err != nil || time.Since(began) > limit {
			t.Fatal(err, other.seen())
		}
	}
	if len(leaving.seen()) != 0 {
		t.Error("a replica that leaves was called")
	}
}

func TestAStreamThatWasQuietForLongerThanItsPatienceIsDialledAgain(t *testing.T) {
	const patience = 500 * time.Millisecond
	orchestrator, client, _, _ := world(t, WithPatience(patience))
	run := &antiphonv1.Run{RunId: "r", State: antiphonv1.RunState_RUN_STATE_SUCCEEDED}
	broken := status.Error(codes.Unavailable, "broken")
	waited := map[string]bool{} // each of them once
	orchestrator.submit = func(context.Context, *antiphonv1.SubmitRunRequest) (*antiphonv1.SubmitRunResponse, error) {
		if !waited["submit"] {
			waited["submit"] = true
			time.Sleep(patience + time.Millisecond)
			return nil, broken
		}
		return &antiphonv1.SubmitRunResponse{Run: run}, nil
	}
	orchestrator.watch = func(_ *antiphonv1.WatchRunRequest, stream antiphonv1.RunService_WatchRunServer) error {
		if !waited["watch"] {
			waited["watch"] = true
			time.Sleep(patience + time.Millisecond)
			return broken
		}
		return stream.Send(&antiphonv1.WatchRunResponse{Run: run})
	}
	orchestrator.many = func(stream antiphonv1.RunService_SubmitRunsServer) error {
		request, err := stream.Recv()
		if err != nil {
			return err
		}
		if !waited["many"] {
			waited["many"] = true
			time.Sleep(patience + time.Millisecond)
			return broken
		}
		id := request.GetSubmissions()[0].GetRequestId()
		return stream.Send(&antiphonv1.SubmitRunsResponse{Results: []*antiphonv1.SubmitRunResult{
			{RequestId: id, Result: &antiphonv1.SubmitRunResult_Run{Run: run}},
		}})
	}
	if _, err := client.Submit(t.Context(), Registered("g"), nil, Wait()); err != nil {
		t.Error(err)
	}
	if _, err := client.WaitForRun(t.Context(), "r"); err != nil {
		t.Error(err)
	}
	one, err := client.Submitter(1).Submit(t.Context(), Registered("g"), nil, Wait())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := one.Answer(t.Context()); err != nil {
		t.Error(err)
	}
	orchestrator.server.Stop()
	began := time.Now()
	if _, err := client.WaitForRun(t.Context(), "r"); !errors.Is(err, Unavailable) || time.Since(began) > limit {
		t.Error(err, time.Since(began))
	}
}

func TestAQuietStreamThatStoodHasAllPatienceAgainAndOneThatFailsHasAnEnd(t *testing.T) {
	_, client, _, _ := world(t)
	again := streamTries(client.connection, time.Minute)
	broken := fromStatus(status.Error(codes.Unavailable, "broken"))
	for try := range 2 { // as if the first failure was more than a minute ago
		if err := again.after(t.Context(), broken); err != nil {
			t.Fatal(try, err)
		}
		again.end = again.end.Add(-2 * time.Minute)
		if try == 0 {
			again.began = again.began.Add(-2 * standing)
		}
	}
	if err := again.after(t.Context(), broken); !errors.Is(err, Unavailable) {
		t.Error(err)
	}
}

func TestWhoCannotServeIsLeftForTheNextAddress(t *testing.T) {
	for _, reason := range []Reason{NotServing, StoreUnavailable} {
		first, client, authority, _ := world(t)
		second := newOrchestrator(t, authority)
		first.get = func(context.Context, *antiphonv1.GetRunRequest) (*antiphonv1.GetRunResponse, error) {
			return nil, refusalOf(reason, "cut off", soon())
		}
		second.get = func(context.Context, *antiphonv1.GetRunRequest) (*antiphonv1.GetRunResponse, error) {
			return &antiphonv1.GetRunResponse{Run: &antiphonv1.Run{RunId: "r"}}, nil
		}
		credentials := WithCredentials(client.connection.credentials)
		both := connect(t, WithAddresses(first.address, second.address), credentials)
		for range 2 {
			if run, err := both.GetRun(t.Context(), "r"); err != nil || run.GetRunId() != "r" {
				t.Error(reason, run, err)
			}
		}
		if calls := len(first.seen()); calls != 1 {
			t.Error(reason, calls, "calls at the one that cannot serve")
		}
	}
}

func TestWhoStopsWaitingForASubmissionLearnsWhichRunGoesOn(t *testing.T) {
	orchestrator, client, _, _ := world(t)
	asked := make(chan string, 4)
	orchestrator.submit = func(ctx context.Context, request *antiphonv1.SubmitRunRequest) (*antiphonv1.SubmitRunResponse, error) {
		asked <- request.GetRequestId()
		if request.GetWait() {
			<-ctx.Done()
			return nil, ctx.Err()
		}
		return &antiphonv1.SubmitRunResponse{Run: &antiphonv1.Run{RunId: "r"}}, nil
	}
	for _, cause := range []error{context.DeadlineExceeded, context.Canceled} {
		ctx, stop := context.WithTimeout(t.Context(), time.Second)
		if cause == context.Canceled {
			time.AfterFunc(100*time.Millisecond, stop)
		}
		_, err := client.Submit(ctx, Registered("g"), nil, Wait())
		stop()
		var known *Error
		if !errors.Is(err, cause) || !errors.As(err, &known) || known.Metadata["run_id"] != "r" || !strings.Contains(err.Error(), "run r has") {
			t.Error(err)
		}
		if first, second := receive(t, asked, "a submission"), receive(t, asked, "the question"); first != second {
			t.Errorf("%s was submitted again as %s", first, second)
		}
	}
	over, stop := context.WithCancel(t.Context())
	stop()
	if _, err := client.Submit(over, Registered("g"), nil, Wait()); !errors.Is(err, context.Canceled) || len(asked) != 0 {
		t.Errorf("%v, and %d were submitted although nobody waited any more", err, len(asked))
	}
}

func TestWaitingForASubmissionIsTheSameRunHoweverOftenItIsAsked(t *testing.T) {
	orchestrator, client, _, _ := world(t)
	ids := map[string]int{}
	left := 2
	orchestrator.submit = func(_ context.Context, request *antiphonv1.SubmitRunRequest) (*antiphonv1.SubmitRunResponse, error) {
		ids[request.GetRequestId()]++
		switch left--; left {
		case 1:
			return nil, status.Error(codes.Unavailable, "broken")
		case 0:
			return nil, refusalOf(DeadlineExceeded, "not yet", nil)
		}
		run := &antiphonv1.Run{RunId: "r", State: antiphonv1.RunState_RUN_STATE_SUCCEEDED, Output: inline([]byte(`{"a":1}`))}
		return &antiphonv1.SubmitRunResponse{Run: run}, nil
	}
	run, err := client.Submit(t.Context(), Registered("g@2"), person{"Ada"}, Wait(), Priority(2), Deadline(time.Minute))
	if err != nil {
		t.Fatal(err)
	}
	if len(ids) != 1 {
		t.Error(ids)
	}
	if output, err := OutputOf[map[string]int](run); err != nil || output["a"] != 1 {
		t.Error(output, err)
	}
	if _, err := OutputOf[[]int](run); err == nil {
		t.Error("an object is no list")
	}
	run.State, run.Failure = antiphonv1.RunState_RUN_STATE_FAILED, &antiphonv1.Failure{Message: "no"}
	_, err = OutputOf[any](run)
	var failed *RunFailed
	if !errors.As(err, &failed) || err.Error() != "run r is FAILED: no" {
		t.Error(err)
	}
}

func TestAWatchGoesOnWhereItBroke(t *testing.T) {
	orchestrator, client, _, _ := world(t)
	cursors := []uint64{}
	orchestrator.watch = func(request *antiphonv1.WatchRunRequest, stream antiphonv1.RunService_WatchRunServer) error {
		cursors = append(cursors, request.GetCursor())
		for seq := request.GetCursor() + 1; seq <= request.GetCursor()+2; seq++ {
			progress := &antiphonv1.RunEvent{Progress: &antiphonv1.Progress{Message: "p"}}
			events := []*antiphonv1.RunEvent{{EventSeq: seq}, progress}
			if err := stream.Send(&antiphonv1.WatchRunResponse{Events: events}); err != nil {
				return err
			}
		}
		if len(cursors) < 3 {
			return status.Error(codes.Unavailable, "broken")
		}
		return stream.Send(&antiphonv1.WatchRunResponse{Run: &antiphonv1.Run{RunId: "r"}})
	}
	seen := []uint64{}
	for event, err := range client.Watch(t.Context(), "r", 0, WithProgress()) {
		if err != nil {
			t.Fatal(err)
		}
		if event.GetProgress() == nil {
			seen = append(seen, event.GetEventSeq())
		}
	}
	if fmt.Sprint(cursors, seen) != "[0 2 4] [1 2 3 4 5 6]" {
		t.Error(cursors, seen)
	}
	cursors = nil
	for range client.Watch(t.Context(), "r", 0) {
		break // and the stream is let go
	}
	cursors = make([]uint64, 2)
	if run, err := client.WaitForRun(t.Context(), "r"); err != nil || run.GetRunId() != "r" {
		t.Error(run, err)
	}
}

func TestASubmitterSendsAgainWhatABrokenStreamDidNotAnswer(t *testing.T) {
	orchestrator, client, _, _ := world(t)
	streams, rested := 0, false
	orchestrator.many = func(stream antiphonv1.RunService_SubmitRunsServer) error {
		streams++
		answered := 0
		for {
			request, err := stream.Recv()
			if err == io.EOF {
				return nil
			}
			if err != nil {
				return err
			}
			if len(request.GetSubmissions()) > batchItems {
				return status.Error(codes.InvalidArgument, "too many")
			}
			if size := proto.Size(request); size > messageBytes || (size > batchBytes+1000 && len(request.GetSubmissions()) > 1) {
				return status.Error(codes.InvalidArgument, "too much")
			}
			for _, one := range request.GetSubmissions() {
				result := &antiphonv1.SubmitRunResult{RequestId: one.GetRequestId()}
				switch {
				case one.GetRegistered().GetName() == "unknown":
					result.Result = &antiphonv1.SubmitRunResult_Error{Error: &antiphonv1.Error{Reason: antiphonv1.ErrorReason_ERROR_REASON_GRAPH_NOT_FOUND}}
				case one.GetRequestId() == "7" && !rested:
					rested = true
					busy := &antiphonv1.Error{Reason: antiphonv1.ErrorReason_ERROR_REASON_OVERLOADED, RetryDelay: durationpb.New(time.Millisecond)}
					result.Result = &antiphonv1.SubmitRunResult_Error{Error: busy}
				default:
					result.Result = &antiphonv1.SubmitRunResult_Run{Run: &antiphonv1.Run{RunId: "run-" + one.GetRequestId()}}
				}
				if answered++; streams == 1 && answered > 10 {
					return status.Error(codes.Unavailable, "broken")
				}
				if err := stream.Send(&antiphonv1.SubmitRunsResponse{Results: []*antiphonv1.SubmitRunResult{result, result}}); err != nil {
					return err
				}
			}
		}
	}
	submitter := client.Submitter(20)
	pending := []*Submission{}
	for number := range 100 {
		one, err := submitter.Submit(t.Context(), Registered("g"), number, RequestID(fmt.Sprint(number)))
		if err != nil {
			t.Fatal(err)
		}
		pending = append(pending, one)
	}
	large := []*Submission{}
	for _, id := range []string{"", strings.Repeat("i", 65)} { // a new one, and one that could not be answered to
		one, err := submitter.Submit(t.Context(), Registered("g"), nil, RequestID(id))
		if err != nil {
			t.Fatal(err)
		}
		if run, err := one.Answer(t.Context()); id == "" && len(run.GetRunId()) < 10 || id != "" && !errors.Is(err, RequestInvalid) {
			t.Error(id, run, err)
		}
	}
	for _, size := range []int{batchBytes - 1000, 3 << 20, messageBytes} { // the last two go with nothing else, and the last not at all
		one, err := submitter.Submit(t.Context(), Inline(&antiphonv1.Graph{Name: strings.Repeat("n", size)}), nil)
		if err != nil {
			t.Fatal(err)
		}
		large = append(large, one)
	}
	for at, one := range large {
		if _, err := one.Answer(t.Context()); errors.Is(err, MessageTooLarge) != (at == 2) {
			t.Error(at, err)
		}
	}
	unknown, err := submitter.Submit(t.Context(), Registered("unknown"), nil)
	if err != nil {
		t.Fatal(err)
	}
	for number, one := range pending {
		if run, err := one.Answer(t.Context()); err != nil || run.GetRunId() != fmt.Sprintf("run-%d", number) {
			t.Error(run, err)
		}
	}
	if _, err := unknown.Answer(t.Context()); !errors.Is(err, GraphNotFound) {
		t.Error(err)
	}
	if err := submitter.Close(t.Context()); err != nil || streams != 2 {
		t.Error(err, streams)
	}
	if _, err := submitter.Submit(t.Context(), Registered("g"), nil); err == nil {
		t.Error("it takes submissions when it is closed")
	}
}

func TestWhatCannotTravelIsRefusedBeforeItIsSent(t *testing.T) {
	const odd = "caf\xe9"
	orchestrator, client, _, _ := world(t)
	orchestrator.many = func(stream antiphonv1.RunService_SubmitRunsServer) error {
		for {
			request, err := stream.Recv()
			if err != nil {
				return err
			}
			var results []*antiphonv1.SubmitRunResult
			for _, one := range request.GetSubmissions() {
				run := &antiphonv1.SubmitRunResult_Run{Run: &antiphonv1.Run{RunId: "r"}}
				results = append(results, &antiphonv1.SubmitRunResult{RequestId: one.GetRequestId(), Result: run})
			}
			if err := stream.Send(&antiphonv1.SubmitRunsResponse{Results: results}); err != nil {
				return err
			}
		}
	}
	submitter := client.Submitter(2)
	odds := RunLabels(map[string]string{"file": odd})
	for what, refused := range map[string]func() error{
		"a call":       func() error { _, err := client.GetRun(t.Context(), odd); return err },
		"a watch":      func() error { _, err := client.WaitForRun(t.Context(), odd); return err },
		"a download":   func() error { _, err := client.DownloadPayload(t.Context(), blobOf(odd)); return err },
		"a submission": func() error { _, err := client.Submit(t.Context(), Registered("g"), 1, odds); return err },
		"one that is waited for": func() error {
			_, err := client.Submit(t.Context(), Registered("g"), 1, odds, Wait())
			return err
		},
		"one of many": func() error { _, err := submitter.Submit(t.Context(), Registered("g"), 1, odds); return err },
		"its input": func() error {
			_, err := submitter.Submit(t.Context(), Registered("g"), &Payload{MediaType: odd})
			return err
		},
		"an input with megabytes of labels": func() error {
			_, err := submitter.Submit(t.Context(), Registered("g"), labelled(5<<20))
			return err
		},
		"an entry with megabytes of labels": func() error {
			_, err := client.Shared().Put(t.Context(), "key", labelled(5<<20))
			return err
		},
	} {
		var refusal *Error
		if err := refused(); !errors.Is(err, RequestInvalid) || !errors.As(err, &refusal) || refusal.Remedy != FixRequest {
			t.Errorf("%s: %v", what, err)
		}
	}
	good, err := submitter.Submit(t.Context(), Registered("g"), 1)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := good.Answer(t.Context()); err != nil {
		t.Error(err)
	}
	if err := submitter.Close(t.Context()); err != nil {
		t.Error(err)
	}
	if calls := orchestrator.seen(); len(calls) != 1 {
		t.Errorf("%+v", calls)
	}
}

// labelled is a value with that many bytes of labels.
func labelled(size int) *Payload {
	payload := inline([]byte("1"))
	for ; size > 0; size -= 1 << 10 {
		payload.Labels = append(payload.Labels, &antiphonv1.Label{Key: "pii", Value: strings.Repeat("x", 1<<10)})
	}
	return payload
}

func blobOf(digest string) *Payload {
	return &Payload{Content: &antiphonv1.Payload_Blob{Blob: &antiphonv1.BlobReference{Digest: digest}}}
}

func TestANewCertificateIsUsedAndNoCallIsLostOverIt(t *testing.T) {
	orchestrator, client, authority, folder := world(t, func(o *clientOptions) { o.look = time.Millisecond })
	gate := make(chan struct{})
	arrived := make(chan struct{}, 1)
	orchestrator.get = func(_ context.Context, request *antiphonv1.GetRunRequest) (*antiphonv1.GetRunResponse, error) {
		if request.GetRunId() == "slow" {
			arrived <- struct{}{}
			<-gate
		}
		return &antiphonv1.GetRunResponse{Run: &antiphonv1.Run{RunId: request.GetRunId()}}, nil
	}
	slow := make(chan error, 1)
	go func() {
		_, err := client.GetRun(t.Context(), "slow")
		slow <- err
	}()
	receive(t, arrived, "the slow call")
	authority.store(folder, "second")
	for used, began := "", time.Now(); used != "second"; {
		if _, err := client.GetRun(t.Context(), "r"); err != nil {
			t.Fatal(err)
		}
		calls := orchestrator.seen()
		used = calls[len(calls)-1].caller
		if time.Since(began) > limit {
			t.Fatal("the new certificate is not used")
		}
	}
	close(gate)
	if err := receive(t, slow, "the end of the slow call"); err != nil {
		t.Error(err)
	}
}

func TestClosingAClientEndsWhatBeganBeforeItsCertificateWasReplaced(t *testing.T) {
	orchestrator, client, authority, folder := world(t)
	arrived, left := make(chan struct{}, 1), make(chan struct{}, 1)
	orchestrator.watch = func(_ *antiphonv1.WatchRunRequest, stream antiphonv1.RunService_WatchRunServer) error {
		arrived <- struct{}{}
		<-stream.Context().Done()
		left <- struct{}{}
		return nil
	}
	over := make(chan error, 1)
	go func() {
		_, err := client.WaitForRun(context.Background(), "r")
		over <- err
	}()
	receive(t, arrived, "the watch")
	authority.store(folder, "second")
	if !client.connection.refresh(t.Context()) {
		t.Fatal("the new certificate is not used")
	}
	client.Close()
	receive(t, left, "the end of the watch at the orchestrator")
	if err := receive(t, over, "the end of the watch"); !errors.Is(err, NotSetUp) {
		t.Error(err)
	}
}

func TestFilesThatCannotBeUsedLeaveTheCertificateInUse(t *testing.T) {
	orchestrator, client, _, folder := world(t)
	orchestrator.get = func(context.Context, *antiphonv1.GetRunRequest) (*antiphonv1.GetRunResponse, error) {
		return &antiphonv1.GetRunResponse{}, nil
	}
	with := func(name, text string) func() error {
		return func() error { return os.WriteFile(filepath.Join(folder, "first", name), []byte(text), 0o600) }
	}
	for _, spoil := range []func() error{
		with("bundle.pem", ""), with("cert.pem", ""), with("key.pem", ""), with("key.pem", "no key"),
		func() error { return os.Remove(filepath.Join(folder, "current")) },
	} {
		if err := spoil(); err != nil {
			t.Fatal(err)
		}
		if client.connection.refresh(t.Context()) {
			t.Error("it changed")
		}
		if _, err := client.GetRun(t.Context(), "r"); err != nil {
			t.Error(err)
		}
	}
}

func TestAnExpiredCertificateThatWasReplacedIsReadAtOnce(t *testing.T) {
	orchestrator, client, authority, folder := world(t)
	orchestrator.get = func(context.Context, *antiphonv1.GetRunRequest) (*antiphonv1.GetRunResponse, error) {
		if calls := orchestrator.seen(); calls[len(calls)-1].caller == "first" {
			return nil, refusalOf(CertificateExpired, "expired", nil)
		}
		return &antiphonv1.GetRunResponse{}, nil
	}
	if _, err := client.GetRun(t.Context(), "r"); !errors.Is(err, CertificateExpired) {
		t.Error(err)
	}
	authority.store(folder, "second")
	if _, err := client.GetRun(t.Context(), "r"); err != nil {
		t.Error(err)
	}
}

func TestACallAndAWatchWithACertificateThatHasExpiredEndWithThatAndNotAfterThePatience(t *testing.T) {
	orchestrator, _, authority, folder := world(t)
	orchestrator.get = func(context.Context, *antiphonv1.GetRunRequest) (*antiphonv1.GetRunResponse, error) {
		return &antiphonv1.GetRunResponse{}, nil
	}
	authority.storeUntil(folder, "late", time.Now().Add(-time.Minute))
	client := connect(t, WithAddresses(orchestrator.address), WithCredentials(CredentialFolder(folder)))
	if _, err := client.GetRun(t.Context(), "r"); !errors.Is(err, CertificateExpired) || !strings.Contains(err.Error(), "join again") {
		t.Error(err)
	}
	for _, err := range client.Watch(t.Context(), "r", 0) {
		if !errors.Is(err, CertificateExpired) {
			t.Error(err)
		}
	}
	authority.store(folder, "second")
	if _, err := client.GetRun(t.Context(), "r"); err != nil {
		t.Error(err)
	}
}

func TestACallThatOutlivesItsCertificateGoesOnWithTheOneThatHasReplacedIt(t *testing.T) {
	orchestrator, client, authority, folder := world(t)
	arrived, gate := make(chan struct{}, 1), make(chan struct{})
	orchestrator.get = func(context.Context, *antiphonv1.GetRunRequest) (*antiphonv1.GetRunResponse, error) {
		if calls := orchestrator.seen(); calls[len(calls)-1].caller == "first" {
			arrived <- struct{}{}
			<-gate
			return nil, refusalOf(CertificateExpired, "expired", nil)
		}
		return &antiphonv1.GetRunResponse{}, nil
	}
	over := make(chan error, 1)
	go func() {
		_, err := client.GetRun(t.Context(), "r")
		over <- err
	}()
	receive(t, arrived, "the call")
	authority.store(folder, "second")
	// Sooner or later it is noticed, by this or by the client itself.
	client.connection.refresh(t.Context())
	close(gate)
	if err := receive(t, over, "its end"); err != nil {
		t.Error(err)
	}
}

func TestAProfileThatCannotBeUsedSaysWhatToDo(t *testing.T) {
	home := t.TempDir()
	t.Setenv("ANTIPHON_HOME", home)
	t.Setenv("ANTIPHON_PROFILE", "")
	refused := func(part string, options ...ClientOption) {
		t.Helper()
		_, err := Connect(options...)
		if !errors.Is(err, NotSetUp) || !strings.Contains(err.Error(), part) {
			t.Errorf("%q is not in: %v", part, err)
		}
	}
	refused("there is no profile 'default'")
	credentials := WithCredentials(CredentialFolder(home))
	for _, address := range []string{
		"https://mesh.example:7443", "grpc://a:1", "dns:///a:1", "a", "a:", "a:0", "a:65536", "::1:7443", ":7443", "a:1,b:1", "",
	} {
		refused("write host:port, without a scheme, such as", WithAddresses("a:1", address), credentials)
	}
	refused("there is no certificate", credentials,
		WithAddresses("a-b.example:7443", "127.0.0.1:1", "[::1]:7443", "[fe80::1%eth0]:65535", "unix:/run/a"))
	refused(`"No"`, WithProfile("No"))
	folder := filepath.Join(home, "profiles", "default")
	if err := os.MkdirAll(folder, 0o700); err != nil {
		t.Fatal(err)
	}
	for text, part := range map[string]string{
		"addresses = [": "is not a profile", "addresses = []": "'addresses' must be", `addresses = ["a:1"]`: "there is no certificate",
	} {
		if err := os.WriteFile(filepath.Join(folder, "profile.toml"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		refused(part)
	}
}
