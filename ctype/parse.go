// Package ctype knows the C types of a kernel, and reads typed objects in a
// guest's memory.
//
// The types come from BTF, the compact type information that kernels carry in
// their own memory (Documentation/bpf/btf.rst). It was written by the guest, as
// were the objects: Parse checks every record once, so that what follows cannot
// be led out of bounds, and every search and recursion is bounded.
package ctype

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"

	"vmscope/internal/binread"
	"vmscope/mem"
)

var le = binary.LittleEndian

// Types are the types of a kernel, or of one of its modules. They are immutable
// and safe for concurrent use.
//
// Beside the blob they hold 4 bytes a type, and after the first Lookup about 4
// more for each type that has a name to be looked up.
type Types struct {
	base    *Types // of a module: the kernel's types; nil for the kernel itself
	first   uint32 // id of the first own type
	types   []byte // the type section
	offs    []uint32
	strs    []byte // own strings; the last byte is NUL
	strBase uint32 // length of all strings of the bases
	ptrSize uint8
	// signed says that the producer marks signed enums. Producers that do not
	// (before pahole 1.24) mean all values to be signed.
	signed bool

	named int // how many own types can be looked up
	once  sync.Once
	index index
}

const (
	magic     = 0xeb9f
	minHeader = 24
	recSize   = 12 // struct btf_type
)

// Parse reads the BTF of a kernel. It keeps blob and indexes it in place: the
// blob must be a copy that nobody changes any more, never guest memory itself.
func Parse(blob []byte) (*Types, error) { return parse(blob, nil) }

// ParseSplit reads the BTF of a module, which continues the types and strings
// of the kernel's. It keeps blob as Parse does.
func ParseSplit(blob []byte, base *Types) (*Types, error) {
	if base == nil {
		return nil, errors.New("BTF of a module: no base types given")
	}
	return parse(blob, base)
}

func parse(blob []byte, base *Types) (*Types, error) {
	t := &Types{base: base, first: 1, ptrSize: 8}
	if base != nil {
		t.first = base.first + uint32(len(base.offs))
		t.strBase = base.strBase + uint32(len(base.strs))
		t.ptrSize, t.signed = base.ptrSize, base.signed
	}
	layout, err := t.sections(blob)
	if err != nil {
		return nil, err
	}
	if err := t.records(layout); err != nil {
		return nil, err
	}
	return t, nil
}

// sections finds the parts of the blob. The layout section, which tells the
// shape of kinds that are newer than this reader, came with Linux 7.1 (Linux kernel
// commit 01504da43e67).
func (t *Types) sections(blob []byte) (layout []byte, err error) {
	r := binread.New("BTF header", blob)
	m, version, flags, hdrLen := r.U16(), r.U8(), r.U8(), r.U32()
	typeOff, typeLen, strOff, strLen := r.U32(), r.U32(), r.U32(), r.U32()
	if err := r.Err(); err != nil {
		return nil, err
	}
	switch {
	case m == magic>>8|magic<<8&0xff00:
		return nil, fmt.Errorf("BTF of a big-endian kernel: %w", errors.ErrUnsupported)
	case m != magic:
		return nil, fmt.Errorf("BTF header: magic %#x: %w", m, mem.ErrInconsistent)
	case version != 1 || flags != 0:
		return nil, fmt.Errorf("BTF version %d, flags %#x: %w", version, flags, errors.ErrUnsupported)
	case hdrLen < minHeader || uint64(hdrLen) > uint64(len(blob)):
		return nil, fmt.Errorf("BTF header of %d bytes in a blob of %d: %w", hdrLen, len(blob), mem.ErrInconsistent)
	}
	body := blob[hdrLen:]
	piece := func(what string, off, n uint32) []byte {
		b := binread.New("BTF "+what+" section", body)
		b.Seek(int(off))
		p := b.Bytes(int(n))
		if err == nil {
			err = b.Err()
		}
		return p
	}
	t.types, t.strs = piece("type", typeOff, typeLen), piece("string", strOff, strLen)
	if hdrLen >= minHeader+8 {
		layoutOff, layoutLen := r.U32(), r.U32()
		layout = piece("layout", layoutOff, layoutLen)
	}
	if err != nil {
		return nil, err
	}
	switch n := len(t.strs); {
	case n > 0 && t.strs[n-1] != 0, t.base == nil && (n == 0 || t.strs[0] != 0):
		return nil, fmt.Errorf("BTF strings, %d bytes: no NUL at their ends: %w", n, mem.ErrInconsistent)
	case uint64(t.strBase)+uint64(n) > 1<<32-1:
		return nil, fmt.Errorf("BTF strings, %d bytes after %d: too many: %w", n, t.strBase, mem.ErrInconsistent)
	}
	return layout, nil
}

// records walks all type records once, notes where each begins, and checks that
// each lies within the section and refers to types and strings that are there.
func (t *Types) records(layout []byte) error {
	b := t.types
	t.offs = make([]uint32, 0, len(b)/24+8) // 27 bytes a type on stock kernels
	var c checker
	for off := 0; off < len(b); {
		if len(b)-off < recSize {
			return t.bad(off, "record cut short")
		}
		rec := b[off:]
		info := le.Uint32(rec[4:])
		kind, vlen := Kind(info>>24&0x7f), int(info&0xffffff)
		var s shape
		switch {
		case kind != Void && kind < numKinds:
			s = shapes[kind]
		case kind != Void && 4*int(kind)+4 <= len(layout):
			s = shape{layout[4*kind], layout[4*kind+1]}
		default:
			return t.bad(off, kind.String()+" is unknown")
		}
		size := recSize + int(s.info)
		if s.elem != 0 {
			size += vlen * int(s.elem)
		}
		if size > len(rec) || size%4 != 0 {
			return t.bad(off, fmt.Sprintf("%v of %d bytes, %d are left", kind, size, len(rec)))
		}
		c.record(kind, rec[:size:size])
		switch {
		case lookedUp(kind) && le.Uint32(rec) != 0:
			t.named++
			if kind == Int {
				t.notePtrSize(rec)
			}
		}
		if kind == Enum && info>>31 != 0 || kind == Enum64 {
			t.signed = true
		}
		t.offs = append(t.offs, uint32(off))
		off += size
	}
	if waste := cap(t.offs) - len(t.offs); waste > len(t.offs)/4 {
		t.offs = append(make([]uint32, 0, len(t.offs)), t.offs...)
	}
	if uint64(t.first)+uint64(len(t.offs)) > 1<<31 {
		return fmt.Errorf("BTF: %d types after %d: too many: %w", len(t.offs), t.first, mem.ErrInconsistent)
	}
	if c.ref >= t.end() || uint64(c.name) >= uint64(t.strBase)+uint64(len(t.strs)) {
		return t.blame()
	}
	return nil
}

// end is one more than the highest type id.
func (t *Types) end() uint32 { return t.first + uint32(len(t.offs)) }

func (t *Types) bad(off int, why string) error {
	return fmt.Errorf("BTF type %d at offset %#x of the type section: %s: %w", t.end(), off, why, mem.ErrInconsistent)
}

// checker keeps the highest type id and string offset seen. Comparing them once
// at the end costs less than comparing each, and forward references need no
// second pass.
type checker struct{ ref, name uint32 }

func (c *checker) record(kind Kind, rec []byte) {
	c.name = max(c.name, le.Uint32(rec))
	elems := rec[recSize:]
	switch kind {
	case Pointer, Typedef, Volatile, Const, Restrict, Func, Var, DeclTag, TypeTag:
		c.ref = max(c.ref, le.Uint32(rec[8:]))
	case Array:
		c.ref = max(c.ref, le.Uint32(elems), le.Uint32(elems[4:]))
	case Struct, Union:
		for ; len(elems) >= 12; elems = elems[12:] {
			c.name = max(c.name, le.Uint32(elems))
			c.ref = max(c.ref, le.Uint32(elems[4:]))
		}
	case FuncProto:
		c.ref = max(c.ref, le.Uint32(rec[8:]))
		for ; len(elems) >= 8; elems = elems[8:] {
			c.name = max(c.name, le.Uint32(elems))
			c.ref = max(c.ref, le.Uint32(elems[4:]))
		}
	case Enum:
		for ; len(elems) >= 8; elems = elems[8:] {
			c.name = max(c.name, le.Uint32(elems))
		}
	case Enum64:
		for ; len(elems) >= 12; elems = elems[12:] {
			c.name = max(c.name, le.Uint32(elems))
		}
	case DataSec:
		for ; len(elems) >= 12; elems = elems[12:] {
			c.ref = max(c.ref, le.Uint32(elems))
		}
	}
}

// blame finds the record that refers to what is not there.
func (t *Types) blame() error {
	strs := uint64(t.strBase) + uint64(len(t.strs))
	for i, off := range t.offs {
		next := len(t.types)
		if i+1 < len(t.offs) {
			next = int(t.offs[i+1])
		}
		var c checker
		rec := t.types[off:next]
		c.record(Kind(le.Uint32(rec[4:])>>24&0x7f), rec)
		if c.ref >= t.end() || uint64(c.name) >= strs {
			return fmt.Errorf("BTF type %d at offset %#x of the type section: refers to type %d of %d, string %#x of %#x: %w",
				t.first+uint32(i), off, c.ref, t.end(), c.name, strs, mem.ErrInconsistent)
		}
	}
	return fmt.Errorf("BTF: bad reference: %w", mem.ErrInconsistent)
}

// notePtrSize learns the size of a pointer from the size of a long, as libbpf
// does: BTF does not tell it.
func (t *Types) notePtrSize(rec []byte) {
	switch t.str(le.Uint32(rec)) {
	case "long int", "long unsigned int", "unsigned long", "long":
		if n := le.Uint32(rec[8:]); n == 4 || n == 8 {
			t.ptrSize = uint8(n)
		}
	}
}

// maxName bounds names: the kernel's longest symbol has 511 bytes
// (KSYM_NAME_LEN). A guest may write megabytes.
const maxName = 512

// strAt gives the bytes from a string's start, at least one of them.
func (t *Types) strAt(off uint32) []byte {
	for off < t.strBase {
		t = t.base
	}
	if off -= t.strBase; uint64(off) < uint64(len(t.strs)) {
		return t.strs[off:]
	}
	return nul
}

var nul = []byte{0}

// str gives the string at off, cut at maxName bytes. It shares the blob's
// memory.
func (t *Types) str(off uint32) string {
	b := t.strAt(off)
	n := bytes.IndexByte(b[:min(len(b), maxName)], 0)
	if n < 0 {
		n = min(len(b), maxName)
	}
	return bytesAsString(b[:n])
}

// nameIs reports whether the string at off is name.
func (t *Types) nameIs(off uint32, name string) bool {
	b := t.strAt(off)
	return len(b) > len(name) && b[len(name)] == 0 && string(b[:len(name)]) == name
}
