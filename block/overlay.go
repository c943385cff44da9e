package block

import (
	"errors"
	"fmt"
	"os"
	"sync"
)

// Sizes of an Overlay's parts, bytes.
const (
	pageSize  = 4096
	chunkSize = 1 << 21 // pages are indexed by chunk
	slabSize  = 1 << 18 // pages in memory are allocated by slab

	chunkPages = chunkSize / pageSize
	slabPages  = slabSize / pageSize

	// indexCost is what a chunk of the index counts against the memory, and what one that only holds zeros does.
	indexCost     = 4*chunkPages + 64
	zeroIndexCost = 64
)

// ErrFull says that an Overlay has no room for a write.
var ErrFull = errors.New("block: overlay is full")

// Overlay is a device with writes on top that the device itself never gets. It
// is safe for concurrent use: a read sees each write wholly or not at all.
type Overlay struct {
	base Device

	mu     sync.RWMutex
	chunks map[int64]*overlayChunk
	memory int64 // bytes left
	room   int64 // bytes left in the file
	slabs  [][]byte
	used   uint32   // slots that were ever in use
	inMem  uint32   // slots below are in slabs, the others in the file
	free   []uint32 // slots below used that are free again
	file   *os.File // nil until memory is full
}

// overlayChunk is where the pages of a chunk are: a slot number plus slotBase,
// slotNone or slotZero.
type overlayChunk [chunkPages]uint32

const (
	slotNone = iota // the base device has it
	slotZero
	slotBase
)

// zeroChunk stands for every chunk that holds nothing but zeros.
var zeroChunk = func() *overlayChunk {
	var c overlayChunk
	for i := range c {
		c[i] = slotZero
	}
	return &c
}()

// NewOverlay puts an empty overlay onto base. It keeps up to memory bytes of
// what is written in memory, and then up to file bytes in a temporary file
// without a name. The Overlay does not close base.
func NewOverlay(base Device, memory, file int64) *Overlay {
	return &Overlay{base: base, chunks: map[int64]*overlayChunk{}, memory: memory, room: file}
}

// Close gives the temporary file back.
func (o *Overlay) Close() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.file == nil {
		return nil
	}
	err := o.file.Close()
	o.file = nil
	return err
}

// Size is that of the base device.
func (o *Overlay) Size() int64 { return o.base.Size() }

// Apply makes a write part of what is read. A discarded range reads as zeros; a
// write without Data is of content that nobody wants, and changes nothing. On
// ErrFull a part of the write may have been made.
func (o *Overlay) Apply(w Write) error {
	switch w.Op {
	case OpFlush:
		return nil
	case OpWrite:
		if w.Data == nil {
			return nil
		}
		if int64(len(w.Data)) != w.Len {
			return fmt.Errorf("block: write %d has %d bytes, not %d", w.Seq, len(w.Data), w.Len)
		}
	case OpZeroes, OpDiscard:
	default:
		return fmt.Errorf("block: write %d: unknown %v", w.Seq, w.Op)
	}
	if !inside(w.Off, w.Len, o.Size()) {
		return fmt.Errorf("%w: write %d, %d bytes at %d of %d", ErrOutOfRange, w.Seq, w.Len, w.Off, o.Size())
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	for off, data := w.Off, w.Data; off < w.End(); {
		end := min(w.End(), off/pageSize*pageSize+pageSize)
		var err error
		switch {
		case w.Op == OpWrite:
			err = o.put(off, data[:end-off])
			data = data[end-off:]
		case off%chunkSize == 0 && w.End()-off >= chunkSize:
			end = off + chunkSize
			err = o.clearChunk(off / chunkSize)
		default:
			err = o.clear(off, end)
		}
		if err != nil {
			return err
		}
		off = end
	}
	return nil
}

// chunk gives a chunk of the index that can be written to.
func (o *Overlay) chunk(i int64) (*overlayChunk, error) {
	c := o.chunks[i]
	if c != nil && c != zeroChunk {
		return c, nil
	}
	if o.memory < indexCost {
		return nil, ErrFull
	}
	o.memory -= indexCost
	n := new(overlayChunk)
	if c != nil {
		*n = *c
	}
	o.chunks[i] = n
	return n, nil
}

// put writes a part of one page.
func (o *Overlay) put(off int64, data []byte) error {
	c, err := o.chunk(off / chunkSize)
	if err != nil {
		return err
	}
	slot := &c[off%chunkSize/pageSize]
	in := int(off % pageSize)
	if *slot >= slotBase {
		return o.writeSlot(*slot-slotBase, in, data)
	}
	var page [pageSize]byte
	if *slot == slotNone && len(data) < pageSize {
		at := off - int64(in)
		n := int(min(pageSize, o.Size()-at))
		if err := ReadFull(o.base, page[:n], at); err != nil {
			return err
		}
	}
	copy(page[in:], data)
	s, err := o.newSlot()
	if err != nil {
		return err
	}
	if err := o.writeSlot(s, 0, page[:]); err != nil {
		o.free = append(o.free, s)
		return err
	}
	*slot = s + slotBase
	return nil
}

// clear makes [off, end), a part of one page, read as zeros.
func (o *Overlay) clear(off, end int64) error {
	if off%pageSize != 0 || end-off < pageSize && end < o.Size() {
		return o.put(off, make([]byte, end-off))
	}
	c, err := o.chunk(off / chunkSize)
	if err != nil {
		return err
	}
	slot := &c[off%chunkSize/pageSize]
	if *slot >= slotBase {
		o.free = append(o.free, *slot-slotBase)
	}
	*slot = slotZero
	return nil
}

// clearChunk makes a whole chunk read as zeros.
func (o *Overlay) clearChunk(i int64) error {
	switch c := o.chunks[i]; c {
	case zeroChunk:
		return nil
	case nil:
		if o.memory < zeroIndexCost {
			return ErrFull
		}
		o.memory -= zeroIndexCost
	default:
		for _, s := range c {
			if s >= slotBase {
				o.free = append(o.free, s-slotBase)
			}
		}
		o.memory += indexCost - zeroIndexCost
	}
	o.chunks[i] = zeroChunk
	return nil
}

// newSlot finds room for a page.
func (o *Overlay) newSlot() (uint32, error) {
	if n := len(o.free); n > 0 {
		s := o.free[n-1]
		o.free = o.free[:n-1]
		return s, nil
	}
	if o.used == o.inMem && o.file == nil && o.memory >= slabSize {
		o.memory -= slabSize
		o.slabs = append(o.slabs, make([]byte, slabSize))
		o.inMem += slabPages
	}
	if o.used >= o.inMem {
		if o.room < pageSize || o.used >= ^uint32(0)-slotBase {
			return 0, ErrFull
		}
		if o.file == nil {
			f, err := unnamedFile()
			if err != nil {
				return 0, fmt.Errorf("block: overlay: %w", err)
			}
			o.file = f
		}
		o.room -= pageSize
	}
	o.used++
	return o.used - 1, nil
}

func unnamedFile() (*os.File, error) {
	f, err := os.CreateTemp("", "vmscope-overlay-")
	if err != nil {
		return nil, err
	}
	if err := os.Remove(f.Name()); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// place is where a slot in memory lies.
func (o *Overlay) place(s uint32) []byte {
	off := s % slabPages * pageSize
	return o.slabs[s/slabPages][off : off+pageSize]
}

func (o *Overlay) fileOff(s uint32) int64 { return int64(s-o.inMem) * pageSize }

func (o *Overlay) writeSlot(s uint32, in int, data []byte) error {
	if s < o.inMem {
		copy(o.place(s)[in:], data)
		return nil
	}
	_, err := o.file.WriteAt(data, o.fileOff(s)+int64(in))
	return err
}

func (o *Overlay) readSlot(p []byte, s uint32, in int) error {
	if s < o.inMem {
		copy(p, o.place(s)[in:])
		return nil
	}
	_, err := o.file.ReadAt(p, o.fileOff(s)+int64(in))
	return err
}

// ReadAt reads what the base device holds with the writes made on it.
func (o *Overlay) ReadAt(p []byte, off int64) (int, error) {
	want, end := clip(off, len(p), o.Size())
	o.mu.RLock()
	defer o.mu.RUnlock()
	for n := 0; n < want; {
		run, slot := o.run(off+int64(n), int64(want-n))
		q := p[n : n+int(run)]
		var err error
		switch slot {
		case slotNone:
			err = ReadFull(o.base, q, off+int64(n))
		case slotZero:
			clear(q)
		default:
			err = o.readSlot(q, slot-slotBase, int((off+int64(n))%pageSize))
		}
		if err != nil {
			return n, err
		}
		n += int(run)
	}
	return want, end
}

// run says for how many of n bytes from off on the answer is the same slot.
func (o *Overlay) run(off, n int64) (run int64, slot uint32) {
	for first := true; run < n; first = false {
		at := off + run
		c := o.chunks[at/chunkSize]
		s, size := uint32(slotNone), int64(chunkSize)
		if c != nil {
			s, size = c[at%chunkSize/pageSize], pageSize
		}
		if first {
			slot = s
		} else if s != slot || s >= slotBase {
			break
		}
		run += size - at%size
	}
	return min(run, n), slot
}
