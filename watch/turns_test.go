package watch

import (
	"context"
	"testing"
	"time"
)

// TestTurns: of two disks' writes the earlier one goes first; one alone goes when the other disk was looked at behind it.
func TestTurns(t *testing.T) {
	q := newTurns(3)
	q.end(2)
	ctx, cancel := context.WithCancel(t.Context())
	stopped := make(chan int, 10)
	waits := func(disk int) uint64 {
		return q.waits(disk, func() {
			select {
			case stopped <- disk:
			default:
			}
		})
	}
	var order []int
	turn := make(chan int)
	comes := func(disk int, at int64) {
		go func() {
			q.comes(ctx, disk, time.Unix(at, 0))
			turn <- disk
		}()
	}
	waits(0)
	old := waits(1)
	comes(0, 20)
	if got := <-stopped; got != 1 { // the other disk is asked to look
		t.Fatalf("disk %d is stopped", got)
	}
	q.empty(1, old) // of before the write
	comes(1, 10)    // it was not empty
	for range 2 {
		disk := <-turn
		order = append(order, disk)
		now := waits(disk)
		q.empty(disk, now)
	}
	if order[0] != 1 || order[1] != 0 {
		t.Errorf("order %v", order)
	}
	comes(0, 30)
	if got := <-stopped; got < 0 {
		t.Fatal(got)
	}
	for done := false; !done; {
		now := waits(1) // looks again
		q.empty(1, now)
		select {
		case disk := <-turn:
			done = disk == 0
		default:
		}
	}
	waits(0)
	comes(1, 40)
	cancel() // all ends
	<-turn
}
