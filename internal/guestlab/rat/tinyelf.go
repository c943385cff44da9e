//go:build !386 && !arm

package main

import "encoding/binary"

// tinyELF makes a static program out of code that needs no stack and no data. Such a program has one thread, runs
// whatever its arguments are, and starts fast under emulation.
func tinyELF(code []byte) []byte {
	const (
		base       = 0x400000
		headerSize = 64
		phSize     = 56
		codeAt     = headerSize + 2*phSize
	)
	le := binary.LittleEndian
	b := []byte{0x7f, 'E', 'L', 'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0}
	b = le.AppendUint16(b, 2) // ET_EXEC
	b = le.AppendUint16(b, elfMachine)
	b = le.AppendUint32(b, 1)           // EV_CURRENT
	b = le.AppendUint64(b, base+codeAt) // entry
	b = le.AppendUint64(b, headerSize)  // program headers
	b = le.AppendUint64(b, 0)           // no section headers
	b = le.AppendUint32(b, 0)           // flags
	for _, v := range []uint16{headerSize, phSize, 2, 0, 0, 0} {
		b = le.AppendUint16(b, v)
	}
	segment := func(kind, flags uint32, addr, size uint64) {
		b = le.AppendUint32(b, kind)
		b = le.AppendUint32(b, flags)
		for _, v := range []uint64{0, addr, addr, size, size, 4096} {
			b = le.AppendUint64(b, v)
		}
	}
	segment(1, 5, base, uint64(codeAt+len(code))) // PT_LOAD, readable and executable
	segment(0x6474e551, 6, 0, 0)                  // PT_GNU_STACK, else the stack would be executable
	return append(b, code...)
}
