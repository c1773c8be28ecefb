package antiphon

import (
	"context"
	"strings"
	"testing"
	"time"

	antiphonv1 "antiphon.dev/antiphon/v1"
)

func graphOf(capability string) *antiphonv1.Graph {
	return &antiphonv1.Graph{Name: "apart", Tasks: []*antiphonv1.GraphTask{{Id: "part", Capability: capability}}}
}

// planner answers a text as it is, or takes its task apart.
func planner() *Agent {
	agent := NewAgent("planner", WithConcurrency(4))
	Handle(agent, "plan.text@1", func(_ *Task, how string) (Answer[string], error) {
		switch how {
		case "apart":
			return Answer[string]{Value: "not looked at", Subgraph: &Subgraph{Graph: graphOf("text.sum@1"), Input: []int{1, 2}}}, nil
		case "without input":
			return Answer[string]{Subgraph: &Subgraph{Graph: graphOf("text.sum@1")}}, nil
		case "payload":
			return Answer[string]{Subgraph: &Subgraph{graphOf("text.sum@1"), &Payload{MediaType: "text/plain"}}}, nil
		case "no graph":
			return Answer[string]{Subgraph: &Subgraph{}}, nil
		case "too large":
			graph := graphOf("text.sum@1")
			graph.Description = strings.Repeat("x", graphLimit)
			return Answer[string]{Subgraph: &Subgraph{Graph: graph}}, nil
		case "no text":
			graph := graphOf("text.sum@1")
			graph.Description = "\xff"
			return Answer[string]{Subgraph: &Subgraph{Graph: graph}}, nil
		case "input too large":
			return Answer[string]{Subgraph: &Subgraph{graphOf("text.sum@1"), strings.Repeat("x", 70_000)}}, nil
		case "input cannot travel":
			return Answer[string]{Subgraph: &Subgraph{graphOf("text.sum@1"), make(chan int)}}, nil
		}
		return Answer[string]{Value: how}, nil
	})
	Handle(agent, "plan.nothing@1", func(*Task, string) (Answer[struct{}], error) {
		return Answer[struct{}]{}, nil
	})
	return agent
}

func TestAHandlerThatMayAnswerWithAGraphIsDescribedByWhatItAnswersOtherwise(t *testing.T) {
	offered := planner().Describe().GetCapabilities()
	if offered[0].GetOutputSchema() != `{"type":"string"}` || offered[1].GetOutputSchema() != `{"type":"null"}` {
		t.Error(offered)
	}
}

func TestAHandlerMayAnswerAValueOrAGraphWithItsInput(t *testing.T) {
	at := newSidecar(t).serve()
	start(t, planner(), at)
	line := at.next()
	if output := line.result(line.assign("plan.text", 1, `"as it is"`)).GetOutput(); string(output.GetInline()) != `"as it is"` {
		t.Error(output)
	}
	if output := line.result(line.assign("plan.nothing", 2, `""`)).GetOutput(); string(output.GetInline()) != "null" {
		t.Error(output)
	}
	apart := line.result(line.assign("plan.text", 3, `"apart"`)).GetSubgraph()
	if apart.GetGraph().GetTasks()[0].GetCapability() != "text.sum@1" || string(apart.GetInput().GetInline()) != "[1,2]" {
		t.Error(apart)
	}
	if without := line.result(line.assign("plan.text", 4, `"without input"`)).GetSubgraph(); without.GetGraph() == nil || without.GetInput() != nil {
		t.Error(without)
	}
	if payload := line.result(line.assign("plan.text", 5, `"payload"`)).GetSubgraph(); payload.GetInput().GetMediaType() != "text/plain" {
		t.Error(payload)
	}
}

func TestAGraphThatCannotBeAnsweredFailsItsAttemptAlone(t *testing.T) {
	at := newSidecar(t).serve()
	start(t, planner(), at)
	line := at.next()
	number := 0
	for how, want := range map[string]string{
		"no graph":            "a Subgraph needs a Graph",
		"too large":           "larger than 262144 bytes",
		"no text":             "the graph cannot travel",
		"input too large":     "the input of the graph: the value has 70002 bytes",
		"input cannot travel": "the input of the graph: ",
	} {
		number++
		failure := line.result(line.assign("plan.text", number, `"`+how+`"`)).GetFailure()
		if failure.GetKind() != antiphonv1.FailureKind_FAILURE_KIND_INVALID_OUTPUT || !strings.Contains(failure.GetMessage(), want) {
			t.Errorf("%s: %v", how, failure)
		}
	}
}

func TestAGraphIsSentAsItWasAnswered(t *testing.T) {
	graph, input := graphOf("text.sum@1"), &Payload{Content: &antiphonv1.Payload_Inline{Inline: []byte("1")}}
	message, err := (&Subgraph{graph, input}).message(100)
	if err != nil {
		t.Fatal(err)
	}
	graph.Name, input.MediaType = "changed", "text/plain"
	if message.GetGraph().GetName() != "apart" || message.GetInput().GetMediaType() != "" {
		t.Error(message)
	}
}

func TestAPointerToAnAnswerIsAMistakeOfTheAgent(t *testing.T) {
	agent := NewAgent("planner")
	Handle(agent, "plan.text@1", func(*Task, string) (*Answer[string], error) { return nil, nil })
	if err := agent.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "not with a pointer") {
		t.Error(err)
	}
}

func TestABatchMayAnswerGraphsToo(t *testing.T) {
	agent := NewAgent("planner", WithConcurrency(4))
	HandleBatch(agent, "plan.text@1", Batch{Size: 2, Wait: time.Minute},
		func(_ context.Context, inputs []string, _ []*Task) ([]Outcome[Answer[string]], error) {
			outcomes := make([]Outcome[Answer[string]], len(inputs))
			for at, input := range inputs {
				outcomes[at].Value.Value = input
				if input == "apart" {
					outcomes[at].Value.Subgraph = &Subgraph{Graph: graphOf("text.sum@1")}
				}
			}
			return outcomes, nil
		})
	at := newSidecar(t).serve()
	start(t, agent, at)
	line := at.next()
	plain, apart := line.assign("plan.text", 1, `"as it is"`), line.assign("plan.text", 2, `"apart"`)
	results := map[string]*antiphonv1.Result{}
	until(line, "both outcomes", func(request *antiphonv1.WorkRequest) (bool, bool) {
		for _, result := range request.GetResults() {
			results[result.GetAttemptId()] = result
		}
		return true, len(results) == 2
	})
	if string(results[plain].GetOutput().GetInline()) != `"as it is"` || results[apart].GetSubgraph().GetGraph().GetName() != "apart" {
		t.Error(results)
	}
}
