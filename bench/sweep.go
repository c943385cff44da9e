package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"vmscope"
	"vmscope/detect"
	"vmscope/internal/guestlab"
)

// sweepSize is the RAM of the guests that sweeps are measured on, MiB.
const sweepSize = 512

// sweeps boots guests and measures how long it takes to check one for tampering:
// as `vmscope check` does, which knows nothing before, and in the looks that
// follow in `vmscope check --watch`. Guests run meanwhile.
func sweeps(w io.Writer, kernels []string, rounds int) error {
	fmt.Fprintf(w, "\nchecks of live guests of %d MiB, %d processes, not paused; ms, median of %d first and %d later looks\n\n", sweepSize, processes, rounds, 5*rounds)
	head, line := "| |", "|---|"
	var columns []map[string]time.Duration
	for _, k := range kernels {
		first, later, err := sweepGuest(k, rounds)
		if err != nil {
			return fmt.Errorf("%s: %w", k, err)
		}
		head += fmt.Sprintf(" %s, first look | later |", k)
		line += "---|---|"
		columns = append(columns, first, later)
	}
	fmt.Fprintln(w, head)
	fmt.Fprintln(w, line)
	names := []string{rowFind}
	for _, d := range detect.All() {
		names = append(names, d.Name())
	}
	for _, n := range append(names, rowSum, rowCPU) {
		fmt.Fprintf(w, "| %s |", n)
		for _, c := range columns {
			fmt.Fprintf(w, " %.1f |", float64(c[n].Microseconds())/1e3)
		}
		fmt.Fprintln(w)
	}
	return nil
}

// Rows of the table beside those of the checks.
const (
	rowFind = "open the guest, find its kernel"
	rowSum  = "**all**"
	rowCPU  = "of it CPU time"
)

// sweepGuest gives the medians of a guest's first looks and of later ones, by row.
func sweepGuest(kernel string, rounds int) (first, later map[string]time.Duration, err error) {
	ctx := context.Background()
	lab, err := guestlab.Start(ctx, guestlab.Config{Kernel: kernel, MemoryMiB: sweepSize, Name: fmt.Sprintf("bench-sweep-%d", os.Getpid())})
	if err != nil {
		return nil, nil, err
	}
	defer lab.Close()
	if err := populate(ctx, lab); err != nil {
		return nil, nil, err
	}
	var firsts, laters []map[string]time.Duration
	for range rounds {
		start, cpu := time.Now(), processTime()
		g, err := vmscope.Open(ctx, fmt.Sprintf("qemu:%d", lab.PID()))
		if err != nil {
			return nil, nil, err
		}
		detectors := detect.All()
		for i := range 6 {
			took, err := sweepOnce(ctx, g, detectors, start, cpu)
			if err != nil {
				g.Close()
				return nil, nil, err
			}
			if i == 0 {
				firsts = append(firsts, took)
			} else {
				laters = append(laters, took)
			}
			start, cpu = time.Now(), processTime()
		}
		g.Close()
	}
	return medians(firsts), medians(laters), nil
}

// sweepOnce looks once; the look began at start.
func sweepOnce(ctx context.Context, g *vmscope.Guest, detectors []detect.Detector, start time.Time, cpu time.Duration) (map[string]time.Duration, error) {
	took := make(map[string]time.Duration)
	err := g.View(ctx, func(v *vmscope.View) error {
		took[rowFind] = time.Since(start)
		r := detect.Sweep(ctx, v, detectors)
		for _, c := range r.Checks {
			took[c.Name] = c.Took
		}
		for _, f := range r.Tampered() {
			return fmt.Errorf("found in a guest that nobody tampers with: %s", f.Summary)
		}
		return r.Err()
	})
	took[rowSum], took[rowCPU] = time.Since(start), processTime()-cpu
	return took, err
}

// processTime is the CPU time of the whole process: finding a kernel takes more
// than one thread.
func processTime() time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// medians gives the median of each row.
func medians(looks []map[string]time.Duration) map[string]time.Duration {
	out := make(map[string]time.Duration)
	for name := range looks[0] {
		var all []time.Duration
		for _, l := range looks {
			all = append(all, l[name])
		}
		slices.Sort(all)
		out[name] = all[len(all)/2]
	}
	return out
}
