package ksym

import (
	"bufio"
	"fmt"
	"io"
	"strconv"
	"strings"

	"vmscope/mem"
)

// ParseSystemMap reads the text of a System.map, or of nm, or of /proc/kallsyms
// (whose module names it drops): lines of "ADDRESS TYPE NAME". Addresses are
// those of the link: a running kernel with KASLR has them elsewhere.
//
// Debian's kernel packages ship a System.map of one line that says where the
// real one is: that is an error here.
func ParseSystemMap(r io.Reader) (*List, error) {
	var syms []Symbol
	in := bufio.NewScanner(r)
	for n := 1; in.Scan(); n++ {
		f := strings.Fields(in.Text())
		if len(f) == 0 {
			continue
		}
		if len(f) < 3 || len(f) > 4 || len(f[1]) != 1 {
			return nil, fmt.Errorf("System.map, line %d: %.60q is no symbol", n, in.Text())
		}
		a, err := strconv.ParseUint(f[0], 16, 64)
		if err != nil {
			return nil, fmt.Errorf("System.map, line %d: address: %w", n, err)
		}
		if len(syms) == maxSyms {
			return nil, fmt.Errorf("System.map: more than %d symbols: %w", maxSyms, mem.ErrInconsistent)
		}
		// Cloned: a line's fields share its string.
		s := Symbol{Name: strings.Clone(f[2]), Addr: mem.VA(a), Type: f[1][0]}
		// Per-CPU symbols of x86-64 up to 6.14 are linked at 0.
		s.Absolute = s.Type|0x20 == 'a' || a < mem.PageSize<<8
		syms = append(syms, s)
	}
	if err := in.Err(); err != nil {
		return nil, fmt.Errorf("System.map: %w", err)
	}
	if len(syms) == 0 {
		return nil, fmt.Errorf("System.map: no symbols: %w", ErrNoSymbol)
	}
	l := NewList(syms)
	lo, err := l.Lookup("__per_cpu_start")
	hi, err2 := l.Lookup("__per_cpu_end")
	if err == nil && err2 == nil {
		for i := range l.syms {
			s := &l.syms[i]
			s.PerCPU = lo.Addr <= s.Addr && s.Addr < hi.Addr
		}
	}
	return l, nil
}
