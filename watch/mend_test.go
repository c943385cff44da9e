package watch

import (
	"fmt"
	"testing"
	"time"

	"vmscope/fsinfer"
)

// TestMend has what cannot be told be a reason to attach anew, now and then.
func TestMend(t *testing.T) {
	now := time.Unix(1e9, 0)
	warnings := 0
	w, err := New(nil, Options{Clock: func() time.Time { return now }, Warn: func(error) { warnings++ }})
	if err != nil {
		t.Fatal(err)
	}
	v := &volume{name: "vda1"}
	seen := func() bool {
		t.Helper()
		if err := w.tell(v, nil, fmt.Errorf("inode 12: %w", fsinfer.ErrUntold)); err != nil {
			t.Fatal(err)
		}
		w.mend()
		return w.again == "vda1: "+fsinfer.ErrUntold.Error()
	}
	if !seen() {
		t.Error("what could not be told is left at that")
	}
	w.again, w.untold = "", "" // as begin does
	now = now.Add(mendAfter - 1)
	if seen() {
		t.Error("attached anew for each thing that cannot be told")
	}
	now = now.Add(1)
	if w.mend(); w.again == "" { // by the thing before
		t.Error("what could not be told is forgotten")
	}
	w.again, w.untold = "", ""
	now = now.Add(mendAfter)
	v.then = newTree(1, 0, "", w.filter.scope, nil)
	if seen() {
		t.Error("attached anew for what the difference will tell")
	}
	if warnings != 3 {
		t.Errorf("%d warnings of 3", warnings)
	}
}
