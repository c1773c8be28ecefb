package antiphon

import (
	"context"
	"errors"
	"io"
	"iter"
	"math/rand/v2"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"
)

const (
	mostRetries = 5
	retryFirst  = 100 * time.Millisecond
	retryLast   = 2 * time.Second
	// standing is how long a quiet stream has to last to count as served: dialling takes less, and so does a refusal.
	standing = 30 * time.Second
)

// pauseBefore is how long to wait before the next try: what the server asks for and somewhat more, or a doubling back-off.
func pauseBefore(err *Error, failures int) time.Duration {
	if err.RetryAfter > 0 {
		return time.Duration(float64(err.RetryAfter) * (1 + rand.Float64()/4))
	}
	pause := min(retryLast, retryFirst<<min(failures, 10))
	return time.Duration(float64(pause) * (0.5 + rand.Float64()/2))
}

// tries decide whether and when to try again. A Retry error is repeated after the delay the server asks for, jittered.
type tries struct {
	connection *connection
	patience   time.Duration // with failures, from the first since there was progress; a stream may be quiet for longer
	most       int           // tries again, when it is not negative
	failures   int
	end        time.Time // no try begins after it; zero while there is no failure
	began      time.Time
	used       *generation // the current one when the try began
}

// callTries are those of one call, all of them within `limit` from now on.
func callTries(connection *connection, limit time.Duration) *tries {
	now := time.Now()
	return &tries{connection: connection, most: mostRetries, end: now.Add(limit), began: now, used: connection.newest()}
}

// streamTries are those of a stream that resumes, or of a call that is made again for as long as it takes.
func streamTries(connection *connection, patience time.Duration) *tries {
	return &tries{connection: connection, patience: patience, most: -1, began: time.Now(), used: connection.newest()}
}

// heard says that there was progress on a stream: counting starts anew with the next failure.
func (t *tries) heard() {
	t.failures, t.end = 0, time.Time{}
}

// after returns nil when it is time for another try, and the error when there is to be none.
func (t *tries) after(ctx context.Context, err *Error) error {
	if ctx.Err() != nil {
		return err
	}
	if t.most < 0 && time.Since(t.began) > standing {
		t.heard()
	}
	if t.end.IsZero() {
		t.end = time.Now().Add(t.patience)
	}
	t.failures++
	used := t.used
	defer func() { t.began, t.used = time.Now(), t.connection.newest() }()
	if err.Reason == Unavailable {
		if ended, over := t.connection.expired(); over {
			err = newError(CertificateExpired, "no server answers to a certificate that expired at "+
				ended.UTC().Format(time.RFC3339)+"; join again: antiphon certs join TOKEN")
		}
	}
	if err.Reason == NotServing || err.Reason == StoreUnavailable {
		t.connection.turn(used)
	}
	// A stream may outlive the certificate it was opened with, or that may have been replaced a moment ago.
	if err.Reason == CertificateExpired && (used != t.connection.newest() || t.failures == 1 && t.connection.refresh(ctx)) {
		return nil
	}
	if err.Remedy != Retry || (t.most >= 0 && t.failures > t.most) {
		return err
	}
	pause := pauseBefore(err, t.failures-1)
	if !time.Now().Add(pause).Before(t.end) {
		return err
	}
	if sleep(ctx, pause) != nil {
		return ended(ctx, "the call")
	}
	return nil
}

// failureOf is the Error of a call made under ctx, which is the caller's.
func failureOf(ctx context.Context, err error) *Error {
	var known *Error
	if errors.As(err, &known) {
		return known
	}
	if ctx.Err() != nil {
		return ended(ctx, "the call")
	}
	return fromStatus(err)
}

// checked fails for a request that cannot be sent, however often.
func checked(request proto.Message) error {
	if err := sendable(request); err != nil {
		return newError(RequestInvalid, "the request cannot travel: "+err.Error())
	}
	return nil
}

// unary makes a call within `limit`, tries and pauses included.
func unary[Request, Answer any](
	ctx context.Context, c *connection, limit time.Duration,
	method func(*generation) func(context.Context, Request, ...grpc.CallOption) (Answer, error), request Request,
) (Answer, error) {
	if message, ok := any(request).(proto.Message); ok {
		if err := checked(message); err != nil {
			var none Answer
			return none, err
		}
	}
	again := callTries(c, limit)
	traced := withTrace(ctx)
	var last *Error
	for {
		lent, giveBack, err := c.use()
		if err != nil {
			var none Answer
			return none, err
		}
		bounded, end := context.WithDeadline(traced, again.end)
		answer, err := method(lent)(bounded, request)
		end()
		giveBack()
		if err == nil {
			return answer, nil
		}
		failure := failureOf(ctx, err)
		if last != nil && failure.Reason == DeadlineExceeded && !time.Now().Before(again.end) {
			return answer, last // it tells why there was no answer in all that time
		}
		last = failure
		if err := again.after(ctx, failure); err != nil {
			return answer, err
		}
	}
}

// resume gives the messages of a stream that `open` opens with a request, and again where it broke, until it ends whole. It gives up
// after `patience` with failures alone; an error is the last it gives.
func resume[Item any](
	ctx context.Context, c *connection, patience time.Duration, request proto.Message,
	open func(context.Context, *generation) (grpc.ServerStreamingClient[Item], error),
) iter.Seq2[*Item, error] {
	return func(yield func(*Item, error) bool) {
		if err := checked(request); err != nil {
			yield(nil, err)
			return
		}
		again := streamTries(c, patience)
		for {
			left, err := follow(ctx, c, again, open, yield)
			if left || err == nil {
				return
			}
			if err := again.after(ctx, failureOf(ctx, err)); err != nil {
				yield(nil, err)
				return
			}
		}
	}
}

// follow gives the messages of one stream; `left` when nobody wants more, a nil error when it ended whole.
func follow[Item any](
	ctx context.Context, c *connection, again *tries,
	open func(context.Context, *generation) (grpc.ServerStreamingClient[Item], error), yield func(*Item, error) bool,
) (left bool, err error) {
	lent, giveBack, err := c.use()
	if err != nil {
		yield(nil, err)
		return true, err
	}
	defer giveBack()
	inner, end := context.WithCancel(withTrace(ctx))
	defer end()
	stream, err := open(inner, lent)
	if err != nil {
		return false, err
	}
	for {
		message, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return false, nil
		}
		if err != nil {
			return false, err
		}
		again.heard()
		if !yield(message, nil) {
			return true, nil
		}
	}
}

// pages gives the items of a paged list; pages are fetched as needed. An error is the last it gives.
func pages[Item, Page any](fetch func(token string) (Page, error), read func(Page) ([]Item, string)) iter.Seq2[Item, error] {
	return func(yield func(Item, error) bool) {
		token := ""
		for {
			page, err := fetch(token)
			if err != nil {
				var none Item
				yield(none, err)
				return
			}
			items, next := read(page)
			for _, item := range items {
				if !yield(item, nil) {
					return
				}
			}
			if next == "" {
				return
			}
			token = next
		}
	}
}

// withTrace adds the trace context to the metadata of a call: that of the task whose context ctx is, or a new one.
func withTrace(ctx context.Context) context.Context {
	return metadata.AppendToOutgoingContext(ctx, "traceparent", traceparent(ctx))
}
