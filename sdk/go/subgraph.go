package antiphon

import (
	"errors"
	"reflect"

	"google.golang.org/protobuf/proto"

	antiphonv1 "antiphon.dev/antiphon/v1"
)

// graphLimit is what a graph that a handler answers may have in bytes, as the contract has it.
const graphLimit = 256 << 10

// Subgraph is a graph that runs beneath a task in place of an output. Its output is the task's, and has to fit what the handler
// promises to answer; its failure is the task's. Input is anything that travels as JSON, or a *Payload, which the graph's expressions
// know as input; nil for null. A graph with mistakes fails the attempt and names each; at most 256 KiB.
type Subgraph struct {
	Graph *antiphonv1.Graph
	Input any
}

// Answer is what a handler answers that may take its task apart: a value, or a graph that is to give it.
//
//	antiphon.Handle(agent, "report.write@1", func(task *antiphon.Task, question string) (antiphon.Answer[string], error) {
//		if known, ok := answers[question]; ok {
//			return antiphon.Answer[string]{Value: known}, nil
//		}
//		return antiphon.Answer[string]{Subgraph: &antiphon.Subgraph{Graph: graph, Input: question}}, nil
//	})
//
// The capability's output is described as that of a handler that answers an Out. A batch may answer them, too.
type Answer[Out any] struct {
	Value    Out
	Subgraph *Subgraph // where it is not nil, Value is not looked at
}

// answering is every Answer.
type answering interface {
	valueType() reflect.Type
	parts() (value any, subgraph *Subgraph)
}

func (Answer[Out]) valueType() reflect.Type { return reflect.TypeFor[Out]() }

func (a Answer[Out]) parts() (any, *Subgraph) { return a.Value, a.Subgraph }

// valueTypeOf is the type of the values that a handler answers with.
func valueTypeOf(given reflect.Type) (reflect.Type, error) {
	pointed := given
	if given.Kind() == reflect.Pointer {
		pointed = given.Elem()
	}
	answer, ok := reflect.Zero(pointed).Interface().(answering)
	if ok && pointed != given {
		return nil, errors.New("its output: answer with an Answer, not with a pointer to one")
	}
	if ok {
		return answer.valueType(), nil
	}
	return given, nil
}

// outcome is a result without its attempt: the output that a handler answers, or a graph in its place.
type outcome struct {
	output   *Payload
	subgraph *antiphonv1.Subgraph
}

func (o outcome) result(attemptID string) *antiphonv1.Result {
	if o.subgraph != nil {
		return &antiphonv1.Result{AttemptId: attemptID, Outcome: &antiphonv1.Result_Subgraph{Subgraph: o.subgraph}}
	}
	return &antiphonv1.Result{AttemptId: attemptID, Outcome: &antiphonv1.Result_Output{Output: o.output}}
}

// outcomeOf is what to say of what a handler answered, whose values are of a type; limit is the largest inline payload in bytes. The
// failure is INVALID_OUTPUT.
func outcomeOf(answered any, values reflect.Type, limit int) (outcome, error) {
	if answer, ok := answered.(answering); ok {
		value, subgraph := answer.parts()
		if subgraph != nil {
			message, err := subgraph.message(limit)
			return outcome{subgraph: message}, err
		}
		answered = value
	}
	if values == nothingType {
		return outcome{output: inline([]byte("null"))}, nil
	}
	output, err := encode(answered, limit)
	return outcome{output: output}, err
}

func (s *Subgraph) message(limit int) (*antiphonv1.Subgraph, error) {
	if s.Graph == nil {
		return nil, InvalidOutput("a Subgraph needs a Graph")
	}
	// Copies, because the agent may change what it answered while that waits to be sent.
	message := &antiphonv1.Subgraph{Graph: proto.Clone(s.Graph).(*antiphonv1.Graph)}
	if s.Input != nil {
		input, err := encode(s.Input, limit)
		var wrong *Failure
		if errors.As(err, &wrong) {
			return nil, InvalidOutput("the input of the graph: %s", wrong.Message).WithField(wrong.Field)
		} else if err != nil {
			return nil, InvalidOutput("the input of the graph: %w", err)
		}
		message.Input = proto.Clone(input).(*Payload)
	}
	// Here, and not in the stream of all attempts, which what cannot be sent would break.
	data, err := proto.Marshal(message.GetGraph())
	if err != nil {
		return nil, InvalidOutput("the graph cannot travel: %w", err)
	}
	if len(data) > graphLimit {
		return nil, InvalidOutput("the graph has %d bytes, larger than %d bytes", len(data), graphLimit)
	}
	return message, nil
}
