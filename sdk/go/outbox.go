package antiphon

import (
	"context"
	"runtime"
	"slices"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	antiphonv1 "antiphon.dev/antiphon/v1"
)

const (
	batchItems = 256
	batchBytes = 1 << 20
	remembered = 8 // messages
	// quietRounds is how often every other goroutine was let run without a further result; some microseconds in all.
	quietRounds = 16
	// gap is the time from the first result to its message, after a message of several, unless that is full or nothing runs that
	// could still add to it: a message costs its readers more than a result, and handlers that began together return one after the
	// other.
	gap = time.Millisecond
	// several results in a message tell that there is load; a single chain, whose steps wait for each other, never comes to it.
	several = 4
)

// outbox holds what an agent has to say to its sidecar, gathered into messages until the one writer can send the next. Bounds: a
// message holds at most 256 items of a kind and about 1 MiB; what is gathered is bounded by the attempts that run; what is
// remembered, in case it did not arrive, by a number of messages.
type outbox struct {
	mutex     sync.Mutex
	full      []*antiphonv1.WorkRequest
	open      *antiphonv1.WorkRequest
	openBytes int
	updates   map[string]*antiphonv1.Progress
	pieces    pieces
	calls     []*antiphonv1.CallRequest
	asks      []*antiphonv1.ContextRequest
	draining  bool
	closing   bool
	something chan struct{} // holds one mark
	calm      chan struct{} // the same: nothing runs
	loaded    bool          // the last message had several results
	paced     time.Time     // the next message does not go before, unless it is full
	history   []*antiphonv1.WorkRequest
}

func newOutbox() *outbox {
	return &outbox{
		open: &antiphonv1.WorkRequest{}, updates: map[string]*antiphonv1.Progress{}, pieces: newPieces(),
		something: make(chan struct{}, 1), calm: make(chan struct{}, 1),
	}
}

// result adds an outcome; progress of its attempt is out of date then.
func (o *outbox) result(result *antiphonv1.Result) {
	o.mutex.Lock()
	defer o.mutex.Unlock()
	size := proto.Size(result)
	if len(o.open.Results) >= batchItems || (o.openBytes+size > batchBytes && len(o.open.Results) > 0) {
		o.full = append(o.full, o.closeOpen())
	}
	if o.loaded && len(o.open.Results) == 0 {
		o.paced = time.Now().Add(gap)
		select {
		case <-o.calm: // from before
		default:
		}
	}
	o.openBytes += size
	o.open.Results = append(o.open.Results, result)
	delete(o.updates, result.GetAttemptId())
	o.wake()
}

// progress adds how far an attempt is; an older word of it that was not sent yet is dropped.
func (o *outbox) progress(attemptID string, progress *antiphonv1.Progress) {
	o.mutex.Lock()
	defer o.mutex.Unlock()
	o.updates[attemptID] = progress
	o.wake()
}

// emit adds pieces of output; those that find no room are left out.
func (o *outbox) emit(attemptID string, made []*antiphonv1.PartialOutput) {
	o.mutex.Lock()
	defer o.mutex.Unlock()
	for _, piece := range made {
		o.pieces.add(attemptID, piece)
	}
	o.wake()
}

func (o *outbox) call(request *antiphonv1.CallRequest) {
	o.mutex.Lock()
	defer o.mutex.Unlock()
	o.calls = append(o.calls, request)
	o.wake()
}

func (o *outbox) ask(request *antiphonv1.ContextRequest) {
	o.mutex.Lock()
	defer o.mutex.Unlock()
	o.asks = append(o.asks, request)
	o.wake()
}

// withdrawCall takes back a call that nobody waits for any more, unless it was sent.
func (o *outbox) withdrawCall(request *antiphonv1.CallRequest) {
	o.mutex.Lock()
	defer o.mutex.Unlock()
	o.calls = slices.DeleteFunc(o.calls, func(one *antiphonv1.CallRequest) bool { return one == request })
}

// withdrawAsk takes back a request to shared context in the same way.
func (o *outbox) withdrawAsk(request *antiphonv1.ContextRequest) {
	o.mutex.Lock()
	defer o.mutex.Unlock()
	o.asks = slices.DeleteFunc(o.asks, func(one *antiphonv1.ContextRequest) bool { return one == request })
}

// drain asks for no more work.
func (o *outbox) drain() {
	o.mutex.Lock()
	defer o.mutex.Unlock()
	o.draining = true
	o.wake()
}

// close says that nothing will be added for this stream.
func (o *outbox) close() {
	o.mutex.Lock()
	defer o.mutex.Unlock()
	o.closing = true
	o.wake()
}

func (o *outbox) empty() bool {
	o.mutex.Lock()
	defer o.mutex.Unlock()
	return o.isEmpty()
}

// gather lets handlers that are about to return do so first. To send is to hand over to the transport, which never waits for the
// other side: without this each result would travel alone, and a message costs its readers more than what is in it.
func (o *outbox) gather() {
	for gathered, quiet := o.results(), 0; 0 < gathered && gathered < batchItems && quiet < quietRounds; quiet++ {
		runtime.Gosched()
		if now := o.results(); now > gathered {
			gathered, quiet = now, 0
		}
	}
}

// pace lets a gap pass since the first result that waits, so that messages fill up under load.
func (o *outbox) pace(ctx context.Context) {
	o.mutex.Lock()
	wait := time.Until(o.paced)
	if len(o.full) > 0 || o.closing {
		wait = 0
	}
	o.mutex.Unlock()
	if wait > 0 {
		select {
		case <-time.After(wait):
		case <-o.calm:
		case <-ctx.Done():
		}
	}
}

func (o *outbox) results() int {
	o.mutex.Lock()
	defer o.mutex.Unlock()
	return len(o.full)*batchItems + len(o.open.Results)
}

// take is the next message, as soon as there is something to say; nil when everything is said and the box closed, or ctx is done.
func (o *outbox) take(ctx context.Context) *antiphonv1.WorkRequest {
	for {
		o.pace(ctx)
		o.gather()
		o.mutex.Lock()
		if !o.isEmpty() {
			defer o.mutex.Unlock()
			request := o.next()
			o.loaded, o.paced = len(request.GetResults()) >= several, time.Time{}
			return request
		}
		closing := o.closing
		o.mutex.Unlock()
		if closing {
			return nil
		}
		select {
		case <-o.something:
		case <-ctx.Done():
			return nil
		}
	}
}

func (o *outbox) next() *antiphonv1.WorkRequest {
	var request *antiphonv1.WorkRequest
	if len(o.full) > 0 {
		request, o.full = o.full[0], o.full[1:]
	} else {
		request = o.closeOpen()
	}
	// With or before the outcome of their attempt: afterwards nobody listens.
	request.Partials = o.pieces.take()
	for attemptID, progress := range o.updates {
		if len(request.Progress) >= batchItems {
			break
		}
		delete(o.updates, attemptID)
		request.Progress = append(request.Progress, &antiphonv1.ProgressUpdate{AttemptId: attemptID, Progress: progress})
	}
	size := 0
	for len(o.calls) > 0 && len(request.Calls) < batchItems && size < batchBytes {
		size += proto.Size(o.calls[0])
		request.Calls, o.calls = append(request.Calls, o.calls[0]), o.calls[1:]
	}
	for len(o.asks) > 0 && len(request.ContextRequests) < batchItems && size < batchBytes {
		size += proto.Size(o.asks[0])
		request.ContextRequests, o.asks = append(request.ContextRequests, o.asks[0]), o.asks[1:]
	}
	if len(o.full) == 0 && len(o.open.Results) == 0 {
		// Drain comes last, so that the sidecar has every outcome before it looks whether anything is left.
		request.Drain, o.draining = o.draining, false
	}
	return request
}

// putBack takes a message that could not be sent, to go first next time, without pieces, which are late by then; calls are the
// business of who waits for them.
func (o *outbox) putBack(request *antiphonv1.WorkRequest) {
	request.Partials, request.Calls, request.ContextRequests, request.Drain = nil, nil, nil, false
	if len(request.Results) == 0 && len(request.Progress) == 0 {
		return
	}
	o.mutex.Lock()
	defer o.mutex.Unlock()
	o.full = append([]*antiphonv1.WorkRequest{request}, o.full...)
	o.wake()
}

// sent remembers the outcomes in a message that was handed to the transport, in case they did not arrive.
func (o *outbox) sent(request *antiphonv1.WorkRequest) {
	if len(request.Results) == 0 {
		return
	}
	o.mutex.Lock()
	defer o.mutex.Unlock()
	if o.history = append(o.history, request); len(o.history) > remembered {
		o.history = o.history[1:]
	}
}

// recall gives the newest outcomes handed to a stream that has broken since, by attempt id, and forgets all others.
func (o *outbox) recall() map[string]*antiphonv1.Result {
	o.mutex.Lock()
	defer o.mutex.Unlock()
	recalled := map[string]*antiphonv1.Result{}
	for _, request := range o.history {
		for _, result := range request.Results {
			recalled[result.GetAttemptId()] = result
		}
	}
	o.history = nil
	return recalled
}

// unsent names the attempts whose outcomes wait.
func (o *outbox) unsent() map[string]bool {
	o.mutex.Lock()
	defer o.mutex.Unlock()
	waiting := map[string]bool{}
	for _, request := range append(slices.Clone(o.full), o.open) {
		for _, result := range request.Results {
			waiting[result.GetAttemptId()] = true
		}
	}
	return waiting
}

// reopen begins a new stream: calls and drain, which concern a stream, are to be said anew.
func (o *outbox) reopen() {
	o.mutex.Lock()
	defer o.mutex.Unlock()
	o.calls, o.asks = nil, nil
	o.draining, o.closing = false, false
}

func (o *outbox) isEmpty() bool {
	return len(o.full) == 0 && len(o.open.Results) == 0 && len(o.updates) == 0 && o.pieces.empty() &&
		len(o.calls) == 0 && len(o.asks) == 0 && !o.draining
}

func (o *outbox) closeOpen() *antiphonv1.WorkRequest {
	request := o.open
	o.open, o.openBytes = &antiphonv1.WorkRequest{}, 0
	return request
}

func (o *outbox) wake() { leave(o.something) }

// quiet says that nothing runs, so that there is no more to wait for.
func (o *outbox) quiet() { leave(o.calm) }

// leave leaves a mark, unless there is one.
func leave(channel chan struct{}) {
	select {
	case channel <- struct{}{}:
	default:
	}
}
