package antiphon

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode/utf8"

	antiphonv1 "antiphon.dev/antiphon/v1"
)

// attempts are what runs in this process: it starts handlers, cancels them, and sees that each ends in exactly one outcome, which
// goes into the outbox. An attempt has a goroutine to itself while it runs, that of a former one where one is free: a new one has
// a small stack, and to make it as large as JSON needs it costs as much as to read the JSON. A sidecar never assigns more than the
// agent's concurrency, but for handlers that wait for a call and give up their slot meanwhile; hence no second bound here, which
// would make parents wait for children.
type attempts struct {
	agent  *Agent
	outbox *outbox
	// life is the context of all attempts; stop ends it.
	life context.Context
	stop context.CancelCauseFunc

	mutex       sync.Mutex
	running     map[string]*Task
	next        chan attempt  // without room: whoever takes from it is free
	beginning   bool          // several are being assigned
	idle        chan struct{} // closed when nothing runs; nil when nobody waits
	calls       map[requestKey]*pendingCall
	asks        map[requestKey]*pendingAsk
	holdings    map[holdingKey]*Claim
	inlineLimit int
	last        atomic.Bool // no more will be assigned on this stream
}

// attempt is what runs: a task, and what it is handed to.
type attempt struct {
	id      string
	task    *Task
	handler *handler
}

type requestKey struct{ attemptID, id string }

type holdingKey struct {
	attemptID string
	fence     int64
}

type pendingCall struct {
	request *antiphonv1.CallRequest
	answer  chan *antiphonv1.CallResponse // of one
	pieces  chan *PartialOutput           // nil when nobody wants them
}

type pendingAsk struct {
	request *antiphonv1.ContextRequest
	answer  chan *antiphonv1.ContextResponse // of one
}

var errGivenUp = errors.New("the agent is stopping")

func newAttempts(agent *Agent, outbox *outbox) *attempts {
	life, stop := context.WithCancelCause(context.Background())
	return &attempts{
		agent: agent, outbox: outbox, life: life, stop: stop,
		running:     map[string]*Task{},
		next:        make(chan attempt),
		calls:       map[requestKey]*pendingCall{},
		asks:        map[requestKey]*pendingAsk{},
		holdings:    map[holdingKey]*Claim{},
		inlineLimit: inlineLimit,
	}
}

func (a *attempts) count() int {
	a.mutex.Lock()
	defer a.mutex.Unlock()
	return len(a.running)
}

// holding names the attempts that run or have an outcome that waits to be sent.
func (a *attempts) holding() map[string]bool {
	a.mutex.Lock()
	defer a.mutex.Unlock()
	held := a.outbox.unsent() // after the lock: an attempt that settles now is in one of the two, or in both
	for id := range a.running {
		held[id] = true
	}
	return held
}

func (a *attempts) limit() int {
	a.mutex.Lock()
	defer a.mutex.Unlock()
	return a.inlineLimit
}

// assign starts an attempt; one that runs already goes on undisturbed.
func (a *attempts) assign(assignment *antiphonv1.Assignment, worker *worker, received time.Time) {
	id := assignment.GetAttemptId()
	handler := a.agent.handlers[capabilityKey{assignment.GetCapability(), assignment.GetVersion()}]
	if handler == nil {
		unknown := Permanent("this agent has no %s@%s", assignment.GetCapability(), assignment.GetVersion())
		a.outbox.result(failedResult(id, unknown.WithCode("unknown_capability"), ""))
		return
	}
	a.mutex.Lock()
	defer a.mutex.Unlock()
	if _, twice := a.running[id]; twice {
		return
	}
	task := newTask(a.life, assignment, worker, received)
	a.running[id] = task
	one := attempt{id, task, handler}
	select {
	case a.next <- one:
	default:
		go a.work(one)
	}
}

// cancel stops an attempt; its outcome follows when its handler has returned.
func (a *attempts) cancel(attemptID, reason string) {
	a.mutex.Lock()
	task := a.running[attemptID]
	a.mutex.Unlock()
	if task != nil {
		task.cancel(Cancelled("the attempt is to stop: %s", reason))
	}
}

// flush says that no more will be assigned: what is gathered waits for nobody any longer.
func (a *attempts) flush() {
	a.last.Store(true) // first: an attempt that has not joined yet finds it
	for _, handler := range a.agent.handlers {
		if handler.flush != nil {
			handler.flush()
		}
	}
}

// whenIdle is closed when nothing runs.
func (a *attempts) whenIdle() <-chan struct{} {
	a.mutex.Lock()
	defer a.mutex.Unlock()
	if a.idle == nil {
		a.idle = make(chan struct{})
	}
	idle := a.idle
	a.tellIdle()
	return idle
}

// begins says that several are about to be assigned, and the function it answers that they are: the first of them may have ended by
// then, and the outbox waits for the others.
func (a *attempts) begins() func() {
	a.mutex.Lock()
	defer a.mutex.Unlock()
	a.beginning = true
	return func() {
		a.mutex.Lock()
		defer a.mutex.Unlock()
		a.beginning = false
		a.tellQuiet()
	}
}

func (a *attempts) tellQuiet() {
	if len(a.running) == 0 && !a.beginning {
		a.outbox.quiet()
	}
}

func (a *attempts) tellIdle() {
	if len(a.running) == 0 && a.idle != nil {
		close(a.idle)
		a.idle = nil
	}
}

// work runs an attempt, and then others that are assigned, until none will be.
func (a *attempts) work(one attempt) {
	for {
		a.run(one.id, one.task, one.handler)
		select {
		case one = <-a.next:
		case <-a.life.Done():
			return
		}
	}
}

func (a *attempts) run(id string, task *Task, handler *handler) {
	var answered outcome
	var err error
	returned, stack := false, ""
	defer func() {
		if !returned { // runtime.Goexit
			err = Transient("the handler ended its goroutine without returning")
		}
		if problem := recover(); problem != nil {
			err, stack = fmt.Errorf("panic: %v", problem), string(debug.Stack())
		}
		a.settle(id, task, answered, err, stack)
	}()
	if task.Err() != nil {
		err, returned = Cancelled("cancelled before it began"), true
		return
	}
	answered, err = handler.run(task, a.limit())
	returned = true
}

func (a *attempts) settle(id string, task *Task, answered outcome, err error, stack string) {
	over := task.Err()
	task.cancel(nil)
	result := answered.result(id)
	if err != nil {
		result = a.failedWith(id, over, err, stack)
	}
	// In one step: nothing is asked for an attempt after its outcome, and whoever waits for idleness finds every outcome in the outbox.
	a.mutex.Lock()
	defer a.mutex.Unlock()
	delete(a.running, id)
	a.endRequests(id, task)
	a.outbox.result(result)
	a.tellQuiet()
	a.tellIdle()
}

// endRequests answers what an attempt that is over still waits for, in goroutines of its own, as its sidecar would.
func (a *attempts) endRequests(id string, task *Task) {
	if task.requests == 0 {
		return
	}
	for key, pending := range a.calls {
		if key.attemptID == id && len(pending.answer) == 0 {
			a.outbox.withdrawCall(pending.request)
			pending.answer <- callOfNone(pending.request)
		}
	}
	for key, pending := range a.asks {
		if key.attemptID == id && len(pending.answer) == 0 {
			a.outbox.withdrawAsk(pending.request)
			pending.answer <- askOfNone(pending.request)
		}
	}
}

func callOfNone(request *antiphonv1.CallRequest) *antiphonv1.CallResponse {
	over := Cancelled("the attempt is over").WithCode(string(AttemptNotFound))
	return &antiphonv1.CallResponse{
		AttemptId: request.GetAttemptId(), CallId: request.GetCallId(),
		Outcome: &antiphonv1.CallResponse_Failure{Failure: recordOf(over, "")},
	}
}

func askOfNone(request *antiphonv1.ContextRequest) *antiphonv1.ContextResponse {
	return &antiphonv1.ContextResponse{
		AttemptId: request.GetAttemptId(), RequestId: request.GetRequestId(),
		Outcome: &antiphonv1.ContextResponse_Error{Error: &antiphonv1.Error{
			Reason:   antiphonv1.ErrorReason_ERROR_REASON_ATTEMPT_NOT_FOUND,
			Message:  fmt.Sprintf("attempt %s is not running here", request.GetAttemptId()),
			Metadata: map[string]string{"attempt_id": request.GetAttemptId()},
		}},
	}
}

// failedWith is the result of an attempt that ended with an error; `over` is what had ended its context by then.
func (a *attempts) failedWith(id string, over, err error, stack string) (result *antiphonv1.Result) {
	defer func() {
		// An error may panic as it is asked what it is, and nobody but us would recover here.
		if recover() != nil {
			unread := Transient("the handler failed with an error of the type %T, which panics when it is read", err)
			result = failedResult(id, unread, string(debug.Stack()))
		}
	}()
	var failure *Failure
	known := errors.As(err, &failure)
	if known && failure == nil {
		err = Transient("a nil *Failure was returned as an error")
	}
	switch {
	case errors.Is(over, context.DeadlineExceeded) && errors.Is(err, context.DeadlineExceeded):
		late := &Failure{Kind: antiphonv1.FailureKind_FAILURE_KIND_TIMEOUT, Message: "the time of the attempt is up", Retryable: true}
		return failedResult(id, late, "")
	case errors.Is(over, context.Canceled) && !isCancelled(err):
		failure = Cancelled("cancelled while it ran")
		failure.cause = err
		return failedResult(id, failure, stack)
	}
	if !known {
		// The text may quote the input, so it goes into the record, which has labels, and not into a log.
		said := []any{"attempt_id", id, "error_type", fmt.Sprintf("%T", err), "panic", stack != ""}
		if stack != "" {
			said = append(said, "at", placesOf(stack))
		}
		a.agent.log.Warn("an attempt failed", said...)
	}
	return failedResult(id, err, stack)
}

// placesOf is where a panic came from: the last three places in code that is neither Go's nor ours, without values.
func placesOf(stack string) string {
	lines, places := strings.Split(stack, "\n"), []string{}
	for i := 1; i < len(lines) && len(places) < 3; i++ {
		place, isPlace := strings.CutPrefix(lines[i], "\t")
		function := strings.TrimPrefix(lines[i-1], "created by ")
		ours := strings.HasPrefix(function, "antiphon.dev/antiphon.")
		if isPlace && !ours && !strings.HasPrefix(function, "runtime") && !strings.HasPrefix(function, "panic(") {
			place, _, _ = strings.Cut(place, " +0x")
			places = append(places, place)
		}
	}
	return strings.Join(places, ", ")
}

func isCancelled(err error) bool {
	var failure *Failure
	return errors.As(err, &failure) && failure.Kind == antiphonv1.FailureKind_FAILURE_KIND_CANCELLED
}

func failedResult(attemptID string, err error, stack string) *antiphonv1.Result {
	return &antiphonv1.Result{AttemptId: attemptID, Outcome: &antiphonv1.Result_Failure{Failure: recordOf(err, stack)}}
}

// What tasks ask for

func (a *attempts) progress(attemptID string, progress *antiphonv1.Progress) {
	a.mutex.Lock()
	defer a.mutex.Unlock()
	if _, runs := a.running[attemptID]; runs {
		a.outbox.progress(attemptID, progress)
	}
}

// emit sends pieces of output, whose offsets are set here.
func (a *attempts) emit(attemptID string, made []*antiphonv1.PartialOutput) {
	a.mutex.Lock()
	defer a.mutex.Unlock()
	if task := a.running[attemptID]; task != nil {
		for _, piece := range made {
			piece.Offset = task.emitted
			task.emitted += uint64(contentBytes(piece))
		}
		a.outbox.emit(attemptID, made)
	}
}

// call sends a call and waits for its outcome, across broken streams; meanwhile onPartial is shown what it is making.
func (a *attempts) call(
	ctx context.Context, request *antiphonv1.CallRequest, onPartial func(*PartialOutput),
) (*antiphonv1.CallResponse, error) {
	// A sidecar cuts the id of a call that it refuses, and nobody would know the answer by it.
	if count := utf8.RuneCountInString(request.GetCallId()); count > idLimit {
		return nil, InvalidOutput("the call cannot travel: its id has %d characters; at most %d are allowed", count, idLimit)
	}
	if err := travels(request, a.limit()); err != nil {
		return nil, InvalidOutput("the call cannot travel: %w", err)
	}
	key := requestKey{request.GetAttemptId(), request.GetCallId()}
	pending := &pendingCall{request: request, answer: make(chan *antiphonv1.CallResponse, 1)}
	if onPartial != nil {
		pending.pieces = make(chan *PartialOutput, piecesMessage)
	}
	a.mutex.Lock()
	task := a.running[key.attemptID]
	if task == nil {
		a.mutex.Unlock()
		return callOfNone(request), nil
	}
	if _, used := a.calls[key]; used {
		a.mutex.Unlock()
		return nil, fmt.Errorf("call id %q is in use by a call that has not ended", request.GetCallId())
	}
	a.calls[key] = pending
	task.requests++
	a.outbox.call(request)
	a.mutex.Unlock()
	defer func() {
		a.mutex.Lock()
		defer a.mutex.Unlock()
		delete(a.calls, key)
		a.outbox.withdrawCall(request) // it may have been given up before it was sent
		task.requests--
	}()
	for {
		select {
		case piece := <-pending.pieces:
			onPartial(piece)
		case response := <-pending.answer:
			for len(pending.pieces) > 0 { // they came before it
				onPartial(<-pending.pieces)
			}
			return response, nil
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// made hands a piece of what a call is making to who waits for it; one that does not take them in time loses some.
func (a *attempts) made(partial *antiphonv1.CallPartial) {
	a.mutex.Lock()
	defer a.mutex.Unlock()
	if pending := a.calls[requestKey{partial.GetAttemptId(), partial.GetCallId()}]; pending != nil {
		select {
		case pending.pieces <- partial.GetPartial():
		default:
		}
	}
}

// ask asks shared context and waits for its answer, across broken streams.
func (a *attempts) ask(ctx context.Context, request *antiphonv1.ContextRequest) (*antiphonv1.ContextResponse, error) {
	if err := travels(request, a.limit()); err != nil {
		return nil, newError(RequestInvalid, "the request cannot travel: "+err.Error())
	}
	key := requestKey{request.GetAttemptId(), request.GetRequestId()}
	pending := &pendingAsk{request, make(chan *antiphonv1.ContextResponse, 1)}
	a.mutex.Lock()
	task := a.running[key.attemptID]
	if task == nil {
		a.mutex.Unlock()
		return askOfNone(request), nil
	}
	a.asks[key] = pending
	task.requests++
	a.outbox.ask(request)
	a.mutex.Unlock()
	defer func() {
		a.mutex.Lock()
		defer a.mutex.Unlock()
		delete(a.asks, key)
		a.outbox.withdrawAsk(request)
		task.requests--
	}()
	select {
	case response := <-pending.answer:
		return response, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// answer hands the outcome of a call to who waits for it.
func (a *attempts) answer(response *antiphonv1.CallResponse) {
	a.mutex.Lock()
	defer a.mutex.Unlock()
	if pending := a.calls[requestKey{response.GetAttemptId(), response.GetCallId()}]; pending != nil {
		select {
		case pending.answer <- response:
		default: // it has one
		}
	}
}

// told hands an answer of shared context to who waits for it.
func (a *attempts) told(response *antiphonv1.ContextResponse) {
	a.mutex.Lock()
	defer a.mutex.Unlock()
	if pending := a.asks[requestKey{response.GetAttemptId(), response.GetRequestId()}]; pending != nil {
		select {
		case pending.answer <- response:
		default:
		}
	}
}

// holds notes that an attempt holds a claim from now on; the function returned forgets it.
func (a *attempts) holds(attemptID string, claim *Claim) func() {
	key := holdingKey{attemptID, claim.reference.GetFence()}
	a.mutex.Lock()
	defer a.mutex.Unlock()
	a.holdings[key] = claim
	return func() {
		a.mutex.Lock()
		defer a.mutex.Unlock()
		delete(a.holdings, key)
	}
}

func (a *attempts) claimLost(loss *antiphonv1.ClaimLoss) {
	a.mutex.Lock()
	claim := a.holdings[holdingKey{loss.GetAttemptId(), loss.GetClaim().GetFence()}]
	a.mutex.Unlock()
	if claim != nil {
		claim.lose(nil)
	}
}

// repeat sends everything that has no answer again, on a new stream; the record answers calls that were made.
func (a *attempts) repeat() {
	a.mutex.Lock()
	defer a.mutex.Unlock()
	for _, pending := range a.asks {
		if len(pending.answer) == 0 {
			a.outbox.ask(pending.request)
		}
	}
	for _, pending := range a.calls {
		if len(pending.answer) == 0 {
			a.outbox.call(pending.request)
		}
	}
}

// giveUp tells everything that runs to stop; handlers that do not look are left to themselves.
func (a *attempts) giveUp() {
	a.mutex.Lock()
	left := slices.Sorted(maps.Keys(a.running))
	a.mutex.Unlock()
	for _, id := range left {
		a.agent.log.Warn("an attempt did not end in time and is given up", "attempt_id", id)
	}
	a.stop(errGivenUp)
}
