package ext4

import (
	"errors"
	"fmt"
	"os"
)

// store holds the content of blocks: those that a journal logged and that are not at home yet, or, without a journal, all
// metadata. A few megabytes stay in memory, the rest goes to a file without a name, so that a large journal costs no RAM.
type store struct {
	size  int              // bytes of a block
	slots map[uint64]int32 // block -> slot; slots below len(mem) are in memory
	mem   [][]byte
	limit int     // slots in memory
	free  []int32 // slots to use again
	next  int32
	max   int32 // slots at most
	file  *os.File
	dir   string // where file is made; "" is the system's place for temporary files
}

// storeMemory is how much of a store stays in memory, bytes.
const storeMemory = 4 << 20

// maxSlots bounds a store: at 4 KiB it is 64 GiB, more than the largest journal.
const maxSlots = 1 << 24

func newStore(blockSize int) *store {
	return &store{size: blockSize, slots: map[uint64]int32{}, limit: max(storeMemory/blockSize, 16), max: maxSlots}
}

func (s *store) has(b uint64) bool {
	_, ok := s.slots[b]
	return ok
}

func (s *store) empty() bool { return len(s.slots) == 0 }

// get gives the content of a block, read into p where it is not in memory. The result is valid until the next put or drop.
func (s *store) get(p []byte, b uint64) ([]byte, bool, error) {
	slot, ok := s.slots[b]
	if !ok {
		return nil, false, nil
	}
	if int(slot) < s.limit {
		return s.mem[slot], true, nil
	}
	p = p[:s.size]
	if _, err := s.file.ReadAt(p, s.offset(slot)); err != nil {
		return nil, true, fmt.Errorf("read back block %d: %w", b, err)
	}
	return p, true, nil
}

func (s *store) offset(slot int32) int64 { return int64(int(slot)-s.limit) * int64(s.size) }

// put keeps a copy of data, one block.
func (s *store) put(b uint64, data []byte) error {
	slot, ok := s.slots[b]
	if !ok {
		if n := len(s.free); n > 0 {
			slot, s.free = s.free[n-1], s.free[:n-1]
		} else {
			if s.next >= s.max {
				return errors.New("too many blocks are away from home")
			}
			slot = s.next
			s.next++
		}
	}
	if int(slot) < s.limit {
		for len(s.mem) <= int(slot) {
			s.mem = append(s.mem, make([]byte, s.size))
		}
		copy(s.mem[slot], data)
	} else if err := s.spill(slot, data); err != nil {
		if !ok {
			s.free = append(s.free, slot)
		}
		return err
	}
	s.slots[b] = slot
	return nil
}

func (s *store) spill(slot int32, data []byte) error {
	if s.file == nil {
		f, err := os.CreateTemp(s.dir, "vmscope-blocks-")
		if err != nil {
			return err
		}
		os.Remove(f.Name())
		s.file = f
	}
	_, err := s.file.WriteAt(data[:s.size], s.offset(slot))
	return err
}

func (s *store) drop(b uint64) {
	slot, ok := s.slots[b]
	if !ok {
		return
	}
	delete(s.slots, b)
	// Slots in memory are taken first.
	if int(slot) < s.limit || len(s.free) == 0 {
		s.free = append(s.free, slot)
	} else {
		s.free = append(s.free, s.free[0])
		s.free[0] = slot
	}
}

// clear drops all blocks.
func (s *store) clear() {
	for b := range s.slots {
		s.drop(b)
	}
}

func (s *store) close() error {
	if s.file == nil {
		return nil
	}
	return s.file.Close()
}
