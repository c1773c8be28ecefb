// A client that starts a run and sees it to its end, and decides what waits for a person.
package main

import (
	"context"
	"fmt"
	"log"
	"time"

	"antiphon.dev/antiphon"
	antiphonv1 "antiphon.dev/antiphon/v1"
)

// publish starts a run, sends it the signal that it waits for, follows it and gives what it answered.
func publish(ctx context.Context, client *antiphon.Client, title string) (string, error) {
	input := map[string]string{"title": title}
	run, err := client.Submit(ctx, antiphon.Registered("publish"), input) // with antiphon.Wait() it comes as it ended
	if err != nil {
		return "", err
	}
	if _, err := client.Signal(ctx, run.GetRunId(), antiphon.Signal{Name: "approved", Data: true}); err != nil {
		return "", err
	}
	for event, err := range client.Watch(ctx, run.GetRunId(), 0) {
		if err != nil {
			return "", err
		}
		fmt.Println(event.GetEventSeq(), event.GetKey().GetTaskId(), event.GetTaskState())
	}
	if run, err = client.WaitForRun(ctx, run.GetRunId()); err != nil {
		return "", err
	}
	return antiphon.OutputOf[string](run) // a *RunFailed unless it succeeded
}

// decide has every task that waits for a person succeed with an answer.
func decide(ctx context.Context, client *antiphon.Client, answer any) error {
	for run, err := range client.ListRuns(ctx, antiphon.RunFilter{WaitingForPerson: true}) {
		if err != nil {
			return err
		}
		escalated := []antiphonv1.TaskState{antiphonv1.TaskState_TASK_STATE_ESCALATED}
		for task, err := range client.ListTasks(ctx, &antiphonv1.ListTasksRequest{RunId: run.GetRunId(), States: escalated}) {
			if err != nil {
				return err
			}
			if _, err := client.ResolveTask(ctx, run.GetRunId(), task.GetKey().GetTaskId(), answer); err != nil {
				return err
			}
		}
	}
	return nil
}

func main() {
	client, err := antiphon.Connect() // the profile that `antiphon dev` or `antiphon certs join` wrote
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	ctx, end := context.WithTimeout(context.Background(), time.Minute)
	defer end()
	if err := decide(ctx, client, "as it is"); err != nil {
		log.Print(err)
	}
	fmt.Println(publish(ctx, client, "The mesh"))
}
