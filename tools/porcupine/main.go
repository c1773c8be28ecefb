// Says whether what clients saw of shared context is linearizable: whether each operation can have happened at one
// moment between its call and its answer, so that all answers follow from that order.
//
// Reads a JSON array of operations from standard input. Exit code 0: it is; 1: it is not, and a line names the keys;
// 2: the input is no history, or took too long to judge.
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"sort"
	"time"

	"github.com/anishathalye/porcupine"
)

// Patience is how long the judging of one key may take.
const Patience = 2 * time.Minute

// Operation is one call with its answer. Every operation of the history has a definite answer: a client asks again,
// with the same request id, until it has one.
type Operation struct {
	Client   int    `json:"client"`
	Key      string `json:"key"`
	Kind     string `json:"kind"`               // get, put or delete
	Value    string `json:"value,omitempty"`    // what was put, or found by a get
	Expected *int64 `json:"expected,omitempty"` // the revision a put or delete demanded, 0 for no entry; absent for any
	Outcome  string `json:"outcome"`            // done, conflict (present: Revision), or none (a get found nothing)
	Revision int64  `json:"revision,omitempty"` // of the write, of what was found, or of what was in the way
	Call     int64  `json:"call"`               // nanoseconds of a clock that only grows
	Return   int64  `json:"return"`
}

// entry is the state of one key. Newest is the last revision it had, also of a removal: revisions only grow.
type entry struct {
	revision, newest int64
	value            string
}

func step(state, input, _ any) (bool, any) {
	now, op := state.(entry), input.(Operation)
	fits := op.Expected == nil || *op.Expected == now.revision
	if op.Outcome == "conflict" {
		return !fits && op.Revision == now.revision, now
	}
	switch op.Kind {
	case "get":
		if op.Outcome == "none" {
			return now.revision == 0, now
		}
		return now.revision == op.Revision && now.value == op.Value, now
	case "put":
		return fits && op.Revision > now.newest, entry{op.Revision, op.Revision, op.Value}
	default: // delete; one that found nothing to remove has revision 0 and changes nothing
		if now.revision == 0 {
			return fits && op.Revision == 0, now
		}
		return fits && op.Revision > now.newest, entry{newest: op.Revision}
	}
}

var model = porcupine.Model{
	Init: func() any { return entry{} },
	Step: step,
}

func (op Operation) check() error {
	kinds := map[string][]string{"get": {"done", "none"}, "put": {"done", "conflict"}, "delete": {"done", "conflict"}}
	for _, outcome := range kinds[op.Kind] {
		if op.Outcome == outcome && op.Call <= op.Return {
			return nil
		}
	}
	return fmt.Errorf("no operation of a history: %+v", op)
}

func read() (map[string][]porcupine.Operation, error) {
	var operations []Operation
	decoder := json.NewDecoder(os.Stdin)
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&operations); err != nil {
		return nil, err
	}
	byKey := map[string][]porcupine.Operation{}
	for _, op := range operations {
		if err := op.check(); err != nil {
			return nil, err
		}
		one := porcupine.Operation{ClientId: op.Client, Input: op, Call: op.Call, Return: op.Return}
		byKey[op.Key] = append(byKey[op.Key], one)
	}
	return byKey, nil
}

func main() {
	byKey, err := read()
	if err != nil {
		fmt.Fprintln(os.Stderr, "porcupine:", err)
		os.Exit(2)
	}
	keys := make([]string, 0, len(byKey))
	for key := range byKey {
		keys = append(keys, key)
	}
	sort.Strings(keys)
	code := 0
	for _, key := range keys {
		switch porcupine.CheckOperationsTimeout(model, byKey[key], Patience) {
		case porcupine.Illegal:
			fmt.Printf("%s: its %d operations are not linearizable\n", key, len(byKey[key]))
			code = max(code, 1)
		case porcupine.Unknown:
			fmt.Printf("%s: not judged within %s\n", key, Patience)
			code = 2
		}
	}
	os.Exit(code)
}
