package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/jedib0t/go-pretty/v6/text"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	"vmscope"
	"vmscope/kernel"
	"vmscope/vm/dump"
)

// The exit statuses that scripts rely on.
const (
	statusDone        = 0
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
}

// run executes one command line and returns the exit status.
func (a *app) run(ctx context.Context, args []string) int {
	buf := bufio.NewWriterSize(a.out, 1<<16)
	stdout := a.out
	a.out = buf
	root := a.rootCmd()
	root.SetArgs(args)
	root.SetOut(buf)
	root.SetErr(a.err)
	strict(root)
	err := root.ExecuteContext(ctx)
	ferr := buf.Flush()
	a.out = stdout
	if errors.Is(err, errQuiet) || ferr != nil && err == nil {
		// Whoever read our output went away (| head): that is no failure of ours
		// worth a message.
		return statusFailed
	}
	if err != nil {
		hint := ""
		switch {
		case strings.HasPrefix(err.Error(), "unknown command"): // cobra's
			hint = "; see 'vmscope --help'"
		case errors.Is(err, dump.ErrTruncated) && !a.truncated:
			hint = ": --truncated"
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

func (a *app) rootCmd() *cobra.Command {
	root := &cobra.Command{
		Use:   "vmscope",
		Short: "See into virtual machines from outside",
		Long: `vmscope reads a guest's memory through the hypervisor, or out of a dump, and
says what goes on in it. It needs a target and nothing else: no agent, no
profile, no debug symbols, no special option of the hypervisor.

Targets:
  NAME           the one running VM of that name
  qemu:NAME      a running QEMU by its -name; qemu:PID by its process id
  /run/qmp.sock  a running QEMU by its QMP socket
  file:PATH      a dump (ELF core of dump-guest-memory, or raw RAM); just PATH too

Exit status: 0 done; 2 not done, or only in part, with one line on stderr that
says why; 130 interrupted.`,
		Example: `  vmscope vms
  vmscope ps web1
  vmscope lsmod dump.elf --json | jq -r .name
  vmscope read web1 --sym linux_banner --string`,
		SilenceUsage:  true,
		SilenceErrors: true,
		PersistentPreRunE: func(*cobra.Command, []string) error {
			if !slices.Contains(colorWords, a.color) {
				return fmt.Errorf("--color %q: it is %s", a.color, strings.Join(colorWords, ", "))
			}
			return nil
		},
	}
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return fmt.Errorf("%w; see '%s --help'", err, cmd.CommandPath())
	})
	p := root.PersistentFlags()
	p.BoolVar(&a.json, "json", false, "print one JSON object a line")
	p.StringVar(&a.color, "color", "auto", "colour on a terminal: auto, always, never")
	p.BoolVar(&a.pause, "pause", false, "stop the guest while it is read (needs its QMP socket); afterwards it runs on, whatever happens")
	p.BoolVar(&a.registers, "registers", false, "ask the guest's monitor for vCPU registers to confirm the kernel")
	p.BoolVar(&a.truncated, "truncated", false, "open a dump whose end is missing")
	p.StringVar(&a.layout, "layout", "", "where RAM lies, for raw dumps: q35, pc, virt, flat, low=SIZE (default: found)")
	p.StringVar(&a.route, "route", "", "way to a live guest's memory: mmap, vmread, qmp (default: the fastest that works)")
	_ = root.RegisterFlagCompletionFunc("color", fixed(colorWords...))
	_ = root.RegisterFlagCompletionFunc("layout", fixed("q35", "pc", "virt", "flat"))
	_ = root.RegisterFlagCompletionFunc("route", fixed("mmap", "vmread", "qmp"))
	root.AddGroup(
		&cobra.Group{ID: "see", Title: "See:"},
		&cobra.Group{ID: "process", Title: "Look into one process:"},
		&cobra.Group{ID: "raw", Title: "Memory, symbols and types:"},
	)
	for _, c := range []*cobra.Command{
		a.vmsCmd(), a.infoCmd(), a.psCmd(), a.lsmodCmd(), a.dmesgCmd(), a.mountCmd(), a.lsofCmd(), a.ssCmd(),
	} {
		c.GroupID = "see"
		root.AddCommand(c)
	}
	for _, c := range []*cobra.Command{a.mapsCmd(), a.envCmd()} {
		c.GroupID = "process"
		root.AddCommand(c)
	}
	for _, c := range []*cobra.Command{a.symCmd(), a.typeCmd(), a.readCmd(), a.writeCmd(), a.dumpCmd()} {
		c.GroupID = "raw"
		root.AddCommand(c)
	}
	root.AddCommand(a.versionCmd(), a.manCmd())
	return root
}

// colorWords are what --color takes.
var colorWords = []string{"auto", "always", "never"}

// strict makes the commands that cobra brings refuse what they do not know,
// instead of printing help with status 0.
func strict(root *cobra.Command) {
	root.InitDefaultHelpCmd()
	root.InitDefaultCompletionCmd()
	for _, c := range root.Commands() {
		switch c.Name() {
		case "help":
			help := c.Run
			c.Run = nil
			c.RunE = func(cmd *cobra.Command, args []string) error {
				if found, _, err := root.Find(args); found == nil || err != nil {
					return fmt.Errorf("unknown command %q", strings.Join(args, " "))
				}
				help(cmd, args)
				return nil
			}
		case "completion":
			c.RunE = func(cmd *cobra.Command, args []string) error {
				if len(args) > 0 {
					return fmt.Errorf("no completion for the shell %q: there is bash, zsh, fish and powershell", args[0])
				}
				return cmd.Help()
			}
		}
	}
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

func fixed(words ...string) cobra.CompletionFunc {
	return cobra.FixedCompletions(words, cobra.ShellCompDirectiveNoFileComp)
}

// options are the root command's flags as options of Open.
func (a *app) options() []vmscope.Option {
	var o []vmscope.Option
	if a.layout != "" {
		o = append(o, vmscope.Layout(a.layout))
	}
	if a.route != "" {
		o = append(o, vmscope.Route(a.route))
	}
	if a.pause {
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

// view opens the target for one look.
func (a *app) view(cmd *cobra.Command, target string, f func(v *vmscope.View) error) error {
	return vmscope.Look(cmd.Context(), target, f, a.options()...)
}

// isTerminal reports whether the output goes to people.
func (a *app) isTerminal() bool { return isTTY(os.Stdout) }

func isTTY(f *os.File) bool { return term.IsTerminal(int(f.Fd())) }

func (a *app) colors() bool {
	switch a.color {
	case "always":
		return true
	case "never":
		return false
	}
	return a.isTerminal() && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
}

// rows prints a list as a table or as JSON lines. A partial list comes with an
// error: both are shown.
func rows[T any](a *app, list []T, err error, header []any, row func(T) []any) error {
	if len(list) == 0 && err != nil {
		return err
	}
	if a.json {
		for _, x := range list {
			if jerr := a.object(x); jerr != nil {
				return jerr
			}
		}
		return err
	}
	t := a.table(header)
	for _, x := range list {
		t.AppendRow(row(x))
	}
	t.Render()
	return err
}

// object prints one JSON line.
func (a *app) object(x any) error {
	e := json.NewEncoder(a.out)
	e.SetEscapeHTML(false)
	return e.Encode(x)
}

// table is one in the plain style of ps(1): no borders, so that it pastes and
// greps well.
func (a *app) table(header []any) table.Writer {
	t := table.NewWriter()
	t.SetOutputMirror(a.out)
	s := table.StyleDefault
	s.Options = table.OptionsNoBordersAndSeparators
	s.Box.PaddingLeft, s.Box.PaddingRight = "", "  "
	s.Format.Header = text.FormatUpper
	if a.colors() {
		s.Color.Header = text.Colors{text.Bold}
	}
	t.SetStyle(s)
	t.SuppressTrailingSpaces()
	if header != nil {
		t.AppendHeader(header)
	}
	return t
}
