// Conformance is the Go SDK's executor: `conformance agent CONCURRENCY` or `conformance client`. What both must do is said in
// sdk/README.md and in the protos of antiphon.conformance.v1.
package main

import (
	"fmt"
	"os"
	"strconv"
)

func main() {
	switch {
	case len(os.Args) == 3 && os.Args[1] == "agent":
		concurrency, err := strconv.Atoi(os.Args[2])
		if err == nil {
			agent(concurrency)
		}
	case len(os.Args) == 2 && os.Args[1] == "client":
		client()
		return
	}
	fmt.Fprintln(os.Stderr, "usage: conformance agent CONCURRENCY | conformance client")
	os.Exit(2)
}
