package antiphon

import (
	"context"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/status"

	antiphonv1 "antiphon.dev/antiphon/v1"
)

// limit is how long a test waits for anything; it is never waited out when all is well.
const limit = 20 * time.Second

var quiet = slog.New(slog.NewTextHandler(io.Discard, nil))

// sidecar is the other side of an agent's socket, made of the stubs. Each stream is handed over when its hello has come.
type sidecar struct {
	antiphonv1.UnimplementedAgentServiceServer
	t       *testing.T
	path    string
	streams chan *line
	server  *grpc.Server

	mutex   sync.Mutex
	refusal []Reason // of the next hellos, in order
}

// line is one stream: what the agent says comes out of heard, and end breaks it.
type line struct {
	t      *testing.T
	hello  *antiphonv1.AgentHello
	stream antiphonv1.AgentService_WorkServer
	heard  chan *antiphonv1.WorkRequest // closed when the agent has closed its side
	broken chan error
}

func newSidecar(t *testing.T) *sidecar {
	t.Helper()
	folder, err := os.MkdirTemp("", "anti")
	if err != nil {
		t.Fatal(err)
	}
	s := &sidecar{t: t, path: filepath.Join(folder, "a.sock"), streams: make(chan *line, 8)}
	t.Cleanup(func() {
		s.stop()
		os.RemoveAll(folder)
	})
	return s
}

func (s *sidecar) serve() *sidecar {
	listener, err := net.Listen("unix", s.path)
	if err != nil {
		s.t.Fatal(err)
	}
	s.server = grpc.NewServer()
	antiphonv1.RegisterAgentServiceServer(s.server, s)
	go s.server.Serve(listener)
	return s
}

func (s *sidecar) stop() {
	if s.server != nil {
		s.server.Stop()
	}
}

func (s *sidecar) refuse(reasons ...Reason) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	s.refusal = reasons
}

func (s *sidecar) Work(stream antiphonv1.AgentService_WorkServer) error {
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	s.mutex.Lock()
	if len(s.refusal) > 0 {
		reason := s.refusal[0]
		s.refusal = s.refusal[1:]
		s.mutex.Unlock()
		return refusalOf(reason, "refused", nil)
	}
	s.mutex.Unlock()
	welcome := &antiphonv1.AgentWelcome{Agent: first.GetHello().GetDescription().GetName(), Namespace: "test", InlineLimit: 65536}
	if err := stream.Send(&antiphonv1.WorkResponse{Welcome: welcome}); err != nil {
		return err
	}
	made := &line{s.t, first.GetHello(), stream, make(chan *antiphonv1.WorkRequest, 1024), make(chan error, 1)}
	go func() {
		defer close(made.heard)
		for {
			request, err := stream.Recv()
			if err != nil {
				return
			}
			made.heard <- request
		}
	}()
	s.streams <- made
	select {
	case err := <-made.broken:
		return err
	case <-stream.Context().Done():
		return nil
	}
}

// refusalOf is a status as a server of ours sends it.
func refusalOf(reason Reason, message string, retryAfter *errdetails.RetryInfo) error {
	made := status.New(registry[reason].code, message)
	info := &errdetails.ErrorInfo{Reason: string(reason), Domain: errorDomain, Metadata: map[string]string{"run_id": "r"}}
	if retryAfter != nil {
		made, _ = made.WithDetails(info, retryAfter)
	} else {
		made, _ = made.WithDetails(info)
	}
	return made.Err()
}

func (s *sidecar) next() *line { return receive(s.t, s.streams, "a stream with hello") }

func receive[Item any](t *testing.T, from <-chan Item, what string) Item {
	t.Helper()
	select {
	case item := <-from:
		return item
	case <-time.After(limit):
		t.Fatalf("%s did not come", what)
		panic("not reached")
	}
}

func (l *line) say(response *antiphonv1.WorkResponse) {
	l.t.Helper()
	if err := l.stream.Send(response); err != nil {
		l.t.Fatal(err)
	}
}

func (l *line) assign(capability string, number int, input string, change ...func(*antiphonv1.Assignment)) string {
	l.t.Helper()
	id := "run-1/task" + strconv.Itoa(number) + "/0/1"
	assignment := &antiphonv1.Assignment{
		AttemptId: id, AttemptToken: []byte("token"), IdempotencyKey: id[:len(id)-2], Capability: capability, Version: "1",
		Number: 1, Input: inline([]byte(input)), Traceparent: "00-11111111111111111111111111111111-2222222222222222-01",
	}
	for _, one := range change {
		one(assignment)
	}
	l.say(&antiphonv1.WorkResponse{Assignments: []*antiphonv1.Assignment{assignment}})
	return id
}

// until is the first thing the agent says that `want` finds.
func until[Found any](l *line, what string, want func(*antiphonv1.WorkRequest) (Found, bool)) Found {
	l.t.Helper()
	for {
		request := receive(l.t, l.heard, what)
		if request == nil {
			l.t.Fatalf("the stream ended before %s", what)
		}
		if found, ok := want(request); ok {
			return found
		}
	}
}

func (l *line) result(id string) *antiphonv1.Result {
	l.t.Helper()
	return until(l, "the outcome of "+id, func(request *antiphonv1.WorkRequest) (*antiphonv1.Result, bool) {
		for _, result := range request.GetResults() {
			if result.GetAttemptId() == id {
				return result, true
			}
		}
		return nil, false
	})
}

// running is an agent at work; stop drains it and gives what Run returned.
type running struct {
	t     *testing.T
	drain context.CancelFunc
	ended chan error
}

func start(t *testing.T, agent *Agent, at *sidecar) *running {
	t.Helper()
	agent.socket = at.path
	if agent.log == nil {
		agent.log = quiet
	}
	ctx, drain := context.WithCancel(context.Background())
	r := &running{t, drain, make(chan error, 1)}
	go func() { r.ended <- agent.Run(ctx) }()
	t.Cleanup(drain)
	return r
}

func (r *running) end() error { return receive(r.t, r.ended, "the end of the agent") }
