package antiphon_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"time"

	"antiphon.dev/antiphon"
	antiphonv1 "antiphon.dev/antiphon/v1"
)

type Page struct {
	Address string `json:"address" description:"Where it is."`
	Author  string `json:"author,omitempty" labels:"pii"`
}

type Summary struct {
	Text  string   `json:"text"`
	Words int      `json:"words"`
	Tags  []string `json:"tags"`
}

// A handler has its task: a context, with progress, calls, shared context and a logger.
func ExampleHandle() {
	agent := antiphon.NewAgent("summarizer", antiphon.WithConcurrency(4))
	antiphon.Handle(agent, "page.summarize@1", func(task *antiphon.Task, page Page) (Summary, error) {
		text, err := antiphon.Call[string](task, "page.read@1", page.Address)
		if err != nil {
			return Summary{}, err
		}
		if text == "" {
			return Summary{}, antiphon.Permanent("the page is empty").WithCode("empty")
		}
		task.Progress(0.5, "read")
		task.Logger().Info("summarizing")
		return Summary{Text: text[:1], Words: 1}, nil
	}, antiphon.Reads, antiphon.Description("Summarizes a page."), antiphon.Clearance("pii"))
	agent.Main()
}

// A handler that may take its task apart answers a value, or a graph that is to give it.
func ExampleAnswer() {
	agent := antiphon.NewAgent("reporter")
	antiphon.Handle(agent, "report.write@1", func(task *antiphon.Task, question string) (antiphon.Answer[string], error) {
		if len(question) < 20 {
			return antiphon.Answer[string]{Value: "That is quickly said."}, nil
		}
		graph := &antiphonv1.Graph{
			Name: "answer",
			Tasks: []*antiphonv1.GraphTask{
				{Id: "find", Capability: "web.search@1", Input: antiphon.JSON("${input}")},
				{Id: "text", Capability: "text.summarize@1", Input: antiphon.JSON("${tasks.find.output}")},
			},
			Output: antiphon.JSON("${tasks.text.output}"),
		}
		return antiphon.Answer[string]{Subgraph: &antiphon.Subgraph{Graph: graph, Input: question}}, nil
	})
	agent.Main()
}

// A client submits a run of a graph of its own, follows it, and reads what it answered.
func ExampleConnect() {
	client, err := antiphon.Connect()
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	ctx, end := context.WithTimeout(context.Background(), time.Minute)
	defer end()
	graph := &antiphonv1.Graph{
		Name: "summary",
		Tasks: []*antiphonv1.GraphTask{{
			Id: "summarize", Capability: "page.summarize@1",
			Input: antiphon.JSON(map[string]string{"address": "${input.address}"}),
		}},
		Output: antiphon.JSON("${tasks.summarize.output}"),
	}
	run, err := client.Submit(ctx, antiphon.Inline(graph), Page{Address: "/index"}, antiphon.RequestID("index-2026-03-01"))
	if errors.Is(err, antiphon.PolicyDenied) {
		log.Fatal("ask an operator: ", err)
	} else if err != nil {
		log.Fatal(err)
	}
	for event, err := range client.Watch(ctx, run.GetRunId(), 0) {
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(event.GetEventSeq(), event.GetTaskState())
	}
	if run, err = client.GetRun(ctx, run.GetRunId()); err != nil {
		log.Fatal(err)
	}
	summary, err := antiphon.OutputOf[Summary](run)
	fmt.Println(summary, err)
}

// A claim is a context that ends when it is lost; what is written names it.
func ExampleSharedContext_Claim() {
	client, err := antiphon.Connect()
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	shared := client.Shared()
	claim, err := shared.Claim(context.Background(), "plan", antiphon.WaitUpTo(time.Minute))
	if err != nil {
		log.Fatal(err)
	}
	defer claim.Release()
	if _, err := shared.Put(claim, "plan", []string{"read", "sum up"}, antiphon.UnderClaim(claim)); err != nil {
		log.Print(err)
	}
}
