package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
)

// kernelTypes finds types of the running kernel by name: its BTF, as far as attaching programs needs it.
type kernelTypes struct {
	at      map[string]int // "kind name" -> id
	types   []btfType      // by id
	strings []byte
}

type btfType struct {
	kind, vlen int
	name       string
	size       uint32
	more       []byte
}

// Kinds of BTF types (include/uapi/linux/btf.h).
const (
	btfStruct = 4
	btfFunc   = 12
)

// btfMore is how many bytes follow a type: of each kind in all, or for each of its parts.
var btfMore = map[int]struct{ one, each int }{1: {4, 0}, 3: {12, 0}, 4: {0, 12}, 5: {0, 12}, 6: {0, 8}, 13: {0, 8}, 14: {4, 0}, 15: {0, 12}, 17: {4, 0}, 19: {0, 12}}

func readKernelTypes() (*kernelTypes, error) {
	b, err := os.ReadFile("/sys/kernel/btf/vmlinux")
	if err != nil {
		return nil, err
	}
	le := binary.LittleEndian
	if len(b) < 24 || le.Uint16(b) != 0xeb9f {
		return nil, errors.New("no BTF")
	}
	head := b[le.Uint32(b[4:]):]
	types := head[le.Uint32(b[8:]):][:le.Uint32(b[12:])]
	t := &kernelTypes{at: map[string]int{}, types: make([]btfType, 1), strings: head[le.Uint32(b[16:]):][:le.Uint32(b[20:])]}
	for len(types) >= 12 {
		info := le.Uint32(types[4:])
		one := btfType{kind: int(info >> 24 & 31), vlen: int(info & 0xffff), name: t.text(le.Uint32(types)), size: le.Uint32(types[8:])}
		more := btfMore[one.kind]
		n := 12 + more.one + more.each*one.vlen
		one.more = types[12:n]
		key := fmt.Sprint(one.kind, " ", one.name)
		if _, there := t.at[key]; !there {
			t.at[key] = len(t.types)
		}
		t.types = append(t.types, one)
		types = types[n:]
	}
	return t, nil
}

func (t *kernelTypes) text(off uint32) string {
	s, _, _ := bytes.Cut(t.strings[off:], []byte{0})
	return string(s)
}

// id is that of a function or struct.
func (t *kernelTypes) id(kind int, name string) (uint32, error) {
	if id, ok := t.at[fmt.Sprint(kind, " ", name)]; ok {
		return uint32(id), nil
	}
	return 0, fmt.Errorf("no type %q", name)
}

// member is which member of a struct has a name, and its offset in bytes.
func (t *kernelTypes) member(of uint32, name string) (index, offset int, err error) {
	s := t.types[of]
	for i := range s.vlen {
		m := s.more[12*i:]
		if t.text(binary.LittleEndian.Uint32(m)) == name {
			return i, int(binary.LittleEndian.Uint32(m[8:])&0xffffff) / 8, nil
		}
	}
	return 0, 0, fmt.Errorf("%s has no %s", s.name, name)
}
