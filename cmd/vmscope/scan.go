package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/jedib0t/go-pretty/v6/text"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"vmscope"
	"vmscope/kernel"
	"vmscope/pattern"
	"vmscope/scan"
)

// scanFlags are what scan was asked for.
type scanFlags struct {
	patterns, rules             []string
	nocase, wide, ascii, words  bool
	pids                        []int
	processes, kernel, physical bool
	all                         bool
	max                         int
}

func (a *app) scanCmd() *cobra.Command {
	var f scanFlags
	c := &cobra.Command{
		Use: "scan TARGET {--pattern P | --rules FILE}...", Short: "Search the memory of processes and the kernel for patterns and rules",
		Long: `Search memory for patterns, or for rules in a subset of YARA's language.

A pattern is a text, bytes in braces with wildcards and gaps, or a regular
expression in slashes. Rules say more; docs/scan.md describes them. What a rule
has and this subset has not is an error with its place.

Without --pid, --processes, --kernel or --physical all processes and the kernel
are searched (--all). Each page of RAM is read once; what is found in a page that
several processes share is told of each. Memory that is swapped out is not
searched.

Exit status: 0 nothing found; 1 matches; 2 could not search.`,
		Example: `  vmscope scan web1 --pattern 'BEGIN OPENSSH PRIVATE KEY'
  vmscope scan web1 --pattern '{ 48 8b ?? 05 [2-4] c3 }' --pid 812
  vmscope scan web1 --pattern '/AKIA[0-9A-Z]{16}/' --processes --json
  vmscope scan dump.elf --rules implants.yar`,
		Args: targetAnd(0), ValidArgsFunction: a.completeTarget,
		RunE: func(cmd *cobra.Command, args []string) error {
			set, err := f.set()
			if err != nil {
				return err
			}
			return a.view(cmd, args[0], func(v *vmscope.View) error { return a.scan(cmd.Context(), v, set, f.options()) })
		},
	}
	p := c.Flags()
	p.StringArrayVar(&f.patterns, "pattern", nil, `TEXT, "{ 48 8b ?? [2-4] c3 }" or /REGEX/; may be repeated`)
	p.StringArrayVar(&f.rules, "rules", nil, "file of rules; may be repeated")
	p.BoolVar(&f.nocase, "nocase", false, "patterns match letters in either case")
	p.BoolVar(&f.wide, "wide", false, "patterns match UTF-16, a zero behind each byte")
	p.BoolVar(&f.ascii, "ascii", false, "with --wide: as they are, too")
	p.BoolVar(&f.words, "fullword", false, "patterns match only between what are no letters or digits")
	p.IntSliceVar(&f.pids, "pid", nil, "only the memory of these processes")
	p.BoolVar(&f.processes, "processes", false, "only the memory of all processes")
	p.BoolVar(&f.kernel, "kernel", false, "only what the kernel maps, without the pages of processes")
	p.BoolVar(&f.physical, "physical", false, "RAM, by physical addresses")
	p.BoolVar(&f.all, "all", false, "all processes and the kernel; what is searched if nothing is said")
	p.IntVar(&f.max, "max", scan.DefaultMax, "the most matches of a rule to print of each process")
	c.MarkFlagsOneRequired("pattern", "rules")
	c.MarkFlagsMutuallyExclusive("pid", "processes", "all")
	c.MarkFlagsMutuallyExclusive("physical", "pid", "all")
	c.MarkFlagsMutuallyExclusive("kernel", "all")
	_ = c.RegisterFlagCompletionFunc("pattern", cobra.NoFileCompletions)
	_ = c.MarkFlagFilename("rules", "yar", "yara", "rules")
	return c
}

// set reads and compiles what is to be searched for.
func (f *scanFlags) set() (*pattern.Set, error) {
	var rules []*pattern.Rule
	m := pattern.Modifiers{NoCase: f.nocase, Wide: f.wide, ASCII: f.ascii, FullWord: f.words}
	for _, text := range f.patterns {
		s, err := pattern.ParsePattern(text, m)
		if err != nil {
			return nil, fmt.Errorf("--pattern %q: %w", text, err)
		}
		rules = append(rules, pattern.NewRule(text, s))
	}
	for _, file := range f.rules {
		text, err := readRules(file)
		if err != nil {
			return nil, err
		}
		more, err := pattern.ParseRules(file, text)
		if err != nil {
			return nil, err
		}
		rules = append(rules, more...)
	}
	if f.max < 1 {
		return nil, fmt.Errorf("--max %d: at least 1", f.max)
	}
	return pattern.Compile(rules)
}

// maxRules is more than rules for all that is known take, bytes of a file.
const maxRules = 64 << 20

// readRules reads a file of rules. It waits for nobody who writes into a pipe, and reads
// no device that never ends.
func readRules(path string) (string, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return "", err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return "", err
	}
	if !st.Mode().IsRegular() {
		return "", fmt.Errorf("--rules %q: no regular file (%v): write the rules into one", path, st.Mode().Type())
	}
	text, err := io.ReadAll(io.LimitReader(f, maxRules+1))
	if err != nil {
		return "", err
	}
	if len(text) > maxRules {
		return "", fmt.Errorf("--rules %q: more than %d MiB: give the rules that are needed", path, maxRules>>20)
	}
	return string(text), nil
}

func (f *scanFlags) options() scan.Options {
	o := scan.Options{Processes: f.processes, PIDs: f.pids, Kernel: f.kernel, Physical: f.physical, Max: f.max}
	if !o.Processes && len(o.PIDs) == 0 && !o.Kernel && !o.Physical {
		o.Processes, o.Kernel = true, true
	}
	return o
}

func (a *app) scan(ctx context.Context, v *vmscope.View, set *pattern.Set, o scan.Options) error {
	wipe := func() {}
	if isTTY(os.Stderr) {
		wipe = func() { fmt.Fprint(a.err, "\r\x1b[K") }
		o.Progress = func(p scan.Progress) {
			fmt.Fprintf(a.err, "\r\x1b[K%s of %s, %d matches, %s", size(p.Done), size(p.RAM), p.Matches, p.What)
		}
	}
	r, err := scan.Run(ctx, v, set, o, func(m scan.Match) error {
		wipe()
		return a.match(m)
	})
	wipe()
	if len(r.Limited) > 0 {
		a.note = fmt.Sprintf("more matches than --max %d allows: %s", o.Max, kernel.Text(strings.Join(r.Limited, ", ")))
	}
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case err != nil:
		return err
	case r.Matches > 0:
		return errFindings
	}
	a.note = fmt.Sprintf("nothing found in %s", size(r.Searched))
	return nil
}

// match prints one line.
func (a *app) match(m scan.Match) error {
	if a.json {
		return a.object(m)
	}
	var b strings.Builder
	switch m.Kind {
	case "process":
		fmt.Fprintf(&b, "%d %s", m.PID, m.Comm)
	default:
		fmt.Fprintf(&b, "- %s", m.Kind)
	}
	at := uint64(m.VA)
	if m.VA == 0 && m.PA != nil {
		at = uint64(*m.PA)
	}
	if m.Len > 0 {
		fmt.Fprintf(&b, " %#x", at)
	}
	if m.Area != "" {
		fmt.Fprintf(&b, " %s", m.Area)
		if m.Offset != nil {
			fmt.Fprintf(&b, "+%#x", *m.Offset)
		}
	}
	rule := kernel.Text(m.Rule).String()
	if a.colors() {
		rule = text.Bold.Sprint(rule)
	}
	b.WriteString(" " + rule)
	if m.String != "" && m.String != "$" {
		b.WriteString(" " + m.String)
	}
	if len(m.Data) > 0 {
		fmt.Fprintf(&b, " %x %q", []byte(m.Data), printable(m.Data))
	}
	_, err := fmt.Fprintln(a.out, b.String())
	return err
}

// printable is bytes as hexdump shows them.
func printable(b []byte) string {
	out := make([]byte, len(b))
	for i, c := range b {
		if out[i] = c; c < 0x20 || c > 0x7e {
			out[i] = '.'
		}
	}
	return string(out)
}
