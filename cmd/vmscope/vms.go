package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"vmscope"
	"vmscope/kernel"
	"vmscope/vm/proc"
	"vmscope/vm/qemu"
	"vmscope/vm/xen"
)

// vmRow is one line of vms.
type vmRow struct {
	Name   kernel.Text `json:"name,omitempty"`
	PID    int         `json:"pid,omitempty"`
	Domain int         `json:"domid,omitempty"`
	VMM    kernel.Text `json:"vmm"`
	RAM    uint64      `json:"ram"`
	// Manager is "libvirt" where that started the VM: its name is the domain's.
	Manager string      `json:"manager,omitempty"`
	OS      string      `json:"os,omitempty"`
	Kernel  kernel.Text `json:"kernel,omitempty"`
	// Problem says why OS and kernel are not known.
	Problem string `json:"problem,omitempty"`

	scheme string // of a target with the number
}

// lookTime bounds the look into one of many VMs, so that one that is booting or
// foreign does not hold up the list.
const lookTime = 10 * time.Second

func (a *app) vmsCmd() *cobra.Command {
	var quick bool
	c := &cobra.Command{
		Use:   "vms",
		Short: "List the VMs that run on this host",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			list, err := running(cmd.Context())
			if !quick {
				a.lookIntoAll(cmd.Context(), list)
			}
			if cmd.Context().Err() != nil {
				return cmd.Context().Err()
			}
			return rows(a, list, err, []any{"name", "pid/domid", "vmm", "ram", "os", "kernel"}, func(r vmRow) []any {
				k := r.Kernel.String()
				if r.Problem != "" {
					k = "(" + r.Problem + ")"
				}
				return []any{r.Name, r.PID + r.Domain, r.VMM, size(r.RAM), r.OS, k}
			})
		},
	}
	c.Flags().BoolVarP(&quick, "quick", "q", false, "do not look into the VMs: no os and kernel")
	return c
}

// running lists the VMs of all kinds. A host without Xen has none of its domains, which is no error.
func running(ctx context.Context) ([]vmRow, error) {
	var list []vmRow
	qemus, err := qemu.List()
	for _, p := range qemus {
		if p.XenDomain != "" {
			continue // listed as the domain
		}
		r := vmRow{Name: kernel.Text(p.Name), PID: p.PID, VMM: vmm(p), RAM: p.RAM, scheme: "qemu"}
		if p.Libvirt {
			r.Manager = "libvirt"
		}
		list = append(list, r)
	}
	others, oerr := proc.List()
	for _, p := range others {
		list = append(list, vmRow{Name: kernel.Text(p.Name), PID: p.PID, VMM: kernel.Text(p.VMM), RAM: p.RAM, scheme: "pid"})
	}
	domains, xerr := xen.List(ctx)
	if errors.Is(xerr, xen.ErrNoXen) {
		xerr = nil
	}
	for _, d := range domains {
		list = append(list, vmRow{Name: kernel.Text(d.Name), Domain: int(d.ID), VMM: kernel.Text("xen-" + d.Kind), RAM: d.RAM, scheme: "xen"})
	}
	return list, errors.Join(err, oerr, xerr)
}

// target names the VM for sure.
func (r vmRow) target() string { return fmt.Sprintf("%s:%d", r.scheme, r.PID+r.Domain) }

// kind is what stands before the VM's name in a target.
func (r vmRow) kind() string {
	if r.scheme != "pid" {
		return r.scheme
	}
	return string(r.VMM)
}

// lookIntoAll looks into some VMs at a time.
func (a *app) lookIntoAll(ctx context.Context, list []vmRow) {
	const atOnce = 4
	slots := make(chan struct{}, atOnce)
	var wg sync.WaitGroup
	for i := range list {
		slots <- struct{}{}
		wg.Go(func() {
			a.lookInto(ctx, &list[i])
			<-slots
		})
	}
	wg.Wait()
}

// lookInto finds out which kernel a VM runs.
func (a *app) lookInto(ctx context.Context, r *vmRow) {
	ctx, cancel := context.WithTimeout(ctx, lookTime)
	defer cancel()
	g, err := vmscope.Open(ctx, r.target(), a.options()...)
	if err == nil {
		err = g.View(ctx, func(v *vmscope.View) error {
			r.OS, r.Kernel = "linux", kernel.Text(v.Release)
			return nil
		})
		g.Close()
	}
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		r.Problem = fmt.Sprintf("no kernel found within %v", lookTime)
	case errors.Is(err, qemu.ErrPermission):
		r.Problem = "to look into it, run as root or with CAP_SYS_PTRACE"
	case err != nil:
		r.Problem = strings.TrimPrefix(oneLine(err), r.target()+": ")
	}
}

// size prints bytes for people.
func size(n uint64) string {
	for _, u := range []struct {
		unit string
		n    uint64
	}{{"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}} {
		if n >= u.n {
			if n%u.n == 0 {
				return fmt.Sprintf("%d %s", n/u.n, u.unit)
			}
			return fmt.Sprintf("%.1f %s", float64(n)/float64(u.n), u.unit)
		}
	}
	return fmt.Sprintf("%d B", n)
}

// vmm names what runs a VM: the emulator, and whether the processor helps it.
func vmm(p qemu.Process) kernel.Text {
	if p.Accel == "" {
		return "qemu"
	}
	return kernel.Text("qemu-" + p.Accel)
}
