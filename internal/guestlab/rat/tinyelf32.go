//go:build 386 || arm

package main

import "encoding/binary"

// tinyELF makes a static program out of code that needs no stack and no data; see that of 64 bits.
func tinyELF(code []byte) []byte {
	const (
		base       = 0x400000
		headerSize = 52
		phSize     = 32
		codeAt     = headerSize + 2*phSize
	)
	le := binary.LittleEndian
	b := []byte{0x7f, 'E', 'L', 'F', 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0}
	b = le.AppendUint16(b, 2) // ET_EXEC
	b = le.AppendUint16(b, elfMachine)
	for _, v := range []uint32{1, base + codeAt, headerSize, 0, elfFlags} { // EV_CURRENT, entry, program headers, no sections
		b = le.AppendUint32(b, v)
	}
	for _, v := range []uint16{headerSize, phSize, 2, 0, 0, 0} {
		b = le.AppendUint16(b, v)
	}
	segment := func(kind, flags, addr, size uint32) {
		for _, v := range []uint32{kind, 0, addr, addr, size, size, flags, 4096} {
			b = le.AppendUint32(b, v)
		}
	}
	segment(1, 5, base, uint32(codeAt+len(code))) // PT_LOAD, readable and executable
	segment(0x6474e551, 6, 0, 0)                  // PT_GNU_STACK, else the stack would be executable
	return append(b, code...)
}
