package antiphon

import (
	"context"
	"crypto/rand"
	"iter"
	"maps"
	"slices"

	antiphonv1 "antiphon.dev/antiphon/v1"
)

// CheckPolicy tells what would be decided in the caller's namespace, and why; nothing is remembered of it. The request's principal
// is a SPIFFE id, the caller's own when empty; a fact that is not given is the least there is.
func (c *Client) CheckPolicy(
	ctx context.Context, request *antiphonv1.CheckRequest, facts map[string][]string,
) (*antiphonv1.DecisionRecord, error) {
	for _, name := range slices.Sorted(maps.Keys(facts)) {
		request.Facts = append(request.Facts, &antiphonv1.Fact{Name: name, Values: facts[name]})
	}
	answer, err := ask(ctx, c, policies, antiphonv1.PolicyServiceClient.Check, request)
	return answer.GetDecision(), err
}

// ListDecisions gives recent decisions about the caller's namespace, the newest first, those that fit all filters of the request.
func (c *Client) ListDecisions(
	ctx context.Context, request *antiphonv1.ListDecisionsRequest,
) iter.Seq2[*antiphonv1.DecisionRecord, error] {
	return pages(func(token string) (*antiphonv1.ListDecisionsResponse, error) {
		request.PageToken = token
		return ask(ctx, c, policies, antiphonv1.PolicyServiceClient.ListDecisions, request)
	}, func(page *antiphonv1.ListDecisionsResponse) ([]*antiphonv1.DecisionRecord, string) {
		return page.GetDecisions(), page.GetNextPageToken()
	})
}

// ListPolicies gives the kept sets of policies without their files, the newest first.
func (c *Client) ListPolicies(ctx context.Context) iter.Seq2[*antiphonv1.PolicySet, error] {
	return pages(func(token string) (*antiphonv1.ListPoliciesResponse, error) {
		return ask(ctx, c, policies, antiphonv1.PolicyServiceClient.ListPolicies,
			&antiphonv1.ListPoliciesRequest{PageToken: token})
	}, func(page *antiphonv1.ListPoliciesResponse) ([]*antiphonv1.PolicySet, string) {
		return page.GetPolicies(), page.GetNextPageToken()
	})
}

// GetPolicy reads a set of policies with its files; epoch 0 is the one in force. Reasons: PolicyEpochNotFound.
func (c *Client) GetPolicy(ctx context.Context, epoch uint64) (*antiphonv1.PolicySet, error) {
	answer, err := ask(ctx, c, policies, antiphonv1.PolicyServiceClient.GetPolicy, &antiphonv1.GetPolicyRequest{Epoch: epoch})
	return answer.GetPolicy(), err
}

// ActivatePolicies puts a whole set in force: texts by file name. With another epoch in force than expected, 0 for none, nothing is
// changed. For operators. Reasons: PolicyInvalid with every mistake, PolicyEpochChanged, PolicyLocksOut.
func (c *Client) ActivatePolicies(
	ctx context.Context, files map[string]string, expectedEpoch uint64,
) (*antiphonv1.PolicySet, error) {
	request := &antiphonv1.ActivatePoliciesRequest{RequestId: rand.Text(), ExpectedEpoch: expectedEpoch}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		request.Files = append(request.Files, &antiphonv1.PolicyFile{Name: name, Text: files[name]})
	}
	answer, err := ask(ctx, c, policies, antiphonv1.PolicyServiceClient.ActivatePolicies, request)
	return answer.GetPolicy(), err
}

// RollBackPolicies puts the content of an earlier epoch in force again, as a new one. For operators. Reasons: as of ActivatePolicies,
// and PolicyEpochNotFound.
func (c *Client) RollBackPolicies(ctx context.Context, epoch, expectedEpoch uint64) (*antiphonv1.PolicySet, error) {
	answer, err := ask(ctx, c, policies, antiphonv1.PolicyServiceClient.RollBack,
		&antiphonv1.RollBackRequest{RequestId: rand.Text(), Epoch: epoch, ExpectedEpoch: expectedEpoch})
	return answer.GetPolicy(), err
}
