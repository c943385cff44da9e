package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"

	"vmscope"
)

func (a *app) dumpCmd() *cobra.Command {
	var pid int
	var force bool
	c := &cobra.Command{
		Use:   "dump TARGET FILE",
		Short: "Save the RAM, or the memory of --pid, as an ELF core",
		Long: `Save the guest's RAM as an ELF core that crash and drgn open, or the memory of
one process as one that gdb opens. Memory that was never used takes no room in
FILE. FILE may be - for a pipe.

The guest runs on while it is copied, so parts of the core are of different
moments; --pause makes it one moment, and adds the registers of the vCPUs.
A process's core has its threads with the registers that they had when they
last left user mode.`,
		Example: `  vmscope dump web1 web1.core --pause
  vmscope dump web1 nginx.core --pid 812`,
		Args: targetAnd(1, "FILE"), ValidArgsFunction: a.completeTarget,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.view(cmd, args[0], func(v *vmscope.View) error {
				out, done, err := a.create(args[1], force)
				if err != nil {
					return err
				}
				missing, err := a.dump(cmd, v, out, pid)
				if err = done(err); err != nil {
					return err
				}
				if missing > 0 {
					fmt.Fprintf(a.err, "vmscope: %s of the process are not in RAM: they read as zeros, or from the files that are mapped there\n", size(missing))
				}
				return nil
			})
		},
	}
	f := c.Flags()
	f.IntVar(&pid, "pid", 0, "only the memory of this process")
	f.BoolVarP(&force, "force", "f", false, "overwrite FILE")
	return c
}

func (a *app) dump(cmd *cobra.Command, v *vmscope.View, out io.Writer, pid int) (missing uint64, err error) {
	progress := a.progress("dump")
	defer progress(0, 0)
	if !cmd.Flags().Changed("pid") {
		return 0, v.WriteCore(cmd.Context(), out, progress)
	}
	t, err := v.TaskByPID(pid)
	if err != nil {
		return 0, err
	}
	return v.WriteProcessCore(cmd.Context(), out, t, progress)
}

// create opens the file to write. done closes it and, after an error, removes
// what was written: half a dump looks like a whole one.
func (a *app) create(path string, force bool) (out io.Writer, done func(error) error, err error) {
	if path == "-" {
		if a.isTerminal() {
			return nil, nil, errors.New("a dump would fill your terminal: redirect the output to a file or a pipe")
		}
		return a.out, func(err error) error { return err }, nil
	}
	if st, err := os.Stat(path); err == nil && st.IsDir() {
		return nil, nil, fmt.Errorf("%s is a directory: name a file in it", path)
	}
	mode := os.O_WRONLY | os.O_CREATE | os.O_EXCL
	if force {
		mode = os.O_WRONLY | os.O_CREATE | os.O_TRUNC
	}
	f, err := os.OpenFile(path, mode, 0o600) // it holds all of the guest's secrets
	if errors.Is(err, os.ErrExist) {
		return nil, nil, fmt.Errorf("%s exists: add --force to overwrite it", path)
	}
	if err != nil {
		return nil, nil, err
	}
	return f, func(err error) error {
		st, serr := f.Stat()
		if err = errors.Join(err, f.Close()); err == nil {
			return nil
		}
		// With --force it may be a device or a link, which is not ours.
		if at, lerr := os.Lstat(path); serr == nil && lerr == nil && at.Mode().IsRegular() && os.SameFile(at, st) {
			os.Remove(path)
		}
		return err
	}, nil
}

// progress shows on a terminal how far a long piece of work is. Called with
// zeros it clears the line.
func (a *app) progress(what string) func(done, total uint64) {
	f, ok := a.err.(*os.File)
	if !ok || !isTTY(f) {
		return func(uint64, uint64) {}
	}
	var last time.Time
	start := time.Now()
	return func(done, total uint64) {
		if total == 0 {
			if !last.IsZero() {
				fmt.Fprint(f, "\r\x1b[K")
			}
			return
		}
		// Quick work shows nothing, and nothing flickers.
		if now := time.Now(); now.Sub(start) > 300*time.Millisecond && now.Sub(last) > 100*time.Millisecond {
			last = now
			fmt.Fprintf(f, "\r\x1b[K%s: %d %% of %s", what, done*100/total, size(total))
		}
	}
}
