package main

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"vmscope"
	"vmscope/ksym"
	"vmscope/mem"
)

// place is where read and write go: flags shared by both.
type place struct {
	pa, va, sym string
	pid         int
	ofProcess   bool // pid was given
}

func (p *place) flags(c *cobra.Command) {
	f := c.Flags()
	f.StringVar(&p.pa, "pa", "", "guest-physical address")
	f.StringVar(&p.va, "va", "", "virtual address, of the kernel or of --pid")
	f.StringVar(&p.sym, "sym", "", "kernel symbol, with an offset if you like: init_task+0x10")
	f.IntVar(&p.pid, "pid", 0, "--va is in the address space of this process")
	c.PreRunE = func(cmd *cobra.Command, _ []string) error {
		p.ofProcess = cmd.Flags().Changed("pid")
		if p.pa+p.va+p.sym == "" {
			return fmt.Errorf("%s needs a place: --pa ADDRESS, --va ADDRESS or --sym NAME; see '%s --help'", cmd.Name(), cmd.CommandPath())
		}
		return nil
	}
	c.MarkFlagsMutuallyExclusive("pa", "va", "sym")
	c.MarkFlagsMutuallyExclusive("pa", "pid")
	c.MarkFlagsMutuallyExclusive("sym", "pid")
}

// target is a place found in a guest.
type target struct {
	space *mem.Space // nil: physical
	addr  uint64
}

func (p *place) find(v *vmscope.View) (target, error) {
	switch {
	case p.pa != "":
		a, err := number(p.pa)
		return target{nil, a}, err
	case p.sym != "":
		name, off, _ := strings.Cut(p.sym, "+")
		s, err := v.LookupSymbol(name)
		if several := (*ksym.AmbiguousError)(nil); errors.As(err, &several) {
			return target{}, fmt.Errorf("%w: give one of them by --va", err)
		}
		if err != nil {
			return target{}, err
		}
		var o uint64
		if off != "" {
			if o, err = number(off); err != nil {
				return target{}, err
			}
		}
		return target{v.Mem, uint64(s.Addr) + o}, nil
	}
	a, err := number(p.va)
	if err != nil {
		return target{}, err
	}
	if !p.ofProcess {
		return target{v.Mem, a}, nil
	}
	t, err := v.TaskByPID(p.pid)
	if err != nil {
		return target{}, err
	}
	s, err := v.SpaceOf(t)
	return target{s, a}, err
}

// read fills p and returns how much of it could be filled.
func (t target) read(v *vmscope.View, p []byte) (int, error) {
	if t.space == nil {
		return v.Phys.ReadPhys(p, mem.PA(t.addr))
	}
	return t.space.Read(p, mem.VA(t.addr))
}

// number reads an address or a size: decimal or 0x…, sizes with K, M or G.
func number(s string) (uint64, error) {
	mul, t, base := uint64(1), strings.ToUpper(s), 10
	if hex, ok := strings.CutPrefix(t, "0X"); ok {
		t, base = hex, 16
	} else {
		for suffix, m := range map[string]uint64{"K": 1 << 10, "M": 1 << 20, "G": 1 << 30} {
			for _, unit := range []string{suffix, suffix + "IB"} {
				if u, ok := strings.CutSuffix(t, unit); ok {
					t, mul = u, m
				}
			}
		}
	}
	n, err := strconv.ParseUint(t, base, 64)
	if err != nil || n > ^uint64(0)/mul {
		return 0, fmt.Errorf("%q is no address or size (try 0xffffffff81000000, 4096 or 64K)", s)
	}
	return n * mul, nil
}
