package ksym

import (
	"context"
	"encoding/binary"

	"vmscope/mem"
)

const (
	maxCoreInfos = 64 // different texts
	maxCopies    = 16 // places noted of one text
	maxPages     = 1 << 16

	noteSize = 24 // of the ELF note header with its padded name
)

// coreInfoWord is the start of the text as it lies in memory.
var coreInfoWord = binary.LittleEndian.Uint64([]byte(coreInfoStart))

// FindVMCoreInfo searches the extents of physical memory for VMCOREINFO texts:
// at the start of a page, or there behind the header of an ELF note. It returns
// all texts that differ, in the order of their addresses, and decides nothing:
// kernels of earlier boots may have left theirs, and anyone in the guest can
// write one. Partial results come beside an error, also that of a ctx that ended.
//
// On mapped memory it touches the first 8 bytes of each page.
func FindVMCoreInfo(ctx context.Context, r mem.PhysReader, extents []mem.Range) ([]*CoreInfo, error) {
	var out []*CoreInfo
	known := make(map[string]*CoreInfo)
	var full error
	hits := 0
	err := scan(ctx, r, extents, func(pa mem.PA, page *[mem.PageSize]byte) bool {
		w := binary.LittleEndian.Uint64(page[:])
		at := 0
		switch {
		case w == coreInfoWord:
		case uint32(w) == 11 && w>>32 <= coreInfoMax && string(page[12:22]) == "VMCOREINFO":
			at = noteSize
		default:
			return true
		}
		if hits++; hits > maxPages {
			full = tooMany("pages that begin as VMCOREINFO", maxPages)
			return false
		}
		// A copy, across the page's end: the note has a second page.
		var text [coreInfoMax]byte
		n, _ := r.ReadPhys(text[:], pa+mem.PA(at))
		c, err := ParseVMCoreInfo(text[:n])
		if err != nil {
			return true
		}
		if same := known[c.text]; same != nil {
			if len(same.Places) < maxCopies {
				same.Places = append(same.Places, pa+mem.PA(at))
			}
			return true
		}
		if len(out) == maxCoreInfos {
			full = tooMany("different VMCOREINFO texts", maxCoreInfos)
			return false
		}
		c.Places = []mem.PA{pa + mem.PA(at)}
		known[c.text] = c
		out = append(out, c)
		return true
	})
	if err == nil {
		err = full
	}
	return out, err
}
