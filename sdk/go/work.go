package antiphon

import (
	"context"
	"io"
	"math/rand/v2"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"

	antiphonv1 "antiphon.dev/antiphon/v1"
)

const (
	protocolVersion = 1
	messageBytes    = 4 << 20
	inlineLimit     = 65536
	announcedBytes  = 2 << 20   // of a description, that sidecars take
	idLimit         = 64        // characters of an id that a caller chooses
	extrasBytes     = 256 << 10 // of all that comes with a value: labels, and other texts
	helloLimit      = 10 * time.Second
	writeLimit      = 60 * time.Second
	lingerLimit     = 10 * time.Second
	backoffFirst    = 50 * time.Millisecond
	backoffLast     = 2 * time.Second
)

// worker is the Work stream of an agent to its sidecar, dialled again for as long as it breaks. An outcome that could not be
// sent waits for the next stream; one that may have been lost with a stream is repeated when the attempt is assigned again, and
// not worked out again; a refusal that another try cannot change ends the worker with its error.
type worker struct {
	*attempts
	path     string
	attached bool                          // the last stream was welcomed
	recalled map[string]*antiphonv1.Result // handed to a stream that broke
	held     map[string]bool               // at work, or with an outcome that waits, when the stream began
	draining chan struct{}
}

func newWorker(path string, agent *Agent) *worker {
	return &worker{attempts: newAttempts(agent, newOutbox()), path: path, draining: make(chan struct{})}
}

// run works until ctx is done and the agent has drained, or its grace is over.
func (w *worker) run(ctx context.Context) error {
	life, end := context.WithCancelCause(context.WithoutCancel(ctx))
	defer end(nil)
	stopped := context.AfterFunc(ctx, func() {
		close(w.draining)
		w.outbox.drain()
		select {
		case <-life.Done():
		case <-time.After(w.agent.grace):
			end(errGivenUp)
		}
	})
	defer stopped()
	defer w.giveUp()
	return w.stayAttached(life)
}

func (w *worker) isDraining() bool {
	select {
	case <-w.draining:
		return true
	default:
		return false
	}
}

func (w *worker) stayAttached(life context.Context) error {
	failures, told := 0, ""
	for life.Err() == nil && !(w.isDraining() && w.count() == 0 && w.outbox.empty()) {
		began := time.Now()
		err := w.attach(life)
		if err != nil && isFinal(err) {
			return err
		}
		if w.isDraining() {
			// A sidecar gives up what an agent was working on when its stream ends, and would take this process for the agent
			// again in place of the one that has been started meanwhile.
			return nil
		}
		if failures++; time.Since(began) > backoffLast {
			failures = 0
		}
		trouble := "the sidecar ended the stream"
		if err != nil {
			trouble = err.Message
			if err.Reason == Unavailable {
				trouble += "; is its sidecar running, and may this process open the socket?"
			}
		}
		if failures <= 1 || trouble != told { // once, and not for every try
			told = trouble
			w.agent.log.Warn("no stream, dialling until there is one", "socket", w.path, "trouble", trouble)
		}
		pause := min(backoffLast, backoffFirst<<min(failures, 10))
		select {
		case <-time.After(time.Duration((0.5 + rand.Float64()/2) * float64(pause))):
		case <-w.draining:
		case <-life.Done():
		}
	}
	return nil
}

// attach is one stream, from hello to its end; nil when the sidecar ended it.
func (w *worker) attach(life context.Context) *Error {
	if w.attached { // else nothing was said since the stream before, and what that one may have lost still may be
		w.recalled, w.attached = w.outbox.recall(), false
	}
	w.held = w.holding()
	// A connection of its own dials at once, whatever the back-off of the one before.
	connection, err := grpc.NewClient("unix:"+w.path,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithAuthority("localhost"),
		grpc.WithNoProxy(),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(messageBytes)),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: backoff.DefaultConfig, MinConnectTimeout: helloLimit}),
	)
	if err != nil {
		return setupError("%s cannot be dialled: %v", w.path, err)
	}
	defer connection.Close()
	ctx, end := context.WithCancel(life)
	defer end()
	patience := time.AfterFunc(helloLimit, end)
	stream, err := antiphonv1.NewAgentServiceClient(connection).Work(ctx)
	if err != nil {
		return fromStatus(err)
	}
	hello := &antiphonv1.AgentHello{Description: w.agent.Describe(), ProtocolVersion: protocolVersion}
	if err := stream.Send(&antiphonv1.WorkRequest{Hello: hello}); err != nil && err != io.EOF {
		return fromStatus(err)
	}
	first, err := stream.Recv() // when it was refused already, reading tells why
	if err != nil {
		return streamEnd(err)
	}
	patience.Stop()
	w.attached = true
	w.welcomed(first.GetWelcome())
	w.outbox.reopen()
	w.repeat()
	if w.isDraining() {
		w.outbox.drain()
	}
	written := make(chan struct{})
	go func() {
		defer close(written)
		w.write(ctx, end, stream)
		// Only reading tells how a stream ended; it has a moment to find out.
		time.AfterFunc(lingerLimit, end)
	}()
	err = w.read(ctx, stream, first)
	end()
	<-written
	return streamEnd(err)
}

func (w *worker) welcomed(welcome *antiphonv1.AgentWelcome) {
	w.last.Store(false)
	if limit := welcome.GetInlineLimit(); limit != 0 {
		w.mutex.Lock()
		w.inlineLimit = int(limit)
		w.mutex.Unlock()
	}
	w.agent.log.Info("attached", "agent", welcome.GetAgent(), "namespace", welcome.GetNamespace())
}

func (w *worker) read(ctx context.Context, stream antiphonv1.AgentService_WorkClient, first *antiphonv1.WorkResponse) error {
	closing := false
	for message := first; ; {
		w.receive(message)
		if message.GetDrain() && !closing {
			closing = true
			w.flush()
			idle := w.whenIdle()
			go func() {
				select {
				case <-idle:
					w.outbox.close()
				case <-ctx.Done():
				}
			}()
		}
		var err error
		if message, err = stream.Recv(); err != nil {
			return err
		}
	}
}

func (w *worker) receive(message *antiphonv1.WorkResponse) {
	now := time.Now()
	defer w.begins()()
	for _, assignment := range message.GetAssignments() {
		id := assignment.GetAttemptId()
		switch known := w.recalled[id]; {
		case known != nil:
			w.outbox.result(known)
		case w.held[id]:
			delete(w.held, id) // the outcome will be on this stream, or is by now
		default:
			w.assign(assignment, w, now)
		}
	}
	for _, cancel := range message.GetCancels() {
		w.cancel(cancel.GetAttemptId(), cancel.GetReason())
	}
	for _, partial := range message.GetCallPartials() {
		w.made(partial)
	}
	for _, response := range message.GetCallResults() {
		w.answer(response)
	}
	for _, response := range message.GetContextResponses() {
		w.told(response)
	}
	for _, loss := range message.GetClaimLosses() {
		w.claimLost(loss)
	}
}

// write is the one writer of a stream. It ends one whose other side has stopped reading.
func (w *worker) write(ctx context.Context, end func(), stream antiphonv1.AgentService_WorkClient) {
	for {
		request := w.outbox.take(ctx)
		if request == nil {
			_ = stream.CloseSend() // it only tells of a stream that has ended, and so does reading
			return
		}
		patience := time.AfterFunc(writeLimit, end)
		err := stream.Send(request)
		patience.Stop()
		if err != nil {
			w.outbox.putBack(request)
			return
		}
		w.outbox.sent(request)
	}
}

func streamEnd(err error) *Error {
	if err == nil || err == io.EOF {
		return nil
	}
	return fromStatus(err)
}

// isFinal says whether dialling again would be answered the same way. A bug of the sidecar may pass with its next start.
func isFinal(err *Error) bool {
	switch {
	case err.Reason == Internal:
		return false
	case err.Reason == "":
		return err.Code == codes.Unimplemented // something else listens on that socket
	}
	return err.Remedy != "" && err.Remedy != Retry
}
