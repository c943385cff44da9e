package dump

import "fmt"

// applyDelta changes a page by what xbzrle says: runs of bytes that stay, each behind
// its length, and of bytes that are others, behind theirs (QEMU migration/xbzrle.c,
// docs/devel/migration; lengths as DWARF's LEB128, of at most two bytes).
func applyDelta(page, in []byte) error {
	length := func() (int, error) {
		for i := range min(2, len(in)) {
			if in[i] < 0x80 {
				n := int(in[0] & 0x7f)
				if i == 1 {
					n |= int(in[1]) << 7
				}
				in = in[i+1:]
				return n, nil
			}
		}
		return 0, fmt.Errorf("xbzrle: no length in the last %d bytes", len(in))
	}
	for at := 0; len(in) > 0; {
		same, err := length()
		if err != nil {
			return err
		}
		if at += same; at > len(page) {
			return fmt.Errorf("xbzrle: %d bytes of %d stay", at, len(page))
		}
		if len(in) == 0 { // the rest stays
			return nil
		}
		other, err := length()
		if err != nil {
			return err
		}
		if other == 0 || other > len(in) || other > len(page)-at {
			return fmt.Errorf("xbzrle: %d bytes change at %d, %d are there", other, at, len(in))
		}
		copy(page[at:], in[:other])
		at, in = at+other, in[other:]
	}
	return nil
}
