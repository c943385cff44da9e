// Command figure7 measures what a guest notices of being watched: the time to create N files in a directory and to sync
// them, by the guest's own clock, in three modes. A plain disk; one that vmscope.Watch has tapped, with no watchpoint
// there; one with a watchpoint on that directory, all of whose events are told.
//
//	go run ./bench/figure7                          50 samples a mode, prints a table
//	go run ./bench/figure7 -samples 5               a quick look, below a minute
//	go run ./bench/figure7 -svg docs/figure7.svg -csv docs/figure7.csv -doc docs/performance.md
//	go run ./bench/figure7 -from docs/figure7.csv   the table and the drawing of an earlier run
//
// One guest has three equal disks. In each round every disk gets another mode, so that each disk has each mode equally
// often; then each N is measured once in each mode, in a random order, one right after the other. What
// the machine does besides thus hits all modes alike, and differences are taken within a round.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"

	"vmscope/bench/sample"
	"vmscope/block/tap"
)

func main() {
	tap.Helper()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Stdout, os.Args[1:])
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "figure7:", err)
		os.Exit(2)
	}
}

func run(ctx context.Context, w io.Writer, args []string) error {
	flags := flag.NewFlagSet("figure7", flag.ContinueOnError)
	c := config{Options: sample.Options{Progress: os.Stderr}}
	c.Flags(flags, "samples", 50)
	list := flags.String("n", "5,10,20,50,100,200,500,1000,2000", "numbers of files")
	svg := flags.String("svg", "", "`file` to draw into")
	csv := flags.String("csv", "", "`file` for the samples")
	doc := flags.String("doc", "", "Markdown `file` whose table to replace")
	from := flags.String("from", "", "`file` with samples of an earlier run; nothing is measured")
	if err := flags.Parse(args); errors.Is(err, flag.ErrHelp) {
		return nil
	} else if err != nil {
		return err
	}
	for _, text := range strings.Split(*list, ",") {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 {
			return fmt.Errorf("-n %q: it is a list of numbers of files", *list)
		}
		c.numbers = append(c.numbers, n)
	}
	var res *result
	var err error
	if *from != "" {
		var text []byte
		if text, err = os.ReadFile(*from); err == nil {
			res, err = parseCSV(string(text))
		}
	} else {
		res, err = measure(ctx, c)
	}
	if res == nil {
		return err
	}
	return errors.Join(err, write(w, res, *svg, *csv, *doc))
}

// write writes the samples in all the ways that were asked for.
func write(w io.Writer, res *result, svg, csv, doc string) error {
	if csv != "" {
		if err := os.WriteFile(csv, []byte(res.csv()), 0o644); err != nil {
			return err
		}
	}
	if svg != "" {
		if err := os.WriteFile(svg, []byte(draw(res)), 0o644); err != nil {
			return err
		}
	}
	if doc != "" {
		if err := sample.WriteDoc(doc, "figure7", res.table()); err != nil {
			return err
		}
	}
	_, err := io.WriteString(w, res.table())
	return err
}
