// An agent that adds up a review; the twin of report.py, from which its answers cannot be told.
package main

import (
	"cmp"
	"fmt"
	"os"
	"slices"

	"antiphon.dev/antiphon"
)

// totals is where shared context keeps the totals of the latest review, for whoever in the namespace asks.
const totals = "compliance/totals"

const mostAttention = 200

// bySeverity lists the kinds of licences, the most serious first.
var bySeverity = []string{"proprietary", "strong-copyleft", "unknown", "weak-copyleft", "permissive"}

// Review holds the parts of the members' outputs that count, each in the order of Packages.
type Review struct {
	Packages   []string `json:"packages"`
	Kinds      []string `json:"kinds"`
	Doubts     []string `json:"doubts"`
	Redactions []int    `json:"redactions"`
}

// Attention is a package that a person should look at.
type Attention struct {
	Package string `json:"package"`
	Why     string `json:"why"`
}

// Counts are what everybody may know.
type Counts struct {
	Packages   int            `json:"packages"`
	ByKind     map[string]int `json:"by_kind"`
	Redactions int            `json:"redactions"`
}

// Totals are those of a review, and which packages a person should look at, most serious first.
type Totals struct {
	Counts
	Attention []Attention `json:"attention"`
}

type flagged struct {
	severity int
	Attention
}

func writeReport(task *antiphon.Task, review Review) (Totals, error) {
	if err := note("report.write"); err != nil {
		return Totals{}, err
	}
	result, err := add(review)
	if err != nil {
		return Totals{}, err
	}
	// Every attempt of the task has the same key, so that however often it is tried, the entry is written once.
	key := antiphon.EntryRequestID(task.IdempotencyKey())
	if _, err := task.Shared().Put(task, totals, result.Counts, key); err != nil {
		return Totals{}, err
	}
	return result, nil
}

func add(review Review) (Totals, error) {
	if len(review.Kinds) != len(review.Packages) || len(review.Doubts) != len(review.Packages) {
		return Totals{}, antiphon.InvalidInput("kinds and doubts must be as many as packages")
	}
	counts := Counts{Packages: len(review.Packages), ByKind: map[string]int{}}
	for _, count := range review.Redactions {
		counts.Redactions += count
	}
	found := []flagged{}
	for number, kind := range review.Kinds {
		severity := slices.Index(bySeverity, kind)
		if severity < 0 {
			return Totals{}, antiphon.InvalidInput("not a kind of licence").WithField(fmt.Sprintf("/kinds/%d", number))
		}
		counts.ByKind[kind]++
		if doubt := review.Doubts[number]; doubt != "" {
			found = append(found, flagged{severity, Attention{review.Packages[number], doubt}})
		}
	}
	slices.SortFunc(found, func(one, other flagged) int {
		return cmp.Or(
			cmp.Compare(one.severity, other.severity),
			cmp.Compare(one.Package, other.Package),
			cmp.Compare(one.Why, other.Why),
		)
	})
	result := Totals{counts, []Attention{}}
	for _, one := range found[:min(len(found), mostAttention)] {
		result.Attention = append(result.Attention, one.Attention)
	}
	return result, nil
}

// note says in a file what is being worked on, for whoever wants to prove what ran, and how often.
func note(capability string) error {
	path := os.Getenv("COMPLIANCE_JOURNAL")
	if path == "" {
		return nil
	}
	file, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	if _, err := fmt.Fprintf(file, "%s\t\t%d\n", capability, os.Getpid()); err != nil {
		return err
	}
	return file.Close()
}

func main() {
	agent := antiphon.NewAgent("reporter", antiphon.WithConcurrency(4))
	// Numbers only; but one of them was counted in personal data, and what is made of a labelled value carries its label.
	antiphon.Handle(agent, "report.write@1", writeReport,
		antiphon.Writes, antiphon.Idempotent, antiphon.Clearance("pii"),
		antiphon.Description("Totals of a review, and which packages a person should look at, most serious first."))
	agent.Main()
}
