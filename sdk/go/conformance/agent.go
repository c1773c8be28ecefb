package main

import (
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"sync"

	"google.golang.org/protobuf/encoding/protojson"

	"antiphon.dev/antiphon"
	"antiphon.dev/antiphon/internal/conformancev1"
	antiphonv1 "antiphon.dev/antiphon/v1"
)

type judged struct {
	Name  string `json:"name"`
	Files int    `json:"files,omitempty"`
}

type verdict struct {
	Name string `json:"name"`
	Fine bool   `json:"fine"`
}

// agent never returns.
func agent(concurrency int) {
	agent := antiphon.NewAgent("conformance", antiphon.WithConcurrency(concurrency))
	antiphon.Handle(agent, "conformance.script@1", script, antiphon.Pure, antiphon.Idempotent)
	antiphon.Handle(agent, "conformance.judge@1", func(_ *antiphon.Task, in judged) (verdict, error) {
		return verdict{in.Name, in.Files > 0}, nil
	}, antiphon.Pure)
	antiphon.Handle(agent, "conformance.reverse@1", reverse)
	agent.Main()
}

func reverse(_ *antiphon.Task, in *antiphon.Payload) (*antiphon.Payload, error) {
	data := slices.Clone(in.GetInline())
	slices.Reverse(data)
	content := &antiphonv1.Payload_Inline{Inline: data}
	return &antiphon.Payload{Content: content, MediaType: in.GetMediaType()}, nil
}

func script(task *antiphon.Task, in json.RawMessage) (antiphon.Answer[any], error) {
	var steps conformancev1.Script
	var answer antiphon.Answer[any]
	if err := protojson.Unmarshal(in, &steps); err != nil {
		return answer, antiphon.InvalidInput("no script: %w", err)
	}
	for _, step := range steps.GetSteps() {
		if apart := step.GetSubgraph(); apart != nil {
			answer = antiphon.Answer[any]{Subgraph: subgraph(apart)}
			continue
		}
		made, has, err := do(task, step)
		if err != nil {
			return answer, err
		}
		if has {
			answer = antiphon.Answer[any]{Value: made}
		}
	}
	return answer, nil
}

func subgraph(how *conformancev1.ScriptSubgraph) *antiphon.Subgraph {
	made := &antiphon.Subgraph{Graph: &antiphonv1.Graph{
		Name:        "apart",
		Description: strings.Repeat("x", int(how.GetDescription())),
		Tasks: []*antiphonv1.GraphTask{{
			Id: "part", Capability: how.GetCapability(), Input: antiphon.JSON("${input}"),
		}},
	}}
	if text := how.GetInputJson(); text != "" {
		made.Input = json.RawMessage(text)
	}
	return made
}

func do(task *antiphon.Task, step *conformancev1.ScriptStep) (value any, has bool, err error) {
	switch kind := step.GetKind().(type) {
	case *conformancev1.ScriptStep_OutputJson:
		return json.RawMessage(kind.OutputJson), true, nil
	case *conformancev1.ScriptStep_Large:
		return strings.Repeat("x", int(kind.Large)), true, nil
	case *conformancev1.ScriptStep_Describe:
		return describe(task), true, nil
	case *conformancev1.ScriptStep_Count:
		return count(kind.Count), true, nil
	case *conformancev1.ScriptStep_Progress:
		task.Progress(kind.Progress.GetFraction(), kind.Progress.GetMessage())
		return nil, false, nil
	case *conformancev1.ScriptStep_EmitText:
		return nil, false, task.Emit(kind.EmitText)
	case *conformancev1.ScriptStep_EmitJson:
		return nil, false, task.Emit(json.RawMessage(kind.EmitJson))
	case *conformancev1.ScriptStep_Call:
		value, err := call(task, kind.Call)
		return value, true, err
	case *conformancev1.ScriptStep_Fail:
		return nil, false, failure(kind.Fail)
	case *conformancev1.ScriptStep_Crash:
		panic(kind.Crash)
	case *conformancev1.ScriptStep_WaitCancelled:
		<-task.Done()
		return nil, false, task.Err()
	}
	return nil, false, antiphon.Permanent("a step of a kind that this executor does not know")
}

func describe(task *antiphon.Task) map[string]any {
	_, limited := task.Deadline()
	return map[string]any{
		"attempt_id": task.AttemptID(), "run_id": task.RunID(), "number": task.Number(),
		"idempotency_key": task.IdempotencyKey(), "capability": task.Capability(), "namespace": task.Namespace(),
		"principal": task.Principal(), "delegation": task.Delegation(), "traceparent": task.Traceparent(),
		"deadline": limited,
	}
}

var (
	counting sync.Mutex
	counts   = map[string]int{}
)

func count(name string) int {
	counting.Lock()
	defer counting.Unlock()
	counts[name]++
	return counts[name]
}

func call(task *antiphon.Task, how *conformancev1.ScriptCall) (any, error) {
	var input any
	if text := how.GetInputJson(); text != "" {
		input = json.RawMessage(text)
	}
	var options []antiphon.CallOption
	if how.GetCallId() != "" {
		options = append(options, antiphon.CallID(how.GetCallId()))
	}
	if how.GetEmitted() {
		options = append(options, antiphon.OnPartial(func(piece *antiphon.PartialOutput) {
			_ = task.Emit(piece.GetText()) // text always travels
		}))
	}
	value, err := antiphon.Call[any](task, how.GetCapability(), input, options...)
	var failed *antiphon.CallFailed
	if how.GetCaught() && errors.As(err, &failed) {
		return map[string]any{"kind": failed.Recorded.GetKind().String(), "code": failed.Recorded.GetCode()}, nil
	}
	return value, err
}

func failure(how *antiphonv1.Failure) error {
	failed := &antiphon.Failure{Kind: how.GetKind(), Message: how.GetMessage(), Retryable: how.GetRetryable()}
	switch how.GetKind() {
	case antiphonv1.FailureKind_FAILURE_KIND_TRANSIENT:
		failed = antiphon.Transient("%s", how.GetMessage())
	case antiphonv1.FailureKind_FAILURE_KIND_PERMANENT:
		failed = antiphon.Permanent("%s", how.GetMessage())
	case antiphonv1.FailureKind_FAILURE_KIND_INVALID_INPUT:
		failed = antiphon.InvalidInput("%s", how.GetMessage())
	case antiphonv1.FailureKind_FAILURE_KIND_INVALID_OUTPUT:
		failed = antiphon.InvalidOutput("%s", how.GetMessage())
	case antiphonv1.FailureKind_FAILURE_KIND_BUDGET:
		failed = antiphon.BudgetExceeded("%s", how.GetMessage())
	case antiphonv1.FailureKind_FAILURE_KIND_CANCELLED:
		failed = antiphon.Cancelled("%s", how.GetMessage())
	}
	return failed.WithCode(how.GetCode()).WithField(how.GetField())
}
