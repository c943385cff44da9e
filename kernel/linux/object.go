package linux

import (
	"encoding/binary"
	"fmt"

	"vmscope/ctype"
	"vmscope/mem"
)

// object is a copy of one of the guest's structs, taken by one read, so that
// all that is decoded of it is of one moment and cannot change between a check
// and a use.
type object struct {
	at mem.VA
	b  []byte
}

// maxObject bounds how much of a struct is copied: the largest that is read so,
// task_struct, has some 10 KiB. Offsets come from the guest's own types.
const maxObject = 64 << 10

// span is how many bytes of an object must be read to have all fields in it.
// Fields that the kernel lacks take none.
func span(fields ...ctype.Field) (int, error) {
	var n uint64
	for _, f := range fields {
		if !f.Valid() {
			continue
		}
		size := max(f.Size(), 1)
		if f.Offset > maxObject || size > maxObject {
			return 0, fmt.Errorf("the kernel's types place a member of %d bytes at %d: %w", size, f.Offset, mem.ErrInconsistent)
		}
		n = max(n, f.Offset+size)
	}
	if n > maxObject {
		return 0, fmt.Errorf("the kernel's types have a struct of more than %d bytes: %w", n, mem.ErrInconsistent)
	}
	return int(n), nil
}

// read copies the object at the given address into o's buffer.
func (o *object) read(v *View, at mem.VA) error {
	o.at = at
	_, err := v.Mem.Read(o.b, at)
	return err
}

// uint is an integer, enum or pointer of the object, 0 if the kernel lacks the
// field.
func (o *object) uint(f ctype.Field) uint64 {
	if !f.Valid() {
		return 0
	}
	return uintAt(o.b, f.Offset, f.Size())
}

func (o *object) ptr(f ctype.Field) mem.VA { return mem.VA(o.uint(f)) }

// bytes is an array of the object; it shares the object's memory.
func (o *object) bytes(f ctype.Field) []byte {
	if n := uint64(len(o.b)); !f.Valid() || f.Offset > n || f.Size() > n-f.Offset {
		return nil
	}
	return o.b[f.Offset : f.Offset+f.Size()]
}

// uintAt decodes size bytes of b at off; a struct that holds one integer
// (kuid_t, atomic_t, possible_net_t) is as good as the integer.
func uintAt(b []byte, off, size uint64) uint64 {
	if n := uint64(len(b)); off > n || size > n-off {
		return 0
	}
	b = b[off : off+size]
	switch size {
	case 8:
		return binary.LittleEndian.Uint64(b)
	case 4:
		return uint64(binary.LittleEndian.Uint32(b))
	case 2:
		return uint64(binary.LittleEndian.Uint16(b))
	case 1:
		return uint64(b[0])
	}
	return 0
}
