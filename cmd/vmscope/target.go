package main

import (
	"fmt"
	"os"
	"strings"
	"time"
	"unicode"

	"github.com/spf13/cobra"

	"vmscope"
	"vmscope/kernel"
	"vmscope/kernel/linux"
)

// see makes a command that takes a target, looks at it once, and does no more.
func (a *app) see(name, short string, look func(v *vmscope.View) error) *cobra.Command {
	return a.seeMore(name+" TARGET", short, targetAnd(0), func(_ *cobra.Command, v *vmscope.View, _ []string) error { return look(v) })
}

// seeMore makes a command that takes a target and more arguments, which args
// checks; look gets those behind the target.
func (a *app) seeMore(use, short string, args cobra.PositionalArgs, look func(cmd *cobra.Command, v *vmscope.View, args []string) error) *cobra.Command {
	return &cobra.Command{
		Use: use, Short: short, Args: args, ValidArgsFunction: a.completeTarget,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.view(cmd, args[0], func(v *vmscope.View) error { return look(cmd, v, args[1:]) })
		},
	}
}

// seeTask makes a command that looks into the one process that --pid names, or
// into process normal where it is not given; normal 0: it must be given.
func (a *app) seeTask(name, short string, normal int, look func(v *vmscope.View, t linux.Task) error) *cobra.Command {
	use := name + " TARGET"
	if normal == 0 {
		use += " --pid N"
	}
	var pid int
	c := a.see(name, short, func(v *vmscope.View) error {
		t, err := v.TaskByPID(pid)
		if err != nil {
			return err
		}
		return look(v, t)
	})
	c.Use = use
	c.Flags().IntVar(&pid, "pid", normal, "the process")
	if normal == 0 {
		c.PreRunE = func(cmd *cobra.Command, args []string) error {
			if cmd.Flags().Changed("pid") {
				return nil
			}
			return fmt.Errorf("%s needs --pid N: 'vmscope ps %s' lists the processes", name, args[0])
		}
	}
	return c
}

// view opens the target for one look.
func (a *app) view(cmd *cobra.Command, target string, f func(v *vmscope.View) error) error {
	said := a.stillLooking(target)
	defer said()
	return vmscope.Look(cmd.Context(), target, func(v *vmscope.View) error {
		said()
		return f(v)
	}, a.options()...)
}

// slow is after how long somebody who waits is told what for.
const slow = 3 * time.Second

// stillLooking tells somebody at a terminal that a kernel is still searched, unless what it returns is called before.
func (a *app) stillLooking(target string) (found func()) {
	if f, ok := a.err.(*os.File); !ok || !isTTY(f) {
		return func() {}
	}
	t := time.AfterFunc(slow, func() {
		fmt.Fprintf(a.err, "vmscope: still looking for a kernel in %s (Ctrl-C ends it)\n", kernel.Text(target))
	})
	return func() { t.Stop() }
}

// targetAnd checks the arguments of a command that takes a target and more
// names behind it: n of them, or any number (-1) but at least those that are
// named.
func targetAnd(n int, more ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		see := fmt.Sprintf("see '%s --help'", cmd.CommandPath())
		switch {
		case len(args) == 0:
			return fmt.Errorf("%s needs a TARGET: the name of a running VM ('vmscope vms' lists them) or a dump's path; %s", cmd.Name(), see)
		case len(args) < 1+len(more):
			return fmt.Errorf("%s needs a %s behind the target; %s", cmd.Name(), more[len(args)-1], see)
		case n >= 0 && len(args) > 1+n:
			return fmt.Errorf("%s takes no argument %q; %s", cmd.Name(), args[1+n], see)
		}
		return nil
	}
}

// completeTarget completes the names of running VMs, and files.
func (a *app) completeTarget(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	list, _ := running(cmd.Context())
	var out []string
	for _, r := range list {
		if name := string(r.Name); harmless(name) {
			out = append(out, name, r.kind()+":"+name)
			if r.Manager == "libvirt" && !strings.ContainsAny(name, "%/?") {
				out = append(out, "libvirt:///"+name)
			}
		} else {
			out = append(out, r.target())
		}
	}
	return out, cobra.ShellCompDirectiveDefault
}

// harmless reports whether a word that somebody else chose, a guest or whoever
// names a process, may be put into a shell's command line: a terminal or a shell
// would act on others.
func harmless(word string) bool {
	for _, r := range word {
		if !unicode.IsLetter(r) && !unicode.IsDigit(r) && !strings.ContainsRune("/._-+:@,%=", r) || r == unicode.ReplacementChar {
			return false
		}
	}
	return word != "" && word[0] != '-'
}
