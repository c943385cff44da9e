package dump

import (
	"bytes"
	"encoding/binary"
	"os"
	"path/filepath"
	"testing"
)

// load is a PT_LOAD segment to be written: filesz bytes of data.
type load struct {
	vaddr, paddr, memsz uint64
	data                []byte
	off                 uint64 // instead of data
	filesz              uint64
}

// makeELF writes an ELF core. xnum uses the form for more than 65,534 segments.
func makeELF(loads []load, notes []byte, xnum bool) []byte {
	le := binary.LittleEndian
	n := len(loads)
	if notes != nil {
		n++
	}
	h := make([]byte, 64)
	copy(h, "\x7fELF\x02\x01\x01")
	le.PutUint16(h[16:], etCore)
	le.PutUint16(h[18:], emX86)
	le.PutUint32(h[20:], 1)
	le.PutUint64(h[32:], 64) // program headers
	le.PutUint16(h[52:], 64)
	le.PutUint16(h[54:], 56)
	le.PutUint16(h[56:], uint16(n))
	end := uint64(64 + 56*n)
	if xnum {
		le.PutUint16(h[56:], pnXNum)
		le.PutUint64(h[40:], end)
		le.PutUint16(h[58:], 64)
		end += 64
	}
	var ph, body bytes.Buffer
	head := func(typ uint32, l load, off, filesz uint64) {
		b := make([]byte, 56)
		le.PutUint32(b, typ)
		for i, v := range []uint64{off, l.vaddr, l.paddr, filesz, l.memsz} {
			le.PutUint64(b[8+8*i:], v)
		}
		ph.Write(b)
	}
	if notes != nil {
		head(ptNote, load{}, end, uint64(len(notes)))
		body.Write(notes)
	}
	for _, l := range loads {
		if l.data == nil {
			head(ptLoad, l, l.off, l.filesz)
			continue
		}
		head(ptLoad, l, end+uint64(body.Len()), uint64(len(l.data)))
		body.Write(l.data)
	}
	out := append(h, ph.Bytes()...)
	if xnum {
		s := make([]byte, 64)
		le.PutUint32(s[44:], uint32(n))
		out = append(out, s...)
	}
	return append(out, body.Bytes()...)
}

// makeNote writes one note.
func makeNote(name string, typ uint32, desc []byte) []byte {
	le := binary.LittleEndian
	b := le.AppendUint32(nil, uint32(len(name)+1))
	b = le.AppendUint32(b, uint32(len(desc)))
	b = le.AppendUint32(b, typ)
	pad := func(x []byte) []byte { return append(x, make([]byte, -len(x)&3)...) }
	b = append(b, pad(append([]byte(name), 0))...)
	return append(b, pad(desc)...)
}

// file writes a file in a directory of the test's own.
func file(t testing.TB, b []byte) string {
	t.Helper()
	p := filepath.Join(t.TempDir(), "dump")
	if err := os.WriteFile(p, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return p
}

// pattern is n bytes that tell where they are.
func pattern(seed byte, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = seed ^ byte(i) ^ byte(i>>8)*7
	}
	return b
}
