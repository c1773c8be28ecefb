package antiphon

import (
	"context"
	"log/slog"
	"time"

	"google.golang.org/grpc"

	antiphonv1 "antiphon.dev/antiphon/v1"
)

// Client is a connection to the orchestrators as one identity. It is safe for concurrent use; make one and keep it. Every unary
// call has a deadline, is repeated where the registry says so, and fails with an *Error.
type Client struct {
	connection *connection
	timeout    time.Duration
	patience   time.Duration
	logger     *slog.Logger
}

type clientOptions struct {
	profile     string
	addresses   []string
	credentials Credentials
	timeout     time.Duration
	patience    time.Duration
	logger      *slog.Logger
	look        time.Duration
}

// ClientOption says whom to dial, as whom, and for how long to try.
type ClientOption func(*clientOptions)

// WithProfile names the profile; the variable ANTIPHON_PROFILE, or "default", by default.
func WithProfile(name string) ClientOption { return func(o *clientOptions) { o.profile = name } }

// WithAddresses are those of the orchestrators (host:port), in place of the profile's.
func WithAddresses(addresses ...string) ClientOption {
	return func(o *clientOptions) { o.addresses = addresses }
}

// WithCredentials is where the certificate is, in place of the profile's.
func WithCredentials(credentials Credentials) ClientOption {
	return func(o *clientOptions) { o.credentials = credentials }
}

// WithTimeout is the deadline of each unary call, tries included; 10 s by default. An earlier one of the caller's context holds.
func WithTimeout(timeout time.Duration) ClientOption {
	return func(o *clientOptions) { o.timeout = timeout }
}

// WithPatience is how long a stream that broke is dialled again before its error is returned; 2 min by default.
func WithPatience(patience time.Duration) ClientOption {
	return func(o *clientOptions) { o.patience = patience }
}

// WithClientLogger is where the client says what it did about certificates and claims; slog.Default() by default.
func WithClientLogger(logger *slog.Logger) ClientOption {
	return func(o *clientOptions) { o.logger = logger }
}

// Connect makes a client by a profile, as the antiphon command uses it, or by addresses and credentials. It connects with its
// first call. Changed certificate files are noticed within seconds, and no call is lost over them. Reasons: NotSetUp.
func Connect(options ...ClientOption) (*Client, error) {
	said := clientOptions{
		timeout: 10 * time.Second, patience: 2 * time.Minute, logger: slog.Default(), look: certificateLook,
	}
	for _, option := range options {
		option(&said)
	}
	if len(said.addresses) == 0 || said.credentials == (Credentials{}) {
		addresses, credentials, err := loadProfile(said.profile)
		if err != nil {
			return nil, err
		}
		if len(said.addresses) == 0 {
			said.addresses = addresses
		}
		if said.credentials == (Credentials{}) {
			said.credentials = credentials
		}
	}
	if err := checkAddresses(said.addresses); err != nil {
		return nil, err
	}
	connection, err := open(said.addresses, said.credentials, said.logger, said.look)
	if err != nil {
		return nil, err
	}
	return &Client{connection: connection, timeout: said.timeout, patience: said.patience, logger: said.logger}, nil
}

// Close ends every call and the connection.
func (c *Client) Close() { c.connection.close() }

// The services of a generation.

func runs(g *generation) antiphonv1.RunServiceClient     { return antiphonv1.NewRunServiceClient(g) }
func graphs(g *generation) antiphonv1.GraphServiceClient { return antiphonv1.NewGraphServiceClient(g) }
func registries(g *generation) antiphonv1.RegistryServiceClient {
	return antiphonv1.NewRegistryServiceClient(g)
}
func contexts(g *generation) antiphonv1.ContextServiceClient {
	return antiphonv1.NewContextServiceClient(g)
}
func policies(g *generation) antiphonv1.PolicyServiceClient {
	return antiphonv1.NewPolicyServiceClient(g)
}
func identities(g *generation) antiphonv1.IdentityServiceClient {
	return antiphonv1.NewIdentityServiceClient(g)
}
func audits(g *generation) antiphonv1.AuditServiceClient { return antiphonv1.NewAuditServiceClient(g) }
func payloads(g *generation) antiphonv1.PayloadServiceClient {
	return antiphonv1.NewPayloadServiceClient(g)
}

// ask makes a call with the client's timeout.
func ask[Service, Request, Answer any](
	ctx context.Context, c *Client, service func(*generation) Service,
	method func(Service, context.Context, Request, ...grpc.CallOption) (Answer, error), request Request,
) (Answer, error) {
	return unary(ctx, c.connection, c.timeout,
		func(g *generation) func(context.Context, Request, ...grpc.CallOption) (Answer, error) {
			return func(ctx context.Context, request Request, options ...grpc.CallOption) (Answer, error) {
				return method(service(g), ctx, request, options...)
			}
		}, request)
}
