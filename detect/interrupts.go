package detect

import (
	"context"
	"encoding/binary"
	"fmt"

	"vmscope/mem"
)

// Interrupts finds interrupt and exception handlers that are not the kernel's:
// every gate of the interrupt descriptor table that is present must lead into
// the kernel's entry code. It goes by idt_table, and by idt_descr, which the
// kernel loads into each CPU.
type Interrupts struct{}

// Name implements Detector.
func (Interrupts) Name() string { return "interrupts" }

// Inspect implements Detector.
func (Interrupts) Inspect(ctx context.Context, l *Look, report func(Finding)) error {
	code, _ := l.Code() // for evidence
	at, err := l.Symbol("idt_table")
	if err != nil {
		return err
	}
	first, err := l.Symbol("__entry_text_start")
	if err != nil {
		return err
	}
	last, err := l.Symbol("__entry_text_end")
	if err != nil {
		return err
	}
	// Gates that the kernel never set again since early boot lead there: freed,
	// and not executable any more, which Pages looks after.
	early, err := l.LookupSymbol("early_idt_handler_array")
	if err != nil {
		return err
	}
	// 256 gates of 16 bytes: Intel SDM volume 3, section 7.14.1, figure 7-8.
	var idt [256 * 16]byte
	if _, err := l.Mem.Read(idt[:], at); err != nil {
		return err
	}
	for i := range 256 {
		g := idt[i*16 : i*16+16]
		if g[5]&0x80 == 0 { // not present
			continue
		}
		to := mem.VA(binary.LittleEndian.Uint16(g)) | mem.VA(binary.LittleEndian.Uint16(g[6:]))<<16 | mem.VA(binary.LittleEndian.Uint32(g[8:]))<<32
		if to >= first && to < last || to >= early.Addr && uint64(to-early.Addr) < early.Size {
			continue
		}
		name := l.Name(to)
		f := Finding{Check: "interrupts", Severity: High, Confidence: Proved,
			Summary: fmt.Sprintf("interrupt %d leads to %#x (%s), code of %s, not into the kernel's entry code", i, uint64(to), name, code.OwnerName(to)),
			Evidence: []Evidence{
				{What: fmt.Sprintf("idt_table[%d]", i), Addr: at + mem.VA(i*16), Symbol: fmt.Sprintf("idt_table+%#x", i*16), Owner: "the kernel", Expected: fmt.Sprintf("an address from %#x to %#x", uint64(first), uint64(last)), Found: fmt.Sprintf("%#x", uint64(to))},
				{What: leadsThere, Addr: to, Symbol: name, Owner: code.OwnerName(to), Found: peek(l, to, 32)},
			}}
		f.identify("gate", fmt.Sprint(i))
		report(f)
	}
	return inspectIDTR(l, at, report)
}

// inspectIDTR looks at what the kernel loads into the IDT register: the table
// itself early, and later its read-only alias in the CPU entry area, which must
// be the same memory (arch/x86/kernel/idt.c, idt_map_in_cea).
func inspectIDTR(l *Look, table mem.VA, report func(Finding)) error {
	at, err := l.Symbol("idt_descr")
	if err != nil {
		return err
	}
	base, err := l.Mem.Pointer(at + 2)
	if err != nil {
		return err
	}
	want, err := l.Mem.Translate(table)
	if err != nil {
		return err
	}
	if is, err := l.Mem.Translate(base); err == nil && is.PA == want.PA {
		return nil
	}
	f := Finding{Check: "interrupts", Severity: High, Confidence: Proved,
		Summary:  fmt.Sprintf("the kernel's descriptor of the interrupt table leads to %#x, not to idt_table", uint64(base)),
		Evidence: []Evidence{{What: "idt_descr", Addr: at, Symbol: "idt_descr", Owner: "the kernel", Expected: fmt.Sprintf("%#x, or another mapping of it", uint64(table)), Found: fmt.Sprintf("%#x", uint64(base))}}}
	f.identify("idt_descr")
	report(f)
	return nil
}
