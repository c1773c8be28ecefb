package antiphon

import (
	"context"
	"fmt"
	"math/rand/v2"
)

// traceparent is the W3C trace context of the task whose context ctx is, or a new one: an id to find one piece of work by,
// everywhere it went.
func traceparent(ctx context.Context) string {
	if task := TaskOf(ctx); task != nil && task.Traceparent() != "" {
		return task.Traceparent()
	}
	// Not secret, so the cheap source of randomness will do; an id of zeros would be invalid.
	return fmt.Sprintf("00-%016x%016x-%016x-01", rand.Uint64(), rand.Uint64()|1, rand.Uint64()|1)
}
