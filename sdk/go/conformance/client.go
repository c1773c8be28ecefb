package main

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"
	"unicode"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"antiphon.dev/antiphon"
	"antiphon.dev/antiphon/internal/conformancev1"
	antiphonv1 "antiphon.dev/antiphon/v1"
)

const lineBytes = 4 << 20

// client answers a line for each line, until there are no more.
func client() {
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, lineBytes)
	var connected *antiphon.Client
	var settings *conformancev1.ClientSettings
	for lines.Scan() {
		var request conformancev1.ExecutorRequest
		response := &conformancev1.ExecutorResponse{}
		err := protojson.Unmarshal(lines.Bytes(), &request)
		response.Id = request.GetId()
		if err == nil && (connected == nil || !proto.Equal(settings, request.GetClient())) {
			if connected != nil {
				connected.Close()
			}
			settings = request.GetClient()
			connected, err = connect(settings)
		}
		var answer *conformancev1.ClientAnswer
		if err == nil {
			answer, err = ask(connected, request.GetCall())
		}
		var refusal *antiphon.Error
		switch {
		case err == nil:
			response.Outcome = &conformancev1.ExecutorResponse_Answer{Answer: answer}
		case errors.As(err, &refusal):
			response.Outcome = &conformancev1.ExecutorResponse_Error{Error: errorOf(refusal)}
		default:
			response.Outcome = &conformancev1.ExecutorResponse_Broken{Broken: err.Error()}
		}
		line, err := protojson.Marshal(response)
		if err != nil {
			panic(err)
		}
		fmt.Println(string(line))
	}
	if connected != nil {
		connected.Close()
	}
	if err := lines.Err(); err != nil {
		panic(err)
	}
}

func connect(settings *conformancev1.ClientSettings) (*antiphon.Client, error) {
	options := []antiphon.ClientOption{
		antiphon.WithAddresses(settings.GetAddresses()...),
		antiphon.WithCredentials(antiphon.CredentialFiles(
			settings.GetCertificateFile(), settings.GetKeyFile(), settings.GetBundleFile())),
	}
	if settings.GetTimeout() != nil {
		options = append(options, antiphon.WithTimeout(settings.GetTimeout().AsDuration()))
	}
	return antiphon.Connect(options...)
}

func errorOf(refusal *antiphon.Error) *conformancev1.ClientError {
	made := &conformancev1.ClientError{
		Reason: string(refusal.Reason), Remedy: string(refusal.Remedy), Code: canonical(refusal.Code.String()),
		Metadata: refusal.Metadata,
	}
	if refusal.Reason == antiphon.Unavailable || refusal.Reason == antiphon.NotSetUp {
		made.Reason = "" // no server said it
	}
	for _, violation := range refusal.Violations {
		made.Fields = append(made.Fields, violation.Field)
	}
	if refusal.RetryAfter > 0 {
		made.RetryAfter = durationpb.New(refusal.RetryAfter)
	}
	return made
}

// canonical spells NotFound as NOT_FOUND.
func canonical(code string) string {
	if code == "Canceled" {
		return "CANCELLED"
	}
	var name strings.Builder
	for at, letter := range code {
		if at > 0 && unicode.IsUpper(letter) {
			name.WriteByte('_')
		}
		name.WriteRune(unicode.ToUpper(letter))
	}
	return name.String()
}

func ask(client *antiphon.Client, call *conformancev1.ClientCall) (*conformancev1.ClientAnswer, error) {
	ctx, end := context.WithTimeout(context.Background(), time.Minute)
	defer end()
	answer := &conformancev1.ClientAnswer{}
	switch kind := call.GetKind().(type) {
	case *conformancev1.ClientCall_Submit:
		var options []antiphon.SubmitOption
		if kind.Submit.GetWait() {
			options = append(options, antiphon.Wait())
		}
		if kind.Submit.GetRequestId() != "" {
			options = append(options, antiphon.RequestID(kind.Submit.GetRequestId()))
		}
		var input any
		if text := kind.Submit.GetInputJson(); text != "" {
			input = json.RawMessage(text)
		}
		return answerOf(client.Submit(ctx, antiphon.Registered(kind.Submit.GetGraph()), input, options...))
	case *conformancev1.ClientCall_SubmitMany:
		return submitMany(ctx, client, kind.SubmitMany)
	case *conformancev1.ClientCall_GetRun:
		return answerOf(client.GetRun(ctx, kind.GetRun.GetRunId()))
	case *conformancev1.ClientCall_Wait:
		return answerOf(client.WaitForRun(ctx, kind.Wait.GetRunId()))
	case *conformancev1.ClientCall_Watch:
		for event, err := range client.Watch(ctx, kind.Watch.GetRunId(), 0) {
			if err != nil {
				return nil, err
			}
			answer.EventSeqs = append(answer.EventSeqs, uint32(event.GetEventSeq()))
		}
	case *conformancev1.ClientCall_WatchPartials:
		for event, err := range client.Watch(ctx, kind.WatchPartials.GetRunId(), 0, antiphon.WithPartials()) {
			if err != nil {
				return nil, err
			}
			if event.GetEventSeq() > 0 {
				answer.EventSeqs = append(answer.EventSeqs, uint32(event.GetEventSeq()))
			}
			if piece := event.GetPartial(); piece != nil {
				answer.Names = append(answer.Names, cmp.Or(piece.GetWithheld(), piece.GetText(), string(piece.GetJson())))
			}
		}
	case *conformancev1.ClientCall_Signal:
		signal := antiphon.Signal{Name: kind.Signal.GetSignal(), RequestID: kind.Signal.GetRequestId()}
		if text := kind.Signal.GetDataJson(); text != "" {
			signal.Data = json.RawMessage(text)
		}
		key, err := client.Signal(ctx, kind.Signal.GetRunId(), signal)
		answer.Names = []string{key.GetTaskId()}
		return answer, err
	case *conformancev1.ClientCall_Pause:
		return answerOf(client.Pause(ctx, kind.Pause.GetRunId(), ""))
	case *conformancev1.ClientCall_Resume:
		return answerOf(client.Resume(ctx, kind.Resume.GetRunId(), ""))
	case *conformancev1.ClientCall_CancelTask:
		options := optionsOf(kind.CancelTask)
		if kind.CancelTask.GetDependents() {
			options = append(options, antiphon.Dependents())
		}
		return taskAnswer(client.CancelTask(ctx, kind.CancelTask.GetRunId(), kind.CancelTask.GetTaskId(), options...))
	case *conformancev1.ClientCall_RetryTask:
		task := kind.RetryTask
		return taskAnswer(client.RetryTask(ctx, task.GetRunId(), task.GetTaskId(), optionsOf(task)...))
	case *conformancev1.ClientCall_ResolveTask:
		task := kind.ResolveTask
		output := json.RawMessage(cmp.Or(task.GetOutputJson(), "null"))
		return taskAnswer(client.ResolveTask(ctx, task.GetRunId(), task.GetTaskId(), output, optionsOf(task)...))
	case *conformancev1.ClientCall_FailTask:
		task := kind.FailTask
		return taskAnswer(client.FailTask(ctx, task.GetRunId(), task.GetTaskId(), task.GetFailure(), optionsOf(task)...))
	case *conformancev1.ClientCall_Cancel:
		return answerOf(client.Cancel(ctx, kind.Cancel.GetRunId(), ""))
	case *conformancev1.ClientCall_ListRuns:
		for run, err := range client.ListRuns(ctx, filterOf(kind.ListRuns)) {
			if err != nil {
				return nil, err
			}
			answer.RunIds = append(answer.RunIds, run.GetRunId())
		}
	case *conformancev1.ClientCall_ListAgents:
		for agent, err := range client.ListAgents(ctx) {
			if err != nil {
				return nil, err
			}
			answer.Names = append(answer.Names, agent.GetName())
		}
	case *conformancev1.ClientCall_GetEntry:
		entry, err := client.Shared().Get(ctx, kind.GetEntry.GetKey())
		if err != nil {
			return nil, err
		}
		value, err := antiphon.EntryValue[json.RawMessage](entry)
		answer.OutputJson, answer.Revision = string(value), uint32(entry.GetRevision())
		return answer, err
	case *conformancev1.ClientCall_PutEntry:
		var options []antiphon.EntryOption
		if kind.PutEntry.ExpectedRevision != nil {
			options = append(options, antiphon.ExpectedRevision(kind.PutEntry.GetExpectedRevision()))
		}
		value := json.RawMessage(kind.PutEntry.GetValueJson())
		revision, err := client.Shared().Put(ctx, kind.PutEntry.GetKey(), value, options...)
		answer.Revision = uint32(revision)
		return answer, err
	default:
		return operate(ctx, client, call)
	}
	return answer, nil
}

func filterOf(call *conformancev1.ListRunsCall) antiphon.RunFilter {
	filter := antiphon.RunFilter{
		Graph: call.GetGraph(), Labels: call.GetLabels(), Parent: call.GetParent(), Failure: call.GetFailure(),
		PageSize: call.GetPageSize(), WaitingForPerson: call.GetWaitingForPerson(),
		WaitingForSignal: call.GetWaitingForSignal(),
	}
	for _, state := range call.GetStates() {
		filter.States = append(filter.States, antiphonv1.RunState(antiphonv1.RunState_value[state]))
	}
	if call.GetCreatedAfter() != nil {
		filter.CreatedAfter = call.GetCreatedAfter().AsTime()
	}
	if call.GetCreatedBefore() != nil {
		filter.CreatedBefore = call.GetCreatedBefore().AsTime()
	}
	return filter
}

// operate does what operators do.
func operate(
	ctx context.Context, client *antiphon.Client, call *conformancev1.ClientCall,
) (*conformancev1.ClientAnswer, error) {
	answer := &conformancev1.ClientAnswer{}
	switch kind := call.GetKind().(type) {
	case *conformancev1.ClientCall_Revoke:
		what := kind.Revoke
		if what.GetSerial() != "" {
			return answer, client.RevokeCertificate(ctx, what.GetSerial(), what.GetCause())
		}
		return answer, client.RevokeIdentity(ctx, what.GetKind(), what.GetName(), what.GetCause())
	case *conformancev1.ClientCall_ListRevocations:
		for revocation, err := range client.ListRevocations(ctx) {
			if err != nil {
				return nil, err
			}
			name := revocation.GetSerial()
			if identity := revocation.GetIdentity(); identity != nil {
				name = identity.GetKind() + "/" + identity.GetName()
			}
			answer.Names = append(answer.Names, name)
		}
	case *conformancev1.ClientCall_ActivatePolicies:
		what := kind.ActivatePolicies
		return policyAnswer(client.ActivatePolicies(ctx, what.GetFiles(), uint64(what.GetExpectedEpoch())))
	case *conformancev1.ClientCall_RollBackPolicies:
		what := kind.RollBackPolicies
		return policyAnswer(client.RollBackPolicies(ctx, uint64(what.GetEpoch()), uint64(what.GetExpectedEpoch())))
	case *conformancev1.ClientCall_GetPolicy:
		return policyAnswer(client.GetPolicy(ctx, uint64(kind.GetPolicy.GetEpoch())))
	case *conformancev1.ClientCall_ListPolicies:
		for set, err := range client.ListPolicies(ctx) {
			if err != nil {
				return nil, err
			}
			answer.EventSeqs = append(answer.EventSeqs, uint32(set.GetEpoch()))
		}
	case *conformancev1.ClientCall_ListAuditRecords:
		what := kind.ListAuditRecords
		request := &antiphonv1.ListRecordsRequest{
			Chain: what.GetChain(), NewestFirst: what.GetNewestFirst(), Action: what.GetAction(), StartTime: what.GetStartTime(),
		}
		if what.GetDenied() {
			request.Outcome = antiphonv1.AuditOutcome_AUDIT_OUTCOME_DENIED
		}
		for record, err := range client.ListAuditRecords(ctx, request) {
			if err != nil {
				return nil, err
			}
			answer.EventSeqs = append(answer.EventSeqs, uint32(record.GetSeq()))
			answer.Names = append(answer.Names, record.GetAction())
		}
	case *conformancev1.ClientCall_GetAuditCheckpoint:
		checkpoint, err := client.GetAuditCheckpoint(ctx)
		for _, head := range checkpoint.GetHeads() {
			answer.Names = append(answer.Names, head.GetChain())
		}
		return answer, err
	default:
		return nil, errors.New("a call of a kind that this executor does not know")
	}
	return answer, nil
}

func policyAnswer(set *antiphonv1.PolicySet, err error) (*conformancev1.ClientAnswer, error) {
	answer := &conformancev1.ClientAnswer{Revision: uint32(set.GetEpoch())}
	for _, file := range set.GetFiles() {
		answer.Names = append(answer.Names, file.GetName())
	}
	return answer, err
}

func optionsOf(task *conformancev1.TaskCall) []antiphon.TaskOption {
	return []antiphon.TaskOption{antiphon.Member(task.GetMember()), antiphon.Because(task.GetReason())}
}

func taskAnswer(task *antiphonv1.Task, err error) (*conformancev1.ClientAnswer, error) {
	if err != nil {
		return nil, err
	}
	answer := &conformancev1.ClientAnswer{State: task.GetState().String()}
	if task.GetOutput() != nil {
		value, err := antiphon.Decode[json.RawMessage](task.GetOutput())
		if err != nil {
			return nil, err
		}
		answer.OutputJson = string(value)
	}
	return answer, nil
}

func answerOf(run *antiphonv1.Run, err error) (*conformancev1.ClientAnswer, error) {
	if err != nil {
		return nil, err
	}
	answer := &conformancev1.ClientAnswer{RunId: run.GetRunId(), State: run.GetState().String()}
	if run.GetOutput() != nil {
		value, err := antiphon.Decode[json.RawMessage](run.GetOutput())
		if err != nil {
			return nil, err
		}
		answer.OutputJson = string(value)
	}
	return answer, nil
}

func submitMany(
	ctx context.Context, client *antiphon.Client, call *conformancev1.SubmitManyCall,
) (*conformancev1.ClientAnswer, error) {
	submitter := client.Submitter(1000)
	var pending []*antiphon.Submission
	for number := range call.GetCount() {
		one, err := submitter.Submit(ctx, antiphon.Registered(call.GetGraph()), nil,
			antiphon.RequestID(fmt.Sprintf("many-%d", number+1)), antiphon.Wait())
		if err != nil {
			return nil, err
		}
		pending = append(pending, one)
	}
	answer := &conformancev1.ClientAnswer{}
	for _, one := range pending {
		run, err := one.Answer(ctx)
		if err != nil {
			return nil, err
		}
		answer.RunIds = append(answer.RunIds, run.GetRunId())
	}
	return answer, submitter.Close(ctx)
}
