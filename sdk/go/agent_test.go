package antiphon

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	antiphonv1 "antiphon.dev/antiphon/v1"
)

const (
	kindTransient = antiphonv1.FailureKind_FAILURE_KIND_TRANSIENT
	kindPermanent = antiphonv1.FailureKind_FAILURE_KIND_PERMANENT
	kindCancelled = antiphonv1.FailureKind_FAILURE_KIND_CANCELLED
)

type person struct {
	Name string `json:"name"`
}

func greeter() *Agent {
	agent := NewAgent("greeter", WithConcurrency(4), WithLabels(map[string]string{"region": "eu"}), WithVersion("7"))
	Handle(agent, "text.greet@1", func(_ *Task, in person) (string, error) { return "Hello, " + in.Name + "!", nil },
		Pure, Idempotent, Description("Greets."), Clearance("pii"), Cost(2), ExpectedLatency(time.Second))
	return agent
}

func TestAnAgentAnnouncesWhatItIsAndOffers(t *testing.T) {
	at := newSidecar(t).serve()
	start(t, greeter(), at)
	said := at.next().hello
	if said.GetProtocolVersion() != 1 {
		t.Error(said)
	}
	description := said.GetDescription()
	if description.GetName() != "greeter" || description.GetConcurrency() != 4 || description.GetPrefetch() != 0 ||
		description.GetLabels()["region"] != "eu" || description.GetVersion() != "7" ||
		!strings.HasPrefix(description.GetRuntime(), "go/") {
		t.Error(description)
	}
	one := description.GetCapabilities()[0]
	if one.GetName() != "text.greet" || one.GetVersion() != "1" || one.GetEffect() != antiphonv1.Effect_EFFECT_PURE ||
		!one.GetIdempotent() || one.GetDescription() != "Greets." || one.GetClearance()[0] != "pii" || one.GetCost() != 2 ||
		one.GetExpectedLatency().AsDuration() != time.Second {
		t.Error(one)
	}
	if want := `{"properties":{"name":{"type":"string"}},"required":["name"],"type":"object"}`; one.GetInputSchema() != want {
		t.Error(one.GetInputSchema())
	}
	if one.GetOutputSchema() != `{"type":"string"}` {
		t.Error(one.GetOutputSchema())
	}
}

func TestEveryMistakeOfAnAgentIsToldAtOnceWhenItRuns(t *testing.T) {
	agent := NewAgent("No", WithConcurrency(0), WithPrefetch(-1), WithLogger(quiet))
	Handle(agent, "nothing", func(*Task, int) (int, error) { return 0, nil })
	Handle(agent, "text.a@1", func(*Task, chan int) (int, error) { return 0, nil })
	Handle(agent, "text.b@1", func(*Task, int) (map[int]int, error) { return nil, nil })
	for range 2 {
		Handle(agent, "text.c@1", func(*Task, int) (int, error) { return 0, nil })
	}
	err := agent.Run(t.Context())
	if !errors.Is(err, NotSetUp) {
		t.Fatal(err)
	}
	for _, part := range []string{`"No"`, "concurrency 0", "prefetch -1", "nothing: write", "chan int", "keys must be strings", "offered twice"} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("%q is not in: %v", part, err)
		}
	}
	odd := NewAgent("odd", WithLabels(map[string]string{"place": "caf\xe9"}))
	Handle(odd, "text.a@1", func(*Task, int) (int, error) { return 0, nil })
	if err := odd.RunAt(t.Context(), newSidecar(t).path); !errors.Is(err, NotSetUp) || !strings.Contains(err.Error(), "UTF-8") {
		t.Error(err)
	}
	wordy := NewAgent("wordy")
	for number := range 66 {
		Handle(wordy, fmt.Sprintf("wordy.say%d@1", number), func(*Task, int) (int, error) { return 0, nil },
			InputSchema(`{"description":"`+strings.Repeat("x", 32000)+`"}`))
	}
	err = wordy.RunAt(t.Context(), newSidecar(t).path)
	if !errors.Is(err, NotSetUp) || !strings.Contains(err.Error(), "larger than 2097152 bytes; shorten them") {
		t.Error(err)
	}
	t.Setenv("ANTIPHON_SOCKET", "")
	for _, other := range []*Agent{NewAgent("empty"), greeter()} {
		if err := other.Run(t.Context()); !errors.Is(err, NotSetUp) {
			t.Error(err)
		}
	}
}

func TestAnInputThatDoesNotFitIsRefusedWithItsPlaceAndWithoutItsValue(t *testing.T) {
	at := newSidecar(t).serve()
	start(t, greeter(), at)
	line := at.next()
	for number, input := range []string{`{"name":31415}`, `{}`, `31415`, `{"name":`, `{"name":"a"} {}`} {
		failure := line.result(line.assign("text.greet", number, input)).GetFailure()
		if failure.GetKind() != antiphonv1.FailureKind_FAILURE_KIND_INVALID_INPUT || strings.Contains(failure.GetMessage(), "31415") {
			t.Errorf("%s: %v", input, failure)
		}
		if number == 0 && failure.GetField() != "/name" {
			t.Error(failure)
		}
	}
}

func TestWhatAHandlerReturnsOrPanicsWithChoosesItsFailure(t *testing.T) {
	below := errors.New("below")
	cases := []struct {
		err  error
		want *antiphonv1.Failure
	}{
		{errors.New("odd"), &antiphonv1.Failure{Kind: kindTransient, Message: "odd", Retryable: true}},
		{fmt.Errorf("odd: %w", below), &antiphonv1.Failure{Kind: kindTransient, Message: "odd: below", Retryable: true, Cause: "*errors.errorString: below"}},
		{Transient("away: %w", below).WithCode("away"), &antiphonv1.Failure{Kind: kindTransient, Message: "away: below", Code: "away", Retryable: true, Cause: "*errors.errorString: below"}},
		{Permanent("never"), &antiphonv1.Failure{Kind: kindPermanent, Message: "never"}},
		{fmt.Errorf("wrapped: %w", Permanent("never")), &antiphonv1.Failure{Kind: kindPermanent, Message: "wrapped: never"}},
		{InvalidInput("bad").WithField("/a"), &antiphonv1.Failure{Kind: antiphonv1.FailureKind_FAILURE_KIND_INVALID_INPUT, Message: "bad", Field: "/a"}},
		{InvalidOutput("bad"), &antiphonv1.Failure{Kind: antiphonv1.FailureKind_FAILURE_KIND_INVALID_OUTPUT, Message: "bad"}},
		{BudgetExceeded("dear"), &antiphonv1.Failure{Kind: antiphonv1.FailureKind_FAILURE_KIND_BUDGET, Message: "dear"}},
		{&CallFailed{"a.b@1", &antiphonv1.Failure{Kind: antiphonv1.FailureKind_FAILURE_KIND_LOST, Message: "gone", Retryable: true}}, &antiphonv1.Failure{Kind: kindTransient, Message: "a.b@1 failed: gone", Retryable: true}},
		{&CallFailed{"a.b@1", &antiphonv1.Failure{Kind: antiphonv1.FailureKind_FAILURE_KIND_POLICY, Message: "no", Code: "c"}}, &antiphonv1.Failure{Kind: kindPermanent, Message: "a.b@1 failed: no", Code: "c"}},
		{Permanent("%s", strings.Repeat("é", 5000)+"\xff"), &antiphonv1.Failure{Kind: kindPermanent, Message: strings.Repeat("é", 4096)}},
	}
	agent := NewAgent("failing")
	Handle(agent, "work.fail@1", func(_ *Task, at int) (any, error) {
		if at < 0 {
			panic(below)
		}
		return nil, cases[at].err
	})
	at := newSidecar(t).serve()
	start(t, agent, at)
	line := at.next()
	for number, one := range cases {
		got := line.result(line.assign("work.fail", number, fmt.Sprint(number))).GetFailure()
		if got.String() != one.want.String() {
			t.Errorf("%v:\n got %v\nwant %v", one.err, got, one.want)
		}
	}
	panicked := line.result(line.assign("work.fail", 99, "-1")).GetFailure()
	if panicked.GetKind() != kindTransient || panicked.GetMessage() != "panic: below" || !strings.Contains(panicked.GetCause(), "agent_test.go") {
		t.Error(panicked)
	}
	unknown := line.result(line.assign("work.other", 100, "1")).GetFailure()
	if unknown.GetKind() != kindPermanent || unknown.GetCode() != "unknown_capability" {
		t.Error(unknown)
	}
}

func TestThePlacesOfAPanicAreThoseOfItsHandler(t *testing.T) {
	stack := `goroutine 7 [running]:
runtime/debug.Stack()
	/go/src/runtime/debug/stack.go:26 +0x5e
antiphon.dev/antiphon.(*attempts).run.func1()
	/sdk/go/attempts.go:157 +0x8c
panic({0x1, 0x2})
	/go/src/runtime/panic.go:792 +0x132
main.divide(...)
	/home/me/agent/main.go:12
main.handle(0x1, {0xc000, 0x5})
	/home/me/agent/main.go:20 +0x1d
antiphon.dev/antiphon.Handle[...].func1(0x1)
	/sdk/go/handler.go:90 +0x4a
created by antiphon.dev/antiphon.(*attempts).begin in goroutine 5
	/sdk/go/attempts.go:120 +0x2d
`
	if got := placesOf(stack); got != "/home/me/agent/main.go:12, /home/me/agent/main.go:20" {
		t.Error(got)
	}
}

// panicky is an error that panics as soon as it is asked what it is.
type panicky struct{ failure *Failure }

func (p panicky) Error() string { return p.failure.Message }

func TestAnErrorThatCannotBeReadFailsItsAttemptAlone(t *testing.T) {
	returned := []struct {
		err  error
		want string
	}{
		{(*Failure)(nil), "a nil *Failure was returned as an error"},
		{fmt.Errorf("wrapped: %w", (*Failure)(nil)), "a nil *Failure was returned as an error"},
		{panicky{}, "antiphon.panicky"},
		{(*CallFailed)(nil), "*antiphon.CallFailed"},
	}
	agent := NewAgent("failing", WithConcurrency(2))
	Handle(agent, "work.fail@1", func(_ *Task, at int) (any, error) { return nil, returned[at].err })
	HandleBatch(agent, "work.batch@1", Batch{Size: 2, Wait: time.Millisecond},
		func(_ context.Context, inputs []int, _ []*Task) ([]Outcome[int], error) {
			outcomes := make([]Outcome[int], len(inputs))
			for at, input := range inputs {
				outcomes[at].Err = returned[input].err
			}
			return outcomes, nil
		})
	Handle(agent, "work.hold@1", func(task *Task, _ struct{}) (string, error) {
		<-task.Done()
		return "", (*Failure)(nil)
	})
	at := newSidecar(t).serve()
	start(t, agent, at)
	line := at.next()
	for number, one := range returned {
		for _, capability := range []string{"work.fail", "work.batch"} {
			failure := line.result(line.assign(capability, number, fmt.Sprint(number))).GetFailure()
			if failure.GetKind() != kindTransient || !failure.GetRetryable() || !strings.Contains(failure.GetMessage(), one.want) {
				t.Errorf("%s: %v", one.want, failure)
			}
		}
	}
	timed := line.assign("work.hold", 7, "null", func(a *antiphonv1.Assignment) { a.RemainingTimeout = durationpb.New(time.Millisecond) })
	if failure := line.result(timed).GetFailure(); failure.GetKind() != kindTransient {
		t.Error(failure)
	}
	id := line.assign("work.hold", 8, "null")
	line.say(&antiphonv1.WorkResponse{Cancels: []*antiphonv1.AttemptCancel{{AttemptId: id, Reason: "enough"}}})
	if failure := line.result(id).GetFailure(); failure.GetKind() != kindCancelled {
		t.Error(failure)
	}
}

// holder has a handler that says it has begun, then waits for its gate or its end.
func holder(options ...AgentOption) (agent *Agent, begun chan string, gate chan struct{}) {
	begun, gate = make(chan string, 64), make(chan struct{})
	agent = NewAgent("holder", options...)
	Handle(agent, "work.hold@1", func(task *Task, _ struct{}) (string, error) {
		begun <- task.AttemptID()
		select {
		case <-gate:
			return "released", nil
		case <-task.Done():
			return "", task.Err()
		}
	})
	return agent, begun, gate
}

func TestACancelledAttemptIsToldAndAnsweredOnce(t *testing.T) {
	agent, begun, _ := holder()
	at := newSidecar(t).serve()
	start(t, agent, at)
	line := at.next()
	id := line.assign("work.hold", 1, "null")
	receive(t, begun, "the handler")
	cancel := []*antiphonv1.AttemptCancel{{AttemptId: id, Reason: "enough"}, {AttemptId: "other"}}
	line.say(&antiphonv1.WorkResponse{Cancels: cancel})
	if failure := line.result(id).GetFailure(); failure.GetKind() != kindCancelled {
		t.Error(failure)
	}
}

func TestAnAttemptEndsWithItsTime(t *testing.T) {
	agent, _, _ := holder()
	at := newSidecar(t).serve()
	start(t, agent, at)
	line := at.next()
	id := line.assign("work.hold", 1, "null", func(a *antiphonv1.Assignment) { a.RemainingTimeout = durationpb.New(time.Millisecond) })
	failure := line.result(id).GetFailure()
	if kind := failure.GetKind(); kind != antiphonv1.FailureKind_FAILURE_KIND_TIMEOUT && kind != kindCancelled {
		t.Error(failure)
	}
}

func TestAnAttemptThatIsAssignedTwiceIsWorkedOnce(t *testing.T) {
	agent, begun, gate := holder()
	at := newSidecar(t).serve()
	start(t, agent, at)
	line := at.next()
	id := line.assign("work.hold", 1, "null")
	line.assign("work.hold", 1, "null")
	receive(t, begun, "the handler")
	other := line.assign("work.hold", 2, "null")
	if second := receive(t, begun, "the other handler"); second != other {
		t.Errorf("%s was begun again", second)
	}
	close(gate)
	line.result(id)
}

func TestAnOutcomeThatMayBeLostIsRepeatedAndNotWorkedOutAgain(t *testing.T) {
	var times atomic.Int32
	agent := NewAgent("counter")
	Handle(agent, "work.count@1", func(*Task, struct{}) (int32, error) { return times.Add(1), nil })
	at := newSidecar(t).serve()
	start(t, agent, at)
	first := at.next()
	first.result(first.assign("work.count", 1, "null"))
	first.broken <- refusalOf(NotServing, "broken", nil)
	second := at.next()
	again := second.result(second.assign("work.count", 1, "null"))
	if string(again.GetOutput().GetInline()) != "1" || times.Load() != 1 {
		t.Error(again, times.Load())
	}
}

func TestAnOutcomeThatMayBeLostIsRepeatedAfterDiallingInVainToo(t *testing.T) {
	var times atomic.Int32
	agent := NewAgent("counter")
	Handle(agent, "work.count@1", func(*Task, struct{}) (int32, error) { return times.Add(1), nil })
	at := newSidecar(t).serve()
	start(t, agent, at)
	first := at.next()
	first.result(first.assign("work.count", 1, "null"))
	at.refuse(NotServing, NotServing)
	first.broken <- refusalOf(NotServing, "broken", nil)
	second := at.next()
	again := second.result(second.assign("work.count", 1, "null"))
	if string(again.GetOutput().GetInline()) != "1" || times.Load() != 1 {
		t.Error(again, times.Load())
	}
}

func TestWorkThatEndsWhileThereIsNoStreamIsNotDoneAgain(t *testing.T) {
	agent, begun, gate := holder()
	at := newSidecar(t).serve()
	start(t, agent, at)
	first := at.next()
	id := first.assign("work.hold", 1, "null")
	receive(t, begun, "the handler")
	at.stop()
	close(gate)
	at.serve()
	second := at.next()
	second.assign("work.hold", 1, "null") // as a sidecar does that has no outcome; it may have been lost with the stream
	if output := second.result(id).GetOutput(); string(output.GetInline()) != `"released"` || len(begun) != 0 {
		t.Error(output)
	}
}

func TestASidecarThatIsLateOrNotYetServingIsDialledUntilItIsThere(t *testing.T) {
	at := newSidecar(t)
	start(t, greeter(), at)
	at.refuse(NotServing, NotServing)
	at.serve()
	line := at.next()
	line.result(line.assign("text.greet", 1, `{"name":"Ada"}`))
}

func TestARefusalThatStaysEndsTheAgentWithIts(t *testing.T) {
	at := newSidecar(t).serve()
	at.refuse(NotGranted)
	err := start(t, greeter(), at).end()
	var refusal *Error
	if !errors.Is(err, NotGranted) || !errors.As(err, &refusal) || refusal.Remedy != AskOperator {
		t.Error(err)
	}
}

func TestADrainingAgentFinishesWhatItHasAndEnds(t *testing.T) {
	agent, begun, gate := holder()
	at := newSidecar(t).serve()
	running := start(t, agent, at)
	line := at.next()
	id := line.assign("work.hold", 1, "null")
	receive(t, begun, "the handler")
	running.drain()
	until(line, "drain", func(request *antiphonv1.WorkRequest) (bool, bool) { return true, request.GetDrain() })
	close(gate)
	line.result(id)
	line.broken <- nil
	if err := running.end(); err != nil {
		t.Error(err)
	}
}

func TestADrainingAgentEndsAfterItsGraceWhateverItsHandlersDo(t *testing.T) {
	agent := NewAgent("stubborn", WithGrace(time.Millisecond))
	begun, never := make(chan struct{}, 1), make(chan struct{})
	Handle(agent, "work.never@1", func(*Task, struct{}) (struct{}, error) {
		begun <- struct{}{}
		<-never
		return struct{}{}, nil
	})
	at := newSidecar(t).serve()
	running := start(t, agent, at)
	at.next().assign("work.never", 1, "null")
	receive(t, begun, "the handler")
	running.drain()
	if err := running.end(); err != nil {
		t.Error(err)
	}
	close(never)
}

func TestAnAgentThatIsToldToDrainClosesItsSideWhenItIsIdle(t *testing.T) {
	agent, begun, gate := holder()
	at := newSidecar(t).serve()
	start(t, agent, at)
	line := at.next()
	id := line.assign("work.hold", 1, "null")
	receive(t, begun, "the handler")
	line.say(&antiphonv1.WorkResponse{Drain: true})
	close(gate)
	line.result(id)
	if more := receive(t, line.heard, "the end of the agent's side"); more != nil {
		t.Error(more)
	}
}

func TestManyOutcomesTravelInMessagesWithinTheirBounds(t *testing.T) {
	agent := NewAgent("many", WithConcurrency(1000))
	gate := make(chan struct{})
	Handle(agent, "work.many@1", func(*Task, struct{}) (string, error) {
		<-gate
		return strings.Repeat("x", 60_000), nil
	})
	at := newSidecar(t).serve()
	start(t, agent, at)
	line := at.next()
	for number := range 600 {
		line.assign("work.many", number, "null")
	}
	close(gate)
	for count := 0; count < 600; {
		request := receive(t, line.heard, "outcomes")
		count += len(request.GetResults())
		if len(request.GetResults()) > 256 || len(request.GetResults())*60_000 > 2<<20 {
			t.Fatal(len(request.GetResults()))
		}
	}
}

func TestAnOutputThatDoesNotTravelIsAFailureWithItsReason(t *testing.T) {
	agent := NewAgent("large")
	Handle(agent, "work.large@1", func(_ *Task, size int) (string, error) { return strings.Repeat("x", size), nil })
	at := newSidecar(t).serve()
	start(t, agent, at)
	line := at.next()
	if output := line.result(line.assign("work.large", 1, "65534")).GetOutput(); len(output.GetInline()) != 65536 {
		t.Error(len(output.GetInline()))
	}
	failure := line.result(line.assign("work.large", 2, "65535")).GetFailure()
	if failure.GetKind() != antiphonv1.FailureKind_FAILURE_KIND_INVALID_OUTPUT || !strings.Contains(failure.GetMessage(), "UploadPayload") {
		t.Error(failure)
	}
}

func TestWhatCannotTravelFailsItsAttemptAloneAndNotTheStreamOfAll(t *testing.T) {
	const odd = "caf\xe9"
	long, huge := strings.Repeat("i", 65), strings.Repeat("x", 5<<20)
	agent, begun, gate := holder(WithConcurrency(4))
	bad := map[string]func(*Task) (*Payload, error){
		"its media type": func(*Task) (*Payload, error) { return &Payload{MediaType: odd}, nil },
		"a label of its output": func(*Task) (*Payload, error) {
			return &Payload{Labels: []*antiphonv1.Label{{Key: "file", Value: odd}}}, nil
		},
		"the id of a call":  func(task *Task) (*Payload, error) { return Call[*Payload](task, "a.b@1", 1, CallID(odd)) },
		"what it calls":     func(task *Task) (*Payload, error) { return Call[*Payload](task, odd, 1) },
		"what a call takes": func(task *Task) (*Payload, error) { return Call[*Payload](task, "a.b@1", &Payload{Schema: odd}) },
		"what it emits": func(task *Task) (*Payload, error) {
			return nil, task.Emit(&Payload{Labels: []*antiphonv1.Label{{Key: odd}}})
		},
		"megabytes of labels of its output": func(*Task) (*Payload, error) { return labelled(5 << 20), nil },
		"megabytes of labels of what a call takes": func(task *Task) (*Payload, error) {
			return Call[*Payload](task, "a.b@1", labelled(5<<20))
		},
		"a long id of a call":          func(task *Task) (*Payload, error) { return Call[*Payload](task, "a.b@1", 1, CallID(long)) },
		"a larger name of a call":      func(task *Task) (*Payload, error) { return Call[*Payload](task, huge, 1) },
		"many labels of what it emits": func(task *Task) (*Payload, error) { return nil, task.Emit(labelled(40 << 10)) },
	}
	Handle(agent, "work.odd@1", func(task *Task, how string) (*Payload, error) { return bad[how](task) })
	Handle(agent, "work.ask@1", func(task *Task, _ struct{}) (bool, error) {
		_, got := task.Shared().Get(task, odd)
		_, put := task.Shared().Put(task, "key", 1, EntryLabels(odd))
		_, large := task.Shared().Get(task, huge)
		_, labels := task.Shared().Put(task, "key", labelled(100<<10), EntryLabels(huge))
		for _, err := range []error{got, put, large, labels} {
			if !errors.Is(err, RequestInvalid) {
				return false, err
			}
		}
		return true, nil
	})
	at := newSidecar(t).serve()
	start(t, agent, at)
	line := at.next()
	good := line.assign("work.hold", 1, "null")
	receive(t, begun, "the handler")
	number := 1
	for how := range bad {
		number++
		failure := line.result(line.assign("work.odd", number, `"`+how+`"`)).GetFailure()
		why := "UTF-8"
		switch {
		case strings.Contains(how, "labels"), strings.Contains(how, "larger"):
			why = "larger than"
		case strings.Contains(how, "long"):
			why = "at most 64"
		}
		if failure.GetKind() != antiphonv1.FailureKind_FAILURE_KIND_INVALID_OUTPUT || !strings.Contains(failure.GetMessage(), why) {
			t.Errorf("%s: %v", how, failure)
		}
	}
	if output := line.result(line.assign("work.ask", 99, "null")).GetOutput(); string(output.GetInline()) != "true" {
		t.Error(output)
	}
	close(gate)
	line.result(good) // on the first stream still
}

func TestATaskIsAContextThatKnowsItself(t *testing.T) {
	agent := NewAgent("knowing")
	Handle(agent, "work.know@1", func(task *Task, _ struct{}) (map[string]any, error) {
		derived, end := context.WithCancel(task)
		defer end()
		return map[string]any{
			"same": TaskOf(derived) == task, "run": task.RunID(), "key": task.IdempotencyKey(), "number": task.Number(),
			"capability": task.Capability(), "trace": traceparent(derived),
		}, nil
	})
	at := newSidecar(t).serve()
	start(t, agent, at)
	line := at.next()
	output := line.result(line.assign("work.know", 1, "null")).GetOutput()
	want := `{"capability":"work.know@1","key":"run-1/task1/0","number":1,"run":"run-1","same":true,` +
		`"trace":"00-11111111111111111111111111111111-2222222222222222-01"}`
	if string(output.GetInline()) != want {
		t.Error(string(output.GetInline()))
	}
	if TaskOf(t.Context()) != nil {
		t.Error("a task outside of a handler")
	}
	if _, err := Call[any](t.Context(), "a.b@1", nil); err == nil {
		t.Error("a call outside of a handler")
	}
}

func TestWhatIsGivenUpBeforeItWasSentIsNotAskedWithTheOutcomeOrAfterIt(t *testing.T) {
	agent := NewAgent("asker")
	Handle(agent, "work.late@1", func(task *Task, _ struct{}) (int, error) {
		ctx, end := context.WithCancel(task)
		end()
		_, err := task.Shared().Get(ctx, "key")
		if errors.Is(err, context.Canceled) {
			_, err = Call[int](ctx, "other.thing@1", 1)
		}
		return 0, err
	})
	at := newSidecar(t).serve()
	start(t, agent, at)
	line := at.next()
	const tries = 50
	for number := range tries {
		line.assign("work.late", number, "{}")
	}
	over := map[string]bool{}
	until(line, "all outcomes", func(request *antiphonv1.WorkRequest) (bool, bool) {
		for _, result := range request.GetResults() { // they are read first
			over[result.GetAttemptId()] = true
		}
		for _, call := range request.GetCalls() {
			if over[call.GetAttemptId()] {
				t.Error("a call after the outcome of", call.GetAttemptId())
			}
		}
		for _, ask := range request.GetContextRequests() {
			if over[ask.GetAttemptId()] {
				t.Error("a request to shared context after the outcome of", ask.GetAttemptId())
			}
		}
		return true, len(over) == tries
	})
}

func TestWhatAnAttemptAskedForIsAnsweredWhenItIsOver(t *testing.T) {
	agent := NewAgent("leaver")
	asked, told := make(chan struct{}), make(chan error, 2)
	var left context.Context
	Handle(agent, "work.leave@1", func(task *Task, _ struct{}) (int, error) {
		left = context.WithoutCancel(task)
		go func() {
			_, err := task.Shared().Get(left, "key")
			told <- err
		}()
		<-asked
		return 0, nil
	})
	at := newSidecar(t).serve()
	start(t, agent, at)
	line := at.next()
	id := line.assign("work.leave", 1, "{}")
	until(line, "the request", func(request *antiphonv1.WorkRequest) (bool, bool) {
		return true, len(request.GetContextRequests()) > 0
	})
	close(asked)
	line.result(id)
	if err := receive(t, told, "an answer"); !errors.Is(err, AttemptNotFound) {
		t.Error(err)
	}
	_, err := Call[int](left, "other.thing@1", 1)
	var failed *CallFailed
	if !errors.As(err, &failed) || failed.Recorded.GetKind() != kindCancelled {
		t.Error(err)
	}
}

func TestACallIsRepeatedOnANewStreamAndAnsweredThere(t *testing.T) {
	agent := NewAgent("caller")
	Handle(agent, "work.call@1", func(task *Task, in int) (int, error) {
		return Call[int](task, "other.thing@1", in, CallTimeout(time.Minute))
	})
	at := newSidecar(t).serve()
	start(t, agent, at)
	first := at.next()
	id := first.assign("work.call", 1, "5")
	called := func(request *antiphonv1.WorkRequest) (*antiphonv1.CallRequest, bool) {
		if len(request.GetCalls()) == 0 {
			return nil, false
		}
		return request.GetCalls()[0], true
	}
	asked := until(first, "the call", called)
	first.broken <- refusalOf(NotServing, "broken", nil)
	second := at.next()
	again := until(second, "the call again", called)
	if asked.GetCallId() != "1" || again.String() != asked.String() || string(again.GetAttemptToken()) != "token" {
		t.Error(asked, again)
	}
	answer := &antiphonv1.CallResponse{CallId: "1", AttemptId: id, Outcome: &antiphonv1.CallResponse_Output{Output: inline([]byte("6"))}}
	second.say(&antiphonv1.WorkResponse{CallResults: []*antiphonv1.CallResponse{answer, answer}})
	if output := second.result(id).GetOutput(); string(output.GetInline()) != "6" {
		t.Error(output)
	}
}

func TestALostClaimEndsItsContextWithTheReason(t *testing.T) {
	agent := NewAgent("claimer")
	Handle(agent, "work.claim@1", func(task *Task, _ struct{}) (string, error) {
		claim, err := task.Shared().Claim(task, "plan")
		if err != nil {
			return "", err
		}
		<-claim.Done()
		if task.Err() != nil {
			return "", errors.New("the task itself was ended")
		}
		cause := context.Cause(claim)
		if err := claim.Release(); !errors.Is(err, ClaimLost) {
			return "", fmt.Errorf("released: %w", err)
		}
		return cause.Error(), nil
	})
	at := newSidecar(t).serve()
	start(t, agent, at)
	line := at.next()
	id := line.assign("work.claim", 1, "null")
	asked := until(line, "the claim", func(request *antiphonv1.WorkRequest) (*antiphonv1.ContextRequest, bool) {
		if len(request.GetContextRequests()) == 0 {
			return nil, false
		}
		return request.GetContextRequests()[0], true
	})
	if asked.GetAcquire().GetName() != "plan" || asked.GetAcquire().GetTtl().AsDuration() != 30*time.Second {
		t.Error(asked)
	}
	reference := &antiphonv1.ClaimReference{Name: "plan", Fence: 3}
	taken := &antiphonv1.AcquireClaimResponse{Claim: &antiphonv1.Claim{Claim: reference}}
	line.say(&antiphonv1.WorkResponse{ContextResponses: []*antiphonv1.ContextResponse{{
		RequestId: asked.GetRequestId(), AttemptId: id, Outcome: &antiphonv1.ContextResponse_Acquire{Acquire: taken},
	}}})
	// Told before it is known here, the loss would be nobody's: it is repeated until the outcome is there.
	outcome := make(chan *antiphonv1.Result, 1)
	go func() { outcome <- line.result(id) }()
	for {
		line.say(&antiphonv1.WorkResponse{ClaimLosses: []*antiphonv1.ClaimLoss{{AttemptId: id, Claim: reference}}})
		select {
		case result := <-outcome:
			if text := string(result.GetOutput().GetInline()); !strings.Contains(text, "plan is not held any more") {
				t.Error(result)
			}
			return
		case <-time.After(time.Millisecond):
		}
	}
}
