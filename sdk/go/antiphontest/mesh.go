// Package antiphontest starts a real mesh for users' own tests: `antiphon dev` in a folder of the test's own, a sidecar for each agent,
// and the agents themselves in the process of the test.
//
//	func TestGreeting(t *testing.T) {
//		mesh := antiphontest.New(t)
//		mesh.Run(newAgent())
//		run, err := mesh.Client().Submit(t.Context(), antiphon.Inline(graph), "Ada", antiphon.Wait())
//		…
//	}
//
// It needs the command antiphon on the path (in a checkout: pip install ./sdk/python .). A mesh is ready in about two seconds and
// takes another one for each agent, so tests may share one: made in a test, it serves its subtests. Nothing of it outlives the
// test, even when the test's process is killed.
package antiphontest

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"antiphon.dev/antiphon"
)

const (
	patience = time.Minute // in which whatever is started is there, or never will be
	// leash runs a command for as long as its own standard input is open, which is as long as the test's process lives.
	leash = `"$@" </dev/null & child=$!; exec >&- 2>&-; read -r _; kill "$child"; wait "$child"`
)

// Mesh is an orchestrator with its store, under the development policy, for one test.
type Mesh struct {
	t       testing.TB
	home    string
	address string
	client  *antiphon.Client
	looker  *antiphon.Client
}

// New starts a mesh that ends with the test. Without the command, or when it does not start, the test fails at once.
func New(t testing.TB) *Mesh {
	t.Helper()
	if _, err := exec.LookPath("antiphon"); err != nil {
		t.Fatal(`the command antiphon is not on the path; in a checkout of Antiphon, run: pip install ./sdk/python .`)
	}
	home, err := os.MkdirTemp("", "anti") // short: the paths of Unix sockets are at most 107 bytes
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(home); err != nil {
			t.Error(err)
		}
	})
	m := &Mesh{t: t, home: home}
	lines := m.start(nil, "dev", "--port", "0", "--data", filepath.Join(home, "dev"))
	_, after, served := strings.Cut(m.line(lines, "An orchestrator serves at "), "serves at ")
	m.address, _, _ = strings.Cut(after, ";")
	if !served {
		t.Fatal("antiphon dev said something else than where it serves")
	}
	m.client, m.looker = m.connect("default"), m.connect("operator")
	return m
}

// Client is a client of the mesh, which is closed with the test.
func (m *Mesh) Client() *antiphon.Client { return m.client }

// Operator is a client that may look after agents, which is closed with the test.
func (m *Mesh) Operator() *antiphon.Client { return m.looker }

// Home is the folder of the profiles "default" and "operator", for programs that find the mesh by ANTIPHON_HOME.
func (m *Mesh) Home() string { return m.home }

// Run has an agent work in this process, behind a sidecar of its own, until the test ends or stop is called, and returns once it gets
// work. Stop drains it, as SIGTERM does.
func (m *Mesh) Run(agent *antiphon.Agent) (stop func()) {
	m.t.Helper()
	name := agent.Describe().GetName()
	folder, err := os.MkdirTemp(m.home, "s")
	if err != nil {
		m.t.Fatal(err)
	}
	config := filepath.Join(folder, "sidecar.toml")
	if err := os.WriteFile(config, []byte("[[agent]]\nname = \""+name+"\"\n"), 0o600); err != nil {
		m.t.Fatal(err)
	}
	token := m.ask("certs", "token", "--profile", "operator", "--kind", "sidecar",
		"--name", name+"-"+filepath.Base(folder), "--agent", name, "--capability", "*")
	m.start([]string{"ANTIPHON_TOKEN=" + token},
		"sidecar", "run", "--config", config, "--state", filepath.Join(folder, "state"), "--run-folder", folder)
	ctx, drain := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- agent.RunAt(ctx, filepath.Join(folder, name+".sock")) }()
	stop = sync.OnceFunc(func() {
		drain()
		if err := <-ended; err != nil {
			m.t.Errorf("agent %s ended: %v", name, err)
		}
	})
	m.t.Cleanup(stop)
	m.attached(name, ended)
	return stop
}

// attached returns once an agent has a place for work.
func (m *Mesh) attached(name string, ended chan error) {
	m.t.Helper()
	for end := time.Now().Add(patience); time.Now().Before(end); {
		found, err := m.client.GetAgent(m.t.Context(), name)
		if err != nil && !errors.Is(err, antiphon.AgentNotFound) {
			m.t.Fatal(err)
		}
		for _, instance := range found.GetInstances() {
			if instance.GetSlots() > 0 {
				return
			}
		}
		select {
		case err := <-ended:
			ended <- nil // told here
			m.t.Fatalf("agent %s ended: %v", name, err)
		case <-time.After(20 * time.Millisecond):
		}
	}
	m.t.Fatalf("agent %s was not given a place for work within %s", name, patience)
}

func (m *Mesh) connect(profile string) *antiphon.Client {
	m.t.Helper()
	credentials := antiphon.CredentialFolder(filepath.Join(m.home, "profiles", profile, "credential"))
	client, err := antiphon.Connect(antiphon.WithAddresses(m.address), antiphon.WithCredentials(credentials))
	if err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(client.Close)
	return client
}

// start runs a command of antiphon until the test ends, and gives the lines it writes. What went wrong is in the test's log.
func (m *Mesh) start(environ []string, arguments ...string) <-chan string {
	m.t.Helper()
	command := exec.Command("sh", append([]string{"-c", leash, "sh", "antiphon"}, arguments...)...)
	command.Env = append(append(os.Environ(), "ANTIPHON_HOME="+m.home), environ...)
	var said bytes.Buffer // read only once the command has ended
	command.Stderr = &said
	hold, err := command.StdinPipe()
	if err != nil {
		m.t.Fatal(err)
	}
	out, err := command.StdoutPipe()
	if err != nil {
		m.t.Fatal(err)
	}
	if err := command.Start(); err != nil {
		m.t.Fatal(err)
	}
	lines, read := make(chan string, 64), make(chan struct{})
	go func() {
		defer close(read)
		defer close(lines)
		for scanner := bufio.NewScanner(out); scanner.Scan(); {
			select {
			case lines <- scanner.Text():
			default: // nobody reads any more
			}
		}
		_, _ = io.Copy(io.Discard, out) // a line that is too long
	}()
	m.t.Cleanup(func() {
		hold.Close()
		<-read
		_ = command.Wait() // it ends by our signal
		if m.t.Failed() && said.Len() > 0 {
			m.t.Logf("antiphon %s: %s", arguments[0], said.String())
		}
	})
	return lines
}

// line is the first that begins so.
func (m *Mesh) line(lines <-chan string, beginning string) string {
	m.t.Helper()
	limit := time.After(patience)
	for {
		select {
		case line, more := <-lines:
			if strings.HasPrefix(line, beginning) {
				return line
			}
			if !more {
				m.t.Fatalf("antiphon ended before it said: %s", beginning)
			}
		case <-limit:
			m.t.Fatalf("antiphon did not say within %s: %s", patience, beginning)
		}
	}
}

// ask runs a command of antiphon to its end, and gives what it writes.
func (m *Mesh) ask(arguments ...string) string {
	m.t.Helper()
	ctx, end := context.WithTimeout(m.t.Context(), patience)
	defer end()
	command := exec.CommandContext(ctx, "antiphon", arguments...)
	command.Env = append(os.Environ(), "ANTIPHON_HOME="+m.home)
	var said bytes.Buffer
	command.Stderr = &said
	out, err := command.Output()
	if err != nil {
		m.t.Fatalf("antiphon %s: %v: %s", strings.Join(arguments[:2], " "), err, said.String())
	}
	return strings.TrimSpace(string(out))
}
