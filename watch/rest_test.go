package watch_test

import (
	"bytes"
	"context"
	"testing"
	"testing/synctest"
	"time"

	"vmscope/block"
	"vmscope/event"
	"vmscope/watch"
)

// restful is a disk that is written to once, and notes for how long it is waited for.
type restful struct {
	bytesDevice
	at     time.Time // of the write
	waits  []time.Duration
	behind int // waits when the write came
}

func (r *restful) Device() block.Device { return r.bytesDevice }

func (r *restful) Next(ctx context.Context) (block.Write, error) {
	end, _ := ctx.Deadline()
	r.waits = append(r.waits, time.Until(end))
	write := (<-chan time.Time)(nil)
	if r.behind == 0 {
		write = time.After(time.Until(r.at))
	}
	select {
	case <-write:
		r.behind = len(r.waits)
		return block.Write{Op: block.OpFlush, Time: time.Now()}, nil
	case <-ctx.Done():
		return block.Write{}, ctx.Err()
	}
}

// TestRest has a disk that is quiet be looked at less and less, until it is written to.
func TestRest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &restful{bytesDevice: bytesDevice{bytes.NewReader(make([]byte, 1<<20))}, at: time.Now().Add(time.Minute + 100*time.Millisecond)}
		w, err := watch.New([]watch.Disk{{Name: "vda", Source: r}}, watch.Options{Quiet: 30 * time.Millisecond})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
		defer cancel()
		if err := w.Wait(ctx, func(event.Event) error { return nil }); err != context.DeadlineExceeded {
			t.Fatal(err)
		}
		if n := len(r.waits); r.behind < 60 || r.behind > 70 || n > 140 {
			t.Fatalf("looked at %d times in a minute of rest, and %d in the next", r.behind, n-r.behind)
		}
		for _, i := range []int{0, r.behind} {
			if r.waits[i] != 30*time.Millisecond {
				t.Errorf("wait %d, with something that may be to be done: %v", i, r.waits[i])
			}
		}
		if last := r.waits[r.behind-1]; last != time.Second {
			t.Errorf("at rest it is waited for %v", last)
		}
	})
}
