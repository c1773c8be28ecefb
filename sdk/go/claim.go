package antiphon

import (
	"context"
	"errors"
	"log/slog"
	"strconv"
	"sync"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	antiphonv1 "antiphon.dev/antiphon/v1"
)

const (
	claimTTL     = 30 * time.Second
	claimLook    = 250 * time.Millisecond // between two tries to take a claim that somebody holds
	claimRelease = 2 * time.Second        // it ends by itself, so giving it up must not take long
)

// Claim is held until Release, renewed at a third of its time. It is a context: done when the claim is lost, with a ClaimLost
// *Error as its cause, since what the claim protects must not go on. Writes that name the claim are refused by then anyway; that
// is what makes it safe, not the context.
type Claim struct {
	context.Context
	asker     contextAsker
	logger    *slog.Logger
	reference *antiphonv1.ClaimReference
	ttl       time.Duration
	cancel    context.CancelCauseFunc
	forget    func()
	kept      chan struct{} // closed when nobody renews it any more

	mutex sync.Mutex
	lost  *Error
}

// Claim takes a claim; by convention its name is the key, or the prefix, that it protects:
//
//	claim, err := shared.Claim(ctx, "plan")
//	if err != nil {
//		return err
//	}
//	defer claim.Release()
//	_, err = shared.Put(claim, "plan", plan, antiphon.UnderClaim(claim))
//
// Without us it ends after its TTL, 1 s to an hour; a task's ends with the attempt at the latest. Heeds InScope, TTL, WaitUpTo,
// EntryRequestID: who repeats it is the same holder. Reasons: ClaimHeld, ContextQuotaExceeded.
func (s *SharedContext) Claim(ctx context.Context, name string, options ...EntryOption) (*Claim, error) {
	said, scope, err := entryOptionsOf(options)
	if err != nil {
		return nil, err
	}
	ttl := claimTTL
	if said.ttl != nil {
		ttl = said.ttl.AsDuration()
	}
	request := &antiphonv1.AcquireClaimRequest{
		RequestId: said.requestID, Scope: scope, Name: name, Ttl: durationpb.New(ttl),
	}
	end := time.Now().Add(said.wait)
	for {
		until := time.Now().Add(ttl) // when it ends, at the latest, if it is given by a request that leaves now
		taken, err := s.asker.acquireClaim(ctx, request)
		if err == nil {
			return s.hold(ctx, taken, ttl, until), nil
		}
		if !errors.Is(err, ClaimHeld) || !time.Now().Before(end) {
			return nil, err
		}
		if err := sleep(ctx, claimLook); err != nil {
			return nil, err
		}
	}
}

func (s *SharedContext) hold(ctx context.Context, taken *antiphonv1.Claim, ttl time.Duration, until time.Time) *Claim {
	inner, cancel := context.WithCancelCause(ctx)
	claim := &Claim{
		Context: inner, asker: s.asker, logger: s.logger, reference: taken.GetClaim(), ttl: ttl, cancel: cancel,
		kept: make(chan struct{}),
	}
	claim.forget = s.asker.holding(claim)
	go claim.keep(until)
	return claim
}

// Fence grows with each holder; hand it to what can compare it.
func (c *Claim) Fence() int64 { return c.reference.GetFence() }

// Release gives the claim up. The error is ClaimLost when it was lost before.
func (c *Claim) Release() error {
	c.forget()
	c.cancel(nil)
	<-c.kept
	c.mutex.Lock()
	lost := c.lost
	c.mutex.Unlock()
	if lost != nil {
		return lost
	}
	ctx, end := context.WithTimeout(context.WithoutCancel(c.Context), claimRelease)
	defer end()
	if err := c.asker.releaseClaim(ctx, &antiphonv1.ReleaseClaimRequest{Claim: c.reference}); err != nil {
		c.logger.Warn("a claim was not released and ends by itself", "claim", c.reference.GetName(), "error", err)
	}
	return nil
}

// lose ends it: it is held no more, as the orchestrator says, or cannot be kept, and err tells why.
func (c *Claim) lose(err *Error) {
	if err == nil {
		err = newError(ClaimLost, "claim "+c.reference.GetName()+" is not held any more")
		err.Metadata = map[string]string{
			"claim": c.reference.GetName(), "fence": strconv.FormatInt(c.reference.GetFence(), 10),
		}
	}
	c.mutex.Lock()
	if c.lost == nil && c.Err() == nil {
		c.lost = err
	}
	c.mutex.Unlock()
	c.cancel(err)
}

func (c *Claim) keep(until time.Time) {
	defer close(c.kept)
	for sleep(c, c.ttl/3) == nil {
		renewed := time.Now().Add(c.ttl)
		ctx, end := context.WithDeadline(c, until)
		_, err := c.asker.renewClaim(ctx, &antiphonv1.RenewClaimRequest{Claim: c.reference, Ttl: durationpb.New(c.ttl)})
		end()
		var refusal *Error
		switch {
		case err == nil:
			until = renewed
		case c.Err() != nil:
			return
		case errors.As(err, &refusal) && refusal.Remedy != Retry && refusal.cause == nil:
			c.lose(refusal)
		case !time.Now().Before(until):
			c.lose(nil)
		}
	}
}
