package antiphon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"sync"
	"time"
	"unicode/utf8"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	antiphonv1 "antiphon.dev/antiphon/v1"
)

// submissionFrame is the bytes of a message around its one submission, and some.
const submissionFrame = 16

// Submitter submits many runs over one stream: batched, answered in any order, held back when too many are on their way. Each
// submission is answered once, by a run or by an error; after a broken stream everything unanswered is sent again with the same
// request ids, which are the same runs.
type Submitter struct {
	client *Client
	places chan struct{} // one for each submission without an answer
	life   context.Context
	stop   context.CancelFunc
	over   chan struct{} // closed when the stream is not dialled any more; err is set then

	mutex     sync.Mutex
	pending   map[string]*Submission
	unsent    []*Submission
	something chan struct{} // holds one mark
	idle      chan struct{} // closed when nothing is pending; nil when nobody waits
	err       error
}

// Submission is a run on its way.
type Submission struct {
	request  *antiphonv1.SubmitRunRequest
	answered chan struct{}
	run      *antiphonv1.Run
	err      error
	failures int
	since    time.Time // the first refusal
	resting  bool      // until its next try
}

// Answer waits for the run, as committed or as ended, or for the error that refused it.
func (s *Submission) Answer(ctx context.Context) (*antiphonv1.Run, error) {
	select {
	case <-s.answered:
		return s.run, s.err
	case <-ctx.Done():
		return nil, ended(ctx, "waiting for the answer")
	}
}

// Submitter opens a stream for submissions, of which at most inFlight have no answer; 1,000 is a good number. End it with Close.
func (c *Client) Submitter(inFlight int) *Submitter {
	life, stop := context.WithCancel(context.Background())
	s := &Submitter{
		client: c, places: make(chan struct{}, max(inFlight, 1)), life: life, stop: stop, over: make(chan struct{}),
		pending: map[string]*Submission{}, something: make(chan struct{}, 1),
	}
	go s.stayConnected()
	return s
}

// Submit takes a submission as soon as there is room for it. Arguments as of Client.Submit, whose reasons are those of the answer.
// The error is what ended the stream, if something did.
func (s *Submitter) Submit(ctx context.Context, source Source, input any, options ...SubmitOption) (*Submission, error) {
	request, err := s.client.submission(ctx, source, input, options)
	if err != nil {
		return nil, err
	}
	if refusal := refusedBefore(request); refusal != nil {
		refused := &Submission{request: request, answered: make(chan struct{}), err: refusal}
		close(refused.answered)
		return refused, nil
	}
	select {
	case s.places <- struct{}{}:
	case <-s.over:
		return nil, s.end()
	case <-ctx.Done():
		return nil, ended(ctx, "submitting")
	}
	s.mutex.Lock()
	defer s.mutex.Unlock()
	if s.err != nil {
		<-s.places
		return nil, s.err
	}
	if s.pending[request.GetRequestId()] != nil {
		<-s.places
		return nil, fmt.Errorf("request id %q is on its way already", request.GetRequestId())
	}
	made := &Submission{request: request, answered: make(chan struct{})}
	s.pending[request.GetRequestId()] = made
	s.queue(made)
	return made, nil
}

// Close waits for all answers, then ends the stream. When ctx ends first they are given up. The error is what ended the stream
// before its time.
func (s *Submitter) Close(ctx context.Context) error {
	s.mutex.Lock()
	idle := make(chan struct{})
	s.idle = idle
	s.tellIdle()
	s.mutex.Unlock()
	var err error
	select {
	case <-idle:
	case <-s.over:
		err = s.end()
	case <-ctx.Done():
		err = ended(ctx, "closing the submitter")
	}
	s.stop()
	<-s.over
	return err
}

// refusedBefore is what a server says of a submission that comes by Client.Submit, and for which it would end the stream, and with it
// all the others: one that is too large, or whose id cannot be answered to. Else nil.
func refusedBefore(request *antiphonv1.SubmitRunRequest) error {
	if count := utf8.RuneCountInString(request.GetRequestId()); count > idLimit {
		return newError(RequestInvalid, fmt.Sprintf("the request id has %d characters; use at most %d", count, idLimit))
	}
	if proto.Size(request)+submissionFrame <= messageBytes {
		return nil
	}
	return fromMessage(&antiphonv1.Error{
		Reason:   antiphonv1.ErrorReason_ERROR_REASON_MESSAGE_TOO_LARGE,
		Message:  fmt.Sprintf("the message is larger than %d bytes; send large values through PayloadService", messageBytes),
		Metadata: map[string]string{"limit": strconv.Itoa(messageBytes)},
	})
}

func (s *Submitter) end() error {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	return s.err
}

func (s *Submitter) stayConnected() {
	defer close(s.over)
	again := streamTries(s.client.connection, s.client.patience)
	for {
		err := s.connect(again)
		if s.life.Err() != nil {
			s.giveUp(setupError("the submitter is closed"))
			return
		}
		s.mutex.Lock()
		if len(s.pending) == 0 {
			again.heard() // a stream that nobody uses may be ended at will
		}
		s.mutex.Unlock()
		if err := again.after(s.life, err); err != nil {
			s.giveUp(err)
			return
		}
	}
}

// connect is one stream, to its end.
func (s *Submitter) connect(again *tries) *Error {
	lent, giveBack, err := s.client.connection.use()
	if err != nil {
		return failureOf(s.life, err)
	}
	defer giveBack()
	ctx, end := context.WithCancel(withTrace(s.life))
	defer end()
	stream, err := runs(lent).SubmitRuns(ctx)
	if err != nil {
		return fromStatus(err)
	}
	s.mutex.Lock()
	s.unsent = nil
	for _, one := range s.pending {
		if !one.resting {
			s.queue(one)
		}
	}
	s.mutex.Unlock()
	written := make(chan struct{})
	go func() {
		defer close(written)
		s.write(ctx, end, stream)
		time.AfterFunc(lingerLimit, end) // only reading tells how a stream ended; it has a moment to find out
	}()
	for {
		var response *antiphonv1.SubmitRunsResponse
		if response, err = stream.Recv(); err != nil {
			break
		}
		again.heard()
		for _, result := range response.GetResults() {
			s.answer(result)
		}
	}
	end()
	<-written
	if errors.Is(err, io.EOF) {
		return unavailable(codes.Unavailable, "it ended the stream")
	}
	return fromStatus(err)
}

// write is the one writer of a stream. It ends one whose other side has stopped reading for too long.
func (s *Submitter) write(ctx context.Context, end func(), stream antiphonv1.RunService_SubmitRunsClient) {
	for {
		batch := s.take(ctx)
		if batch == nil {
			return
		}
		patience := time.AfterFunc(writeLimit, end)
		err := stream.Send(&antiphonv1.SubmitRunsRequest{Submissions: batch})
		patience.Stop()
		if err != nil {
			return
		}
	}
}

func (s *Submitter) take(ctx context.Context) []*antiphonv1.SubmitRunRequest {
	for {
		s.mutex.Lock()
		var batch []*antiphonv1.SubmitRunRequest
		for size := 0; len(s.unsent) > 0 && len(batch) < batchItems; s.unsent = s.unsent[1:] {
			size += proto.Size(s.unsent[0].request)
			if len(batch) > 0 && size > batchBytes {
				break // a large one goes alone: with others it could be too large
			}
			batch = append(batch, s.unsent[0].request)
		}
		s.mutex.Unlock()
		if batch != nil {
			return batch
		}
		select {
		case <-s.something:
		case <-ctx.Done():
			return nil
		}
	}
}

// queue needs the mutex.
func (s *Submitter) queue(one *Submission) {
	one.resting = false
	s.unsent = append(s.unsent, one)
	select {
	case s.something <- struct{}{}:
	default:
	}
}

func (s *Submitter) answer(result *antiphonv1.SubmitRunResult) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	one := s.pending[result.GetRequestId()]
	if one == nil {
		return // answered before, on a stream that broke
	}
	if said := result.GetError(); said != nil {
		refusal := fromMessage(said)
		if one.since.IsZero() {
			one.since = time.Now()
		}
		// A shard changes hands for longer than a few tries take, when its owner ends and the machine is busy.
		patient := refusal.Reason == ShardMoved && time.Since(one.since) < s.client.patience
		if refusal.Remedy == Retry && (one.failures < mostRetries || patient) {
			pause := pauseBefore(refusal, one.failures)
			one.failures++
			one.resting = true
			time.AfterFunc(pause, func() { s.tryAgain(one) })
			return
		}
		one.err = refusal
	} else {
		one.run = result.GetRun()
	}
	s.done(one)
	s.tellIdle()
}

func (s *Submitter) tryAgain(one *Submission) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	if s.pending[one.request.GetRequestId()] == one {
		s.queue(one)
	}
}

// done needs the mutex.
func (s *Submitter) done(one *Submission) {
	delete(s.pending, one.request.GetRequestId())
	close(one.answered)
	<-s.places
}

func (s *Submitter) tellIdle() {
	if s.idle != nil && len(s.pending) == 0 {
		close(s.idle)
		s.idle = nil
	}
}

func (s *Submitter) giveUp(err error) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	s.err = err
	for _, one := range s.pending {
		one.err = err
		s.done(one)
	}
}
