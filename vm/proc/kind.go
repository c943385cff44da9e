package proc

import (
	"fmt"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"vmscope/internal/procram"
	"vmscope/mem"
	"vmscope/vm"
)

const (
	mib = 1 << 20
	gib = 1 << 30
	// plugUnit is what memory comes in that is added to a running guest: Linux takes
	// no less on x86.
	plugUnit = 128 * mib
)

// kind is what is known of a VMM: how it is started, and where it lays out RAM.
// Nothing depends on it but where we look first.
type kind struct {
	name     string   // in targets, and as Info tells it
	programs []string // base names of its program
	memfd    string   // name of the memfd that it holds RAM in, if it does
	// low are the sizes of RAM below the hole of an x86 machine that it has or
	// had, the newest first.
	low []uint64
	// second is a hole higher up, as some versions have it.
	second mem.Range
	arm    mem.PA // where RAM of an Arm machine starts
	read   func(o arguments) told
	// added says where a mapping lies that became RAM while the guest ran: all
	// RAM before it ends at end, and first is the first that was added. nil:
	// none is.
	added func(end mem.PA, first, next procram.Block) mem.PA
}

// told is what a command line says of a VM.
type told struct {
	name   string
	socket string // of its API
	ram    uint64 // bytes; 0: it does not say
	secret string // why the memory cannot be read; "": it can
}

// kinds are the VMMs whose layout is documented.
var kinds = []kind{
	// src/vmm/src/arch/x86_64/{mod,layout}.rs: the gap began at 3.25 GiB, and with
	// PCI at 3 GiB, with a second one of 256 GiB at 256 GiB. aarch64/layout.rs:
	// DRAM_MEM_START. vstate/memory.rs: RAM is anonymous and private; a memfd
	// "guest_mem" for vhost-user; the file, mapped private, of a snapshot.
	{
		name: "firecracker", programs: []string{"firecracker"}, memfd: "guest_mem", low: []uint64{3 * gib, 3328 * mib},
		second: mem.Range{Start: 256 * gib, Size: 256 * gib}, arm: 2 * gib, read: firecracker, added: pluggedFirecracker,
	},
	// arch/src/x86_64/layout.rs: MEM_32BIT_RESERVED_START; aarch64/layout.rs:
	// RAM_START. vmm/src/memory_manager.rs: anonymous; memfds "ch_ram", one for
	// each side of the hole, if it is shared or of huge pages, and of old versions
	// always.
	{
		name: "cloud-hypervisor", programs: []string{"cloud-hypervisor"}, memfd: "ch_ram", low: []uint64{3 * gib},
		arm: gib, read: cloudHypervisor, added: pluggedCloudHypervisor,
	},
	// x86_64/src/lib.rs arch_memory_regions: up to the start of the 32-bit PCI
	// space, which a configuration may lower; aarch64/src/lib.rs:
	// AARCH64_PHYS_MEM_START. vm_memory/src/guest_memory.rs: one memfd
	// "crosvm_guest" for all regions, by their addresses.
	{name: "crosvm", programs: []string{"crosvm"}, memfd: "crosvm_guest", low: []uint64{3328 * mib, 3 * gib, 2 * gib}, arm: 2 * gib, read: crosvm},
	// x86/include/kvm/kvm-arch.h: KVM_32BIT_GAP_START; arm/include/arm-common:
	// ARM_MEMORY_AREA. util/util.c: one mapping, anonymous or of hugetlbfs, in
	// which the hole is inaccessible.
	{name: "kvmtool", programs: []string{"lkvm", "kvmtool", "lkvm-static"}, memfd: "kvmtool", low: []uint64{3328 * mib}, arm: 2 * gib, read: kvmtool},
}

// pluggedFirecracker: all of virtio-mem's region is mapped at once, what is not
// plugged of it inaccessible (src/vmm/src/builder.rs allocate_virtio_mem_address,
// layout.rs FIRST_ADDR_PAST_64BITS_MMIO).
func pluggedFirecracker(_ mem.PA, first, next procram.Block) mem.PA {
	return 512*gib + mem.PA(next.HVA-first.HVA)
}

// pluggedCloudHypervisor: the next 128 MiB behind RAM, or 4 GiB, be it by ACPI
// or virtio-mem (vmm/src/memory_manager.rs start_addr).
func pluggedCloudHypervisor(end mem.PA, _, _ procram.Block) mem.PA {
	if end <= 3*gib {
		return 4 * gib
	}
	return (end + plugUnit - 1) &^ (plugUnit - 1)
}

// Kinds lists the VMMs that targets can name: "firecracker", ….
func Kinds() []string {
	var out []string
	for _, k := range kinds {
		out = append(out, k.name)
	}
	return out
}

// kindOf tells the VMM by its program; nil if it is none that we know.
func kindOf(program string) *kind {
	for i := range kinds {
		// Releases carry their version and architecture: firecracker-v1.7.0-x86_64.
		if slices.ContainsFunc(kinds[i].programs, func(p string) bool {
			rest, ok := strings.CutPrefix(program, p)
			return ok && (rest == "" || strings.HasPrefix(rest, "-v") || rest == "-static" || rest == "-static-aarch64")
		}) {
			return &kinds[i]
		}
	}
	return nil
}

// foreign is the kind of a VMM that we do not know.
func foreign(program string) *kind {
	return &kind{
		name: program, low: []uint64{3 * gib, 3328 * mib, 2 * gib, 3584 * mib, 2816 * mib, 3840 * mib, gib}, arm: gib,
		read: func(arguments) told { return told{} },
	}
}

// layouts lists where ram bytes may lie, the likeliest first.
func (k *kind) layouts(ram uint64) []vm.Layout {
	if runtime.GOARCH == "arm64" {
		return []vm.Layout{{Name: k.name, Ranges: k.around([]mem.Range{{Start: k.arm, Size: ram}})}}
	}
	var out []vm.Layout
	for _, low := range k.low {
		if ram <= low {
			return append(out, vm.Layout{Name: k.name, Ranges: []mem.Range{{Start: 0, Size: ram}}})
		}
		l := vm.Layout{Name: fmt.Sprintf("%s, %d MiB below 4 GiB", k.name, low/mib), Ranges: []mem.Range{{Start: 0, Size: low}, {Start: 4 * gib, Size: ram - low}}}
		if r := k.around(l.Ranges); len(r) > len(l.Ranges) {
			out = append(out, vm.Layout{Name: l.Name + ", two holes", Ranges: r})
		}
		out = append(out, l)
	}
	return out
}

// around breaks the last range at the second hole, if it reaches into it.
func (k *kind) around(r []mem.Range) []mem.Range {
	last := r[len(r)-1]
	if k.second.Size == 0 || last.End() <= k.second.Start {
		return r
	}
	n := uint64(k.second.Start - last.Start)
	return append(slices.Clone(r[:len(r)-1]), mem.Range{Start: last.Start, Size: n}, mem.Range{Start: k.second.End(), Size: last.Size - n})
}

// arguments are a command line, without the program.
type arguments []string

// option gives the value of the last of the named options: "--id x", "--id=x".
func (a arguments) option(names ...string) (value string) {
	for i, x := range a {
		name, v, ok := strings.Cut(x, "=")
		switch {
		case !slices.Contains(names, name):
		case ok:
			value = v
		case i+1 < len(a):
			value = a[i+1]
		}
	}
	return value
}

// has reports whether a switch was given.
func (a arguments) has(names ...string) bool {
	return slices.ContainsFunc(a, func(x string) bool { return slices.Contains(names, x) })
}

// field gives the value of key in "key=value,…"; without a key before it, the
// first value is that of first.
func field(s, key, first string) string {
	for i, x := range strings.Split(s, ",") {
		k, v, ok := strings.Cut(x, "=")
		if ok && k == key {
			return v
		}
		if i == 0 && !ok && key == first {
			return k
		}
	}
	return ""
}

// size reads a number of bytes with a suffix; a bare number counts units. 0: it
// is none.
func size(s string, unit uint64) uint64 {
	s = strings.TrimSuffix(strings.TrimSuffix(s, "iB"), "B")
	if s == "" {
		return 0
	}
	if i := strings.IndexByte("KMGT", s[len(s)-1]&^0x20); i >= 0 {
		unit, s = 1<<(10*(i+1)), s[:len(s)-1]
	}
	v, err := strconv.ParseUint(s, 10, 64)
	if err != nil || v > maxRAM/unit {
		return 0
	}
	return v * unit
}

func firecracker(a arguments) told {
	// The amount of RAM comes by its API.
	return told{name: a.option("--id"), socket: a.option("--api-sock")}
}

func cloudHypervisor(a arguments) told {
	t := told{socket: strings.TrimPrefix(a.option("--api-socket"), "path="), ram: size(field(a.option("--memory"), "size", ""), 1)}
	p := a.option("--platform")
	switch {
	case field(p, "tdx", "") == "on" || a.has("--tdx"):
		t.secret = "TDX"
	case field(p, "sev_snp", "") == "on":
		t.secret = "SEV-SNP"
	}
	return t
}

func crosvm(a arguments) told {
	t := told{name: a.option("--name"), socket: a.option("-s", "--socket"), ram: size(field(a.option("-m", "--mem"), "size", "size"), mib)}
	if a.has("--protected-vm", "--protected-vm-without-firmware") || a.option("--protected-vm-with-firmware") != "" {
		t.secret = "protected VM"
	}
	return t
}

func kvmtool(a arguments) told {
	// "-m 512,…" may be followed by more on some architectures.
	ram, _, _ := strings.Cut(a.option("-m", "--mem"), "@")
	return told{name: a.option("-n", "--name"), ram: size(ram, mib)}
}

// base is the base name of a program file.
func base(path string) string { return filepath.Base(strings.TrimSuffix(path, " (deleted)")) }
