package main

import (
	"errors"
	"io"
	"os"
	"testing"

	"vmscope/bench/sample"
	"vmscope/block/tap"
	"vmscope/internal/guestlab"
)

func TestMain(m *testing.M) {
	tap.Helper()
	os.Exit(m.Run())
}

// TestMeasure keeps the measurement working: one round of few files, with all events there.
func TestMeasure(t *testing.T) {
	if testing.Short() {
		guestlab.Skip(t, "boots a guest; not under -short")
	}
	r, err := measure(t.Context(), config{sample.Options{Rounds: 1, Kernel: "bookworm-cloud", Dir: t.TempDir(), Progress: io.Discard}, []int{5, 20}})
	if errors.Is(err, guestlab.ErrMissing) {
		guestlab.SkipOrFail(t, err.Error())
	}
	if err != nil {
		t.Fatal(err)
	}
	for i, n := range r.numbers {
		for m := range modes {
			if len(r.samples[i][m]) != 1 || r.samples[i][m][0] <= 0 {
				t.Errorf("%d files, %v: %v", n, m, r.samples[i][m])
			}
		}
	}
	t.Log("\n" + r.table())
}
