// Package antiphon is the Go SDK of Antiphon, a gRPC mesh for AI agents: it writes agents and submits runs.
//
// An agent is a program whose functions handle tasks. Its sidecar starts it and gives it work:
//
//	agent := antiphon.NewAgent("hello")
//	antiphon.Handle(agent, "hello.greet@1", func(task *antiphon.Task, person Person) (string, error) {
//		return "Hello, " + person.Name + "!", nil
//	}, antiphon.Pure, antiphon.Idempotent)
//	agent.Main()
//
// A client submits runs over mutual TLS, as the profile that `antiphon dev` or `antiphon certs join` wrote:
//
//	client, err := antiphon.Connect()
//	…
//	defer client.Close()
//	run, err := client.Submit(ctx, antiphon.Registered("greet"), Person{"Ada"}, antiphon.Wait())
//	text, err := antiphon.OutputOf[string](run)
//
// Records are the messages of the contracts as they are (antiphon.dev/antiphon/v1). Two things go wrong, and they never mix:
// an [Error] is a call that was refused, with a [Reason] of the registry and a [Remedy]; a [Failure] is work that ran and did
// not succeed, and is part of the record. Both are found with errors.As, reasons also with errors.Is.
package antiphon

// Version is the version of this module, which is that of the whole of Antiphon.
const Version = "0.1.0"
