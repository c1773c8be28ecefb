package antiphon

import (
	"context"
	"crypto/rand"
	"fmt"
	"iter"
	"log/slog"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	antiphonv1 "antiphon.dev/antiphon/v1"
)

const contextPause = time.Second // before a request is repeated that does not say when

// contextAsker is whoever asks the orchestrator: a client, or a task through its sidecar.
type contextAsker interface {
	getEntry(context.Context, *antiphonv1.GetEntryRequest) (*antiphonv1.GetEntryResponse, error)
	putEntry(context.Context, *antiphonv1.PutEntryRequest) (*antiphonv1.PutEntryResponse, error)
	deleteEntry(context.Context, *antiphonv1.DeleteEntryRequest) (*antiphonv1.DeleteEntryResponse, error)
	listEntries(context.Context, *antiphonv1.ListEntriesRequest) (*antiphonv1.ListEntriesResponse, error)
	// watchEntries moves the request's from_revision on as it goes.
	watchEntries(context.Context, *antiphonv1.WatchEntriesRequest) iter.Seq2[*antiphonv1.WatchEntriesResponse, error]
	getLineage(context.Context, *antiphonv1.GetLineageRequest) (*antiphonv1.GetLineageResponse, error)
	acquireClaim(context.Context, *antiphonv1.AcquireClaimRequest) (*antiphonv1.Claim, error)
	renewClaim(context.Context, *antiphonv1.RenewClaimRequest) (*antiphonv1.Claim, error)
	releaseClaim(context.Context, *antiphonv1.ReleaseClaimRequest) error
	// travelling is a value as it is put: inline, or uploaded by who can.
	travelling(ctx context.Context, value any) (*Payload, error)
	// holding notes a claim that is held; the function returned forgets it.
	holding(*Claim) func()
}

// SharedContext is what agents and clients of a namespace share: entries by key, with revisions, lifetimes, labels, lineage,
// watches and claims. Every method fails with an *Error of the reason the orchestrator gives, such as PolicyDenied.
type SharedContext struct {
	asker  contextAsker
	logger *slog.Logger
}

type entryOptions struct {
	scope        string
	ttl          *durationpb.Duration
	expected     *int64
	labels       []string
	claim        *antiphonv1.ClaimReference
	requestID    string
	fromRevision int64
	wait         time.Duration
}

// EntryOption says more of a request to shared context; each method names those it heeds.
type EntryOption func(*entryOptions)

// InScope chooses the scope: "namespace" (the default), "run:ID" or "graph:NAME"; a task may say "run" or "graph" for its own.
func InScope(scope string) EntryOption { return func(o *entryOptions) { o.scope = scope } }

// TTL is how long an entry is there, for ever by default, or a claim is held without renewal, 30 s by default.
func TTL(ttl time.Duration) EntryOption {
	return func(o *entryOptions) { o.ttl = durationpb.New(ttl) }
}

// ExpectedRevision is the one the entry must have, 0 for none there; any by default.
func ExpectedRevision(revision int64) EntryOption {
	return func(o *entryOptions) { o.expected = &revision }
}

// EntryLabels are statements about the value, such as "pii" or "region=eu".
func EntryLabels(labels ...string) EntryOption { return func(o *entryOptions) { o.labels = labels } }

// UnderClaim names a claim that must still be ours.
func UnderClaim(claim *Claim) EntryOption {
	return func(o *entryOptions) { o.claim = claim.reference }
}

// EntryRequestID makes a write repeatable: the same id within an hour writes nothing again; an empty one is a new one. A task's
// idempotency key makes it one write however often the task is tried.
func EntryRequestID(id string) EntryOption { return func(o *entryOptions) { o.requestID = id } }

// FromRevision is where a watch begins; from now on by default.
func FromRevision(revision int64) EntryOption {
	return func(o *entryOptions) { o.fromRevision = revision }
}

// WaitUpTo is how long to wait for a claim that somebody else holds; not at all by default.
func WaitUpTo(wait time.Duration) EntryOption { return func(o *entryOptions) { o.wait = wait } }

func entryOptionsOf(options []EntryOption) (entryOptions, *antiphonv1.ContextScope, error) {
	var made entryOptions
	for _, option := range options {
		option(&made)
	}
	if made.requestID == "" {
		made.requestID = rand.Text()
	}
	kind, name, _ := strings.Cut(made.scope, ":")
	switch kind {
	case "", "namespace":
		return made, &antiphonv1.ContextScope{}, nil
	case "run":
		return made, &antiphonv1.ContextScope{Kind: &antiphonv1.ContextScope_RunId{RunId: name}}, nil
	case "graph":
		return made, &antiphonv1.ContextScope{Kind: &antiphonv1.ContextScope_Graph{Graph: name}}, nil
	}
	return made, nil, fmt.Errorf("%q is not a scope; write namespace, run:ID or graph:NAME", made.scope)
}

// Get reads an entry with revision, labels and provenance; EntryValue gives its value. Heeds InScope. Reasons: EntryNotFound.
func (s *SharedContext) Get(ctx context.Context, key string, options ...EntryOption) (*antiphonv1.Entry, error) {
	_, scope, err := entryOptionsOf(options)
	if err != nil {
		return nil, err
	}
	answer, err := s.asker.getEntry(ctx, &antiphonv1.GetEntryRequest{Scope: scope, Key: key})
	return answer.GetEntry(), err
}

// EntryValue is the value of an entry as a T, strictly; see [Decode].
func EntryValue[T any](entry *antiphonv1.Entry) (T, error) { return Decode[T](entry.GetValue()) }

// Put writes an entry whole, anything that travels as JSON or a *Payload, and returns its revision. A client uploads a value above
// 64 KiB first; a task's goes whole up to 2 MiB, and its sidecar keeps it. Heeds InScope, TTL, ExpectedRevision, EntryLabels, UnderClaim, EntryRequestID. Reasons: EntryConflict,
// ContextQuotaExceeded, ClaimLost.
func (s *SharedContext) Put(ctx context.Context, key string, value any, options ...EntryOption) (int64, error) {
	said, scope, err := entryOptionsOf(options)
	if err != nil {
		return 0, err
	}
	payload, err := s.asker.travelling(ctx, value)
	if err != nil {
		return 0, err
	}
	if len(said.labels) > 0 {
		payload = proto.CloneOf(payload) // it may be the caller's
	}
	for _, label := range said.labels {
		name, text, _ := strings.Cut(label, "=")
		payload.Labels = append(payload.Labels, &antiphonv1.Label{Key: name, Value: text})
	}
	answer, err := s.asker.putEntry(ctx, &antiphonv1.PutEntryRequest{
		RequestId: said.requestID, Scope: scope, Key: key, Value: payload, Ttl: said.ttl,
		ExpectedRevision: said.expected, Claim: said.claim,
	})
	return answer.GetRevision(), err
}

// Delete removes an entry and returns the revision of the removal, 0 when there was none. Heeds InScope, ExpectedRevision,
// UnderClaim, EntryRequestID. Reasons: EntryConflict, ClaimLost.
func (s *SharedContext) Delete(ctx context.Context, key string, options ...EntryOption) (int64, error) {
	said, scope, err := entryOptionsOf(options)
	if err != nil {
		return 0, err
	}
	answer, err := s.asker.deleteEntry(ctx, &antiphonv1.DeleteEntryRequest{
		RequestId: said.requestID, Scope: scope, Key: key, ExpectedRevision: said.expected, Claim: said.claim,
	})
	return answer.GetRevision(), err
}

// List reads all entries whose keys begin with prefix, in an order that does not change, and the revision to watch from so that
// nothing is missed. Heeds InScope.
func (s *SharedContext) List(
	ctx context.Context, prefix string, options ...EntryOption,
) (entries []*antiphonv1.Entry, watchFrom int64, err error) {
	_, scope, err := entryOptionsOf(options)
	if err != nil {
		return nil, 0, err
	}
	request := &antiphonv1.ListEntriesRequest{Scope: scope, Prefix: prefix, PageSize: 500}
	for {
		page, err := s.asker.listEntries(ctx, request)
		if err != nil {
			return nil, 0, err
		}
		entries = append(entries, page.GetEntries()...)
		if request.PageToken = page.GetNextPageToken(); request.PageToken == "" {
			return entries, page.GetRevision() + 1, nil
		}
	}
}

// Watch gives the changes of entries whose keys begin with prefix, without gap or repeat, across broken streams. It has no end:
// leave the loop, or end ctx, when you have seen enough; an error is the last there is. Heeds InScope, FromRevision. Reasons:
// HistoryCompacted when too much has happened since: list again.
func (s *SharedContext) Watch(
	ctx context.Context, prefix string, options ...EntryOption,
) iter.Seq2[*antiphonv1.EntryEvent, error] {
	return func(yield func(*antiphonv1.EntryEvent, error) bool) {
		said, scope, err := entryOptionsOf(options)
		if err != nil {
			yield(nil, err)
			return
		}
		request := &antiphonv1.WatchEntriesRequest{Scope: scope, Prefix: prefix, FromRevision: said.fromRevision}
		for answer, err := range s.asker.watchEntries(ctx, request) {
			if err != nil {
				yield(nil, err)
				return
			}
			for _, event := range answer.GetEvents() {
				if !yield(event, nil) {
					return
				}
			}
		}
	}
}

// Lineage tells what an entry was made from, nearest first, as far as that is still there. Heeds InScope. Reasons: EntryNotFound.
func (s *SharedContext) Lineage(
	ctx context.Context, key string, options ...EntryOption,
) (*antiphonv1.GetLineageResponse, error) {
	_, scope, err := entryOptionsOf(options)
	if err != nil {
		return nil, err
	}
	return s.asker.getLineage(ctx, &antiphonv1.GetLineageRequest{Scope: scope, Key: key})
}

// A task asks through its sidecar.

// askContext is the answer to one request, asked again when the answer says so.
func (t *Task) askContext(
	ctx context.Context, set func(*antiphonv1.ContextRequest),
) (*antiphonv1.ContextResponse, error) {
	for {
		request := &antiphonv1.ContextRequest{
			RequestId: rand.Text(), AttemptId: t.AttemptID(), AttemptToken: t.assignment.GetAttemptToken(),
		}
		set(request)
		response, err := t.worker.ask(ctx, request)
		if err != nil {
			return nil, err
		}
		if response.GetError() == nil {
			return response, nil
		}
		refusal := fromMessage(response.GetError())
		if refusal.Remedy != Retry {
			return nil, refusal
		}
		pause := refusal.RetryAfter
		if pause == 0 {
			pause = contextPause
		}
		if err := sleep(ctx, pause); err != nil {
			return nil, err
		}
	}
}

func (t *Task) getEntry(ctx context.Context, request *antiphonv1.GetEntryRequest) (*antiphonv1.GetEntryResponse, error) {
	answer, err := t.askContext(ctx, func(r *antiphonv1.ContextRequest) { r.Kind = &antiphonv1.ContextRequest_Get{Get: request} })
	return answer.GetGet(), err
}

func (t *Task) putEntry(ctx context.Context, request *antiphonv1.PutEntryRequest) (*antiphonv1.PutEntryResponse, error) {
	answer, err := t.askContext(ctx, func(r *antiphonv1.ContextRequest) { r.Kind = &antiphonv1.ContextRequest_Put{Put: request} })
	return answer.GetPut(), err
}

func (t *Task) deleteEntry(
	ctx context.Context, request *antiphonv1.DeleteEntryRequest,
) (*antiphonv1.DeleteEntryResponse, error) {
	answer, err := t.askContext(ctx, func(r *antiphonv1.ContextRequest) {
		r.Kind = &antiphonv1.ContextRequest_Delete{Delete: request}
	})
	return answer.GetDelete(), err
}

func (t *Task) listEntries(
	ctx context.Context, request *antiphonv1.ListEntriesRequest,
) (*antiphonv1.ListEntriesResponse, error) {
	answer, err := t.askContext(ctx, func(r *antiphonv1.ContextRequest) { r.Kind = &antiphonv1.ContextRequest_List{List: request} })
	return answer.GetList(), err
}

func (t *Task) watchEntries(
	ctx context.Context, request *antiphonv1.WatchEntriesRequest,
) iter.Seq2[*antiphonv1.WatchEntriesResponse, error] {
	return func(yield func(*antiphonv1.WatchEntriesResponse, error) bool) {
		for {
			answer, err := t.askContext(ctx, func(r *antiphonv1.ContextRequest) {
				r.Kind = &antiphonv1.ContextRequest_Watch{Watch: request}
			})
			if err != nil {
				yield(nil, err)
				return
			}
			request.FromRevision = answer.GetWatch().GetRevision() + 1
			if !yield(answer.GetWatch(), nil) {
				return
			}
		}
	}
}

func (t *Task) getLineage(ctx context.Context, request *antiphonv1.GetLineageRequest) (*antiphonv1.GetLineageResponse, error) {
	answer, err := t.askContext(ctx, func(r *antiphonv1.ContextRequest) {
		r.Kind = &antiphonv1.ContextRequest_Lineage{Lineage: request}
	})
	return answer.GetLineage(), err
}

func (t *Task) acquireClaim(ctx context.Context, request *antiphonv1.AcquireClaimRequest) (*antiphonv1.Claim, error) {
	answer, err := t.askContext(ctx, func(r *antiphonv1.ContextRequest) {
		r.Kind = &antiphonv1.ContextRequest_Acquire{Acquire: request}
	})
	return answer.GetAcquire().GetClaim(), err
}

func (t *Task) renewClaim(ctx context.Context, request *antiphonv1.RenewClaimRequest) (*antiphonv1.Claim, error) {
	answer, err := t.askContext(ctx, func(r *antiphonv1.ContextRequest) {
		r.Kind = &antiphonv1.ContextRequest_Renew{Renew: request}
	})
	return answer.GetRenew().GetClaim(), err
}

func (t *Task) releaseClaim(ctx context.Context, request *antiphonv1.ReleaseClaimRequest) error {
	_, err := t.askContext(ctx, func(r *antiphonv1.ContextRequest) {
		r.Kind = &antiphonv1.ContextRequest_Release{Release: request}
	})
	return err
}

func (t *Task) travelling(_ context.Context, value any) (*Payload, error) {
	return encode(value, t.worker.limit())
}

func (t *Task) holding(claim *Claim) func() { return t.worker.holds(t.AttemptID(), claim) }

// sleep waits, or fails with the cause of the context's end.
func sleep(ctx context.Context, pause time.Duration) error {
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
