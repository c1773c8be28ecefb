// Worker is the agent of the tests with a real mesh: one capability for each thing a task can meet, as tests/harness/agent.py.
//
// Settings by environment: AGENT_NAME, AGENT_CONCURRENCY, AGENT_LABELS (JSON), AGENT_JOURNAL (a path to which each attempt appends a line).
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strconv"
	"sync"
	"time"

	"antiphon.dev/antiphon"
)

type entry struct {
	Event          string `json:"event"`
	Capability     string `json:"capability"`
	AttemptID      string `json:"attempt_id"`
	IdempotencyKey string `json:"idempotency_key"`
	Agent          string `json:"agent"`
	PID            int    `json:"pid"`
}

var (
	name    = setting("AGENT_NAME", "worker")
	journal = openJournal(setting("AGENT_JOURNAL", os.DevNull))
	writing sync.Mutex
)

func setting(variable, otherwise string) string {
	if value := os.Getenv(variable); value != "" {
		return value
	}
	return otherwise
}

func openJournal(path string) *os.File {
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		panic(err)
	}
	return file
}

func note(task *antiphon.Task, event string) {
	line, err := json.Marshal(entry{event, task.Capability(), task.AttemptID(), task.IdempotencyKey(), name, os.Getpid()})
	if err != nil {
		panic(err)
	}
	writing.Lock()
	defer writing.Unlock()
	if _, err := journal.Write(append(line, '\n')); err != nil {
		panic(err)
	}
}

// offer adds a handler whose every attempt is in the journal.
func offer[In, Out any](
	agent *antiphon.Agent, capability string, function func(*antiphon.Task, In) (Out, error),
	options ...antiphon.CapabilityOption,
) {
	antiphon.Handle(agent, capability, func(task *antiphon.Task, in In) (Out, error) {
		note(task, "begun")
		out, err := function(task, in)
		switch {
		case err == nil:
			note(task, "done")
		case task.Err() != nil:
			note(task, "cancelled")
		default:
			note(task, "failed")
		}
		return out, err
	}, options...)
}

// hold works until a file is there, and says so all the while.
func hold(task *antiphon.Task, gate string) (string, error) {
	for {
		if _, err := os.Stat(gate); err == nil {
			return "released", nil
		}
		task.Progress(0.5, "holding")
		if err := task.Emit("hold "); err != nil {
			return "", err
		}
		select {
		case <-time.After(10 * time.Millisecond):
		case <-task.Done():
			return "", task.Err()
		}
	}
}

type howToFail struct {
	Kind  string `json:"kind"`
	Times int    `json:"times"`
}

// fail fails the first so many attempts; then it answers the number of the attempt.
func fail(task *antiphon.Task, how howToFail) (int, error) {
	if task.Number() > how.Times {
		return task.Number(), nil
	}
	switch how.Kind {
	case "transient":
		return 0, antiphon.Transient("transient").WithCode("asked-for")
	case "permanent":
		return 0, antiphon.Permanent("permanent: %w", errors.New("the cause")).WithCode("asked-for")
	case "panic":
		panic("asked for")
	case "die":
		os.Exit(3)
	}
	return 0, fmt.Errorf("a failure of kind %s", how.Kind)
}

type whoAmI struct {
	Agent          string   `json:"agent"`
	AttemptID      string   `json:"attempt_id"`
	IdempotencyKey string   `json:"idempotency_key"`
	Principal      string   `json:"principal"`
	Delegation     []string `json:"delegation"`
	Traceparent    string   `json:"traceparent"`
	HasDeadline    bool     `json:"has_deadline"`
}

func who(task *antiphon.Task, _ struct{}) (whoAmI, error) {
	_, limited := task.Deadline()
	return whoAmI{
		name, task.AttemptID(), task.IdempotencyKey(), task.Principal(), task.Delegation(), task.Traceparent(), limited,
	}, nil
}

type howToCall struct {
	Capability string `json:"capability"`
	Input      any    `json:"input,omitempty"`
}

func call(task *antiphon.Task, how howToCall) (any, error) {
	answer, err := antiphon.Call[any](task, how.Capability, how.Input)
	var failed *antiphon.CallFailed
	if errors.As(err, &failed) {
		return map[string]any{"failed": failed.Recorded.GetCode(), "kind": int(failed.Recorded.GetKind())}, nil
	}
	return answer, err
}

// share does all there is to do in shared context, under a key of its own.
func share(task *antiphon.Task, key string) (map[string]any, error) {
	shared := task.Shared()
	claim, err := shared.Claim(task, key)
	if err != nil {
		return nil, err
	}
	defer claim.Release()
	_, from, err := shared.List(task, key)
	if err != nil {
		return nil, err
	}
	revision, err := shared.Put(claim, key, map[string]int{"n": 1}, antiphon.UnderClaim(claim), antiphon.EntryLabels("pii"))
	if err != nil {
		return nil, err
	}
	_, err = shared.Put(claim, key, 2, antiphon.ExpectedRevision(0))
	conflict := errors.Is(err, antiphon.EntryConflict)
	seen := []string{}
	ctx, end := context.WithTimeout(task, 20*time.Second)
	defer end()
	for event, err := range shared.Watch(ctx, key, antiphon.FromRevision(from)) {
		if err != nil {
			return nil, err
		}
		seen = append(seen, event.GetPut().GetKey())
		break
	}
	found, err := shared.Get(task, key)
	if err != nil {
		return nil, err
	}
	value, err := antiphon.EntryValue[map[string]int](found)
	if err != nil {
		return nil, err
	}
	lineage, err := shared.Lineage(task, key)
	if err != nil {
		return nil, err
	}
	gone, err := shared.Delete(task, key)
	if err != nil {
		return nil, err
	}
	_, err = shared.Get(task, key)
	return map[string]any{
		"n": value["n"], "conflict": conflict, "seen": seen, "same_revision": found.GetRevision() == revision,
		"labels": len(found.GetValue().GetLabels()), "nodes": len(lineage.GetNodes()), "deleted": gone > revision,
		"missing": errors.Is(err, antiphon.EntryNotFound), "fence": claim.Fence() > 0,
	}, nil
}

func main() {
	concurrency, err := strconv.Atoi(setting("AGENT_CONCURRENCY", "16"))
	if err != nil {
		panic(err)
	}
	var labels map[string]string
	if err := json.Unmarshal([]byte(setting("AGENT_LABELS", "{}")), &labels); err != nil {
		panic(err)
	}
	agent := antiphon.NewAgent(name, antiphon.WithConcurrency(concurrency), antiphon.WithLabels(labels))
	offer(agent, "work.echo@1", func(_ *antiphon.Task, value any) (any, error) { return value, nil })
	offer(agent, "work.double@1", func(_ *antiphon.Task, value int) (int, error) { return value * 2, nil })
	offer(agent, "work.blob@1", func(_ *antiphon.Task, in *antiphon.Payload) (bool, error) { return in.GetBlob() != nil, nil })
	offer(agent, "work.hold@1", hold)
	offer(agent, "work.fail@1", fail)
	offer(agent, "work.who@1", who)
	offer(agent, "work.call@1", call)
	offer(agent, "work.share@1", share, antiphon.Clearance("pii"))
	agent.Main()
}
