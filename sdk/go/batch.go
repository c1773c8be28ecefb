package antiphon

import (
	"context"
	"fmt"
	"reflect"
	"runtime/debug"
	"sync"
	"time"
)

// Batch says when a batch begins: once Size tasks are there, or once the first of them has waited for Wait; sooner for a task that would
// lose half of its remaining time by waiting. Size is 2 to the agent's concurrency, which is what it may have at once. Waiting takes
// a place, too: where many batches are to fill while others run, give the agent a concurrency of several.
type Batch struct {
	Size int
	Wait time.Duration
}

// Outcome is that of one task of a batch: a value, or the error that fails this task alone.
type Outcome[Out any] struct {
	Value Out
	Err   error
}

// HandleBatch offers a function that handles several tasks at once. It answers an outcome for each of its inputs, in their order; an
// error of its own fails them all, and each is tried again as its own rules say. An input that does not fit fails before it takes a
// place. A task that is cancelled, or whose time is up, has its outcome at once, and its Task is done; what the function answers for
// it is dropped. The context is done when all of them are, or the agent stops. To graphs and to the orchestrator it is a capability like
// any other, with the schemas of one task; see [Handle] for types and options.
func HandleBatch[In, Out any](
	agent *Agent, capability string, batch Batch,
	function func(ctx context.Context, inputs []In, tasks []*Task) ([]Outcome[Out], error), options ...CapabilityOption,
) {
	if batch.Size < 2 || batch.Size > agent.concurrency {
		agent.mistakes = append(agent.mistakes, fmt.Errorf(
			"%s: a batch of %d must be 2 to the agent's concurrency, %d", capability, batch.Size, agent.concurrency))
		return
	}
	if batch.Wait <= 0 || batch.Wait > time.Minute {
		agent.mistakes = append(agent.mistakes, fmt.Errorf("%s: a batch waits for up to a minute, and not %s", capability, batch.Wait))
		return
	}
	gathered := &gathering[In, Out]{rule: batch, function: function}
	Handle(agent, capability, gathered.join, options...)
	parts := capabilityPattern.FindStringSubmatch(capability)
	if parts != nil && reflect.TypeFor[In]() != nothingType {
		if made := agent.handlers[capabilityKey{parts[1], parts[2]}]; made != nil {
			made.flush = gathered.flush
		}
	} else if parts != nil {
		agent.mistakes = append(agent.mistakes, fmt.Errorf("%s: a batch needs an input", capability))
	}
}

// gathering is what waits to become a batch. Each attempt is a goroutine of its own, which joins and waits for its outcome.
type gathering[In, Out any] struct {
	rule     Batch
	function func(context.Context, []In, []*Task) ([]Outcome[Out], error)
	mutex    sync.Mutex
	open     *gathered[In, Out]
}

type gathered[In, Out any] struct {
	members []*member[In, Out]
	due     time.Time
	timer   *time.Timer
	left    int // members that still want their outcome
	end     context.CancelFunc
}

type member[In, Out any] struct {
	task    *Task
	input   In
	gone    bool
	outcome chan Outcome[Out] // of one
}

// join is the handler: it waits for the outcome of a task in its batch.
func (g *gathering[In, Out]) join(task *Task, input In) (Out, error) {
	own := &member[In, Out]{task: task, input: input, outcome: make(chan Outcome[Out], 1)}
	batch := g.add(own)
	select {
	case outcome := <-own.outcome:
		return outcome.Value, outcome.Err
	case <-task.Done():
		g.leave(batch, own)
		var none Out
		return none, context.Cause(task)
	}
}

func (g *gathering[In, Out]) add(own *member[In, Out]) *gathered[In, Out] {
	g.mutex.Lock()
	defer g.mutex.Unlock()
	batch := g.open
	if batch == nil {
		batch = &gathered[In, Out]{}
		g.open = batch
	}
	batch.members = append(batch.members, own)
	batch.left++
	if batch.left >= g.rule.Size || own.task.worker.last.Load() {
		g.begin(batch)
		return batch
	}
	wait := g.rule.Wait
	if deadline, limited := own.task.Deadline(); limited {
		wait = min(wait, time.Until(deadline)/2)
	}
	if due := time.Now().Add(wait); batch.timer == nil || due.Before(batch.due) {
		if batch.timer != nil {
			batch.timer.Stop()
		}
		batch.due = due
		batch.timer = time.AfterFunc(wait, func() { g.beginIfOpen(batch) })
	}
	return batch
}

func (g *gathering[In, Out]) leave(batch *gathered[In, Out], own *member[In, Out]) {
	g.mutex.Lock()
	defer g.mutex.Unlock()
	own.gone = true
	batch.left--
	if batch.left > 0 {
		return
	}
	if batch.end != nil {
		batch.end()
	}
	if g.open == batch {
		batch.timer.Stop()
		g.open = nil
	}
}

// flush begins what is gathered: nothing more will come.
func (g *gathering[In, Out]) flush() {
	g.mutex.Lock()
	defer g.mutex.Unlock()
	if g.open != nil {
		g.begin(g.open)
	}
}

func (g *gathering[In, Out]) beginIfOpen(batch *gathered[In, Out]) {
	g.mutex.Lock()
	defer g.mutex.Unlock()
	if g.open == batch {
		g.begin(batch)
	}
}

func (g *gathering[In, Out]) begin(batch *gathered[In, Out]) {
	g.open = nil
	if batch.timer != nil {
		batch.timer.Stop()
	}
	var at []*member[In, Out]
	for _, one := range batch.members {
		if !one.gone {
			at = append(at, one)
		}
	}
	ctx, end := context.WithCancel(at[0].task.worker.life)
	batch.end = end
	go func() {
		outcomes := allFailed[Out](len(at), Transient("the handler ended its goroutine without returning")) // runtime.Goexit
		defer func() {
			end()
			for number, outcome := range outcomes {
				at[number].outcome <- outcome
			}
		}()
		outcomes = g.outcomes(ctx, at)
	}()
}

// outcomes has one for each member, whatever the function does.
func (g *gathering[In, Out]) outcomes(ctx context.Context, at []*member[In, Out]) []Outcome[Out] {
	inputs, tasks := make([]In, len(at)), make([]*Task, len(at))
	for number, one := range at {
		inputs[number], tasks[number] = one.input, one.task
	}
	outcomes, err := g.guarded(ctx, inputs, tasks)
	if err == nil && len(outcomes) != len(at) {
		err = InvalidOutput("%d tasks were handed over and %d outcomes came back; answer one for each", len(at), len(outcomes))
	}
	if err != nil {
		return allFailed[Out](len(at), err)
	}
	return outcomes
}

func allFailed[Out any](count int, err error) []Outcome[Out] {
	outcomes := make([]Outcome[Out], count)
	for number := range outcomes {
		outcomes[number].Err = err
	}
	return outcomes
}

func (g *gathering[In, Out]) guarded(ctx context.Context, inputs []In, tasks []*Task) (outcomes []Outcome[Out], err error) {
	defer func() {
		if problem := recover(); problem != nil {
			err = fmt.Errorf("panic: %v\n%s", problem, debug.Stack())
		}
	}()
	return g.function(ctx, inputs, tasks)
}
