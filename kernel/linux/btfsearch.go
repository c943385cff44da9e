package linux

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"

	"vmscope/ctype"
	"vmscope/mem"
)

// findBTF looks in the image for the types of a kernel of which no symbol tells where
// they are. What looks like BTF must be whole, and have all sizes and places that the
// kernel states in VMCOREINFO; there must be one of that kind only.
func (k *Kernel) findBTF(v *View) (*ctype.Types, error) {
	const (
		piece  = 1 << 20
		header = 24 // struct btf_header, include/uapi/linux/btf.h
		most   = 16 // of headers that lead to nothing
	)
	magic := []byte{0x9f, 0xeb, 1, 0, header, 0, 0, 0} // magic, version, flags, hdr_len
	var found *ctype.Types
	tried := 0
	buf := make([]byte, piece+header)
	for at := v.Text &^ 3; at < v.Text+imageMax; {
		n, err := v.Mem.Read(buf, at)
		if errors.Is(err, mem.ErrUnreachable) {
			return nil, err
		}
		for off := 0; ; off++ {
			i := bytes.Index(buf[off:n], magic)
			if i < 0 || tried == most {
				break
			}
			off += i
			if off >= piece || n-off < header || off%4 != 0 {
				continue
			}
			le := binary.LittleEndian
			size := header + uint64(le.Uint32(buf[off+16:])) + uint64(le.Uint32(buf[off+20:])) // str_off, str_len
			if size > maxBTF {
				continue
			}
			tried++
			blob := make([]byte, size)
			if _, err := v.Mem.Read(blob, at+mem.VA(off)); err != nil {
				continue
			}
			types, err := ctype.Parse(blob)
			if err != nil {
				continue
			}
			if same, different := k.statedLayouts(types); same == 0 || different != "" {
				continue
			}
			if found != nil {
				return nil, fmt.Errorf("the image has BTF that fits in more than one place: %w", mem.ErrInconsistent)
			}
			found = types
		}
		if n > piece {
			at += piece
		} else { // behind what is not mapped
			at = (at+mem.VA(n))&^(mem.PageSize-1) + mem.PageSize
		}
	}
	if found == nil {
		return nil, fmt.Errorf("no symbol of this kernel tells of BTF, and its image has none: %w", errors.ErrUnsupported)
	}
	return found, nil
}
