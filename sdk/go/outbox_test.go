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
		time.Sleep(10 * gap) // of synctest: nothing has happened meanwhile, and the load is as it was
		began = time.Now()
		add("next")
		time.AfterFunc(gap/2, func() { add("and the one after it") })
		if request := box.take(t.Context()); len(request.GetResults()) != 2 || time.Since(began) != gap {
			t.Errorf("after %v there were %d results", time.Since(began), len(request.GetResults()))
		}
		for number := range several {
			add("again " + strconv.Itoa(number))
		}
		box.take(t.Context())
		began = time.Now()
		add("the last that runs")
		time.AfterFunc(gap/4, box.quiet)
		if box.take(t.Context()); time.Since(began) != gap/4 {
			t.Errorf("when nothing ran any more, it waited %v", time.Since(began))
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

func TestNothingIsQuietBeforeTheWholeMessageIsAssigned(t *testing.T) {
	running := newAttempts(NewAgent("quick"), newOutbox())
	assigned := running.begins()
	running.mutex.Lock()
	running.tellQuiet() // as after the first of a message, which was over before the second was looked at
	running.mutex.Unlock()
	if len(running.outbox.calm) != 0 {
		t.Error("results were told not to wait for those of the same message")
	}
	if assigned(); len(running.outbox.calm) != 1 {
		t.Error("results still wait though nothing runs")
	}
}
