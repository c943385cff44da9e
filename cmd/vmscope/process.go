package main

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"vmscope"
	"vmscope/kernel"
	"vmscope/mem"
)

// addr prints an address as all tables do.
func addr(a mem.VA) string { return fmt.Sprintf("%#x", uint64(a)) }

// joined prints texts of the guest side by side, each safe for a terminal.
func joined(list []kernel.Text, sep string) string {
	s := make([]string, len(list))
	for i, t := range list {
		s[i] = t.String()
	}
	return strings.Join(s, sep)
}

func (a *app) psCmd() *cobra.Command {
	var threads, tree, long, user bool
	c := a.see("ps", "List the processes, as the kernel sees them", func(v *vmscope.View) error {
		processes := v.Processes
		if threads {
			processes = v.Threads
		}
		list, err := processes()
		if user {
			list = slices.DeleteFunc(list, func(p kernel.Process) bool { return p.KThread })
		}
		if !a.json {
			a.note = missing(list)
			a.noteInferred(v)
		}
		if tree && !a.json {
			a.tree(list)
			return err
		}
		header := []any{"pid", "ppid"}
		if threads {
			header = append(header, "tgid")
		}
		header = append(header, "uid", "gid", "s", "started")
		if long {
			header = append(header, "thr", "container", "exe")
		}
		header = append(header, "command")
		return rows(a, list, err, header, func(p kernel.Process) []any {
			r := []any{p.PID, p.PPID}
			if threads {
				r = append(r, p.TGID)
			}
			is := known(p.Unknown)
			r = append(r, is("uid", p.UID), is("gid", p.GID), is("state", p.State), started(p.StartTime))
			if long {
				r = append(r, p.Threads, is("container", short(p.Container, 12)), is("exe", p.Exe))
			}
			return append(r, command(p))
		})
	})
	f := c.Flags()
	f.BoolVarP(&threads, "threads", "T", false, "every thread of every process")
	f.BoolVar(&tree, "tree", false, "show who started whom")
	f.BoolVarP(&user, "user", "u", false, "leave out the kernel's own threads")
	f.BoolVarP(&long, "long", "l", false, "thread count, container and executable too")
	return c
}

// known gives what stands in a table for a field: its value, or that it is not
// known.
func known(unknown []string) func(field string, value any) any {
	return func(field string, value any) any {
		if slices.Contains(unknown, field) {
			return "?"
		}
		return value
	}
}

// noteInferred says where question marks in a table come from.
func (a *app) noteInferred(v *vmscope.View) {
	if v.Inferred() == nil {
		return
	}
	if a.note != "" {
		a.note += "; "
	}
	a.note += "this kernel does not tell its types: what could not be inferred from its memory is shown as ?; a file that has them, given by --types or once to 'vmscope profile', tells all"
}

// missing says what the table does not show: that something of a process could
// not be read.
func missing(list []kernel.Process) string {
	n, first := 0, ""
	for _, p := range list {
		if len(p.Missing) > 0 {
			if n++; n == 1 {
				first = fmt.Sprintf("pid %d, %s", p.PID, kernel.Text(p.Missing[0]))
			}
		}
	}
	if n == 0 {
		return ""
	}
	return fmt.Sprintf("of %d processes something could not be read (%s): --json tells what", n, first)
}

// started prints a start time the short way.
func started(t *time.Time) string {
	if t == nil {
		return "?"
	}
	return t.UTC().Format("2006-01-02 15:04:05")
}

func short(t kernel.Text, n int) kernel.Text {
	if len(t) > n {
		return t[:n]
	}
	return t
}

// command is the command line, or the name in brackets where there is none, or
// where it is not known, which a question mark says.
func command(p kernel.Process) string {
	if len(p.Cmdline) > 0 {
		return joined(p.Cmdline, " ")
	}
	name := "[" + p.Comm.String() + "]"
	if !p.KThread && slices.Contains(p.Unknown, "cmdline") {
		name += " ?"
	}
	return name
}

// maxIndent bounds how deep a tree is drawn to the right: the guest may make
// it as deep as it has processes.
const maxIndent = 40

// tree prints processes under their parents. Those whose parent is missing, and
// one of each ring of parents (the guest wrote them), stand at the left edge.
func (a *app) tree(list []kernel.Process) {
	var lead []string // for each level the line that goes on below it
	for _, b := range kernel.Tree(list) {
		mark, below := "├─", "│ "
		switch {
		case b.Depth == 0:
			mark, below = "", ""
		case b.Last:
			mark, below = "└─", "  "
		}
		lead = append(lead[:min(b.Depth, maxIndent)], below)
		if b.Depth > maxIndent {
			mark = "… "
		}
		fmt.Fprintf(a.out, "%7d %s%s%s\n", b.Process.PID, strings.Join(lead[:len(lead)-1], ""), mark, command(*b.Process))
	}
}
