package procram

import (
	"errors"

	"vmscope/mem"
)

// Place says where a run of a block lies in guest-physical memory.
type Place struct {
	PA    mem.PA
	Block int
	Off   uint64 // in the block
	Size  uint64
}

// Lay lays the blocks, one behind the other, over ranges of guest-physical
// memory.
func Lay(blocks []Block, ranges []mem.Range) ([]Place, error) {
	var out []Place
	i, used := 0, uint64(0)
	for _, r := range ranges {
		for r.Size > 0 {
			if i == len(blocks) {
				return nil, errors.New("the layout is larger than the guest's RAM")
			}
			n := min(r.Size, blocks[i].Size-used)
			out = append(out, Place{r.Start, i, used, n})
			r.Start, r.Size, used = r.Start+mem.PA(n), r.Size-n, used+n
			if used == blocks[i].Size {
				i, used = i+1, 0
			}
		}
	}
	return out, nil
}
