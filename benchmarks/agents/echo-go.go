// The measured agent in Go: answers with its input, as benchmarks/agent.py does.
package main

import "antiphon.dev/antiphon"

// Message is input and output.
type Message struct {
	Text string `json:"text"`
}

func echo(task *antiphon.Task, message Message) (Message, error) { return message, nil }

func main() {
	// Slots are no bottleneck here: as many as the largest number of runs in flight, and as many again on their way.
	agent := antiphon.NewAgent("bench-go", antiphon.WithConcurrency(1000), antiphon.WithPrefetch(1000))
	antiphon.Handle(agent, "echo-go@1", echo, antiphon.Pure)
	agent.Main()
}
