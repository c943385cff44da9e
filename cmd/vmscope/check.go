package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/jedib0t/go-pretty/v6/text"
	"github.com/spf13/cobra"

	"vmscope"
	"vmscope/detect"
	"vmscope/kernel"
)

// errFindings ends check and scan with status 1.
var errFindings = errors.New("findings")

func (a *app) checkCmd() *cobra.Command {
	var only []string
	var every time.Duration
	var state, id, bundle, kernelFile, modules string
	var force bool
	c := &cobra.Command{
		Use: "check TARGET", Short: "Look for tampering with the guest's kernel",
		Long: `Look for tampering with the guest's kernel: code that belongs to nobody,
system calls and interrupts that lead astray, handlers of strangers, hidden
modules and processes. Each finding comes with its evidence.

Code and read-only data are compared with what they were when first seen: by
this run, or with --state by the first that was given the same directory in this
boot of the guest.

With --kernel they are also compared with the vendor's own file, the vmlinuz that
the guest was booted from, and with --modules-dir those of modules with theirs:
a directory like /lib/modules/RELEASE, or any with .ko, .ko.xz, .ko.zst or .ko.gz
files in it. Files belong to the guest if their build ids do; of modules without
a file the names are told. What was tampered with before the first look is seen
too then. Keep the files where the guest cannot write them.

Findings of severity info are inventory, such as programs of eBPF: they are
told, and are no reason for status 1.

--explain ID shows what one finding rests on: the bytes, how the page tables lead
there, and what the check goes by. The start of an ID will do; one that is not
there any more is status 2.

--bundle FILE writes all memory that the checks read into a small file. 'check
FILE' finds the same in it anywhere, without the guest; 'info FILE', 'read FILE'
and --explain work on it too. It holds memory of the guest's kernel.

Exit status: 0 nothing found; 1 findings; 2 nothing found, and not all could be
told.`,
		Example: `  vmscope check web1
  vmscope check web1 --only syscalls,modules --json
  vmscope check web1 --watch 5s
  vmscope check web1 --state /var/lib/vmscope/web1
  vmscope check web1 --kernel vmlinuz-6.1.0-41-amd64 --modules-dir /srv/modules/6.1.0-41-amd64
  vmscope check web1 --explain syscalls-3f
  vmscope check web1 --bundle web1.bundle`,
		Args: targetAnd(0), ValidArgsFunction: a.completeTarget,
		RunE: func(cmd *cobra.Command, args []string) error {
			if _, err := chosen(only, nil); err != nil {
				return err
			}
			for _, f := range []string{"state", "kernel", "modules-dir"} { // a shell's variable that was not set
				if cmd.Flags().Changed(f) && cmd.Flags().Lookup(f).Value.String() == "" {
					return fmt.Errorf("--%s needs a name", f)
				}
			}
			keep := keeper{dir: state}
			if modules != "" && kernelFile == "" {
				return errors.New("--modules-dir needs --kernel: the code of modules leads to the kernel's")
			}
			if kernelFile != "" {
				var err error
				if keep.vendor, err = detect.OpenVendor(cmd.Context(), kernelFile, modules); err != nil {
					return err
				}
			}
			switch changed := cmd.Flags().Changed; {
			case changed("watch") && every <= 0:
				return fmt.Errorf("--watch %v: no pause between looks", every)
			case changed("watch"):
				return a.checkAgain(cmd.Context(), args[0], only, keep, every)
			case changed("explain"):
				return a.view(cmd, args[0], func(v *vmscope.View) error {
					return a.explain(cmd.Context(), v, args[0], id, keep)
				})
			case changed("bundle"):
				if err := mayCreate(bundle, force); err != nil {
					return err
				}
				return a.view(cmd, args[0], func(v *vmscope.View) error {
					return a.bundle(cmd.Context(), v, bundle, keep)
				})
			}
			return a.checkOnce(cmd.Context(), args[0], only, keep)
		},
	}
	c.Flags().StringSliceVar(&only, "only", nil, "only these checks: "+strings.Join(checkNames(), ", "))
	c.Flags().DurationVar(&every, "watch", 0, "keep looking, with this pause, and report changes only")
	c.Flags().StringVar(&state, "state", "", "directory, for this guest alone, that keeps what code and read-only data were when first seen")
	c.Flags().StringVar(&kernelFile, "kernel", "", "the vendor's vmlinuz, to compare the kernel with")
	c.Flags().StringVar(&modules, "modules-dir", "", "directory of the vendor's modules, to compare those loaded with")
	c.Flags().StringVar(&id, "explain", "", "show what the finding of this ID rests on")
	c.Flags().StringVar(&bundle, "bundle", "", "write what was read to this file, to be checked elsewhere")
	c.Flags().BoolVarP(&force, "force", "f", false, "overwrite the file of --bundle")
	_ = c.RegisterFlagCompletionFunc("only", fixed(checkNames()...))
	_ = c.RegisterFlagCompletionFunc("explain", fixed(checkNames()...))
	for _, other := range []string{"watch", "only"} {
		c.MarkFlagsMutuallyExclusive("explain", other, "bundle")
	}
	_ = c.MarkFlagDirname("modules-dir")
	_ = c.MarkFlagDirname("state")
	return c
}

func checkNames() []string {
	var names []string
	for _, d := range detect.All() {
		names = append(names, d.Name())
	}
	return names
}

// chosen are the detectors of those names; all if there are none.
func chosen(names []string, ref *detect.Reference) ([]detect.Detector, error) {
	all := detect.Against(ref)
	for _, n := range names {
		if !slices.Contains(checkNames(), n) {
			return nil, fmt.Errorf("--only %q: there is %s", n, strings.Join(checkNames(), ", "))
		}
	}
	if len(names) == 0 {
		return all, nil
	}
	return slices.DeleteFunc(all, func(d detect.Detector) bool { return !slices.Contains(names, d.Name()) }), nil
}

func (a *app) checkOnce(ctx context.Context, target string, only []string, keep keeper) error {
	g, err := vmscope.Open(ctx, target, a.options()...)
	if err != nil {
		return err
	}
	defer g.Close()
	var r detect.Result
	var ref *detect.Reference
	for began := time.Now(); ; {
		if err := g.View(ctx, func(v *vmscope.View) error {
			if ref, err = keep.load(v); err != nil {
				return err
			}
			detectors, err := chosen(only, ref)
			if err == nil {
				r = detect.Sweep(ctx, v, detectors)
			}
			return err
		}); err != nil {
			return err
		}
		if !r.Gone || time.Since(began) > detect.GoneFor {
			break
		}
		select { // it may be up by then
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Second):
		}
	}
	return a.told(ctx, r, keep.save(ref))
}

// told prints what a sweep found and says what its command ends with; err is
// what else went wrong.
func (a *app) told(ctx context.Context, r detect.Result, err error) error {
	for _, f := range r.Findings {
		if err := a.finding(detect.Change{Finding: f}, false); err != nil {
			return err
		}
	}
	err = errors.Join(r.Err(), err)
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case len(r.Tampered()) > 0:
		if err != nil { // a guest must not turn findings into a failure
			fmt.Fprintln(a.err, "vmscope: "+oneLine(err))
		}
		if isTTY(os.Stderr) {
			a.note = strings.TrimPrefix(a.note+"; ", "; ") + "check with --explain ID shows what a finding rests on"
		}
		return errFindings
	case err != nil:
		return err
	}
	var took time.Duration
	var lacks []string
	for _, c := range r.Checks {
		took += c.Took
		lacks = append(lacks, c.Lacks...)
	}
	what := "nothing"
	if len(r.Findings) > 0 {
		what = "no tampering"
	}
	a.note = strings.TrimPrefix(a.note+"; ", "; ") + fmt.Sprintf("%s found; %d checks took %v", what, len(r.Checks), took.Round(time.Millisecond))
	if len(lacks) > 0 {
		a.note += "; this source does not tell " + strings.Join(lacks, ", ")
	}
	return nil
}

// checkAgain reports changes until it is interrupted or the guest ends.
func (a *app) checkAgain(ctx context.Context, target string, only []string, keep keeper, every time.Duration) error {
	g, err := vmscope.Open(ctx, target, a.options()...)
	if err != nil {
		return err
	}
	defer g.Close()
	ref := detect.NewReference()
	ref.Vendor = keep.vendor
	if keep.dir != "" {
		if err := g.View(ctx, func(v *vmscope.View) (err error) {
			ref, err = keep.load(v)
			return err
		}); err != nil {
			return err
		}
	}
	detectors, err := chosen(only, ref)
	if err != nil {
		return err
	}
	said := ""
	return detect.Watch(ctx, g, detectors, every, func(changes []detect.Change, _ detect.Result, err error) error {
		for _, c := range changes {
			if err := a.finding(c, true); err != nil {
				return err
			}
		}
		// What could not be told is said once, not at each look.
		err = errors.Join(err, keep.save(ref))
		now := ""
		if err != nil {
			now = oneLine(err)
		}
		if now != said && now != "" {
			fmt.Fprintln(a.err, "vmscope: "+now)
		}
		said = now
		if b, ok := a.out.(*bufio.Writer); ok {
			if err := b.Flush(); errors.Is(err, syscall.EPIPE) {
				return errQuiet // | head
			} else if err != nil {
				return err
			}
		}
		return nil
	})
}

// finding prints a finding; with signs, also whether it came or went.
func (a *app) finding(c detect.Change, signs bool) error {
	if a.json {
		return a.object(c)
	}
	var b strings.Builder
	if signs {
		b.WriteString(map[bool]string{false: "+ ", true: "- "}[c.Gone])
	}
	severity := strings.ToUpper(string(c.Severity))
	if a.colors() && c.Severity == detect.High && !c.Gone {
		severity = text.FgRed.Sprint(severity)
	}
	fmt.Fprintf(&b, "%s %s: %s (%s)\n", severity, c.ID, kernel.Text(c.Summary), c.Confidence)
	for _, e := range c.Evidence {
		if c.Gone {
			break
		}
		b.WriteString("    ")
		if e.Addr != 0 { // a register has none
			at := fmt.Sprintf("%#x %s", uint64(e.Addr), kernel.Text(e.Symbol))
			b.WriteString(strings.TrimSuffix(at, " ") + ": ")
		}
		b.WriteString(kernel.Text(e.What).String())
		for _, part := range []struct{ what, value string }{{"of", e.Owner}, {"expected", e.Expected}, {"found", e.Found}} {
			if part.value != "" {
				fmt.Fprintf(&b, "; %s %s", part.what, kernel.Text(part.value))
			}
		}
		b.WriteByte('\n')
	}
	_, err := a.out.Write([]byte(b.String()))
	return err
}
