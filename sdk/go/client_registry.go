package antiphon

import (
	"context"
	"crypto/rand"
	"iter"

	"google.golang.org/grpc"

	antiphonv1 "antiphon.dev/antiphon/v1"
)

// RegisterGraph keeps a graph under its name and version, and returns it with warnings. The same content again is the same graph.
// Reasons: GraphInvalid with every mistake, GraphVersionExists.
func (c *Client) RegisterGraph(ctx context.Context, graph *antiphonv1.Graph) (*antiphonv1.RegisterGraphResponse, error) {
	return ask(ctx, c, graphs, antiphonv1.GraphServiceClient.RegisterGraph,
		&antiphonv1.RegisterGraphRequest{RequestId: rand.Text(), Graph: graph})
}

// ValidateGraph finds every mistake and warning of a graph; mistakes are an answer here, not an error.
func (c *Client) ValidateGraph(ctx context.Context, graph *antiphonv1.Graph) (*antiphonv1.ValidateGraphResponse, error) {
	return ask(ctx, c, graphs, antiphonv1.GraphServiceClient.ValidateGraph, &antiphonv1.ValidateGraphRequest{Graph: graph})
}

// GetGraph reads a registered version, the highest when version is empty. Reasons: GraphNotFound.
func (c *Client) GetGraph(ctx context.Context, name, version string) (*antiphonv1.RegisteredGraph, error) {
	answer, err := ask(ctx, c, graphs, antiphonv1.GraphServiceClient.GetGraph,
		&antiphonv1.GetGraphRequest{Name: name, Version: version})
	return answer.GetGraph(), err
}

// ListGraphs gives registered versions in order of name, then version: of one name, or of all when it is empty.
func (c *Client) ListGraphs(ctx context.Context, name string) iter.Seq2[*antiphonv1.RegisteredGraph, error] {
	return pages(func(token string) (*antiphonv1.ListGraphsResponse, error) {
		return ask(ctx, c, graphs, antiphonv1.GraphServiceClient.ListGraphs,
			&antiphonv1.ListGraphsRequest{Name: name, PageToken: token})
	}, func(page *antiphonv1.ListGraphsResponse) ([]*antiphonv1.RegisteredGraph, string) {
		return page.GetGraphs(), page.GetNextPageToken()
	})
}

// ListAgents gives agents in order of name.
func (c *Client) ListAgents(ctx context.Context) iter.Seq2[*antiphonv1.Agent, error] {
	return pages(func(token string) (*antiphonv1.ListAgentsResponse, error) {
		return ask(ctx, c, registries, antiphonv1.RegistryServiceClient.ListAgents,
			&antiphonv1.ListAgentsRequest{PageToken: token})
	}, func(page *antiphonv1.ListAgentsResponse) ([]*antiphonv1.Agent, string) {
		return page.GetAgents(), page.GetNextPageToken()
	})
}

// GetAgent reads an agent with its live instances. Reasons: AgentNotFound.
func (c *Client) GetAgent(ctx context.Context, name string) (*antiphonv1.Agent, error) {
	answer, err := ask(ctx, c, registries, antiphonv1.RegistryServiceClient.GetAgent, &antiphonv1.GetAgentRequest{Name: name})
	return answer.GetAgent(), err
}

// WatchAgents gives all agents, then each as it changes, without end; after a broken stream all of them again. An error is the
// last it gives.
func (c *Client) WatchAgents(ctx context.Context) iter.Seq2[*antiphonv1.Agent, error] {
	request := &antiphonv1.WatchAgentsRequest{}
	messages := resume(ctx, c.connection, c.patience, request,
		func(ctx context.Context, g *generation) (grpc.ServerStreamingClient[antiphonv1.WatchAgentsResponse], error) {
			return registries(g).WatchAgents(ctx, request)
		})
	return func(yield func(*antiphonv1.Agent, error) bool) {
		for message, err := range messages {
			if err != nil {
				yield(nil, err)
				return
			}
			for _, agent := range message.GetAgents() {
				if !yield(agent, nil) {
					return
				}
			}
		}
	}
}

// ListCapabilities gives what is offered now, with the agents behind each version.
func (c *Client) ListCapabilities(ctx context.Context) iter.Seq2[*antiphonv1.OfferedCapability, error] {
	return pages(func(token string) (*antiphonv1.ListCapabilitiesResponse, error) {
		return ask(ctx, c, registries, antiphonv1.RegistryServiceClient.ListCapabilities,
			&antiphonv1.ListCapabilitiesRequest{PageToken: token})
	}, func(page *antiphonv1.ListCapabilitiesResponse) ([]*antiphonv1.OfferedCapability, string) {
		return page.GetCapabilities(), page.GetNextPageToken()
	})
}

// DrainAgent lets an agent finish what it has, and gives it no more. For operators. Reasons: AgentNotFound.
func (c *Client) DrainAgent(ctx context.Context, name string) (*antiphonv1.Agent, error) {
	answer, err := ask(ctx, c, registries, antiphonv1.RegistryServiceClient.DrainAgent,
		&antiphonv1.DrainAgentRequest{Name: name})
	return answer.GetAgent(), err
}

// SuspendAgent gives an agent no work until it is resumed. For operators. Reasons: AgentNotFound.
func (c *Client) SuspendAgent(ctx context.Context, name string) (*antiphonv1.Agent, error) {
	answer, err := ask(ctx, c, registries, antiphonv1.RegistryServiceClient.SuspendAgent,
		&antiphonv1.SuspendAgentRequest{Name: name})
	return answer.GetAgent(), err
}

// ResumeAgent gives work again to an agent that was drained or suspended. For operators. Reasons: AgentNotFound.
func (c *Client) ResumeAgent(ctx context.Context, name string) (*antiphonv1.Agent, error) {
	answer, err := ask(ctx, c, registries, antiphonv1.RegistryServiceClient.ResumeAgent,
		&antiphonv1.ResumeAgentRequest{Name: name})
	return answer.GetAgent(), err
}
