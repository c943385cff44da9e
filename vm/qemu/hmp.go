package qemu

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"vmscope/internal/qmp"
	"vmscope/vm"
)

// ramRegions asks for the memory map and keeps what memory backends fill: main
// memory and memory devices, but no video RAM and no ROM.
func ramRegions(ctx context.Context, c qmp.Monitor) ([]qmp.Region, error) {
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
	r := qmp.ParseTree(s, ids)
	if len(r) == 0 {
		return nil, fmt.Errorf("the monitor's memory map (%d bytes) shows no RAM of the backends %q", len(s), ids)
	}
	return r, nil
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
