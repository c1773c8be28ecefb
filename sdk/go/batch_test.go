package antiphon

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	antiphonv1 "antiphon.dev/antiphon/v1"
)

const never = time.Minute // a batch that waits for so long begins for another reason

type doubling struct {
	inputs []int
	tasks  []*Task
	ctx    context.Context
}

// doubler doubles by the batch; each batch is told, and goes on when the gate is closed.
func doubler(batch Batch) (agent *Agent, begun chan doubling, gate chan struct{}) {
	agent, begun, gate = NewAgent("doubler", WithConcurrency(8)), make(chan doubling, 8), make(chan struct{})
	HandleBatch(agent, "work.double@1", batch,
		func(ctx context.Context, inputs []int, tasks []*Task) ([]Outcome[int], error) {
			begun <- doubling{inputs, tasks, ctx}
			select {
			case <-gate:
			case <-ctx.Done():
				return nil, ctx.Err()
			}
			var outcomes []Outcome[int]
			for _, input := range inputs {
				switch {
				case input == 99:
					panic("no such number")
				case input == 98:
					return nil, nil
				case input < 0:
					outcomes = append(outcomes, Outcome[int]{Err: Permanent("%d is too small", input)})
				default:
					outcomes = append(outcomes, Outcome[int]{Value: 2 * input})
				}
			}
			return outcomes, nil
		}, Pure)
	return agent, begun, gate
}

func TestABatchBeginsWhenItIsFullAndEachTaskHasItsOwnOutcome(t *testing.T) {
	agent, begun, gate := doubler(Batch{Size: 3, Wait: never})
	close(gate)
	at := newSidecar(t).serve()
	start(t, agent, at)
	line := at.next()
	unfit := line.assign("work.double", 9, `"no"`)
	if failure := line.result(unfit).GetFailure(); failure.GetKind() != antiphonv1.FailureKind_FAILURE_KIND_INVALID_INPUT {
		t.Error(failure)
	}
	var ids []string
	for number := range 3 {
		ids = append(ids, line.assign("work.double", number, fmt.Sprint(number-1)))
	}
	if batch := receive(t, begun, "a batch"); len(batch.inputs) != 3 || len(batch.tasks) != 3 {
		t.Error(batch.inputs)
	}
	outcomes := map[string]*antiphonv1.Result{}
	for len(outcomes) < len(ids) {
		until(line, "outcomes", func(request *antiphonv1.WorkRequest) (bool, bool) {
			for _, result := range request.GetResults() {
				outcomes[result.GetAttemptId()] = result
			}
			return true, len(request.GetResults()) > 0
		})
	}
	if kind := outcomes[ids[0]].GetFailure().GetKind(); kind != kindPermanent {
		t.Error(outcomes[ids[0]])
	}
	if output := string(outcomes[ids[2]].GetOutput().GetInline()); output != "2" {
		t.Error(outcomes[ids[2]])
	}
}

func TestABatchBeginsOnceItsFirstTaskHasWaitedOrWouldLoseHalfOfItsTime(t *testing.T) {
	for _, batch := range []Batch{{Size: 8, Wait: time.Millisecond}, {Size: 8, Wait: never}} {
		agent, begun, gate := doubler(batch)
		close(gate)
		at := newSidecar(t).serve()
		start(t, agent, at)
		line := at.next()
		if batch.Wait == never {
			line.assign("work.double", 1, "1") // has all the time there is
		}
		line.assign("work.double", 2, "2", func(a *antiphonv1.Assignment) {
			if batch.Wait == never {
				a.RemainingTimeout = durationpb.New(10 * time.Second)
			}
		})
		receive(t, begun, "a batch")
	}
}

func TestWhoLeavesABatchHasItsOutcomeAndTheRestGoesOnUntilNobodyIsLeft(t *testing.T) {
	agent, begun, _ := doubler(Batch{Size: 2, Wait: never})
	at := newSidecar(t).serve()
	start(t, agent, at)
	line := at.next()
	first, second := line.assign("work.double", 1, "1"), line.assign("work.double", 2, "2")
	batch := receive(t, begun, "a batch")
	for _, id := range []string{first, second} {
		if batch.ctx.Err() != nil {
			t.Error("the batch ended while somebody was left")
		}
		line.say(&antiphonv1.WorkResponse{Cancels: []*antiphonv1.AttemptCancel{{AttemptId: id, Reason: "enough"}}})
		if failure := line.result(id).GetFailure(); failure.GetKind() != kindCancelled {
			t.Error(failure)
		}
	}
	receive(t, batch.ctx.Done(), "the end of the batch")
}

func TestWhatABatchPanicsWithOrLeavesOutFailsAllOfIt(t *testing.T) {
	for input, part := range map[string]string{"99": "no such number", "98": "2 tasks were handed over and 0 outcomes came back"} {
		agent, _, gate := doubler(Batch{Size: 2, Wait: never})
		close(gate)
		at := newSidecar(t).serve()
		start(t, agent, at)
		line := at.next()
		line.assign("work.double", 1, "1")
		id := line.assign("work.double", 2, input)
		if failure := line.result(id).GetFailure(); !strings.Contains(failure.GetMessage(), part) {
			t.Error(failure)
		}
	}
}

func TestADrainingAgentBeginsWhatIsGathered(t *testing.T) {
	agent, begun, gate := doubler(Batch{Size: 8, Wait: never})
	close(gate)
	at := newSidecar(t).serve()
	start(t, agent, at)
	line := at.next()
	id := line.assign("work.double", 1, "21")
	line.say(&antiphonv1.WorkResponse{Drain: true})
	if output := string(line.result(id).GetOutput().GetInline()); output != "42" {
		t.Error(output)
	}
	receive(t, begun, "a batch")
}

func TestABatchThatCannotBeOfferedIsAMistake(t *testing.T) {
	agent := NewAgent("wrong", WithConcurrency(4), WithLogger(quiet))
	nothing := func(context.Context, []int, []*Task) ([]Outcome[int], error) { return nil, nil }
	HandleBatch(agent, "work.a@1", Batch{Size: 5, Wait: time.Second}, nothing)
	HandleBatch(agent, "work.b@1", Batch{Size: 2}, nothing)
	HandleBatch(agent, "work.c@1", Batch{Size: 2, Wait: time.Second},
		func(context.Context, []struct{}, []*Task) ([]Outcome[int], error) { return nil, nil })
	err := agent.Run(t.Context())
	if !errors.Is(err, NotSetUp) {
		t.Fatal(err)
	}
	for _, part := range []string{"a batch of 5", "waits for up to a minute", "work.c@1: a batch needs an input"} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("%q is not in: %v", part, err)
		}
	}
}
