package antiphon

import (
	"errors"
	"fmt"
	"reflect"
	"regexp"
	"time"
	"unicode/utf8"

	"google.golang.org/protobuf/types/known/durationpb"

	antiphonv1 "antiphon.dev/antiphon/v1"
)

const (
	descriptionLimit = 2048
	schemaLimit      = 32768
)

var capabilityPattern = regexp.MustCompile(
	`^([a-z][a-z0-9_-]{0,62}(?:\.[a-z0-9_-]{1,63}){0,7})@([0-9]{1,6}(?:\.[0-9]{1,6}){0,2})$`)

// CapabilityOption says something of a capability besides its name and its types.
type CapabilityOption func(*antiphonv1.Capability)

// Pure declares that the output depends on the input alone; nothing is read or changed.
func Pure(capability *antiphonv1.Capability) { capability.Effect = antiphonv1.Effect_EFFECT_PURE }

// Reads declares that something besides the input is read.
func Reads(capability *antiphonv1.Capability) { capability.Effect = antiphonv1.Effect_EFFECT_READ }

// Writes declares that something inside the organisation is changed.
func Writes(capability *antiphonv1.Capability) { capability.Effect = antiphonv1.Effect_EFFECT_WRITE }

// Egress declares that data leaves the organisation, as which an undeclared effect is judged.
func Egress(capability *antiphonv1.Capability) { capability.Effect = antiphonv1.Effect_EFFECT_EGRESS }

// Idempotent declares that repeating it with the same idempotency key has one effect.
func Idempotent(capability *antiphonv1.Capability) { capability.Idempotent = true }

// Description is for people and planners; at most 2,048 characters are announced.
func Description(text string) CapabilityOption {
	return func(capability *antiphonv1.Capability) { capability.Description = cut(text, descriptionLimit) }
}

// Clearance names the label keys that the handler may see, such as "pii".
func Clearance(keys ...string) CapabilityOption {
	return func(capability *antiphonv1.Capability) { capability.Clearance = keys }
}

// Cost is that of one call, in the namespace's own unit.
func Cost(cost float64) CapabilityOption {
	return func(capability *antiphonv1.Capability) { capability.Cost = cost }
}

// ExpectedLatency is the time of one call, until there are measurements.
func ExpectedLatency(latency time.Duration) CapabilityOption {
	return func(capability *antiphonv1.Capability) { capability.ExpectedLatency = durationpb.New(latency) }
}

// InputSchema replaces the schema that is derived from the input's type: JSON Schema 2020-12 as text, empty for anything.
func InputSchema(schema string) CapabilityOption {
	return func(capability *antiphonv1.Capability) { capability.InputSchema = schema }
}

// OutputSchema replaces the schema that is derived from the output's type.
func OutputSchema(schema string) CapabilityOption {
	return func(capability *antiphonv1.Capability) { capability.OutputSchema = schema }
}

type capabilityKey struct{ name, version string }

// handler is one capability and the function behind it, from a payload to an outcome.
type handler struct {
	capability *antiphonv1.Capability
	run        func(task *Task, limit int) (outcome, error)
	flush      func() // of a batch: begins what is gathered; nil of others
}

// Handle offers a function as a capability, such as "text.summarize@1". Its input and output are any types that travel as JSON;
// their schemas are derived and announced, with what struct tags add: `description:"…"`, `enum:"a,b"`, and `labels:"pii"` for
// what a field is to policy. A type may read and write its own JSON, or its own text. struct{} takes or gives nothing, *Payload is
// the envelope as it is, and an [Answer] may be a graph that is to give the output. The function has a goroutine to itself while it
// runs, in which others ran before, at most the agent's concurrency at once; it ends early when its task is done, which is a context.
// What it ties to the goroutine, such as a thread that it locks, it unties. What it returns as an error is explained at [Failure];
// a panic is an error, too.
//
// What cannot be offered is an error of Run, together with all other mistakes.
func Handle[In, Out any](
	agent *Agent, capability string, function func(*Task, In) (Out, error), options ...CapabilityOption,
) {
	values, err := valueTypeOf(reflect.TypeFor[Out]())
	var made *handler
	if err == nil {
		made, err = handlerOf(capability, reflect.TypeFor[In](), values, options)
	}
	if err != nil {
		agent.mistakes = append(agent.mistakes, fmt.Errorf("%s: %w", capability, err))
		return
	}
	key := capabilityKey{made.capability.GetName(), made.capability.GetVersion()}
	if _, twice := agent.handlers[key]; twice {
		agent.mistakes = append(agent.mistakes, fmt.Errorf("%s is offered twice", capability))
		return
	}
	takes := reflect.TypeFor[In]() != nothingType
	made.run = func(task *Task, limit int) (outcome, error) {
		var input In
		if takes {
			var err error
			if input, err = Decode[In](task.assignment.GetInput()); err != nil {
				return outcome{}, err
			}
		}
		answered, err := function(task, input)
		if err != nil {
			return outcome{}, err
		}
		return outcomeOf(answered, values, limit)
	}
	agent.handlers[key] = made
	agent.order = append(agent.order, made.capability)
}

func handlerOf(name string, in, out reflect.Type, options []CapabilityOption) (*handler, error) {
	parts := capabilityPattern.FindStringSubmatch(name)
	if parts == nil {
		return nil, errors.New("write a dotted name and a version, such as text.summarize@1")
	}
	capability := &antiphonv1.Capability{Name: parts[1], Version: parts[2]}
	if in != nothingType {
		codec := codecOf(in)
		if codec.err != nil {
			return nil, fmt.Errorf("its input: %w", codec.err)
		}
		capability.InputSchema = codec.schema
	}
	capability.OutputSchema = `{"type":"null"}`
	if out != nothingType {
		codec := codecOf(out)
		if codec.err != nil {
			return nil, fmt.Errorf("its output: %w", codec.err)
		}
		capability.OutputSchema = codec.schema
	}
	for _, option := range options {
		option(capability)
	}
	for _, schema := range []string{capability.GetInputSchema(), capability.GetOutputSchema()} {
		if count := utf8.RuneCountInString(schema); count > schemaLimit {
			return nil, fmt.Errorf("a schema has %d characters; at most %d are allowed", count, schemaLimit)
		}
	}
	return &handler{capability: capability}, nil
}
