// An agent that calls another one and remembers in shared context: antiphon sidecar run -- ./reviewer
package main

import (
	"errors"
	"time"

	"antiphon.dev/antiphon"
)

type Document struct {
	Title string `json:"title"`
	Text  string `json:"text"`
}

type Review struct {
	Words  int `json:"words"`
	Number int `json:"number" description:"Of the reviews of this day."`
}

func review(task *antiphon.Task, document Document) (Review, error) {
	task.Progress(0.1, "counting")
	words, err := antiphon.Call[int](task, "text.count@1", document.Text)
	if err != nil {
		return Review{}, err // a *CallFailed: this task fails as well, and is tried again where that may help
	}
	if words > 100_000 {
		return Review{}, antiphon.Permanent("%d words are too many", words).WithCode("too_long")
	}
	if err := task.Emit("counted"); err != nil { // whoever watches the run sees it before the output
		return Review{}, err
	}
	number := 0
	entry, err := task.Shared().Get(task, "reviews")
	if err == nil {
		number, err = antiphon.EntryValue[int](entry)
	}
	if err != nil && !errors.Is(err, antiphon.EntryNotFound) {
		return Review{}, err
	}
	// Refused when another one was counted meanwhile: this attempt fails, and the next one reads again.
	once := antiphon.ExpectedRevision(entry.GetRevision())
	_, err = task.Shared().Put(task, "reviews", number+1, once, antiphon.TTL(24*time.Hour))
	return Review{Words: words, Number: number + 1}, err
}

func main() {
	agent := antiphon.NewAgent("reviewer")
	antiphon.Handle(agent, "text.review@1", review, antiphon.Writes)
	agent.Main()
}
