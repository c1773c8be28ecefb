package antiphon

import (
	"strings"
	"testing"
	"time"
)

func TestAGraphIsReadFromTheJSONOfProtobuf(t *testing.T) {
	graph, err := GraphFromJSON([]byte(`{
		"name": "greet",
		"tasks": [{"id": "greet", "capability": "hello.greet@1", "input": "{\"name\": \"${input.name}\"}", "on_failure": "ON_FAILURE_SKIP"}],
		"deadline": "90s"
	}`))
	if err != nil {
		t.Fatal(err)
	}
	if task := graph.GetTasks()[0]; task.GetInput() != `{"name": "${input.name}"}` || task.GetOnFailure().String() != "ON_FAILURE_SKIP" {
		t.Error(task)
	}
	if graph.GetDeadline().AsDuration() != 90*time.Second {
		t.Error(graph)
	}
	for _, wrong := range []string{"", `{"name": 7}`, `{"nam": "greet"}`} {
		if _, err := GraphFromJSON([]byte(wrong)); err == nil || !strings.Contains(err.Error(), "this is no graph") {
			t.Errorf("%s: %v", wrong, err)
		}
	}
}
