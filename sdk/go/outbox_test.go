package antiphon

import (
	"runtime"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

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

func TestAfterSeveralResultsThoseThatFollowTravelTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		box := newOutbox()
		add := func(id string) { box.result(&antiphonv1.Result{AttemptId: id}) }
		began := time.Now()
		for number := range several {
			add(strconv.Itoa(number))
		}
		if request := box.take(t.Context()); len(request.GetResults()) != several || time.Since(began) != 0 {
			t.Errorf("the first waited %v", time.Since(began))
		}
		add("next")
		time.AfterFunc(gap/2, func() { add("and the one after it") })
		if request := box.take(t.Context()); len(request.GetResults()) != 2 || time.Since(began) != gap {
			t.Errorf("after %v there were %d results", time.Since(began), len(request.GetResults()))
		}
		began = time.Now()
		for step := range several {
			add("step " + strconv.Itoa(step))
			if box.take(t.Context()); time.Since(began) != 0 {
				t.Errorf("a step of a chain waited %v", time.Since(began))
			}
		}
	})
}

func TestAFullMessageDoesNotWaitForTheNext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		box := newOutbox()
		began := time.Now()
		for number := range 2*batchItems + 1 {
			box.result(&antiphonv1.Result{AttemptId: strconv.Itoa(number)})
		}
		for range 2 {
			if request := box.take(t.Context()); len(request.GetResults()) != batchItems || time.Since(began) != 0 {
				t.Errorf("after %v there were %d results", time.Since(began), len(request.GetResults()))
			}
		}
	})
}
