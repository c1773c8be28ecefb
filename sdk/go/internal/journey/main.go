// Journey is a client that does all a client can do, once, and prints what came of it as JSON. It connects as its profile says;
// the agent worker (internal/worker) must be there.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"antiphon.dev/antiphon"
	antiphonv1 "antiphon.dev/antiphon/v1"
)

func main() {
	ctx, end := context.WithTimeout(context.Background(), time.Minute)
	defer end()
	report, err := journey(ctx)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	if err := json.NewEncoder(os.Stdout).Encode(report); err != nil {
		panic(err)
	}
}

func oneTask(name, capability string, input any) *antiphonv1.Graph {
	return &antiphonv1.Graph{
		Name: name, Version: "1",
		Tasks:  []*antiphonv1.GraphTask{{Id: "t", Capability: capability, Input: antiphon.JSON(input)}},
		Output: antiphon.JSON("${tasks.t.output}"),
	}
}

func journey(ctx context.Context) (map[string]any, error) {
	client, err := antiphon.Connect()
	if err != nil {
		return nil, err
	}
	defer client.Close()
	report := map[string]any{}
	for _, step := range []func(context.Context, *antiphon.Client, map[string]any) error{
		graphs, runs, stream, refusals, shared, registry,
	} {
		if err := step(ctx, client, report); err != nil {
			return nil, err
		}
	}
	return report, nil
}

func graphs(ctx context.Context, client *antiphon.Client, report map[string]any) error {
	graph := oneTask("doubling", "work.double@1", "${input}")
	wrong := oneTask("wrong", "work.double@1", "${nowhere}")
	found, err := client.ValidateGraph(ctx, wrong)
	if err != nil {
		return err
	}
	report["mistakes"] = len(found.GetMistakes())
	_, err = client.RegisterGraph(ctx, wrong)
	var refusal *antiphon.Error
	report["invalid"] = errors.Is(err, antiphon.GraphInvalid) && errors.As(err, &refusal) && len(refusal.Violations) > 0
	if _, err := client.RegisterGraph(ctx, graph); err != nil {
		return err
	}
	names := []string{}
	for one, err := range client.ListGraphs(ctx, "") {
		if err != nil {
			return err
		}
		names = append(names, one.GetGraph().GetName())
	}
	report["graphs"] = names
	return nil
}

func runs(ctx context.Context, client *antiphon.Client, report map[string]any) error {
	run, err := client.Submit(ctx, antiphon.Registered("doubling"), 21, antiphon.Wait(), antiphon.RequestID("once"))
	if err != nil {
		return err
	}
	if report["doubled"], err = antiphon.OutputOf[int](run); err != nil {
		return err
	}
	again, err := client.Submit(ctx, antiphon.Registered("doubling"), 21, antiphon.RequestID("once"), antiphon.Wait())
	if err != nil {
		return err
	}
	report["same_run"] = again.GetRunId() == run.GetRunId()

	kinds := 0
	last := uint64(0)
	for event, err := range client.Watch(ctx, run.GetRunId(), 0) {
		if err != nil {
			return err
		}
		if event.GetEventSeq() <= last {
			return errors.New("events out of order")
		}
		last = event.GetEventSeq()
		kinds++
	}
	report["events"] = kinds > 2
	ended, err := client.WaitForRun(ctx, run.GetRunId())
	if err != nil {
		return err
	}
	report["ended"] = ended.GetState().String()
	told, err := client.Explain(ctx, run.GetRunId(), "t", 0)
	if err != nil {
		return err
	}
	report["explained"] = told.GetAttempts()[0].GetDecision().GetChosen() != ""
	attempts := 0
	for _, err := range client.ListAttempts(ctx, run.GetRunId(), "t", 0) {
		if err != nil {
			return err
		}
		attempts++
	}
	report["attempts"] = attempts

	large := strings.Repeat("x", 100_000)
	kept, err := client.Submit(ctx, antiphon.Inline(oneTask("large", "work.blob@1", "${input}")), large, antiphon.Wait())
	if err != nil {
		return err
	}
	if report["blob"], err = antiphon.OutputOf[bool](kept); err != nil {
		return err
	}
	data, err := client.DownloadPayload(ctx, kept.GetInput())
	if err != nil {
		return err
	}
	report["downloaded"] = len(data)

	failing := map[string]any{"kind": "permanent", "times": 9}
	bad, err := client.Submit(ctx, antiphon.Inline(oneTask("bad", "work.fail@1", failing)), nil, antiphon.Wait())
	if err != nil {
		return err
	}
	_, err = antiphon.OutputOf[any](bad)
	var failed *antiphon.RunFailed
	report["failed"] = errors.As(err, &failed) && failed.State == antiphonv1.RunState_RUN_STATE_FAILED

	held, err := client.Submit(ctx, antiphon.Inline(oneTask("held", "work.hold@1", "/nonexistent/gate")), nil)
	if err != nil {
		return err
	}
	cancelled, err := client.Cancel(ctx, held.GetRunId(), "enough")
	if err != nil {
		return err
	}
	report["cancelled"] = cancelled.GetState().String()
	return nil
}

func stream(ctx context.Context, client *antiphon.Client, report map[string]any) error {
	submitter := client.Submitter(50)
	answers := []*antiphon.Submission{}
	for number := range 200 {
		one, err := submitter.Submit(ctx, antiphon.Registered("doubling@1"), number, antiphon.Wait())
		if err != nil {
			return err
		}
		answers = append(answers, one)
	}
	refused, err := submitter.Submit(ctx, antiphon.Registered("nothing"), nil)
	if err != nil {
		return err
	}
	sum := 0
	for _, one := range answers {
		run, err := one.Answer(ctx)
		if err != nil {
			return err
		}
		doubled, err := antiphon.OutputOf[int](run)
		if err != nil {
			return err
		}
		sum += doubled
	}
	_, err = refused.Answer(ctx)
	report["sum"], report["no_graph"] = sum, errors.Is(err, antiphon.GraphNotFound)
	if err := submitter.Close(ctx); err != nil {
		return err
	}
	listed := 0
	for _, err := range client.ListRuns(ctx, antiphon.RunFilter{Graph: "doubling", PageSize: 60}) {
		if err != nil {
			return err
		}
		listed++
	}
	report["listed"] = listed
	return nil
}

func refusals(ctx context.Context, client *antiphon.Client, report map[string]any) error {
	_, err := client.GetRun(ctx, "nowhere")
	var refusal *antiphon.Error
	if !errors.As(err, &refusal) {
		return fmt.Errorf("no refusal: %w", err)
	}
	report["not_found"] = []string{string(refusal.Reason), string(refusal.Remedy), refusal.Code.String(), refusal.Metadata["run_id"]}
	_, err = client.DrainAgent(ctx, "worker")
	report["denied"] = errors.Is(err, antiphon.AccessDenied)
	over, end := context.WithCancel(ctx)
	end()
	_, err = client.GetRun(over, "nowhere")
	report["own_context"] = errors.Is(err, context.Canceled)
	return nil
}

func shared(ctx context.Context, client *antiphon.Client, report map[string]any) error {
	shared := client.Shared()
	_, from, err := shared.List(ctx, "team/")
	if err != nil {
		return err
	}
	claim, err := shared.Claim(ctx, "team")
	if err != nil {
		return err
	}
	_, err = shared.Claim(ctx, "team", antiphon.WaitUpTo(0))
	report["held"] = errors.Is(err, antiphon.ClaimHeld)
	for number := range 3 {
		if _, err := shared.Put(claim, fmt.Sprintf("team/%d", number), number, antiphon.UnderClaim(claim)); err != nil {
			return err
		}
	}
	if err := claim.Release(); err != nil {
		return err
	}
	_, err = shared.Put(ctx, "team/0", 9, antiphon.UnderClaim(claim))
	report["fenced"] = errors.Is(err, antiphon.ClaimLost)
	seen := []string{}
	for event, err := range shared.Watch(ctx, "team/", antiphon.FromRevision(from)) {
		if err != nil {
			return err
		}
		if seen = append(seen, event.GetPut().GetKey()); len(seen) == 3 {
			break
		}
	}
	report["seen"] = seen
	entry, err := shared.Get(ctx, "team/2")
	if err != nil {
		return err
	}
	report["value"], err = antiphon.EntryValue[int](entry)
	return err
}

func registry(ctx context.Context, client *antiphon.Client, report map[string]any) error {
	agents := []string{}
	for one, err := range client.ListAgents(ctx) {
		if err != nil {
			return err
		}
		agents = append(agents, one.GetName())
	}
	report["agents"] = agents
	offered := 0
	for _, err := range client.ListCapabilities(ctx) {
		if err != nil {
			return err
		}
		offered++
	}
	report["offered"] = offered
	for agent, err := range client.WatchAgents(ctx) {
		if err != nil {
			return err
		}
		report["watched"] = agent.GetName()
		break
	}
	decision, err := client.CheckPolicy(ctx, &antiphonv1.CheckRequest{Action: "submit", ResourceId: "doubling"}, nil)
	if err != nil {
		return err
	}
	report["allowed"] = decision.GetDecision().GetPermit()
	return nil
}
