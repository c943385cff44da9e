// Command record has real guests write to disks and records it for the tests of fsinfer/ext4; see package fsoracle for
// what a recording holds.
//
//	record [-seed N] [-count N] [-workers N] [-resets] [-dir DIR] [-pack DIR2] [-kernel NAME] [NAME…]
//
// It records the named sets (default: all) into DIR/NAME, and packs them into DIR2/NAME.tar.zst. A NAME with a slash is a
// recording that is there already, such as a run of fslab.RunFSOps that failed, and is packed only. The tests' own are made by
//
//	go run ./internal/guestlab/record -pack fsinfer/ext4/testdata/streams
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"

	"vmscope/internal/fsoracle"
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
	flag.StringVar(&r.Dir, "dir", filepath.Join(os.TempDir(), "streams"), "directory to write to")
	flag.Uint64Var(&r.Seed, "seed", 1, "of the random operations")
	flag.IntVar(&r.Count, "count", 250, "operations between two points")
	flag.IntVar(&r.Workers, "workers", 1, "how many do so many operations each at the same time")
	flag.BoolVar(&r.Resets, "resets", false, "have the guest lose its power amid runs")
	pack := flag.String("pack", "", "directory for packed recordings")
	kernel := flag.String("kernel", "", "record all with this kernel, as far as it can")
	flag.BoolVar(&r.Tell, "v", false, "say each operation")
	flag.Parse()
	var first, then []fslab.Set
	var dirs []string // to pack
	for _, name := range flag.Args() {
		if strings.Contains(name, "/") {
			dirs = append(dirs, name)
		}
	}
	for _, s := range fslab.Sets() {
		if *kernel != "" {
			s.Kernel, r.GoOn = *kernel, true
		}
		switch {
		case flag.NArg() > 0 && !slices.Contains(flag.Args(), s.Name):
		case *kernel != "" && s.After != "":
		case s.After != "":
			then = append(then, s)
		default:
			first = append(first, s)
		}
	}
	for _, sets := range [][]fslab.Set{first, then} {
		for _, g := range fslab.ByKernel(sets) {
			if err := r.Record(ctx, g.Kernel, g.Sets); err != nil {
				return err
			}
		}
	}
	if *pack == "" {
		return nil
	}
	for _, s := range append(first, then...) {
		dirs = append(dirs, filepath.Join(r.Dir, s.Name))
	}
	for _, dir := range dirs {
		if err := packOne(dir, filepath.Join(*pack, filepath.Base(dir)+fsoracle.Extension)); err != nil {
			return err
		}
	}
	return nil
}

func packOne(dir, path string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	return errors.Join(fsoracle.Pack(f, dir), f.Close())
}
