package antiphon

import (
	"runtime"
	"strconv"
	"testing"

	antiphonv1 "antiphon.dev/antiphon/v1"
)

func TestResultsOfHandlersThatReturnAtOnceTravelTogether(t *testing.T) {
	// On one processor the order is Go's own: the taker is woken by the first result.
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	box := newOutbox()
	for number := range 100 {
		go box.result(&antiphonv1.Result{AttemptId: strconv.Itoa(number)})
	}
	if request := box.take(t.Context()); len(request.GetResults()) != 100 {
		t.Errorf("the first message holds %d results of 100", len(request.GetResults()))
	}
}
