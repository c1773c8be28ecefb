package antiphontest

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"antiphon.dev/antiphon"
	antiphonv1 "antiphon.dev/antiphon/v1"
)

func greeter() *antiphon.Agent {
	agent := antiphon.NewAgent("greeter")
	antiphon.Handle(agent, "text.greet@1", func(task *antiphon.Task, name string) (string, error) {
		return "Hello, " + name + "!", task.Emit("Hello, ")
	}, antiphon.Pure)
	antiphon.Handle(agent, "text.greet_all@1", func(_ *antiphon.Task, names []string) (antiphon.Answer[[]string], error) {
		if len(names) == 0 {
			return antiphon.Answer[[]string]{Value: []string{}}, nil
		}
		return antiphon.Answer[[]string]{Subgraph: &antiphon.Subgraph{Input: names, Graph: &antiphonv1.Graph{
			Name: "all", Tasks: []*antiphonv1.GraphTask{{Id: "each", Capability: "text.greet@1", ForEach: "input"}},
			Output: antiphon.JSON("${tasks.each.output}"),
		}}}, nil
	})
	return agent
}

func TestAMeshRunsAnAgentOfTheTestAndAClientOfIt(t *testing.T) {
	mesh := New(t)
	stop := mesh.Run(greeter())
	graph := &antiphonv1.Graph{
		Name: "greet", Tasks: []*antiphonv1.GraphTask{{Id: "greet", Capability: "text.greet@1", Input: `"${input}"`}},
	}
	for _, name := range []string{"Ada", "Grace"} {
		run, err := mesh.Client().Submit(t.Context(), antiphon.Inline(graph), name, antiphon.Wait())
		if err != nil {
			t.Fatal(err)
		}
		output, err := antiphon.OutputOf[map[string]string](run)
		if err != nil || output["greet"] != "Hello, "+name+"!" {
			t.Error(output, err)
		}
	}
	graph.Tasks[0].Capability = "text.greet_all@1"
	for _, names := range [][]string{{"Ada", "Grace"}, {}} {
		run, err := mesh.Client().Submit(t.Context(), antiphon.Inline(graph), names, antiphon.Wait())
		if err != nil {
			t.Fatal(err)
		}
		output, err := antiphon.OutputOf[map[string][]string](run)
		if err != nil || len(output["greet"]) != len(names) || len(names) > 0 && output["greet"][1] != "Hello, Grace!" {
			t.Error(output, err)
		}
	}
	operate(t, mesh.Operator())
	if _, err := mesh.Operator().SuspendAgent(t.Context(), "greeter"); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(mesh.Home(), "profiles", "default", "profile.toml")); err != nil {
		t.Error(err)
	}
	stop()
}

// operate does what an operator does besides looking after agents.
func operate(t *testing.T, operator *antiphon.Client) {
	t.Helper()
	now, err := operator.GetPolicy(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	again, err := operator.RollBackPolicies(t.Context(), now.GetEpoch(), now.GetEpoch())
	if err != nil || again.GetEpoch() != now.GetEpoch()+1 {
		t.Error(again, err)
	}
	files := map[string]string{}
	for _, file := range now.GetFiles() {
		files[file.GetName()] = file.GetText()
	}
	if _, err := operator.ActivatePolicies(t.Context(), files, now.GetEpoch()); !errors.Is(err, antiphon.PolicyEpochChanged) {
		t.Error(err)
	}
	if err := operator.RevokeIdentity(t.Context(), "client", "nobody", "a test"); err != nil {
		t.Error(err)
	}
	var revoked []string
	for revocation, err := range operator.ListRevocations(t.Context()) {
		revoked = append(revoked, revocation.GetIdentity().GetName())
		if err != nil {
			t.Error(err)
		}
	}
	if !slices.Equal(revoked, []string{"nobody"}) {
		t.Error(revoked)
	}
	checkpoint, err := operator.GetAuditCheckpoint(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	found := false
	for _, head := range checkpoint.GetHeads() {
		for record, err := range operator.ListAuditRecords(t.Context(), &antiphonv1.ListRecordsRequest{Chain: head.GetChain()}) {
			if err != nil {
				t.Fatal(err)
			}
			found = found || strings.Contains(record.GetResource(), "nobody")
		}
	}
	if !found {
		t.Error("no audit record tells of the revocation")
	}
}

func TestNothingOfAMeshOutlivesItsTest(t *testing.T) {
	home := ""
	t.Run("one", func(t *testing.T) {
		mesh := New(t)
		mesh.Run(greeter())
		home = mesh.Home()
	})
	if _, err := os.Stat(home); !os.IsNotExist(err) {
		t.Errorf("%s is still there", home)
	}
	out, err := exec.Command("ps", "-eo", "args").Output()
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(out), home) {
		t.Error("a process is still there")
	}
}
