package detect

import (
	"context"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"

	"vmscope/ctype"
	"vmscope/kernel"
	"vmscope/kernel/linux"
	"vmscope/mem"
)

// BPF tells which programs of eBPF are loaded, whose they are and what they are
// attached to: inventory, since systems use many. It finds code that is listed
// as eBPF's and that no program, trampoline or dispatcher has, and programs whose
// code is not where the kernel lists it.
type BPF struct{}

// Name implements Detector.
func (BPF) Name() string { return "bpf" }

// Inspect implements Detector.
func (d BPF) Inspect(ctx context.Context, l *Look, report func(Finding)) error {
	return persists(ctx, l, report, func(report func(Finding)) error {
		return again(ctx, l, func() error { return d.look(l, report) })
	})
}

type bpfLayout struct {
	Image ctype.Field `c:"bpf_tramp_image.image,optional"` // include/linux/bpf.h
	Of    ctype.Field `c:"bpf_tramp_image.ksym,optional"`
	Packs ctype.Type  `c:"bpf_prog_pack,optional"` // kernel/bpf/core.c
	Func  ctype.Field `c:"bpf_prog.bpf_func,optional"`
}

func (d BPF) look(l *Look, report func(Finding)) error {
	f, err := bind[bpfLayout](l)
	if err != nil {
		return err
	}
	code, err := l.Code()
	if err != nil {
		return err
	}
	progs, links, err := l.BPF()
	if err != nil {
		return err
	}
	symbols, err := l.BPFSymbols()
	if err != nil {
		return err
	}
	owners, err := l.BPFImages()
	if err != nil {
		return err
	}
	for _, p := range progs {
		for _, at := range p.Symbols {
			owners[at] = "program"
		}
	}
	listed := make(map[mem.VA]linux.BPFSymbol, len(symbols))
	for _, s := range symbols {
		if listed[s.Addr] = s; owners[s.Addr] == "" {
			d.nobodys(l, f, s, report)
		}
	}
	slack := mem.VA(2 * mem.PageSize) // one program has whole pages
	if !f.Packs.IsVoid() {
		slack = 256 // many share a page; headers and ends are aligned
	}
	for _, p := range progs {
		if o, ok := code.Owner(p.Func); !ok || o.Kind != "bpf" && o.Kind != "kernel" { // the kernel's own: interpreted
			d.unlisted(l, f, p, code.OwnerName(p.Func), report)
		} else if s, ok := listed[p.Symbols[0]]; ok && p.Size > 0 && (s.Start > p.Func || p.Func-s.Start > slack || s.End > p.Func+mem.VA(p.Size)+slack) {
			d.stretched(l, p, s, report)
		}
	}
	inventory(l, progs, links, report)
	return nil
}

// nobodys reports a range of code that is listed and that nothing has. An image
// of a trampoline that is being replaced stays listed until no task is in it.
func (BPF) nobodys(l *Look, f *bpfLayout, s linux.BPFSymbol, report func(Finding)) {
	if strings.HasPrefix(l.Name(s.Addr), "bpf_dispatcher_") {
		return
	}
	finding := Finding{Check: "bpf", Severity: High, Confidence: Likely,
		Summary: fmt.Sprintf("%d bytes of code at %#x are listed as %q of eBPF, and no program, trampoline or dispatcher has them", uint64(s.End-s.Start), uint64(s.Start), s.Name),
		Evidence: []Evidence{
			{What: "struct bpf_ksym", Addr: s.Addr, Symbol: l.Name(s.Addr), Expected: "part of a program in prog_idr, of a trampoline or a dispatcher", Found: "on the list bpf_kallsyms alone"},
			{What: "the code", Addr: s.Start, Owner: "bpf " + s.Name.String(), Found: peek(l, s.Start, 32)},
		}}
	if f.Image.Valid() && f.Of.Valid() && strings.HasPrefix(string(s.Name), "bpf_trampoline_") && s.End-s.Start <= mem.PageSize {
		if image, err := l.Mem.Pointer(f.Image.At(s.Addr - mem.VA(f.Of.Offset))); err == nil && image == s.Start {
			finding.Severity, finding.Confidence = Info, Possible
			finding.Summary = fmt.Sprintf("an image of %q is listed that its trampoline no longer uses", s.Name)
		}
	}
	finding.identify("nobody", string(s.Name))
	report(finding)
}

// unlisted reports a program whose code is not eBPF's. The kernel does not list
// what users without rights have loaded, who can load filters only.
func (BPF) unlisted(l *Look, layout *bpfLayout, p linux.BPFProgram, owner string, report func(Finding)) {
	f := Finding{Check: "bpf", Severity: High, Confidence: Likely,
		Summary: fmt.Sprintf("%s runs at %#x, code of %s", program(p), uint64(p.Func), owner),
		Evidence: []Evidence{
			{What: fmt.Sprintf("bpf_func of struct bpf_prog %#x", uint64(p.Addr)), Addr: layout.Func.At(p.Addr), Expected: "code that is listed as eBPF's", Found: fmt.Sprintf("%#x", uint64(p.Func))},
			{What: leadsThere, Addr: p.Func, Symbol: l.Name(p.Func), Owner: owner, Found: peek(l, p.Func, 32)},
		}}
	if p.Type == "socket_filter" || p.Type == "cgroup_skb" {
		f.Severity, f.Confidence = Info, Possible
	}
	f.identify("unlisted", string(p.Name), hex.EncodeToString(p.Tag[:]))
	report(f)
}

// stretched reports a program of which more is listed than it has.
func (BPF) stretched(l *Look, p linux.BPFProgram, s linux.BPFSymbol, report func(Finding)) {
	f := Finding{Check: "bpf", Severity: High, Confidence: Likely,
		Summary: fmt.Sprintf("more code is listed as that of %s than it has", program(p)),
		Evidence: []Evidence{
			{What: "struct bpf_ksym of the program", Addr: s.Addr, Owner: "bpf " + p.Name.String(),
				Expected: fmt.Sprintf("%d bytes at %#x", p.Size, uint64(p.Func)), Found: fmt.Sprintf("%#x to %#x", uint64(s.Start), uint64(s.End))},
		}}
	f.identify("stretched", string(p.Name), hex.EncodeToString(p.Tag[:]))
	report(f)
}

// program names a program for people.
func program(p linux.BPFProgram) string {
	return fmt.Sprintf("eBPF program %q (%s, tag %x)", p.Name, p.Type, p.Tag)
}

// maxPrograms bounds the programs that are shown of those that are alike.
const maxPrograms = 16

// inventory tells the programs, those that are alike as one.
func inventory(l *Look, progs []linux.BPFProgram, links []linux.BPFLink, report func(Finding)) {
	alike := make(map[string][]linux.BPFProgram)
	var order []string
	attached := make(map[mem.VA][]linux.BPFLink)
	for _, k := range links {
		attached[k.Prog] = append(attached[k.Prog], k)
	}
	for _, p := range progs {
		key := fmt.Sprintf("%s\x00%s\x00%x\x00%d\x00%s", p.Type, p.Name, p.Tag, p.UID, p.Target)
		if alike[key] == nil {
			order = append(order, key)
		}
		alike[key] = append(alike[key], p)
	}
	for _, key := range order {
		same := alike[key]
		p := same[0]
		var ways, holders []string
		f := Finding{Check: "bpf", Severity: Info, Confidence: Proved}
		for i, p := range same {
			held := slices.Clone(p.Holders)
			for _, k := range attached[p.Addr] {
				ways = add(ways, strings.TrimRight(k.Type+" "+k.Target, " "))
				held = append(held, k.Holders...)
			}
			for _, o := range held {
				holders = add(holders, fmt.Sprintf("process %d (%s)", o.PID, o.Comm))
			}
			if i < maxPrograms {
				f.Evidence = append(f.Evidence, Evidence{What: fmt.Sprintf("struct bpf_prog, id %d, %d bytes of code at %#x", p.ID, p.Size, uint64(p.Func)), Addr: p.Addr, Owner: fmt.Sprintf("user %d", p.UID)})
			}
		}
		f.Summary = fmt.Sprintf("%s of user %d", program(p), p.UID)
		if len(same) > 1 {
			f.Summary = fmt.Sprintf("%d × %s", len(same), f.Summary)
		}
		if p.Target != "" {
			f.Summary += fmt.Sprintf(", made for %s", kernel.Text(p.Target))
		}
		if p.Override {
			f.Summary += ", changes what functions of the kernel return"
		}
		if len(ways) > 0 {
			f.Summary += ", attached to " + strings.Join(ways, ", ")
		}
		if len(holders) > 0 {
			f.Summary += ", held by " + strings.Join(holders, ", ")
		}
		f.identify("program", key)
		report(f)
	}
}

// add appends what is not there yet, up to a bound.
func add(list []string, s string) []string {
	switch {
	case slices.Contains(list, s) || len(list) > maxPrograms:
		return list
	case len(list) == maxPrograms:
		return append(list, "…")
	}
	return append(list, s)
}
