package dump

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"

	"vmscope/vm"
)

// A migration stream ends with the states of devices, a section each, and a
// description of these in JSON: of each section the fields in their order, with
// sizes (QEMU migration/vmstate.c and savevm.c, docs/devel/migration). So the
// registers are found without knowing what QEMU's version has in them.
const (
	maxDescription = 16 << 20 // bytes of JSON, of all devices
	maxDeviceJSON  = 1 << 20  // of one
	maxStates      = 1 << 16  // devices
	maxStateDepth  = 32       // of subsections in subsections
	maxStateBytes  = 1 << 40
)

// deviceState describes a section.
type deviceState struct {
	Name     string `json:"name"`
	Instance uint32 `json:"instance_id"`
	fieldList
}

// fieldList are fields in the order of the stream, and what follows them.
type fieldList struct {
	Fields      []stateField `json:"fields"`
	Subsections []struct {
		Name string `json:"vmsd_name"`
		fieldList
	} `json:"subsections"`
}

// stateField is a field. An array of equal elements is one with a Count; other
// arrays are a field for each element, with its Index.
type stateField struct {
	Name   string     `json:"name"`
	Size   uint64     `json:"size"` // bytes, of an element
	Count  *uint64    `json:"array_len"`
	Index  *uint64    `json:"index"`
	Struct *fieldList `json:"struct"`
}

func (f *stateField) count() uint64 {
	if f.Count == nil {
		return 1
	}
	return *f.Count
}

// size is that of the fields and subsections, in bytes.
func (l *fieldList) size(depth int) (uint64, error) {
	sum := uint64(0)
	for i := range l.Fields {
		f := &l.Fields[i]
		n := f.count()
		if f.Size > maxStateBytes || n > maxStateBytes || f.Size > 0 && n > maxStateBytes/f.Size {
			return 0, fmt.Errorf("field %.64q of %d times %d bytes", f.Name, n, f.Size)
		}
		if sum += n * f.Size; sum > maxStateBytes {
			return 0, fmt.Errorf("fields of %d bytes", sum)
		}
	}
	if len(l.Subsections) > 0 && depth == maxStateDepth {
		return 0, fmt.Errorf("subsections deeper than %d", maxStateDepth)
	}
	for i := range l.Subsections {
		s := &l.Subsections[i]
		n, err := s.size(depth + 1)
		if err != nil {
			return 0, err
		}
		// A mark, the name behind its length, and a version.
		if sum += 1 + 1 + uint64(len(s.Name)) + 4 + n; sum > maxStateBytes {
			return 0, fmt.Errorf("fields of %d bytes", sum)
		}
	}
	return sum, nil
}

// at tells where the fields have an element of one, or a member of that if
// member is not empty: its offset and size.
func (l *fieldList) at(name string, index uint64, member string) (off, size uint64, ok bool) {
	for i := range l.Fields {
		f := &l.Fields[i]
		n := f.count()
		switch {
		case f.Name != name:
		case f.Index != nil && *f.Index != index, f.Index == nil && index >= n:
		default:
			if f.Index == nil {
				off += index * f.Size
			}
			if member == "" {
				return off, f.Size, f.Size == 4 || f.Size == 8
			}
			if f.Struct == nil {
				return 0, 0, false
			}
			in, size, ok := f.Struct.at(member, 0, "")
			return off + in, size, ok && in+size <= f.Size
		}
		off += n * f.Size
	}
	return 0, 0, false
}

// states reads the sections behind the RAM, which end where the description
// begins, and gives the registers of x86 CPUs that are in them. An error tells
// where stream and description part.
func states(src source, off, desc uint64) ([]vm.Registers, error) {
	d, err := describedDevices(src, desc)
	if err != nil {
		return nil, err
	}
	var regs []vm.Registers
	for n := 0; ; n++ {
		dev, err := d.next()
		switch {
		case err != nil:
			return nil, err
		case dev == nil && off+1+1+4 != desc: // the mark of the end, and the description's head
			return nil, fmt.Errorf("the states end at offset %#x, the description begins at %#x", off, desc)
		case dev == nil:
			return regs, nil
		case n == maxStates:
			return nil, fmt.Errorf("more than %d devices", maxStates)
		}
		body, end, err := section(src, off, dev)
		if err != nil {
			return nil, fmt.Errorf("state of %.64q at offset %#x: %w", dev.Name, off, err)
		}
		off = end
		if dev.Name != "cpu" {
			continue
		}
		r, err := cpuOf(src, body, &dev.fieldList)
		if err != nil {
			return nil, err
		}
		if len(regs) < maxCPUs {
			regs = append(regs, r)
		}
	}
}

// section checks the head of a device's section at off and gives where its
// fields begin and where it ends.
func section(src source, off uint64, dev *deviceState) (body, end uint64, err error) {
	head := make([]byte, 1+4+1+len(dev.Name)+8)
	if len(dev.Name) > 255 {
		return 0, 0, fmt.Errorf("a name of %d bytes", len(dev.Name))
	}
	if err := readFull(src, head, off); err != nil {
		return 0, 0, err
	}
	be, rest := binary.BigEndian, head[6:]
	if head[0] != secFull || int(head[5]) != len(dev.Name) || string(rest[:len(dev.Name)]) != dev.Name || be.Uint32(rest[len(dev.Name):]) != dev.Instance {
		return 0, 0, fmt.Errorf("another section is there")
	}
	n, err := dev.size(0)
	if err != nil {
		return 0, 0, err
	}
	body = off + uint64(len(head))
	end = body + n
	// Machines of old types have no footers.
	var foot [5]byte
	if err := readFull(src, foot[:], end); err == nil && foot[0] == secFooter && bytes.Equal(foot[1:], head[1:5]) {
		end += uint64(len(foot))
	}
	return body, end, nil
}

// cpuOf reads the registers of the state "cpu" of x86 (QEMU
// target/i386/machine.c, vmstate_x86_cpu), of which the fields begin at off.
func cpuOf(src source, off uint64, l *fieldList) (vm.Registers, error) {
	var r vm.Registers
	if _, _, ok := l.at("env.eip", 0, ""); !ok {
		return r, fmt.Errorf("the CPUs are not of x86")
	}
	var lost error
	read := func(name string, index uint64, member string) uint64 {
		at, size, ok := l.at(name, index, member)
		if !ok {
			lost = fmt.Errorf("no field %q in the state of a CPU", name)
			return 0
		}
		var b [8]byte
		if err := readFull(src, b[8-size:], off+at); err != nil {
			lost = err
		}
		return binary.BigEndian.Uint64(b[:])
	}
	wide := func(name string) uint64 { // what a 32-bit CPU lacks
		if _, _, ok := l.at(name, 0, ""); !ok {
			return 0
		}
		return read(name, 0, "")
	}
	regs := uint64(len(r.General))
	if _, _, ok := l.at("env.regs", regs-1, ""); !ok {
		regs = 8
	}
	for i := range regs {
		r.General[i] = read("env.regs", i, "")
	}
	const cs, ss, gs = 1, 2, 5 // of env.segs
	r.RIP, r.RSP, r.RFLAGS = read("env.eip", 0, ""), r.General[4], read("env.eflags", 0, "")
	r.CS, r.SS = uint16(read("env.segs", cs, "selector")), uint16(read("env.segs", ss, "selector"))
	r.GSBase, r.KernelGS = read("env.segs", gs, "base"), wide("env.kernelgsbase")
	r.GDTBase, r.IDTBase = read("env.gdt", 0, "base"), read("env.idt", 0, "base")
	r.CR0, r.CR3, r.CR4 = read("env.cr[0]", 0, ""), read("env.cr[3]", 0, ""), read("env.cr[4]", 0, "")
	r.EFER, r.LSTAR = wide("env.efer"), wide("env.lstar")
	r.CSTAR, r.SysenterEIP = wide("env.cstar"), wide("env.sysenter_eip")
	r.Valid = true
	return r, lost
}

// described reads the description of devices one by one.
type described struct{ json *json.Decoder }

// describedDevices finds the list of devices in the description at off, which
// ends with the source.
func describedDevices(src source, off uint64) (*described, error) {
	d := &described{json.NewDecoder(io.NewSectionReader(src, int64(off), int64(src.Size()-off)))}
	if t, err := d.json.Token(); err != nil || t != json.Delim('{') {
		return nil, fmt.Errorf("the description at offset %#x is no object: %v", off, err)
	}
	for d.json.More() {
		key, err := d.json.Token()
		if err != nil {
			return nil, fmt.Errorf("the description at offset %#x: %w", off, err)
		}
		if key == "devices" {
			if t, err := d.json.Token(); err != nil || t != json.Delim('[') {
				return nil, fmt.Errorf("the description at offset %#x: its devices are no list: %v", off, err)
			}
			return d, nil
		}
		var other json.RawMessage
		if err := d.json.Decode(&other); err != nil {
			return nil, fmt.Errorf("the description at offset %#x: %w", off, err)
		}
	}
	return nil, fmt.Errorf("the description at offset %#x has no devices", off)
}

// next is nil without an error behind the last.
func (d *described) next() (*deviceState, error) {
	if !d.json.More() {
		if t, err := d.json.Token(); err != nil || t != json.Delim(']') {
			return nil, fmt.Errorf("the list of devices is cut: %v", err)
		}
		return nil, nil
	}
	var raw json.RawMessage
	if err := d.json.Decode(&raw); err != nil {
		return nil, fmt.Errorf("the list of devices: %w", err)
	}
	if len(raw) > maxDeviceJSON {
		return nil, fmt.Errorf("a device described by %d bytes", len(raw))
	}
	dev := new(deviceState)
	if err := json.Unmarshal(raw, dev); err != nil {
		return nil, fmt.Errorf("the list of devices: %w", err)
	}
	return dev, nil
}

// description finds where the description of devices begins: behind a mark, with
// its length, and up to the last byte of the source. 0: it is not there.
func description(src source, from uint64) uint64 {
	from = max(from, src.Size()-min(src.Size(), maxDescription))
	b := make([]byte, src.Size()-from)
	if err := readFull(src, b, from); err != nil {
		return 0
	}
	for i := 0; ; i++ {
		k := bytes.Index(b[i:], []byte{0, secDesc})
		if k < 0 {
			return 0
		}
		i += k
		if rest := b[i+2:]; len(rest) > 4 && uint64(binary.BigEndian.Uint32(rest)) == uint64(len(rest)-4) && rest[4] == '{' {
			return from + uint64(i) + 6
		}
	}
}
