package antiphon

import (
	"context"
	"iter"

	"google.golang.org/grpc"

	antiphonv1 "antiphon.dev/antiphon/v1"
)

// Shared is what the agents and clients of the namespace share, with the rights of this client.
func (c *Client) Shared() *SharedContext { return &SharedContext{asker: c, logger: c.logger} }

func (c *Client) getEntry(ctx context.Context, request *antiphonv1.GetEntryRequest) (*antiphonv1.GetEntryResponse, error) {
	return ask(ctx, c, contexts, antiphonv1.ContextServiceClient.GetEntry, request)
}

func (c *Client) putEntry(ctx context.Context, request *antiphonv1.PutEntryRequest) (*antiphonv1.PutEntryResponse, error) {
	return ask(ctx, c, contexts, antiphonv1.ContextServiceClient.PutEntry, request)
}

func (c *Client) deleteEntry(
	ctx context.Context, request *antiphonv1.DeleteEntryRequest,
) (*antiphonv1.DeleteEntryResponse, error) {
	return ask(ctx, c, contexts, antiphonv1.ContextServiceClient.DeleteEntry, request)
}

func (c *Client) listEntries(
	ctx context.Context, request *antiphonv1.ListEntriesRequest,
) (*antiphonv1.ListEntriesResponse, error) {
	return ask(ctx, c, contexts, antiphonv1.ContextServiceClient.ListEntries, request)
}

func (c *Client) watchEntries(
	ctx context.Context, request *antiphonv1.WatchEntriesRequest,
) iter.Seq2[*antiphonv1.WatchEntriesResponse, error] {
	messages := resume(ctx, c.connection, c.patience, request,
		func(ctx context.Context, g *generation) (grpc.ServerStreamingClient[antiphonv1.WatchEntriesResponse], error) {
			return contexts(g).WatchEntries(ctx, request)
		})
	return func(yield func(*antiphonv1.WatchEntriesResponse, error) bool) {
		for message, err := range messages {
			if err == nil {
				request.FromRevision = message.GetRevision() + 1
			}
			if !yield(message, err) {
				return
			}
		}
	}
}

func (c *Client) getLineage(
	ctx context.Context, request *antiphonv1.GetLineageRequest,
) (*antiphonv1.GetLineageResponse, error) {
	return ask(ctx, c, contexts, antiphonv1.ContextServiceClient.GetLineage, request)
}

func (c *Client) acquireClaim(ctx context.Context, request *antiphonv1.AcquireClaimRequest) (*antiphonv1.Claim, error) {
	answer, err := ask(ctx, c, contexts, antiphonv1.ContextServiceClient.AcquireClaim, request)
	return answer.GetClaim(), err
}

func (c *Client) renewClaim(ctx context.Context, request *antiphonv1.RenewClaimRequest) (*antiphonv1.Claim, error) {
	answer, err := ask(ctx, c, contexts, antiphonv1.ContextServiceClient.RenewClaim, request)
	return answer.GetClaim(), err
}

func (c *Client) releaseClaim(ctx context.Context, request *antiphonv1.ReleaseClaimRequest) error {
	_, err := ask(ctx, c, contexts, antiphonv1.ContextServiceClient.ReleaseClaim, request)
	return err
}

// travelling is a value as a payload; a large one is uploaded.
func (c *Client) travelling(ctx context.Context, value any) (*Payload, error) {
	if whole, ok := value.(*Payload); ok && whole != nil {
		if err := travels(whole, inlineLimit); err != nil {
			return nil, newError(RequestInvalid, "the value cannot travel: "+err.Error())
		}
		return whole, nil
	}
	data, err := encodeJSON(value)
	if err != nil {
		return nil, err
	}
	if len(data) > inlineLimit {
		return c.UploadPayload(ctx, data, "")
	}
	return inline(data), nil
}

func (c *Client) holding(*Claim) func() { return func() {} } // renewals tell a client
