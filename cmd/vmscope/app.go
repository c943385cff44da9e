package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os/signal"
	"slices"
	"strings"
	"syscall"

	"vmscope"
	"vmscope/kernel"
	"vmscope/kernel/linux"
	"vmscope/vm/dump"
)

// The exit statuses that scripts rely on.
const (
	statusDone        = 0
	statusFindings    = 1 // of check and scan
	statusFailed      = 2
	statusInterrupted = 130
)

// app is what all commands share: where output goes and the flags of the root
// command.
type app struct {
	out io.Writer
	err io.Writer

	json      bool
	color     string
	pause     bool
	registers bool
	truncated bool
	layout    string
	route     string
	types     string
	sysmap    string

	note string // for people, behind the output
}

// run executes one command line and returns the exit status.
func (a *app) run(ctx context.Context, args []string) int {
	buf := bufio.NewWriterSize(a.out, 1<<16)
	stdout := a.out
	a.out = buf
	root := a.rootCmd()
	root.SetArgs(args)
	if slices.ContainsFunc(args, func(s string) bool { return strings.HasPrefix(s, "gdb:") }) {
		signal.Ignore(syscall.SIGTSTP) // a guest stands still for moments, in one of which Ctrl-Z would stop us
	}
	root.SetOut(buf)
	root.SetErr(a.err)
	strict(root)
	cmd, err := root.ExecuteContextC(ctx)
	err = groups(cmd.Name(), err)
	ferr := buf.Flush()
	a.out = stdout
	if a.note != "" {
		fmt.Fprintln(a.err, "vmscope: "+a.note)
	}
	switch gone := errors.Is(ferr, syscall.EPIPE); {
	case errors.Is(err, errFindings) && (ferr == nil || gone):
		return statusFindings
	case errors.Is(err, errQuiet) || err == nil && gone:
		// Whoever read our output went away (| head): that is no failure of ours
		// worth a message.
		return statusFailed
	case err == nil || errors.Is(err, errFindings):
		err = ferr
	}
	if err != nil {
		hint := ""
		switch {
		case ctx.Err() != nil && (err.Error() == ctx.Err().Error() || err.Error() == context.Cause(ctx).Error()):
			err = errors.New("interrupted")
		case ctx.Err() != nil:
			err = fmt.Errorf("interrupted: %w", err)
		case strings.HasPrefix(err.Error(), "unknown command"): // cobra's
			hint = "; see 'vmscope --help'"
		case errors.Is(err, dump.ErrPartial):
			hint = ": --truncated"
		case errors.Is(err, linux.ErrNoData) && a.sysmap == "":
			hint = ": give the kernel's System.map, or vmlinux, by --sysmap"
		case errors.Is(err, linux.ErrNoTypes):
			hint = ": give a file that has them by --types, or once to 'vmscope profile'"
		}
		fmt.Fprintf(a.err, "vmscope: %s%s\n", oneLine(err), hint)
		return statusFailed
	}
	return statusDone
}

// errQuiet ends a command with status 2 when all has been said.
var errQuiet = errors.New("failed")

// oneLine prints an error, and all that are joined to it, in one line, safe for
// a terminal: paths and names in it may be anybody's.
func oneLine(err error) string {
	var b strings.Builder
	for i, line := range strings.FieldsFunc(err.Error(), func(r rune) bool { return r == '\n' || r == '\r' }) {
		if i > 0 {
			b.WriteString("; ")
		}
		// Backslashes stay: most names are quoted already.
		for i, part := range strings.Split(line, `\`) {
			if i > 0 {
				b.WriteByte('\\')
			}
			b.WriteString(kernel.Text(part).String())
		}
	}
	return b.String()
}

// options are the root command's flags as options of Open.
func (a *app) options() []vmscope.Option {
	o := []vmscope.Option{vmscope.Progress(a.progress("unpack"))}
	if a.layout != "" {
		o = append(o, vmscope.Layout(a.layout))
	}
	if a.route != "" {
		o = append(o, vmscope.Route(a.route))
	}
	if a.types != "" {
		o = append(o, vmscope.Types(a.types))
	}
	if a.sysmap != "" {
		o = append(o, vmscope.SystemMap(a.sysmap))
	}
	if a.pause {
		// Stopped by Ctrl-Z we would leave the guest stopped.
		signal.Ignore(syscall.SIGTSTP)
		o = append(o, vmscope.Paused())
	}
	if a.registers {
		o = append(o, vmscope.Registers())
	}
	if a.truncated {
		o = append(o, vmscope.AllowTruncated())
	}
	return o
}
