// Command bench measures vmscope beside a floor written in C, in one run on one
// machine, and prints the ratios as a Markdown table.
//
//	go run ./bench                     synthetic guests of 512 MiB and 2 GiB
//	go run ./bench -size 3G            another size (RAM above 2 GiB lies at 4 GiB)
//	go run ./bench -ram FILE -low BYTES -root PA -levels 4 -addrs FILE
//
// The last form takes the RAM of a real guest: FILE is its raw RAM, LOW the
// bytes of it that lie below 4 GiB, ROOT its page-table root and ADDRS a file of
// little-endian 8-byte virtual addresses of mapped pages.
//
// Then it boots real guests and times what users do (-live), and how long it
// takes to check one for tampering (-check).
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"math"
	"os"
	"strconv"
	"strings"
	"time"
)

func main() {
	if err := run(os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(2)
	}
}

func run(w io.Writer) error {
	var g guest
	var low, root, sizes, dir string
	var slice time.Duration
	var rounds int
	flag.StringVar(&g.ram, "ram", "", "raw RAM `file` of a guest; empty: build guests")
	flag.StringVar(&low, "low", "", "bytes of it below 4 GiB; empty: all")
	flag.StringVar(&root, "root", "0", "physical address of its page-table root")
	flag.IntVar(&g.levels, "levels", 4, "of its page tables")
	flag.StringVar(&g.addrs, "addrs", "", "`file` of virtual addresses to read")
	flag.StringVar(&sizes, "size", "512M,2G", "sizes of the guests to build")
	flag.StringVar(&dir, "dir", "/dev/shm", "where to build them")
	flag.DurationVar(&slice, "slice", 20*time.Millisecond, "CPU time for one measurement of one row")
	flag.IntVar(&rounds, "rounds", 20, "rounds; each row shows its best")
	liveSizes := flag.String("live", "512M,2G,8G", "sizes of the real guests to boot; empty: none")
	swept := flag.String("check", "bookworm-cloud,sid-cloud", "kernels of the real guests to check for tampering; empty: none")
	flag.Parse()

	fl, err := buildFloor(dir)
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench: no floor:", err)
	}
	defer fl.close()
	if g.ram != "" {
		var err1, err2 error
		g.root, err1 = strconv.ParseUint(root, 0, 64)
		g.low = math.MaxUint64
		if low != "" {
			g.low, err2 = parseSize(low)
		}
		if err := errors.Join(err1, err2); err != nil {
			return err
		}
		return measure(w, g.ram, &g, fl, slice, rounds)
	}
	for s := range strings.SplitSeq(sizes, ",") {
		if s == "" {
			continue
		}
		size, err := parseSize(s)
		if err != nil {
			return err
		}
		for _, level := range []int{1, 2} {
			if err := synthetic(w, dir, s, size, level, fl, slice, rounds); err != nil {
				return err
			}
		}
	}
	var mibs []int
	for s := range strings.SplitSeq(*liveSizes, ",") {
		if s == "" {
			continue
		}
		size, err := parseSize(s)
		if err != nil {
			return err
		}
		mibs = append(mibs, int(size>>20))
	}
	if len(mibs) > 0 {
		if err := live(w, mibs, rounds); err != nil {
			return err
		}
	}
	if *swept == "" {
		return nil
	}
	return sweeps(w, strings.Split(*swept, ","), rounds)
}

// synthetic builds a guest, measures it and removes it.
func synthetic(w io.Writer, dir, name string, size uint64, level int, fl *floor, slice time.Duration, rounds int) error {
	tmp, err := os.MkdirTemp(dir, "vmscope-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	g, err := buildGuest(tmp, size, level)
	if err != nil {
		return err
	}
	return measure(w, fmt.Sprintf("%s, direct map of %s pages", name, []string{"", "4K", "2M", "1G"}[level]), g, fl, slice, rounds)
}

// measure runs all rows, the floor's and ours by turns, so that a slow moment
// of the machine hits both.
func measure(w io.Writer, title string, g *guest, fl *floor, slice time.Duration, rounds int) error {
	space, addrs, closeGuest, err := g.open()
	if err != nil {
		return err
	}
	defer closeGuest()
	run, err := fl.start(g, slice)
	if err != nil {
		return err
	}
	defer run.stop()
	best, base := map[string]float64{}, map[string]float64{}
	for range rounds {
		for _, r := range rows {
			ns, ok, err := run.measure(r.floor)
			if err != nil {
				return err
			}
			if old, seen := base[r.floor]; ok && (!seen || ns < old) {
				base[r.floor] = ns
			}
			if ns, err = timeRow(r, space, addrs, slice); err != nil {
				return fmt.Errorf("%s: %w", r.name, err)
			}
			if old, seen := best[r.name]; !seen || ns < old {
				best[r.name] = ns
			}
		}
	}
	fmt.Fprintf(w, "\n%s\n\n| row | vmscope ns | C floor ns | ratio |\n|---|---|---|---|\n", title)
	for _, r := range rows {
		f, ratio := "-", "-"
		if v, ok := base[r.floor]; ok {
			f, ratio = fmt.Sprintf("%.1f", v), fmt.Sprintf("%.2f", best[r.name]/v)
		}
		fmt.Fprintf(w, "| %s | %.1f | %s | %s |\n", r.name, best[r.name], f, ratio)
	}
	return nil
}

// parseSize reads a number of bytes with an optional suffix K, M or G.
func parseSize(s string) (uint64, error) {
	shift := 0
	switch {
	case strings.HasSuffix(s, "K"):
		shift = 10
	case strings.HasSuffix(s, "M"):
		shift = 20
	case strings.HasSuffix(s, "G"):
		shift = 30
	}
	n, err := strconv.ParseUint(strings.TrimRight(s, "KMG"), 0, 64)
	return n << shift, err
}
