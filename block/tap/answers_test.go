package tap

import (
	"context"
	"testing"
)

// TestAnswers has the answer to what is asked for come before one that nobody waits for any more.
func TestAnswers(t *testing.T) {
	ours, theirs, err := newControl()
	if err != nil {
		t.Fatal(err)
	}
	defer ours.Close()
	defer theirs.Close()
	tp := &Tap{state: make(chan struct{}), ctl: control{ours}, gen: 2}
	tp.ctx, tp.cancel = context.WithCancelCause(t.Context())
	tp.take(message{Kind: msgCapturing, Gen: 3})
	tp.take(message{Kind: msgCapturing, Gen: 2})
	ctx, cancel := context.WithCancel(t.Context())
	cancel() // what is there needs no waiting
	if gen, err := tp.Capture(ctx, nil); gen != 3 || err != nil {
		t.Errorf("capture %d: %v", gen, err)
	}
}
