package main

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

func (a *app) rootCmd() *cobra.Command {
	root := &cobra.Command{
		Use:   "vmscope",
		Short: "See into virtual machines from outside",
		Long: `vmscope reads a guest's memory through the hypervisor, or out of a dump, and
says what goes on in it; it looks into its disks, and tells what happens to the
files on them as it is committed. It needs a target and nothing else: no agent,
no profile, no debug symbols, no special option of the hypervisor. Only of kernels
that were built without BTF it needs a file that tells their types (--types,
'vmscope profile').

Targets:
  NAME           the one running VM of that name
  qemu:NAME      a running QEMU by its -name; qemu:PID by its process id
  libvirt:///NAME  a domain of libvirt, which is asked for all that QEMU's monitor
                 is needed for; also by UUID or number, and ?socket=PATH of a daemon
  firecracker:ID a running Firecracker by its --id, its process id, or its API's
                 socket; so cloud-hypervisor:, crosvm: and kvmtool:
  xen:NAME       a Xen domain, in dom0; xen:ID by its number
  gdb:HOST:PORT  a QEMU by its GDB stub: the guest stands still for moments
  pid:N          the process that runs a guest, whatever VMM it is
  /run/qmp.sock  a running QEMU by its QMP socket
  file:PATH      a dump, told by its content (ELF core, kdump, LiME, QEMU's and
                 libvirt's saved machines, VMware's, VirtualBox's, Xen's, …), raw RAM,
                 or a bundle of check; just PATH too. For the commands on disks: a raw
                 image or a block device

The commands on disks also take nbd+unix:///EXPORT?socket=PATH and
nbd://HOST/EXPORT.

Exit status: 0 done; 1 check or scan has findings; 2 not done, or only in part, with one line on stderr that
says why; 130 interrupted.`,
		Example: `  vmscope vms
  vmscope ps web1
  vmscope lsmod dump.elf --json | jq -r .name
  vmscope check web1
  vmscope scan web1 --pattern 'BEGIN OPENSSH PRIVATE KEY'
  vmscope watch web1 /etc /root
  vmscope cat web1 /etc/passwd
  vmscope read web1 --sym linux_banner --string`,
		SilenceUsage:  true,
		SilenceErrors: true,
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error {
			if err := useless(cmd); err != nil {
				return err
			}
			if !slices.Contains(colorWords, a.color) {
				return fmt.Errorf("--color %q: it is %s", a.color, strings.Join(colorWords, ", "))
			}
			return nil
		},
	}
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		var e *pflag.NotExistError
		if errors.As(err, &e) && len(e.GetSpecifiedShortnames()) > 1 && cmd.Flags().Lookup(e.GetSpecifiedShortnames()) != nil {
			err = fmt.Errorf("%w: did you mean --%s?", err, e.GetSpecifiedShortnames()) // find -name
		}
		return fmt.Errorf("%w; see '%s --help'", err, cmd.CommandPath())
	})
	p := root.PersistentFlags()
	p.BoolVar(&a.json, "json", false, "print one JSON object a line")
	p.StringVar(&a.color, "color", "auto", "colour on a terminal: auto, always, never")
	p.BoolVar(&a.pause, "pause", false, "stop the guest while it is read (needs its QMP socket, or libvirt); afterwards it runs on, whatever happens")
	p.BoolVar(&a.registers, "registers", false, "ask the guest's monitor for vCPU registers, to confirm the kernel; of a Xen domain 'check' looks at them, too")
	p.BoolVar(&a.truncated, "truncated", false, "open a dump whose end is missing")
	p.StringVar(&a.layout, "layout", "", "the file is raw RAM, and lies so: q35, pc, virt, flat, low=SIZE (default: found)")
	p.StringVar(&a.route, "route", "", "way to a live guest's memory: mmap, vmread, qmp (default: the fastest that works)")
	p.StringVar(&a.types, "types", "", "the kernel's types are in this `FILE`: vmlinux with DWARF or BTF, raw BTF, Volatility 3 symbols, or what 'vmscope profile' made (default: in memory)")
	p.StringVar(&a.sysmap, "sysmap", "", "symbols that kallsyms lacks are in this `FILE`: System.map, or what --types takes")
	_ = root.RegisterFlagCompletionFunc("color", fixed(colorWords...))
	_ = root.RegisterFlagCompletionFunc("layout", fixed("q35", "pc", "virt", "flat"))
	_ = root.RegisterFlagCompletionFunc("route", fixed("mmap", "vmread", "qmp"))
	root.AddGroup(
		&cobra.Group{ID: "see", Title: "See:"},
		&cobra.Group{ID: "process", Title: "Look into one process:"},
		&cobra.Group{ID: "disk", Title: "Disks:"},
		&cobra.Group{ID: "raw", Title: "Memory, symbols and types:"},
	)
	for _, c := range []*cobra.Command{
		a.vmsCmd(), a.infoCmd(), a.psCmd(), a.lsmodCmd(), a.dmesgCmd(), a.mountCmd(), a.lsofCmd(), a.ssCmd(), a.checkCmd(), a.scanCmd(),
	} {
		c.GroupID = "see"
		root.AddCommand(c)
	}
	for _, c := range []*cobra.Command{a.mapsCmd(), a.envCmd()} {
		c.GroupID = "process"
		root.AddCommand(c)
	}
	for _, c := range []*cobra.Command{a.watchCmd(), a.nbdCmd(), a.xenBlockCmd(), a.replayCmd()} {
		c.GroupID = "disk"
		without(c, "pause", "registers", "truncated", "layout", "route", "types", "sysmap")
		root.AddCommand(c)
	}
	for _, c := range []*cobra.Command{a.disksCmd(), a.lsCmd(), a.catCmd(), a.statCmd(), a.findCmd()} {
		c.GroupID = "disk"
		without(c, "registers", "truncated", "layout", "route", "types", "sysmap")
		root.AddCommand(c)
	}
	for _, c := range []*cobra.Command{a.symCmd(), a.typeCmd(), a.readCmd(), a.writeCmd(), a.dumpCmd()} {
		c.GroupID = "raw"
		root.AddCommand(c)
	}
	vms, _, _ := root.Find([]string{"vms"})
	without(vms, "types", "sysmap") // it looks into several kernels
	made := a.profileCmd()
	made.GroupID = "raw"
	for _, c := range []*cobra.Command{made, a.versionCmd(), a.manCmd()} {
		without(c, "pause", "registers", "truncated", "layout", "route", "types", "sysmap")
		root.AddCommand(c)
	}
	for _, c := range root.Commands() {
		sayTarget(c)
	}
	return root
}

// sayTarget adds to a command's help what a TARGET is; those on disks say it themselves.
func sayTarget(c *cobra.Command) {
	if !strings.Contains(c.Use, " TARGET") || c.GroupID == "disk" {
		return
	}
	if c.Long == "" {
		c.Long = c.Short + "."
	}
	c.Long += "\n\nTARGET is a running VM (its NAME, qemu:PID, xen:NAME, the path of its QMP socket, …)\nor a dump's path: 'vmscope help' has all forms."
}

// noUse stands for a flag of the root command in a command that has no use for it.
type noUse struct{}

func (noUse) Set(string) error { return nil }
func (noUse) String() string   { return "" }
func (noUse) Type() string     { return "" }

// without hides flags of the root command from a command, which useless then refuses.
func without(c *cobra.Command, names ...string) {
	for _, name := range names {
		// As a local flag it takes the place of the root's.
		f := &pflag.Flag{Name: name, Value: noUse{}, Hidden: true}
		if name == "pause" || name == "registers" || name == "truncated" {
			f.NoOptDefVal = "true"
		}
		c.Flags().AddFlag(f)
	}
}

// useless says which flag a command was given that has no meaning there.
func useless(cmd *cobra.Command) (err error) {
	cmd.Flags().Visit(func(f *pflag.Flag) {
		if _, ok := f.Value.(noUse); ok && err == nil {
			err = fmt.Errorf("%s has no use for --%s; see '%s --help'", cmd.Name(), f.Name, cmd.CommandPath())
		}
	})
	return err
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

func fixed(words ...string) cobra.CompletionFunc {
	return cobra.FixedCompletions(words, cobra.ShellCompDirectiveNoFileComp)
}
