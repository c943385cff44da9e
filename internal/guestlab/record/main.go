// Command record has real guests write to disks and records it for the tests of fsinfer/ext4; see package fsoracle for
// what a recording holds.
//
//	record [-seed N] [-count N] [-dir DIR] [NAME…]   record the named sets (default: all) into DIR/NAME/
package main

import (
	"cmp"
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"slices"

	"vmscope/internal/guestlab/fslab"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "record:", err)
		stop()
		os.Exit(2)
	}
}

func run(ctx context.Context) error {
	r := fslab.Recorder{Say: os.Stderr}
	flag.StringVar(&r.Dir, "dir", "streams", "directory to write to")
	flag.Uint64Var(&r.Seed, "seed", 1, "of the random operations")
	flag.IntVar(&r.Count, "count", 250, "operations between two points")
	flag.BoolVar(&r.Tell, "v", false, "say each operation")
	flag.Parse()
	byKernel := map[string][]fslab.Set{}
	var kernels []string
	for _, s := range fslab.Sets() {
		if flag.NArg() > 0 && !slices.Contains(flag.Args(), s.Name) {
			continue
		}
		k := cmp.Or(s.Kernel, "bookworm-cloud")
		if byKernel[k] == nil {
			kernels = append(kernels, k)
		}
		byKernel[k] = append(byKernel[k], s)
	}
	for _, k := range kernels {
		if err := r.Record(ctx, k, byKernel[k]); err != nil {
			return err
		}
	}
	return nil
}
