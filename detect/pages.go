package detect

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"

	"vmscope/arch"
	"vmscope/kernel"
	"vmscope/mem"
)

// Pages finds memory that the CPU may execute in kernel mode and that belongs
// to nobody: the text of hidden modules, injected code. It goes by the page
// tables, which the CPU obeys, and by what the kernel accounts for (Look.Code).
// Memory that is both writable and executable is a finding wherever it is:
// kernels have had none since 4.11 (CONFIG_STRICT_KERNEL_RWX).
//
// Executable memory that is held ready for code (the packs of BPF programs,
// the cache of execmem) is filled with traps; that is no code, and no finding.
// Nor are pages of nothing but traps and jumps through registers (thunks).
type Pages struct{}

// Name implements Detector.
func (Pages) Name() string { return "pages" }

// Inspect implements Detector.
func (d Pages) Inspect(ctx context.Context, l *Look, report func(Finding)) error {
	return outlasts(ctx, l, report, func(report func(Finding)) error { return d.look(ctx, l, report) })
}

// maxForeign bounds the executable pages, 256 MiB, that are read because nobody
// is known to own them. Page tables can have terabytes out of nothing.
const maxForeign = 1 << 16

func (Pages) look(ctx context.Context, l *Look, report func(Finding)) error {
	code, cerr := l.Code()
	code = withoutInit(l, code)
	pages, broken := l.pages()
	if cerr != nil { // what is not listed would look like nobody's
		for _, r := range pages {
			if r.Perm&mem.Write != 0 {
				report(writable(l, code, r))
			}
		}
		return errors.Join(cerr, broken)
	}
	budget := maxForeign
	for _, r := range pages {
		if r.Perm&mem.Write != 0 {
			report(writable(l, code, r))
		}
		before := budget
		runs, err := unowned(ctx, l, code, r, &budget)
		if len(runs) > 0 {
			// Classic BPF is looked for only now: that takes a look at all files.
			all, cerr := l.AllCode()
			if cerr != nil {
				return errors.Join(cerr, broken)
			}
			budget = before
			runs, err = unowned(ctx, l, withoutInit(l, all), r, &budget)
		}
		for _, run := range runs {
			report(nobodys(l, run, r.Perm))
		}
		if err != nil {
			return errors.Join(err, broken)
		}
	}
	return broken
}

// withoutInit leaves out the kernel's init text once the kernel has booted: it
// was freed, and what is executable there now is not the kernel's.
func withoutInit(l *Look, code Code) Code {
	if !running(l) {
		return code
	}
	return slices.DeleteFunc(slices.Clone(code), func(c kernel.Code) bool { return c.Kind == "init" })
}

// unowned are the runs of a region that are not filler and not in c.
func unowned(ctx context.Context, l *Look, c Code, r arch.Region, budget *int) ([]span, error) {
	var out []span
	for _, gap := range c.gaps(r.VA, r.VA+mem.VA(r.Size-1)) {
		if err := ctx.Err(); err != nil {
			return out, err
		}
		runs, err := foreign(l, gap, budget)
		out = append(out, runs...)
		if err != nil {
			return out, err
		}
	}
	return out, nil
}

// foreign are the pages of a gap, joined where they are neighbours, that hold
// anything but filler.
func foreign(l *Look, gap span, budget *int) ([]span, error) {
	var out []span
	var page [mem.PageSize]byte
	for at := gap.first; ; {
		if *budget--; *budget < 0 {
			return out, &mem.FaultError{Op: "walk", Space: "kernel", Addr: uint64(at), Err: fmt.Errorf("%w: more than %d executable pages that belong to nobody", mem.ErrInconsistent, maxForeign)}
		}
		last := min(at|(mem.PageSize-1), gap.last)
		b := page[:last-at+1]
		if _, err := l.Mem.Read(b, at); err != nil {
			return out, err
		}
		if !filler(b) && !thunks(b) {
			if n := len(out); n > 0 && out[n-1].last+1 == at {
				out[n-1].last = last
			} else {
				out = append(out, span{at, last})
			}
		}
		if last == gap.last {
			return out, nil
		}
		at = last + 1
	}
}

// fillers are what fills executable memory that is not in use: int3 and zeros.
var fillers = [][]byte{bytes.Repeat([]byte{0xcc}, mem.PageSize), make([]byte, mem.PageSize)}

// filler reports whether b is filled with one of them, or with one and then the
// other.
func filler(b []byte) bool {
	for _, f := range fillers {
		if bytes.Equal(b, f[:len(b)]) {
			return true
		}
	}
	n := 0
	for n < len(b) && b[n] == b[0] {
		n++
	}
	return n < len(b) && isFill(b[0]) && isFill(b[n]) && bytes.Count(b[n:], b[n:n+1]) == len(b)-n
}

func isFill(b byte) bool { return b == 0xcc || b == 0 }

func nobodys(l *Look, s span, perm mem.Perm) Finding {
	size := uint64(s.last-s.first) + 1
	f := Finding{
		Check: "pages", Severity: High, Confidence: Proved,
		Summary:  fmt.Sprintf("%d bytes of executable kernel memory at %#x belong to nobody and are not empty", size, uint64(s.first)),
		Evidence: []Evidence{{What: fmt.Sprintf("executable memory, %d bytes, %s", size, perms(perm)), Addr: s.first, Symbol: l.Name(s.first), Owner: "nobody", Expected: "filler (cc… or 00…)", Found: peek(l, s.first, size)}},
	}
	f.identify("nobody", fmt.Sprintf("%#x", uint64(s.first)))
	f.slow = true // what was unlisted stays mapped until it is freed
	return f
}

func writable(l *Look, c Code, r arch.Region) Finding {
	f := Finding{
		Check: "pages", Severity: High, Confidence: Proved,
		Summary:  fmt.Sprintf("%d bytes of kernel memory at %#x are writable and executable", r.Size, uint64(r.VA)),
		Evidence: []Evidence{{What: fmt.Sprintf("memory, %d bytes", r.Size), Addr: r.VA, Symbol: l.Name(r.VA), Owner: c.OwnerName(r.VA), Expected: "not both writable and executable", Found: perms(r.Perm)}},
	}
	if images(c, r) {
		f.Severity, f.Confidence = Info, Possible
		f.Evidence[0].Expected = "read-only, as later kernels have it"
	}
	f.identify("writable", fmt.Sprintf("%#x", uint64(r.VA)))
	return f
}

// images reports whether all of a region is code that calls programs of eBPF:
// older kernels keep it writable, so as to change it in place
// (bpf_jit_alloc_exec_page, kernel/bpf/trampoline.c).
func images(c Code, r arch.Region) bool {
	end := r.VA + mem.VA(r.Size)
	for at := r.VA; at < end; {
		o, ok := c.Owner(at)
		if !ok || o.Kind != "bpf" || strings.HasPrefix(string(o.Name), "bpf_prog_") {
			return false
		}
		at = o.Start + mem.VA(o.Size)
	}
	return true
}

// perms prints permissions as in /proc/PID/maps.
func perms(p mem.Perm) string {
	b := []byte("r--")
	if p&mem.Write != 0 {
		b[1] = 'w'
	}
	if p&mem.Exec != 0 {
		b[2] = 'x'
	}
	if p&mem.User != 0 {
		return string(b) + " (user mode too)"
	}
	return string(b)
}

// peek is the first of n bytes at va that say something, in hexadecimal.
func peek(l *Look, va mem.VA, n uint64) string {
	b := make([]byte, min(n, 32))
	if _, err := l.Mem.Read(b, va); err != nil {
		return err.Error()
	}
	return hex.EncodeToString(b)
}
