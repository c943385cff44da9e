package dump

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"vmscope/mem"
	"vmscope/vm"
	"vmscope/vm/vmtest"
)

// vmwareWriter writes a state file of VMware byte by byte as crash's
// vmware_vmss.h describes it.
type vmwareWriter struct {
	groups []string
	bodies [][]byte
}

func vmwareItem(name string, value any, index ...uint32) []byte {
	le := binary.LittleEndian
	v, ok := value.([]byte)
	if !ok {
		v, _ = binary.Append(nil, le, value)
	}
	flags := byte(len(v))
	if ok {
		flags = 63
	}
	b := append([]byte{flags | byte(len(index))<<6, byte(len(name))}, name...)
	for _, i := range index {
		b = le.AppendUint32(b, i)
	}
	if !ok {
		return append(b, v...)
	}
	const pad = 5
	b = le.AppendUint64(le.AppendUint64(b, uint64(len(v))), uint64(len(v)))
	b = append(le.AppendUint16(b, pad), make([]byte, pad)...)
	return append(b, v...)
}

func (w *vmwareWriter) group(name string, items ...[]byte) {
	w.groups = append(w.groups, name)
	w.bodies = append(w.bodies, append(bytes.Join(items, nil), 0, 0))
}

func (w *vmwareWriter) bytes() []byte {
	le := binary.LittleEndian
	b := le.AppendUint32(nil, 0xbed2bed2)
	b = le.AppendUint32(le.AppendUint32(b, 8), uint32(len(w.groups)))
	at := uint64(vmwareHeader + vmwareGroup*len(w.groups))
	for i, name := range w.groups {
		g := make([]byte, 64)
		copy(g, name)
		b = le.AppendUint64(append(b, g...), at)
		b = le.AppendUint64(b, uint64(len(w.bodies[i])))
		at += uint64(len(w.bodies[i]))
	}
	return append(b, bytes.Join(w.bodies, nil)...)
}

func vmwareCPUs() []vm.Registers {
	out := stateCPUs()
	for i, r := range out {
		out[i] = vm.Registers{CR0: r.CR0, CR3: r.CR3, CR4: r.CR4, RIP: r.RIP, RSP: r.RSP, RFLAGS: r.RFLAGS, IDTBase: r.IDTBase, General: r.General, Valid: true}
	}
	return out
}

// cpus has the first CPU in blocks, as later products write it, and the others in
// single items, as older ones do.
func (w *vmwareWriter) cpus(regs []vm.Registers) {
	le := binary.LittleEndian
	items := [][]byte{vmwareItem("cpu:numVCPUs", uint32(len(regs)))}
	for i, r := range regs {
		i := uint32(i)
		items = append(items, vmwareItem("rip", r.RIP, i), vmwareItem("eflags", uint32(r.RFLAGS), i))
		if i == 0 {
			var gp []byte
			for _, k := range []int{0, 1, 2, 3, 5, 4, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15} {
				gp = le.AppendUint64(gp, r.General[k])
			}
			cr, _ := binary.Append(nil, le, [9]uint64{r.CR0, 1, 2, r.CR3, r.CR4})
			items = append(items, vmwareItem("gpregs", gp, i), vmwareItem("CR64", cr, i), vmwareItem("IDTR", le.AppendUint64([]byte{0xff, 0xf}, r.IDTBase), i))
			continue
		}
		for name, k := range vmwareNames {
			items = append(items, vmwareItem(name, r.General[k], i))
		}
		for n, v := range []uint64{r.CR0, 1, 2, r.CR3, r.CR4} {
			items = append(items, vmwareItem("CR64", v, i, uint32(n)))
		}
		items = append(items, vmwareItem("IDTR", uint32(r.IDTBase), i, 1), vmwareItem("IDTR", uint32(r.IDTBase>>32), i, 2))
	}
	w.group("cpu", items...)
}

// regions has low pages at 0 and high ones at 4 GiB.
func vmwareRegions(low, high int) [][]byte {
	return [][]byte{
		vmwareItem("align_mask", uint32(0xffff)), vmwareItem("regionsCount", uint32(2)),
		vmwareItem("regionPageNum", uint32(0), 0), vmwareItem("regionPPN", uint32(0), 0), vmwareItem("regionSize", uint32(low), 0),
		vmwareItem("regionPageNum", uint32(low), 1), vmwareItem("regionPPN", uint32(1<<20), 1), vmwareItem("regionSize", uint32(high), 1),
	}
}

func makeVMware(memory [][]byte) []byte {
	w := &vmwareWriter{}
	w.group("Checkpoint", vmwareItem("fileversion", uint32(3)), vmwareItem("config", pattern(9, 300)))
	w.cpus(vmwareCPUs())
	w.group("memory", memory...)
	w.group("vide", vmwareItem("x", uint8(1), 1, 2, 3))
	return w.bytes()
}

// vmwareFiles writes files of one stem and gives the path of the first.
func vmwareFiles(t *testing.T, files map[string][]byte, first string) string {
	t.Helper()
	dir := t.TempDir()
	for name, b := range files {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return filepath.Join(dir, first)
}

func TestVMwareContract(t *testing.T) {
	low, high := pattern(1, 20<<12), pattern(2, 7<<12)
	ram := append(bytes.Clone(low), high...)
	beside, whole := makeVMware(vmwareRegions(20, 7)), makeVMware(append(vmwareRegions(20, 7), vmwareItem("Memory", ram, 0, 0)))
	flat := makeVMware([][]byte{vmwareItem("regionsCount", uint32(0)), vmwareItem("Memory", ram, 0, 0)})
	two := map[mem.PA][]byte{0: low, 4 << 30: high}
	ranges := []mem.Range{{Start: 0, Size: 20 << 12}, {Start: 4 << 30, Size: 7 << 12}}
	for name, c := range map[string]struct {
		files  map[string][]byte
		first  string
		ranges []mem.Range
		want   map[mem.PA][]byte
	}{
		"vmem, vmss beside": {map[string][]byte{"a.vmem": ram, "a.vmss": beside}, "a.vmem", ranges, two},
		"vmem, vmsn beside": {map[string][]byte{"a.vmem": ram, "a.vmsn": beside}, "a.vmem", ranges, two},
		"vmsn, vmem beside": {map[string][]byte{"a.vmem": ram, "a.vmsn": beside}, "a.vmsn", ranges, two},
		"vmss, all inside":  {map[string][]byte{"a.vmss": whole}, "a.vmss", ranges, two},
		"by another name":   {map[string][]byte{"evidence": whole}, "evidence", ranges, two},
		"no regions":        {map[string][]byte{"a.vmss": flat}, "a.vmss", []mem.Range{{Start: 0, Size: 27 << 12}}, map[mem.PA][]byte{0: ram}},
	} {
		t.Run(name, func(t *testing.T) {
			path := vmwareFiles(t, c.files, c.first)
			vmtest.Run(t, func(t *testing.T) vm.Machine { return open(t, path) }, vmtest.Want{Ranges: c.ranges, Bytes: c.want, CPUs: 2})
			m := open(t, path)
			defer m.Close()
			if r, err := m.(vm.CPUs).CPUs(t.Context()); err != nil || !slices.Equal(r, vmwareCPUs()) {
				t.Errorf("registers %+v, %v", r, err)
			}
		})
	}
	// Alone, a .vmem file is RAM of which the layout is to be proved; a user may tell it.
	alone := open(t, vmwareFiles(t, map[string][]byte{"a.vmem": ram, "a.vmss": []byte("something else")}, "a.vmem"))
	defer alone.Close()
	if _, ok := alone.(vm.Ambiguous); !ok {
		t.Errorf("%T", alone)
	}
	told := open(t, vmwareFiles(t, map[string][]byte{"a.vmem": ram, "a.vmss": beside}, "a.vmem"), Layout("flat"))
	defer told.Close()
	same(t, told, 0, ram)
}

func TestVMwareRefuses(t *testing.T) {
	ram := pattern(1, 27<<12)
	memory := append(vmwareRegions(20, 7), vmwareItem("Memory", ram, 0, 0))
	good := makeVMware(memory)
	with := func(b []byte, off int, p ...byte) []byte {
		b = bytes.Clone(b)
		copy(b[off:], p)
		return b
	}
	block := bytes.Index(good, append([]byte{63 | 2<<6, 6}, "Memory"...))
	for name, c := range map[string]struct {
		file []byte
		is   error
		word string
	}{
		"old":           {with(good, 0, 0xd0, 0xbe, 0xd0, 0xbe), ErrFormat, "32 bits"},
		"no groups":     {with(good, 8, 0, 0), ErrFormat, "0 groups"},
		"many groups":   {with(good, 8, 0, 0, 1), ErrFormat, "65536 groups"},
		"cut groups":    {good[:100], ErrTruncated, "group at offset"},
		"compressed":    {with(good, block, 62|2<<6), ErrFormat, "compressed"},
		"cut":           {good[:len(good)-3000], ErrTruncated, "offset"},
		"no memory":     {bytes.ReplaceAll(good, []byte("memory"), []byte("nomory")), ErrFormat, "no group"},
		"twice":         {makeVMware(append(slices.Clone(memory), vmwareItem("Memory", ram, 1, 0))), ErrFormat, "several blocks"},
		"many regions":  {makeVMware([][]byte{vmwareItem("regionsCount", uint32(65)), vmwareItem("Memory", ram, 0, 0)}), ErrFormat, "65 regions"},
		"a far region":  {makeVMware(append(vmwareRegions(20, 8), vmwareItem("Memory", ram, 0, 0))), ErrTruncated, "region 1"},
		"region number": {makeVMware([][]byte{vmwareItem("regionPPN", uint32(1), 64)}), ErrFormat, "region 64"},
		"no vmem":       {makeVMware(vmwareRegions(20, 7)), ErrFormat, ".vmem"},
		"a huge block":  {with(good, block+2+6+8+7, 1<<6), ErrFormat, "bytes"},
	} {
		if m, err := Open(file(t, c.file)); m != nil || !errors.Is(err, c.is) || !strings.Contains(err.Error(), c.word) {
			t.Errorf("%s: %v, %v", name, m, err)
		}
	}
	// What has to do with registers costs those alone.
	for name, b := range map[string][]byte{
		"no CR3":        bytes.ReplaceAll(good, []byte("CR64"), []byte("CR6x")),
		"a broken item": with(good, bytes.Index(good, []byte("gpregs"))-2, 63|1<<6, 255),
	} {
		m := open(t, file(t, b))
		defer m.Close()
		same(t, m, 0, ram[:20<<12])
		if r, err := m.(vm.CPUs).CPUs(t.Context()); !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("%s: %+v, %v", name, r, err)
		}
	}
	m := open(t, vmwareFiles(t, map[string][]byte{"a.vmem": ram[:22<<12], "a.vmss": makeVMware(vmwareRegions(20, 7))}, "a.vmem"), AllowTruncated())
	defer m.Close()
	same(t, m, 4<<30, ram[20<<12:22<<12])
}

func FuzzVMware(f *testing.F) {
	ram := make([]byte, 8192)
	f.Add(makeVMware(append(vmwareRegions(1, 1), vmwareItem("Memory", ram, 0, 0))))
	f.Fuzz(fuzzOpen)
}
