package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"vmscope/kernel"
	"vmscope/kernel/linux/profile"
)

// profileRow is what profile prints.
type profileRow struct {
	File    kernel.Text `json:"file"`
	Format  string      `json:"format"`
	BuildID string      `json:"build_id,omitempty"`
	Version kernel.Text `json:"version,omitempty"`
	Types   int         `json:"types"`
	Symbols int         `json:"symbols"`
	Cached  kernel.Text `json:"cached,omitempty"`
	Output  kernel.Text `json:"output,omitempty"`
}

func (a *app) profileCmd() *cobra.Command {
	var output string
	var force bool
	c := &cobra.Command{
		Use:   "profile VMLINUX",
		Short: "Make what --types takes out of a vmlinux, ahead and once",
		Long: `Most kernels carry the description of their types (BTF) in memory, and nothing
need be given. For those that do not, profile takes the types and the symbols
out of VMLINUX, the kernel's file with debug information, and keeps them in the
user's cache under the kernel's build id: from then on commands that look into a
guest with that very kernel find them without --types. -o writes them into a file
as well, for --types on another machine: an ELF file with .BTF and symbols, some
MiB, which nm and pahole read.

VMLINUX may be what --types takes: a vmlinux with DWARF or BTF (Debian: package
linux-image-*-dbg, below /usr/lib/debug; Fedora: kernel-debuginfo), raw BTF, or
symbols of Volatility 3 (.json, .json.xz). The latter two tell no build id, so
that they need -o. DWARF takes some ten seconds and about 1 GiB of memory.`,
		Example: `  vmscope profile /usr/lib/debug/boot/vmlinux-6.1.0-50-amd64
  vmscope profile vmlinux -o web1.profile
  vmscope ps web1 --types web1.profile`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) != 1 {
				return fmt.Errorf("profile needs one VMLINUX; see '%s --help'", cmd.CommandPath())
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			p, err := profile.Open(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			r := profileRow{File: kernel.Text(args[0]), Format: p.Format, BuildID: p.BuildID, Version: kernel.Text(p.Banner)}
			if p.Types == nil {
				return fmt.Errorf("%s tells symbols only (%s): give it to --sysmap: %w", args[0], p.Format, profile.ErrFormat)
			}
			r.Types = p.Types.Len()
			if p.Symbols != nil {
				r.Symbols = p.Symbols.Len()
			}
			if output != "" {
				out, done, err := a.create(output, force)
				if err == nil {
					err = done(p.Write(out))
				}
				if err != nil {
					return err
				}
				if r.Output = kernel.Text(output); output == "-" {
					return nil
				}
			}
			if err := a.cache(p, &r); err != nil && output == "" {
				return err
			}
			if a.json {
				return a.object(r)
			}
			return a.printProfile(r)
		},
	}
	f := c.Flags()
	f.StringVarP(&output, "output", "o", "", "write it into this `FILE` as well; - for a pipe")
	f.BoolVarP(&force, "force", "f", false, "overwrite that file")
	return c
}

// cache keeps a profile for later looks at the same kernel.
func (a *app) cache(p *profile.Profile, r *profileRow) error {
	c, err := profile.UserCache()
	if err != nil {
		return fmt.Errorf("%w: name a file by -o", err)
	}
	path, err := c.Store(p)
	if errors.Is(err, profile.ErrNoBuildID) {
		return fmt.Errorf("%s: %w, so that the cache cannot name it: write a file by -o, for --types", p.Name, err)
	}
	if err == nil {
		r.Cached = kernel.Text(path)
	}
	return err
}

func (a *app) printProfile(r profileRow) error {
	line := func(name string, value any) {
		if s := fmt.Sprint(value); s != "" {
			fmt.Fprintf(a.out, "%-10s %s\n", name, s)
		}
	}
	line("from", r.File.String()+" ("+r.Format+")")
	line("kernel", r.Version)
	line("build id", r.BuildID)
	line("types", r.Types)
	line("symbols", r.Symbols)
	line("cached", r.Cached)
	line("written", r.Output)
	return nil
}
