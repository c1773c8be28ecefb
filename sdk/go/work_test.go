package antiphon

import (
	"log/slog"
	"strings"
	"testing"
)

func TestATroubleThatIsAnotherOneThanBeforeIsToldAndEachOnce(t *testing.T) {
	told := make(telling, 64)
	agent := greeter()
	agent.log = slog.New(slog.NewTextHandler(told, &slog.HandlerOptions{Level: slog.LevelWarn}))
	at := newSidecar(t)
	start(t, agent, at)
	if first := receive(t, (chan string)(told), "the first trouble"); !strings.Contains(first, "is its sidecar running") {
		t.Error(first)
	}
	at.refuse(NotServing, NotServing, NotServing)
	at.serve()
	at.next()
	var refusals []string
	for len(told) > 0 {
		if text := <-told; !strings.Contains(text, "is its sidecar running") {
			refusals = append(refusals, text)
		}
	}
	if len(refusals) != 1 || !strings.Contains(refusals[0], "trouble=refused") {
		t.Error(refusals)
	}
}

// telling hands over what is written to a log, line by line.
type telling chan string

func (t telling) Write(line []byte) (int, error) {
	t <- string(line)
	return len(line), nil
}
