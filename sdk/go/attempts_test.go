package antiphon

import (
	"context"
	"log/slog"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	antiphonv1 "antiphon.dev/antiphon/v1"
)

// In a bubble of synctest a goroutine that is left over fails the test.
func TestAttemptsTakeOverGoroutinesAndNoneIsLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		agent := NewAgent("quick", WithLogger(slog.New(slog.DiscardHandler)))
		ran := []string{}
		Handle(agent, "work.step@1", func(*Task, struct{}) (string, error) {
			stack := make([]byte, 64)
			name, _, _ := strings.Cut(string(stack[:runtime.Stack(stack, false)]), " [")
			if ran = append(ran, name); len(ran) == 3 {
				panic("on purpose")
			}
			if len(ran) == 4 {
				runtime.Goexit()
			}
			return "done", nil
		})
		working := newWorker("", agent)
		kinds := []antiphonv1.FailureKind{}
		for _, id := range []string{"a", "b", "panics", "exits", "last"} {
			working.assign(&antiphonv1.Assignment{AttemptId: id, Capability: "work.step", Version: "1"}, working, time.Now())
			synctest.Wait()
			for _, result := range working.outbox.take(context.Background()).GetResults() {
				kinds = append(kinds, result.GetFailure().GetKind())
			}
		}
		ok, broken := antiphonv1.FailureKind_FAILURE_KIND_UNSPECIFIED, antiphonv1.FailureKind_FAILURE_KIND_TRANSIENT
		for place, expected := range []antiphonv1.FailureKind{ok, ok, broken, broken, ok} {
			if len(kinds) != 5 || kinds[place] != expected {
				t.Fatalf("outcome %d of %v is not %v", place, kinds, expected)
			}
		}
		if ran[0] != ran[1] || ran[0] != ran[2] || ran[0] != ran[3] || ran[3] == ran[4] {
			t.Errorf("only a goroutine that has ended has a successor: %v", ran)
		}
		working.stop(errGivenUp)
	})
}
