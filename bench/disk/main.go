// Command disk measures what each way into a guest's disk costs, beside a plain raw file and nbdkit, in one guest and one
// run, and prints the ratios as a Markdown table.
//
//	go run ./bench/disk              15 rounds, some minutes
//	go run ./bench/disk -rounds 3    a quick look
//	go run ./bench/disk -ways mirror,vhost-user -patterns fsync
//
// The guest has a disk with an equal file system for each way. In each round each pattern of load runs once on each of
// them, in a random order. Measured is the CPU time of QEMU and of all processes that stand behind the disk together (where
// the disk is watched, the inference too), and the time that the guest took. Each is divided by that of the plain
// disk in the same round; the table has the medians of these ratios. A second plain disk shows what is noise.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"

	"vmscope/bench/sample"
)

func main() {
	if job := os.Getenv(serveEnv); job != "" {
		if err := serve(job, os.Args[1], os.Args[2]); err != nil {
			fmt.Fprintln(os.Stderr, "disk:", err)
			os.Exit(1)
		}
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Stdout, os.Args[1:])
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "disk:", err)
		os.Exit(2)
	}
}

func run(ctx context.Context, w io.Writer, args []string) error {
	flags := flag.NewFlagSet("disk", flag.ContinueOnError)
	var b bench
	b.Progress = os.Stderr
	b.Flags(flags, "rounds", 40)
	flags.StringVar(&b.command, "vmscope", "", "the vmscope `program`; empty: it is built")
	doc := flags.String("doc", "", "Markdown `file` whose tables to replace")
	waysFlag := flags.String("ways", "", "parts of the names of ways to measure, beside the plain ones; empty: all")
	patternsFlag := flags.String("patterns", "", "parts of the names of patterns to measure; empty: all")
	if err := flags.Parse(args); errors.Is(err, flag.ErrHelp) {
		return nil
	} else if err != nil {
		return err
	}
	for _, x := range ways {
		if x.kind == plain || chosen(x.name, *waysFlag) {
			b.ways = append(b.ways, x)
		}
	}
	for _, p := range patterns {
		if chosen(p.name, *patternsFlag) {
			b.patterns = append(b.patterns, p)
		}
	}
	if err := b.measure(ctx); err != nil {
		return err
	}
	if *doc != "" {
		if err := sample.WriteDoc(*doc, "bench-disk", b.tables()); err != nil {
			return err
		}
	}
	_, err := io.WriteString(w, b.tables())
	return err
}

// chosen says whether a name is meant by a list of parts of names.
func chosen(name, list string) bool {
	return list == "" || slices.ContainsFunc(strings.Split(list, ","), func(part string) bool { return strings.Contains(name, part) })
}
