package detect

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"

	"vmscope/mem"
)

// Rodata compares the read-only data of the kernel and of its modules with what
// they were when first seen (Reference): constants, tables of operations and of
// system calls, and what is written only until the kernel, or the module, has
// started. The kernel itself never writes there afterwards.
type Rodata struct{ Ref *Reference }

// Name implements Detector.
func (Rodata) Name() string { return "rodata" }

// Inspect implements Detector.
func (d Rodata) Inspect(ctx context.Context, l *Look, report func(Finding)) error {
	ref := d.Ref
	if ref == nil {
		ref = NewReference()
	}
	if err := ref.begin(l.View); err != nil {
		return err
	}
	return ref.withVendor(l, func(v *Vendor) error {
		return persists(ctx, l, report, func(report func(Finding)) error { return d.look(ctx, l, ref, v, report) })
	})
}

func (d Rodata) look(ctx context.Context, l *Look, ref *Reference, vendor *Vendor, report func(Finding)) error {
	list, lerr := l.ReadOnlyData()
	modules, ids, err := loads(l)
	if modules == nil {
		return errors.Join(lerr, err)
	}
	runs, cerr := ref.compare(ctx, l, "rodata", ref.keysOf(list, "rodata", modules, ids))
	if vendor != nil {
		if err := vendor.load(l, started(modules), ids); err != nil {
			return err
		}
		vendor.uncompared(d.Name(), report)
	}
	told := 0
	for _, m := range runs {
		d.run(l, m, func(f Finding) { told++; report(f) }, func() bool { return told > maxFindings+1 })
		if vendor != nil {
			d.vet(l, m, vendor, modules, report)
		}
	}
	ref.keep(runs)
	return errors.Join(lerr, err, cerr)
}

// run reports the words of a run that are not what they were; neighbours
// together; no more once full says so.
func (d Rodata) run(l *Look, m *run, report func(Finding), full func() bool) {
	const word = 8
	from, to := -1, -1
	flush := func() {
		if from >= 0 && !full() {
			d.changed(l, m, from, to, report)
		}
		from = -1
	}
	m.differences(func(a, b int) {
		a, b = a&^(word-1), min((b+word-1)&^(word-1), len(m.was))
		if from >= 0 && a <= to {
			to = max(to, b)
			return
		}
		flush()
		from, to = a, b
	})
	flush()
}

func (d Rodata) changed(l *Look, m *run, from, to int, report func(Finding)) {
	at := m.Start + mem.VA(from)
	now := make([]byte, min(to-from, shown))
	now = now[:m.at(now, from)]
	was := m.was[from:min(to, from+shown)]
	owner := "the kernel"
	if m.Kind == "module" {
		owner = "module " + m.Name.String()
	}
	name := l.Name(at)
	f := Finding{Check: d.Name(), Severity: High, Confidence: Proved,
		Summary: fmt.Sprintf("%d bytes of read-only data at %s (%s) are not what they were", to-from, name, owner),
		Evidence: []Evidence{{What: fmt.Sprintf("read-only data, %d bytes", to-from), Addr: at, Symbol: name, Owner: owner,
			Expected: d.show(l, was), Found: d.show(l, now), differ: differ(at, was, now)}}}
	f.identify(name, m.where(from))
	report(f)
}

// show prints bytes, and the symbol that they lead to if they are one pointer.
func (Rodata) show(l *Look, b []byte) string {
	text := hex.EncodeToString(b)
	if len(b) != 8 {
		return text
	}
	word := slices.Clone(b)
	slices.Reverse(word)
	var to mem.VA
	for _, c := range word {
		to = to<<8 | mem.VA(c)
	}
	if to < kernelHalf {
		return text
	}
	if name := l.Name(to); name != "" {
		text += fmt.Sprintf(" (%#x, %s)", uint64(to), name)
	}
	return text
}
