package dump

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strings"
	"testing"

	"vmscope/vm"
)

// stateCPUs are the registers of the CPUs in makeStream.
func stateCPUs() []vm.Registers {
	var out []vm.Registers
	for i := range uint64(2) {
		r := vm.Registers{
			CR0: 0x80050033 + i, CR3: 0x1000 + i<<12, CR4: 0x6b0 + i, EFER: 0xd01, RIP: 0xffffffff81000000 + i, RFLAGS: 0x246 + i,
			GSBase: 0xffff888000000000 + i, KernelGS: 0x7f00 + i, IDTBase: 0xfffffe0000000000 + i, GDTBase: 0xfffffe0000001000 + i,
			CS: 0x10, SS: 0x18, LSTAR: 0xffffffff81e00000 + i, CSTAR: 0xffffffff81e00100 + i, SysenterEIP: 0xffffffff81e00200 + i, Valid: true,
		}
		for k := range r.General {
			r.General[k] = uint64(k)<<32 + i + 1
		}
		r.RSP = r.General[4]
		out = append(out, r)
	}
	return out
}

// states writes the sections of a stream's devices and the JSON that describes
// them, as QEMU 7.2 does. The fields of a CPU are in its order; most are left out.
type stateWriter struct {
	b       []byte
	id      uint32
	devices []string
}

func (w *stateWriter) device(name string, instance uint32, body []byte, fields, more string) {
	be := binary.BigEndian
	w.id++
	w.b = be.AppendUint32(append(w.b, secFull), w.id)
	w.b = append(append(w.b, byte(len(name))), name...)
	w.b = be.AppendUint32(be.AppendUint32(w.b, instance), 12)
	w.b = append(w.b, body...)
	w.b = be.AppendUint32(append(w.b, secFooter), w.id)
	w.devices = append(w.devices, fmt.Sprintf(`{"name": %q, "instance_id": %d, "vmsd_name": %q, "version": 12, "fields": [%s]%s}`, name, instance, name, fields, more))
}

const cpuFields = `{"name": "env.regs", "array_len": 16, "type": "uint64", "size": 8}, {"name": "env.eip", "type": "uint64", "size": 8},
{"name": "env.eflags", "type": "uint64", "size": 8}, {"name": "env.hflags", "type": "uint32", "size": 4},
{"name": "env.odd", "index": 0, "type": "uint8", "size": 1}, {"name": "env.odd", "index": 1, "type": "uint16", "size": 2},
{"name": "env.segs", "array_len": 6, "type": "struct", "struct": {"vmsd_name": "segment", "version": 1, "fields": [SEG]}, "size": 20},
{"name": "env.gdt", "type": "struct", "struct": {"vmsd_name": "segment", "version": 1, "fields": [SEG]}, "size": 20},
{"name": "env.idt", "type": "struct", "struct": {"vmsd_name": "segment", "version": 1, "fields": [SEG]}, "size": 20},
{"name": "env.cr[0]", "type": "uint64", "size": 8}, {"name": "env.cr[3]", "type": "uint64", "size": 8}, {"name": "env.cr[4]", "type": "uint64", "size": 8},
{"name": "env.efer", "type": "uint64", "size": 8}, {"name": "env.lstar", "type": "uint64", "size": 8}, {"name": "env.kernelgsbase", "type": "uint64", "size": 8},
{"name": "env.cstar", "type": "uint64", "size": 8}, {"name": "env.sysenter_eip", "type": "uint64", "size": 8}`

func (w *stateWriter) cpu(instance uint32, r vm.Registers) {
	be := binary.BigEndian
	var b []byte
	put := func(v ...uint64) {
		for _, v := range v {
			b = be.AppendUint64(b, v)
		}
	}
	segment := func(selector uint16, base uint64) {
		b = be.AppendUint32(b, uint32(selector))
		put(base)
		b = append(b, 1, 2, 3, 4, 5, 6, 7, 8)
	}
	put(r.General[:]...)
	put(r.RIP, r.RFLAGS)
	b = append(b, 9, 9, 9, 9, 8, 7, 7)
	for i := range 6 {
		switch i {
		case 1:
			segment(r.CS, 0)
		case 2:
			segment(r.SS, 0)
		case 5:
			segment(0, r.GSBase)
		default:
			segment(0x99, 0x9999)
		}
	}
	segment(0, r.GDTBase)
	segment(0, r.IDTBase)
	put(r.CR0, r.CR3, r.CR4, r.EFER, r.LSTAR, r.KernelGS, r.CSTAR, r.SysenterEIP)
	const sub = "cpu/poll_control_msr"
	b = append(append(b, secSub, byte(len(sub))), sub...)
	b = append(be.AppendUint32(b, 1), 1, 2, 3, 4, 5, 6, 7, 8)
	seg := `{"name": "selector", "type": "uint32", "size": 4}, {"name": "base", "type": "uint64", "size": 8}, {"name": "limit", "type": "uint32", "size": 4}, {"name": "flags", "type": "uint32", "size": 4}`
	w.device("cpu", instance, b, strings.ReplaceAll(cpuFields, "SEG", seg),
		`, "subsections": [{"vmsd_name": "`+sub+`", "version": 1, "fields": [{"name": "env.poll_control_msr", "type": "uint64", "size": 8}]}]`)
}

// end gives the sections, the mark of their end and their description.
func (w *stateWriter) end() []byte {
	desc := `{"page_size": 4096, "configuration": {"vmsd_name": "configuration"}, "devices": [` + strings.Join(w.devices, ", ") + `]}`
	b := append(w.b, 0, secDesc)
	return append(binary.BigEndian.AppendUint32(b, uint32(len(desc))), desc...)
}

func makeStates() []byte {
	w := &stateWriter{id: 3}
	w.device("timer", 0, make([]byte, 40), `{"name": "unused", "type": "buffer", "size": 40}`, "")
	for i, r := range stateCPUs() {
		w.cpu(uint32(i), r)
	}
	w.device("globalstate", 0, make([]byte, 104), `{"name": "size", "type": "uint32", "size": 4}, {"name": "runstate", "type": "buffer", "size": 100}`, "")
	return w.end()
}

func TestStreamRegisters(t *testing.T) {
	m := open(t, file(t, makeStream(streamData())))
	defer m.Close()
	got, err := m.(vm.CPUs).CPUs(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range stateCPUs() {
		if got[i] != want {
			t.Errorf("CPU %d:\n got %+v\nwant %+v", i, got[i], want)
		}
	}
	a := m.(vm.Ambiguous)
	v, err := a.In(a.Layouts()[1])
	if err != nil {
		t.Fatal(err)
	}
	if r, err := v.(vm.CPUs).CPUs(t.Context()); err != nil || len(r) != len(got) {
		t.Errorf("in another layout: %v, %v", r, err)
	}
}

// TestStreamStatesBroken: a description that is not of its stream costs the
// registers, never the memory.
func TestStreamStatesBroken(t *testing.T) {
	data := streamData()
	good := makeStream(data)
	at := bytes.LastIndex(good, []byte(`{"page_size"`))
	swap := func(old, now string) []byte {
		desc := bytes.ReplaceAll(good[at:], []byte(old), []byte(now))
		if bytes.Equal(desc, good[at:]) {
			t.Fatalf("%q is not there", old)
		}
		b := bytes.Clone(good[:at])
		binary.BigEndian.PutUint32(b[at-4:], uint32(len(desc)))
		return append(b, desc...)
	}
	for name, c := range map[string]struct {
		file []byte
		word string
	}{
		"a smaller field":  {swap(`"type": "buffer", "size": 40}`, `"type": "buffer", "size": 39}`), `state of "cpu" at offset`},
		"a huge field":     {swap(`"size": 40`, `"size": 99999999999999`), `state of "timer"`},
		"many elements":    {swap(`"array_len": 6, "type": "struct", "struct"`, `"array_len":1111111111111111111, "struct"`), "times 20 bytes"},
		"another device":   {swap(`{"name": "timer"`, `{"name": "timex"`), "another section is there"},
		"one device less":  {swap(`{"name": "globalstate", "instance_id": 0`, `{"name": "globalstate", "instance_id": 1`), "another section"},
		"no registers":     {swap("env.eip", "env.eix"), "not of x86"},
		"no CR3":           {swap("env.cr[3]", "env.cr[2]"), `no field "env.cr[3]"`},
		"a wrong type":     {swap(`"size": 8}]}]}`, `"size":""}]}]}`), "list of devices"},
		"no devices":       {swap(`"devices"`, `"devicez"`), "has no devices"},
		"no list":          {swap(`"devices": [{`, `"devices": ({`), "no list"},
		"no base":          {swap(`"base"`, `"bass"`), "no field"},
		"a member outside": {swap(`"name": "selector", "type": "uint32", "size": 4}`, `"name": "selector", "type":"uint32","size":999}`), "no field"},
	} {
		m := open(t, file(t, c.file))
		defer m.Close()
		same(t, m, 1<<20, data[:8192])
		if l := m.(vm.Describer).Info().Layout; !strings.Contains(l, c.word) {
			t.Errorf("%s: layout %q", name, l)
		}
		if r, err := m.(vm.CPUs).CPUs(t.Context()); err == nil {
			t.Errorf("%s: registers %+v", name, r)
		}
	}
}

func FuzzStreamStates(f *testing.F) {
	b := makeStates()
	f.Add(b)
	head := make([]byte, 16) // offset 0 is no stream's
	f.Fuzz(func(t *testing.T, b []byte) {
		src := bytesSource{append(bytes.Clone(head), b...)}
		at := description(src, uint64(len(head)))
		if at == 0 {
			return
		}
		if r, err := states(src, uint64(len(head)), at); err == nil && len(r) > maxCPUs {
			t.Fatal(len(r))
		}
	})
}

// bytesSource is a file's bytes.
type bytesSource struct{ b []byte }

func (s bytesSource) ReadAt(p []byte, off int64) (int, error) {
	return bytes.NewReader(s.b).ReadAt(p, off)
}
func (bytesSource) Name() string   { return "bytes" }
func (s bytesSource) Size() uint64 { return uint64(len(s.b)) }
func (bytesSource) Close() error   { return nil }
