package ksym

import (
	"encoding/binary"
	"fmt"

	"vmscope/mem"
)

const (
	// maxName bounds a decoded name with its type letter, in bytes: the
	// kernel's KSYM_NAME_LEN is 128 up to Linux 6.0, then 512
	// (include/linux/kallsyms.h).
	maxName = 512
	// indexSize is the size of the token index, u16[256].
	indexSize = 512
	// maxTokens bounds the token table. Real ones have about 1 KiB.
	maxTokens = 4096
)

// nameBuf holds one name while it is decoded; expand writes words of 8 bytes,
// so it has room behind the longest name.
type nameBuf [maxName + 8]byte

// tokens is the dictionary of the compression: 256 strings.
type tokens struct {
	text  []byte
	off   [256]uint16
	size  [256]uint16
	short [256]uint64 // the first 8 bytes
}

// parseTokens reads a token table and its index, which must describe each
// other: token i begins at index[i], ends with the NUL before index[i+1], and
// holds none itself.
func parseTokens(table, index []byte) (*tokens, error) {
	if len(index) < indexSize || len(table) > maxTokens {
		return nil, fmt.Errorf("kallsyms token table of %d bytes: %w", len(table), mem.ErrInconsistent)
	}
	t := &tokens{text: append([]byte(nil), table...)}
	at := 0
	for i := range t.off {
		if int(binary.LittleEndian.Uint16(index[2*i:])) != at {
			return nil, fmt.Errorf("kallsyms token %d: index and table disagree: %w", i, mem.ErrInconsistent)
		}
		n := 0
		for at+n < len(table) && table[at+n] != 0 {
			n++
		}
		if at+n >= len(table) || n > maxName {
			return nil, fmt.Errorf("kallsyms token %d has no end: %w", i, mem.ErrInconsistent)
		}
		t.off[i], t.size[i] = uint16(at), uint16(n)
		var w [8]byte
		copy(w[:], table[at:at+n])
		t.short[i] = binary.LittleEndian.Uint64(w[:])
		at += n + 1
	}
	t.text = t.text[:at]
	return t, nil
}

// expand decodes a record: the type letter, then the name. A name longer than
// the kernel can make is cut.
func (t *tokens) expand(buf *nameBuf, rec []byte) []byte {
	n := 0
	for _, b := range rec {
		size := int(t.size[b])
		if n+size > maxName {
			break
		}
		if size <= 8 {
			binary.LittleEndian.PutUint64(buf[n:], t.short[b])
		} else {
			copy(buf[n:], t.text[t.off[b]:][:size])
		}
		n += size
	}
	return buf[:n]
}
