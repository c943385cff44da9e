package qemu

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"vmscope/internal/qmp"
	"vmscope/mem"
	"vmscope/vm"
)

// region is a run of guest-physical memory that a RAM block fills.
type region struct {
	name string
	pa   mem.PA
	off  uint64 // in the block
	size uint64
}

// ramRegions asks for the memory map and keeps what memory backends fill: main
// memory and memory devices, but no video RAM and no ROM.
func ramRegions(ctx context.Context, c *qmp.Client) ([]region, error) {
	raw, err := c.Run(ctx, "query-memdev", nil)
	if err != nil {
		return nil, err
	}
	var devs []struct {
		ID string `json:"id"`
	}
	if err := json.Unmarshal(raw, &devs); err != nil {
		return nil, fmt.Errorf("memory backends: %w", err)
	}
	s, err := qmp.Human(ctx, c, "info mtree -f")
	if err != nil {
		return nil, err
	}
	var ids []string
	for _, d := range devs {
		ids = append(ids, d.ID)
	}
	r := parseTree(s, ids)
	if len(r) == 0 {
		return nil, fmt.Errorf("the monitor's memory map (%d bytes) shows no RAM of the backends %q", len(s), ids)
	}
	return r, nil
}

// maxRegions bounds the lines of a memory map that are used.
const maxRegions = 1 << 16

// parseTree reads `info mtree -f` (QEMU softmmu/memory.c mtree_print_flatview):
// the flat view of the address space "memory", lines such as
//
//	0000000000100000-000000007fffffff (prio 0, ram): pc.ram @0000000000100000 KVM
//
// RAM of one block at one displacement is one region: what lies over it within
// (video memory, shadowed ROM) hides it from the guest but is not it.
func parseTree(s string, ids []string) []region {
	type key struct {
		name  string
		delta uint64
	}
	groups := map[key]*region{}
	var order []key
	inView := false
	for line := range strings.Lines(s) {
		line = strings.TrimRight(line, "\r\n")
		if strings.HasPrefix(line, "FlatView #") {
			if len(groups) > 0 {
				break
			}
			inView = false
			continue
		}
		if strings.HasPrefix(line, ` AS "memory",`) {
			inView = true
			continue
		}
		if !inView || !strings.HasPrefix(line, "  ") || len(order) > maxRegions {
			continue
		}
		r, typ, ok := parseRegion(strings.TrimSpace(line))
		if !ok || typ != "ram" && typ != "rom" && typ != "nv" || !slices.Contains(ids, r.name) {
			continue
		}
		k := key{r.name, uint64(r.pa) - r.off}
		g := groups[k]
		if g == nil {
			groups[k], order = &r, append(order, k)
			continue
		}
		if end := r.pa + mem.PA(r.size); end > g.pa+mem.PA(g.size) {
			g.size = uint64(end - g.pa)
		}
	}
	var out []region
	for _, k := range order {
		out = append(out, *groups[k])
	}
	slices.SortFunc(out, func(a, b region) int { return cmp.Compare(a.pa, b.pa) })
	for i := 1; i < len(out); i++ {
		if out[i-1].pa+mem.PA(out[i-1].size) > out[i].pa {
			return nil // two blocks interleave: not a map of RAM that we know
		}
	}
	return out
}

func parseRegion(line string) (r region, typ string, ok bool) {
	span, rest, ok1 := strings.Cut(line, " (prio ")
	attrs, rest, ok2 := strings.Cut(rest, "): ")
	_, typ, ok3 := strings.Cut(attrs, ", ")
	from, to, ok4 := strings.Cut(span, "-")
	if !ok1 || !ok2 || !ok3 || !ok4 {
		return r, "", false
	}
	start, err1 := strconv.ParseUint(from, 16, 64)
	end, err2 := strconv.ParseUint(to, 16, 64)
	if err1 != nil || err2 != nil || end <= start || end > 1<<56 {
		return r, "", false
	}
	r.pa, r.size = mem.PA(start), end-start+1
	name, off, found := strings.Cut(strings.TrimSuffix(rest, " KVM"), " @")
	if found {
		v, err := strconv.ParseUint(off, 16, 64)
		if err != nil || v > 1<<56 {
			return r, "", false
		}
		r.off = v
	}
	r.name = strings.TrimPrefix(name, "/objects/")
	return r, typ, true
}

// parseHVA reads the answer of gpa2hva.
func parseHVA(s string) (uint64, error) {
	i := strings.LastIndex(s, " is 0x")
	if i < 0 || !strings.HasPrefix(s, "Host virtual address") {
		return 0, fmt.Errorf("the monitor's answer %q is no host address", s)
	}
	return strconv.ParseUint(strings.TrimSpace(s[i+6:]), 16, 64)
}

// generalNames are the names of vm.Registers.General.
var generalNames = [16]string{"RAX", "RCX", "RDX", "RBX", "RSP", "RBP", "RSI", "RDI",
	"R8", "R9", "R10", "R11", "R12", "R13", "R14", "R15"}

// parseRegisters reads `info registers -a` of an x86 machine (QEMU
// target/i386/cpu-dump.c). KERNEL_GS_BASE is not in it.
func parseRegisters(s string) ([]vm.Registers, error) {
	var out []vm.Registers
	for line := range strings.Lines(s) {
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "CPU#") {
			if len(out) == 1<<16 {
				break
			}
			out = append(out, vm.Registers{})
			continue
		}
		if len(out) == 0 {
			continue
		}
		r := &out[len(out)-1]
		line = strings.ReplaceAll(line, " =", "=") // names are padded
		name, rest, _ := strings.Cut(line, "=")
		f := strings.Fields(rest)
		hex := func(i int, to *uint64) {
			if i < len(f) {
				if v, err := strconv.ParseUint(f[i], 16, 64); err == nil {
					*to = v
				}
			}
		}
		var sel uint64
		switch name {
		case "CS":
			hex(0, &sel)
			r.CS = uint16(sel)
			continue
		case "SS":
			hex(0, &sel)
			r.SS = uint16(sel)
			continue
		case "GS":
			hex(1, &r.GSBase)
			continue
		case "GDT":
			hex(0, &r.GDTBase)
			continue
		case "IDT":
			hex(0, &r.IDTBase)
			continue
		}
		for x := range strings.FieldsSeq(line) {
			k, v, _ := strings.Cut(x, "=")
			if len(k) == 3 && k[0] == 'E' {
				k = "R" + k[1:] // EIP of a vCPU that is not in 64-bit mode
			}
			to := map[string]*uint64{
				"RIP": &r.RIP, "RFL": &r.RFLAGS, "CR0": &r.CR0, "CR3": &r.CR3, "CR4": &r.CR4, "EFER": &r.EFER,
			}[k]
			if i := slices.Index(generalNames[:], k); i >= 0 {
				to = &r.General[i]
			}
			if to == nil {
				continue
			}
			n, err := strconv.ParseUint(v, 16, 64)
			if err != nil {
				return nil, fmt.Errorf("the monitor's register %q: %w", x, err)
			}
			*to = n
			r.RSP = r.General[4]
			r.Valid = r.Valid || k == "CR3"
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("the monitor's answer (%d bytes) holds no registers", len(s))
	}
	return out, nil
}
