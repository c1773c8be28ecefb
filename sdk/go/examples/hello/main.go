// An agent that greets: antiphon sidecar run -- ./hello
package main

import "antiphon.dev/antiphon"

type Person struct {
	Name string `json:"name"`
}

func greet(task *antiphon.Task, person Person) (string, error) {
	return "Hello, " + person.Name + "!", nil
}

func main() {
	agent := antiphon.NewAgent("hello")
	antiphon.Handle(agent, "hello.greet@1", greet, antiphon.Pure, antiphon.Idempotent)
	agent.Main()
}
