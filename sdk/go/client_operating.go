package antiphon

import (
	"context"
	"iter"

	antiphonv1 "antiphon.dev/antiphon/v1"
)

// RevokeIdentity ends what all certificates of an identity that were issued so far may do, on live connections too. The kind is
// sidecar, client or operator, the namespace the caller's; the identity comes back with a token that is made later. The cause is for
// people, and told to whoever is refused. For operators. Reasons: RevocationsExhausted.
func (c *Client) RevokeIdentity(ctx context.Context, kind, name, cause string) error {
	identity := &antiphonv1.RevokeCertificatesRequest_Identity{Identity: &antiphonv1.IdentityName{Kind: kind, Name: name}}
	return c.Revoke(ctx, &antiphonv1.RevokeCertificatesRequest{Subject: identity, Cause: cause})
}

// RevokeCertificate ends what one certificate may do, as RevokeIdentity does; its serial number is hexadecimal, in lower case.
func (c *Client) RevokeCertificate(ctx context.Context, serial, cause string) error {
	subject := &antiphonv1.RevokeCertificatesRequest_Serial{Serial: serial}
	return c.Revoke(ctx, &antiphonv1.RevokeCertificatesRequest{Subject: subject, Cause: cause})
}

// Revoke is for what RevokeIdentity and RevokeCertificate have no word for: another namespace.
func (c *Client) Revoke(ctx context.Context, request *antiphonv1.RevokeCertificatesRequest) error {
	_, err := ask(ctx, c, identities, antiphonv1.IdentityServiceClient.RevokeCertificates, request)
	return err
}

// ListRevocations gives what is revoked in the caller's namespace, until nothing is left of it. For operators.
func (c *Client) ListRevocations(ctx context.Context) iter.Seq2[*antiphonv1.Revocation, error] {
	return pages(func(token string) (*antiphonv1.ListRevocationsResponse, error) {
		return ask(ctx, c, identities, antiphonv1.IdentityServiceClient.ListRevocations,
			&antiphonv1.ListRevocationsRequest{PageToken: token})
	}, func(page *antiphonv1.ListRevocationsResponse) ([]*antiphonv1.Revocation, string) {
		return page.GetRevocations(), page.GetNextPageToken()
	})
}

// ListAuditRecords gives records of one chain, those that fit all filters of the request, in the chain's order or from the newest
// back; GetAuditCheckpoint names the chains. The request's pages are fetched as needed. For operators. Reasons: AuditChainNotFound.
func (c *Client) ListAuditRecords(
	ctx context.Context, request *antiphonv1.ListRecordsRequest,
) iter.Seq2[*antiphonv1.AuditRecord, error] {
	return pages(func(token string) (*antiphonv1.ListRecordsResponse, error) {
		request.PageToken = token
		return ask(ctx, c, audits, antiphonv1.AuditServiceClient.ListRecords, request)
	}, func(page *antiphonv1.ListRecordsResponse) ([]*antiphonv1.AuditRecord, string) {
		return page.GetRecords(), page.GetNextPageToken()
	})
}

// GetAuditCheckpoint tells where every audit chain stands, signed by the orchestrator. For operators.
func (c *Client) GetAuditCheckpoint(ctx context.Context) (*antiphonv1.AuditCheckpoint, error) {
	answer, err := ask(ctx, c, audits, antiphonv1.AuditServiceClient.GetCheckpoint, &antiphonv1.GetCheckpointRequest{})
	return answer.GetCheckpoint(), err
}
