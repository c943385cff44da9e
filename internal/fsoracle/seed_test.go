package fsoracle_test

import (
	"cmp"
	"iter"
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
	"time"
)

// freshSeed is another one for each run, unless VMSCOPE_SEED tells.
func freshSeed(t *testing.T) uint64 {
	seed := uint64(time.Now().UnixNano())
	if text := os.Getenv("VMSCOPE_SEED"); text != "" {
		var err error
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	return seed
}

// entries gives n entries at random, unless VMSCOPE_RUNS says how many, or all.
func entries(t *testing.T, first, last, seed uint64, n int) iter.Seq[uint64] {
	text := os.Getenv("VMSCOPE_RUNS")
	if text == "all" {
		return func(yield func(uint64) bool) {
			for at := first; at < last && yield(at); at++ {
			}
		}
	}
	if text != "" {
		var err error
		if n, err = strconv.Atoi(text); err != nil {
			t.Fatal(err)
		}
	}
	rng := rand.New(rand.NewPCG(seed, first))
	return func(yield func(uint64) bool) {
		for i := 0; i < n && yield(first+rng.Uint64N(last-first)); i++ {
		}
	}
}

// onceMore tells how to run a test again that failed.
func onceMore(t *testing.T, seed uint64, n int) {
	if t.Failed() {
		t.Logf("once more: VMSCOPE_SEED=%d VMSCOPE_RUNS=%s go test -run '%s' ./internal/fsoracle", seed, cmp.Or(os.Getenv("VMSCOPE_RUNS"), strconv.Itoa(n)), t.Name())
	}
}
