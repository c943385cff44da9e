package dump

import (
	"bytes"
	"encoding/binary"
	"errors"
	"slices"
	"strings"
	"testing"

	"vmscope/mem"
	"vmscope/vm"
	"vmscope/vm/vmtest"
)

// xenCPUs are the registers of the domain in makeXenCore: one vCPU in the kernel,
// one in user mode.
func xenCPUs(hvm bool) []vm.Registers {
	out := stateCPUs()
	for i, r := range out {
		out[i] = vm.Registers{
			CR0: r.CR0, CR3: r.CR3, CR4: r.CR4, RIP: r.RIP, RSP: r.RSP, RFLAGS: r.RFLAGS, GSBase: r.GSBase, KernelGS: r.KernelGS,
			CS: 0x10, SS: 0x18, General: r.General, Valid: true,
		}
		if !hvm {
			out[i].CS |= 3 // a PV kernel runs in ring 3
			out[i].CR0, out[i].EFER = r.CR0|1<<31|1, r.EFER
		}
	}
	out[1].CS, out[1].GSBase, out[1].KernelGS = 0x33, 0x7f01, 0xffff888000000001
	return out
}

// machineFrame is where a PV domain's page lies in makeXenCore.
func machineFrame(frame uint64) uint64 { return 0x100000 + frame ^ 5 }

// makeXenCore writes the core of a domain as xc_core.c of Xen 4.17 does: headers
// of sections, notes, contexts, shared info, pages, list of frames, names.
func makeXenCore(magic uint64, frames []uint64, pages []byte) []byte {
	le := binary.LittleEndian
	words := func(v ...any) []byte {
		var b []byte
		for _, v := range v {
			b, _ = binary.Append(b, le, v)
		}
		return b
	}
	hvm := magic == xenMagicHVM
	note := func(typ uint32, desc []byte) []byte {
		return append(words(uint32(4), uint32(len(desc)), typ, []byte("Xen\x00")), desc...)
	}
	var contexts []byte
	for _, r := range xenCPUs(hvm) {
		b := make([]byte, 5168)
		g := r.General
		for i, v := range []uint64{g[15], g[14], g[13], g[12], g[5], g[3], g[11], g[10], g[9], g[8], g[0], g[1], g[2], g[6], g[7], 0, r.RIP, uint64(r.CS), r.RFLAGS, r.RSP, uint64(r.SS)} {
			le.PutUint64(b[520+8*i:], v)
		}
		control := []uint64{r.CR0, 1, 2, r.CR3, r.CR4}
		if !hvm { // it has no paging of its own, and tables in frames of the machine
			control = []uint64{r.CR0 &^ (1 << 31), 0, 2, machineFrame(r.CR3>>12) << 12, r.CR4}
		}
		for i, v := range control {
			le.PutUint64(b[4984+8*i:], v)
		}
		le.PutUint64(b[5128:], r.LSTAR)
		kernel, user := r.GSBase, r.KernelGS
		le.PutUint32(b[512:], 4)
		if r.CS == 0x33 {
			kernel, user = user, kernel
			le.PutUint32(b[512:], 0)
		}
		le.PutUint64(b[5152:], kernel)
		le.PutUint64(b[5160:], user)
		contexts = append(contexts, b...)
	}
	var list []byte
	for _, f := range frames {
		list = le.AppendUint64(list, f)
		if !hvm {
			m := machineFrame(f)
			if f == xenNoFrame {
				m = f
			}
			list = le.AppendUint64(list, m)
		}
	}
	listName := ".xen_pfn"
	if !hvm {
		listName = ".xen_p2m"
	}
	notes := slices.Concat(note(0x2000000, nil), note(0x2000001, words(magic, uint64(2), uint64(len(frames)), uint64(4096))),
		note(0x2000002, make([]byte, 1240)), note(0x2000003, words(uint64(1))))
	sections := []struct {
		name string
		typ  uint32
		body []byte
		size uint64 // of an entry
	}{
		{"", 0, nil, 0}, {".shstrtab", 3, nil, 0}, {".note.Xen", 7, notes, 0}, {".xen_prstatus", 1, contexts, 5168},
		{".xen_shared_info", 1, make([]byte, 4096), 4096}, {".xen_pages", 1, pages, 4096}, {listName, 1, list, 8},
	}
	names := []byte{0}
	head := append([]byte("\x7fELF\x02\x01\x01\x00\x01"), make([]byte, 7)...)
	head = append(head, words(uint16(4), uint16(62), uint32(1), uint64(0), uint64(0), uint64(64), uint32(0), uint16(64), uint16(56), uint16(0), uint16(64), uint16(len(sections)), uint16(1))...)
	at := 64 + 64*uint64(len(sections))
	var table, body []byte
	for i, s := range sections {
		if s.name == ".xen_pages" {
			pad := -at & 4095
			body, at = append(body, make([]byte, pad)...), at+pad
		}
		name := uint32(len(names))
		if s.name == "" {
			name = 0
		} else {
			names = append(append(names, s.name...), 0)
		}
		off := at
		if i == 0 {
			off = 0
		}
		table = append(table, words(name, s.typ, uint64(0), uint64(0), off, uint64(len(s.body)), uint64(0), uint64(8), s.size)...)
		body, at = append(body, s.body...), at+uint64(len(s.body))
	}
	le.PutUint64(table[64+16+8:], at) // the names come last
	le.PutUint64(table[64+16+16:], uint64(len(names)))
	return slices.Concat(head, table, body, names)
}

// xenDomain are 40 pages from frame 0, then 12 from 1 GiB, in no order, and one that
// was ballooned away.
func xenDomain() (frames []uint64, pages []byte, want map[mem.PA][]byte) {
	low, high := pattern(1, 40<<12), pattern(2, 12<<12)
	add := func(frame uint64, b []byte) {
		for i := range len(b) >> 12 {
			frames = append(frames, frame+uint64(i))
		}
		pages = append(pages, b...)
	}
	add(1<<18, high)
	add(20, low[20<<12:])
	add(xenNoFrame, make([]byte, 4096))
	add(0, low[:20<<12])
	return frames, pages, map[mem.PA][]byte{0: low, 1 << 30: high}
}

func TestXenCoreContract(t *testing.T) {
	frames, pages, want := xenDomain()
	path := file(t, makeXenCore(xenMagicHVM, frames, pages))
	vmtest.Run(t, func(t *testing.T) vm.Machine { return open(t, path) }, vmtest.Want{
		Ranges: []mem.Range{{Start: 0, Size: 40 << 12}, {Start: 1 << 30, Size: 12 << 12}}, Bytes: want, CPUs: 2,
	})
	m := open(t, path)
	defer m.Close()
	if r, err := m.(vm.CPUs).CPUs(t.Context()); err != nil || !slices.Equal(r, xenCPUs(true)) {
		t.Errorf("%v\n got %+v\nwant %+v", err, r, xenCPUs(true))
	}
}

func TestXenCoreRefuses(t *testing.T) {
	frames, pages, _ := xenDomain()
	good := makeXenCore(xenMagicHVM, frames, pages)
	with := func(off int, p ...byte) []byte {
		b := bytes.Clone(good)
		copy(b[off:], p)
		return b
	}
	note := bytes.Index(good, []byte{0xee, 0xeb, 0x0f, 0xf0})
	list := bytes.LastIndex(good, binary.LittleEndian.AppendUint64([]byte{0, 0, 4, 0, 0, 0, 0, 0}, 1<<18+1))
	for name, c := range map[string]struct {
		file []byte
		is   error
		word string
	}{
		"cut":           {good[:len(good)-1], ErrTruncated, "names of sections"},
		"headers only":  {good[:200], ErrTruncated, "section headers"},
		"many sections": {with(60, 0xff, 0xff), ErrFormat, "65535 sections"},
		"no names":      {with(62, 99), ErrFormat, "names in section 99"},
		"no notes":      {bytes.ReplaceAll(good, []byte(".note.Xen"), []byte(".note.Xxx")), ErrFormat, "without section"},
		"no list":       {bytes.ReplaceAll(good, []byte(".xen_pfn"), []byte(".xen_pfx")), ErrFormat, "list of frames 0"},
		"magic":         {with(note, 1), ErrFormat, "magic"},
		"page size":     {with(note+25, 1), ErrFormat, "pages of"},
		"many pages":    {with(note+18, 1), ErrFormat, "pages, of which"},
		"a far frame":   {with(list+7, 1), ErrFormat, "no machine has that"},
		"no header":     {with(note-13, 9), ErrFormat, "no header note"},
	} {
		if m, err := Open(file(t, c.file)); m != nil || !errors.Is(err, c.is) || !strings.Contains(err.Error(), c.word) {
			t.Errorf("%s: %v, %v", name, m, err)
		}
	}
	for i := range frames {
		frames[i] = xenNoFrame
	}
	if m, err := Open(file(t, makeXenCore(xenMagicHVM, frames, pages))); m != nil || !errors.Is(err, ErrFormat) || !strings.Contains(err.Error(), "without memory") {
		t.Errorf("%v, %v", m, err)
	}
}
