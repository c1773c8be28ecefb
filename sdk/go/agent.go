package antiphon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math"
	"os"
	"os/signal"
	"regexp"
	"syscall"
	"time"

	"google.golang.org/protobuf/proto"

	antiphonv1 "antiphon.dev/antiphon/v1"
)

const (
	socketVariable = "ANTIPHON_SOCKET"
	socketLimit    = 107 // bytes of a Unix socket's path
	prefetchFrom   = 8
	unsaid         = math.MinInt
)

var namePattern = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)

// Agent is a named set of capabilities. Making one does no I/O; Handle adds to it before Run or Main is called, once.
type Agent struct {
	name        string
	concurrency int
	prefetch    int
	version     string
	labels      map[string]string
	grace       time.Duration
	socket      string
	log         *slog.Logger
	handlers    map[capabilityKey]*handler
	order       []*antiphonv1.Capability
	mistakes    []error
}

// AgentOption changes what an agent is or how it runs.
type AgentOption func(*Agent)

// WithConcurrency bounds the attempts at work at once, 1 to 10,000; 32 by default.
func WithConcurrency(most int) AgentOption { return func(a *Agent) { a.concurrency = most } }

// WithPrefetch bounds the attempts that the sidecar may hold ready beyond the concurrency. By default it is as large, and 0
// below 8: a slow, scarce agent should not hoard what another instance could begin.
func WithPrefetch(most int) AgentOption { return func(a *Agent) { a.prefetch = most } }

// WithVersion is that of the agent's own code, for people.
func WithVersion(version string) AgentOption { return func(a *Agent) { a.version = version } }

// WithLabels are what constraints of a graph match.
func WithLabels(labels map[string]string) AgentOption {
	return func(a *Agent) { a.labels = maps.Clone(labels) }
}

// WithGrace is how long attempts may go on once the agent is to stop; 30 s by default.
func WithGrace(grace time.Duration) AgentOption { return func(a *Agent) { a.grace = grace } }

// WithSocket is the path of the sidecar's socket; the variable ANTIPHON_SOCKET by default.
func WithSocket(path string) AgentOption { return func(a *Agent) { a.socket = path } }

// WithLogger is where the agent and its tasks log; slog.Default() by default. No payload is ever logged.
func WithLogger(log *slog.Logger) AgentOption { return func(a *Agent) { a.log = log } }

// NewAgent makes an agent. The name has 1 to 63 lowercase letters, digits and inner hyphens; mistakes are errors of Run.
func NewAgent(name string, options ...AgentOption) *Agent {
	agent := &Agent{
		name: name, concurrency: 32, prefetch: unsaid, grace: 30 * time.Second,
		handlers: map[capabilityKey]*handler{},
	}
	for _, option := range options {
		option(agent)
	}
	if !namePattern.MatchString(name) {
		agent.mistakes = append(agent.mistakes, fmt.Errorf(
			"agent name %q must be 1-63 lowercase letters, digits and inner hyphens", name))
	}
	if agent.concurrency < 1 || agent.concurrency > 10_000 {
		agent.mistakes = append(agent.mistakes, fmt.Errorf("concurrency %d must be 1 to 10,000", agent.concurrency))
	}
	if agent.prefetch == unsaid {
		agent.prefetch = 0
		if agent.concurrency >= prefetchFrom {
			agent.prefetch = agent.concurrency
		}
	}
	if agent.prefetch < 0 || agent.prefetch > 10_000 {
		agent.mistakes = append(agent.mistakes, fmt.Errorf("prefetch %d must be 0 to 10,000", agent.prefetch))
	}
	return agent
}

// Describe is what the agent announces.
func (a *Agent) Describe() *antiphonv1.AgentDescription {
	return &antiphonv1.AgentDescription{
		Name:         a.name,
		Version:      a.version,
		Capabilities: a.order,
		Concurrency:  uint32(a.concurrency),
		Prefetch:     uint32(a.prefetch),
		Labels:       a.labels,
		Runtime:      "go/" + Version,
	}
}

// Run works until the context is done, then drains: it finishes what was accepted, takes no more, and returns nil, at the latest
// after the grace. A sidecar that is away is dialled for ever. The error is an *Error: NotSetUp with everything that is wrong
// with the agent, or the sidecar's refusal.
func (a *Agent) Run(ctx context.Context) error {
	path := a.socket
	if path == "" {
		path = os.Getenv(socketVariable)
	}
	return a.RunAt(ctx, path)
}

// RunAt is Run at the sidecar's socket of this path.
func (a *Agent) RunAt(ctx context.Context, path string) error {
	if len(a.mistakes) > 0 {
		return setupError("agent %s cannot run: %v", a.name, errors.Join(a.mistakes...))
	}
	if len(a.handlers) == 0 {
		return setupError("agent %s offers nothing; call antiphon.Handle", a.name)
	}
	if err := sendable(a.Describe()); err != nil {
		return setupError("agent %s cannot be announced: %v", a.name, err)
	}
	// From 4 MiB on a sidecar refuses the message without a word of ours, as it does what may pass.
	if size := proto.Size(a.Describe()); size > announcedBytes {
		return setupError("agent %s cannot be announced: its %d capabilities have %d bytes with their schemas and descriptions, "+
			"larger than %d bytes; shorten them, or offer some of them in another agent", a.name, len(a.order), size, announcedBytes)
	}
	if path == "" {
		return setupError("%s is not set; start the agent through its sidecar: antiphon sidecar run -- ./%s",
			socketVariable, a.name)
	}
	if len(path) > socketLimit {
		return setupError("the socket path %s is longer than %d bytes; choose a shorter folder", path, socketLimit)
	}
	if a.log == nil {
		a.log = slog.Default()
	}
	return newWorker(path, a).run(ctx)
}

// Main is the whole life of an agent process. SIGTERM or SIGINT drains, a second one stops at once. It never returns: the status
// is 0 when drained, 2 when the agent is not set up, 1 when the sidecar refuses it, 130 when stopped at once; the error is one
// line on standard error.
func (a *Agent) Main() {
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGTERM, os.Interrupt)
	ctx, drain := context.WithCancel(context.Background())
	go func() {
		<-signals
		drain()
		<-signals
		os.Exit(130)
	}()
	err := a.Run(ctx)
	if err == nil {
		os.Exit(0)
	}
	fmt.Fprintf(os.Stderr, "%s: %v\n", a.name, err)
	if errors.Is(err, NotSetUp) {
		os.Exit(2)
	}
	os.Exit(1)
}
