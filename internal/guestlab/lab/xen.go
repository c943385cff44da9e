package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"vmscope/internal/guestlab"
)

// words collects a flag that may be given several times.
type words []string

func (w *words) String() string { return strings.Join(*w, " ") }

func (w *words) Set(s string) error {
	*w = append(*w, s)
	return nil
}

// xen boots a Xen host and stays until it is stopped. "lab run NAME" runs a script in dom0, "lab run DOMAIN" in a domain.
func xen(ctx context.Context, args []string) error {
	var cfg guestlab.XenConfig
	var kernels, files, pv, pvh, hvm, disks words
	fl := flag.NewFlagSet("lab xen", flag.ContinueOnError)
	name := fl.String("name", "xen", "the name of dom0 for lab run and lab stop")
	fl.StringVar(&cfg.Version, "version", "", "the version of Xen: "+strings.Join(guestlab.XenVersions(), ", "))
	fl.IntVar(&cfg.MemoryMiB, "mem", 0, "memory of the machine in MiB")
	fl.IntVar(&cfg.CPUs, "cpus", 0, "processors of the machine")
	fl.IntVar(&cfg.Dom0MemoryMiB, "dom0-mem", 0, "memory of dom0 in MiB")
	fl.Var(&kernels, "kernel", "a kernel for domains; the first is the default")
	fl.Var(&files, "file", "a file of dom0, PATH=HERE")
	fl.Var(&pv, "pv", "the name of a PV domain to create")
	fl.Var(&pvh, "pvh", "the name of a PVH domain to create")
	fl.Var(&hvm, "hvm", "the name of an HVM domain to create; with -mem 2048 -dom0-mem 900")
	fl.Var(&disks, "disk", "a line of xl's disk list, for all domains")
	vcpus := fl.Int("vcpus", 1, "processors of a domain")
	if err := fl.Parse(args); err != nil {
		return err
	}
	cfg.Kernels = kernels
	cfg.Files = map[string]string{}
	for _, f := range files {
		to, from, _ := strings.Cut(f, "=")
		cfg.Files[to] = from
	}
	cfg.HVM = len(hvm) > 0
	began := time.Now()
	h, err := guestlab.StartXen(ctx, cfg)
	if err != nil {
		return err
	}
	defer h.Close()
	s := state{Name: *name, PID: h.PID(), Owner: os.Getpid(), Kernel: "xen", Release: h.Version(), Console: h.ConsoleSocket(), Log: h.ConsoleLog(),
		Control: filepath.Join(h.Dir(), "control.sock"), BootMS: time.Since(began).Milliseconds()}
	if err := serve(ctx, &h.Agent, s.Control); err != nil {
		return err
	}
	if err := writeJSON(filepath.Join(h.Dir(), stateFile), s); err != nil {
		return err
	}
	s.print()
	domain := func(kind, name string) error {
		began := time.Now()
		d, err := h.Create(ctx, guestlab.XenDomain{Name: name, Type: kind, VCPUs: *vcpus, Disks: disks})
		if err != nil {
			return err
		}
		s := state{Name: name, PID: h.PID(), Owner: os.Getpid(), Kernel: d.Kernel().Name, Release: d.Kernel().Release, Control: filepath.Join(h.Dir(), name+".sock")}
		if err := serve(ctx, &d.Agent, s.Control); err != nil {
			return err
		}
		fmt.Printf("domain %d, %s, %s: up after %d ms\n", d.ID, name, kind, time.Since(began).Milliseconds())
		return writeJSON(filepath.Join(h.Dir(), name+"."+stateFile), s)
	}
	for _, list := range []struct {
		kind  string
		names words
	}{{"pv", pv}, {"pvh", pvh}, {"hvm", hvm}} {
		for _, name := range list.names {
			if err := domain(list.kind, name); err != nil {
				return err
			}
		}
	}
	select {
	case <-ctx.Done():
		return nil
	case <-h.Exited():
		return errors.New("the host has ended")
	}
}
