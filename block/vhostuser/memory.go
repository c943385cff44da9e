package vhostuser

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sort"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"vmscope/mem"
)

// maxSlots bounds the regions of a guest's memory: as many as QEMU may have on x86.
const maxSlots = 512

// region is a run of guest-physical addresses, mapped into this process.
type region struct {
	gpa, size uint64
	user      uint64 // where the front end has it mapped; ring addresses are given so
	offset    uint64 // of the first byte in file
	file      *os.File
	whole     []byte // the mapping
	data      []byte // of the region: a part of whole
	refs      atomic.Int32
}

const regionSize = 32 // of a region in a message

// parseRegion reads a region and checks that its addresses do not wrap.
func parseRegion(b []byte) (*region, error) {
	r := &region{
		gpa:    binary.LittleEndian.Uint64(b),
		size:   binary.LittleEndian.Uint64(b[8:]),
		user:   binary.LittleEndian.Uint64(b[16:]),
		offset: binary.LittleEndian.Uint64(b[24:]),
	}
	const top = 1 << 62 // far above what any processor can address
	if r.size == 0 || r.size > top || r.gpa > top || r.user+r.size < r.user || r.offset > top {
		return nil, fmt.Errorf("%w: memory region of %#x bytes at %#x, offset %#x", ErrProtocol, r.size, r.gpa, r.offset)
	}
	return r, nil
}

// mapFile maps the region out of f, which it owns from then on, also if there is an error.
func (r *region) mapFile(f *os.File) error {
	err := r.doMap(f)
	if err != nil {
		f.Close()
		return fmt.Errorf("map guest memory at %#x, %#x bytes: %w", r.gpa, r.size, err)
	}
	r.file = f
	r.refs.Store(1)
	return nil
}

func (r *region) doMap(f *os.File) error {
	st, err := f.Stat()
	if err != nil {
		return err
	}
	end := r.offset + r.size
	if st.Mode().IsRegular() && uint64(st.Size()) < end {
		return fmt.Errorf("%w: the file has %#x bytes, %#x are needed", ErrProtocol, st.Size(), end)
	}
	// Of huge pages only whole ones can be mapped. statfs tells their size.
	page := uint64(os.Getpagesize())
	var fs unix.Statfs_t
	if unix.Fstatfs(int(f.Fd()), &fs) == nil && uint64(fs.Bsize) > page && fs.Bsize&(fs.Bsize-1) == 0 {
		page = uint64(fs.Bsize)
	}
	start := r.offset &^ (page - 1)
	n := (end - start + page - 1) &^ (page - 1)
	if n != uint64(int(n)) {
		return fmt.Errorf("%w: more than this host can map", ErrProtocol)
	}
	r.whole, err = unix.Mmap(int(f.Fd()), int64(start), int(n), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_NORESERVE)
	if err != nil {
		return err
	}
	// A core dump of ours need not hold the guest, nor a child that we start.
	unix.Madvise(r.whole, unix.MADV_DONTDUMP)
	unix.Madvise(r.whole, unix.MADV_DONTFORK)
	r.data = r.whole[r.offset-start : r.offset-start+r.size : r.offset-start+r.size]
	return nil
}

func (r *region) release() {
	if r.refs.Add(-1) == 0 {
		unix.Munmap(r.whole)
		r.file.Close()
	}
}

// table is the guest's memory at one time. It does not change: another one takes its place.
type table struct {
	regions []*region // by guest-physical address
	refs    atomic.Int64
}

// newTable takes a reference on each region; the caller keeps its own.
func newTable(regions []*region) (*table, error) {
	t := &table{regions: append([]*region(nil), regions...)}
	sort.Slice(t.regions, func(i, j int) bool { return t.regions[i].gpa < t.regions[j].gpa })
	for i := 1; i < len(t.regions); i++ {
		if before, r := t.regions[i-1], t.regions[i]; before.gpa+before.size > r.gpa {
			return nil, fmt.Errorf("%w: memory regions at %#x and %#x overlap", ErrProtocol, before.gpa, r.gpa)
		}
	}
	for _, r := range t.regions {
		r.refs.Add(1)
	}
	t.refs.Store(1)
	return t, nil
}

// acquire takes a reference; the caller has one, or holds the lock under which the table is replaced.
func (t *table) acquire() *table {
	t.refs.Add(1)
	return t
}

func (t *table) release() {
	if t.refs.Add(-1) == 0 {
		for _, r := range t.regions {
			r.release()
		}
	}
}

// slice gives the bytes at a guest-physical address: at most n, and less where the region ends before. Nil where there
// is no memory.
func (t *table) slice(gpa, n uint64) []byte {
	list := t.regions
	for len(list) > 4 { // most guests have two or three
		if half := len(list) / 2; list[half].gpa <= gpa {
			list = list[half:]
		} else {
			list = list[:half]
		}
	}
	for _, r := range list {
		if off := gpa - r.gpa; off < r.size {
			return r.data[off : off+min(n, r.size-off)]
		}
	}
	return nil
}

// user gives the n bytes at an address of the front end, which lie in one region; nil if not.
func (t *table) user(addr, n uint64) []byte {
	for _, r := range t.regions {
		if off := addr - r.user; off < r.size && n <= r.size-off {
			return r.data[off : off+n : off+n]
		}
	}
	return nil
}

// errMemory says that a guest gave an address at which it has no memory.
var errMemory = fmt.Errorf("%w: %w", mem.ErrInconsistent, mem.ErrNoRAM)

// setTable is SET_MEM_TABLE: all regions at once, each with its descriptor.
func (s *session) setTable(m *message) error {
	if len(m.data) < 8 {
		return m.badSize()
	}
	n := int(binary.LittleEndian.Uint32(m.data))
	// QEMU sends just the regions; others send room for all eight.
	if n > maxFDs || len(m.data)-8 < n*regionSize || len(m.fds) != n {
		return fmt.Errorf("%w: %d memory regions in %d bytes with %d descriptors", ErrProtocol, n, len(m.data), len(m.fds))
	}
	regions := make([]*region, 0, n)
	defer func() {
		for _, r := range regions {
			r.release()
		}
	}()
	for i := range n {
		r, err := parseRegion(m.data[8+i*regionSize:])
		if err != nil {
			return err
		}
		fd := m.fds[0]
		m.fds = m.fds[1:]
		if err := r.mapFile(os.NewFile(uintptr(fd), "vhost-user memory")); err != nil {
			return err
		}
		regions = append(regions, r)
	}
	return s.replaceTable(regions)
}

// addRegion is ADD_MEM_REG.
func (s *session) addRegion(m *message) error {
	if len(m.data) != 8+regionSize {
		return m.badSize()
	}
	f, err := m.file()
	if err != nil {
		return err
	}
	r, err := parseRegion(m.data[8:])
	if err != nil {
		f.Close()
		return err
	}
	if err := r.mapFile(f); err != nil {
		return err
	}
	defer r.release()
	old := s.currentRegions()
	if len(old) >= maxSlots {
		return fmt.Errorf("%w: more than %d memory regions", ErrProtocol, maxSlots)
	}
	return s.replaceTable(append(old[:len(old):len(old)], r))
}

// removeRegion is REM_MEM_REG. A descriptor that comes along is not looked at.
func (s *session) removeRegion(m *message) error {
	if len(m.data) != 8+regionSize {
		return m.badSize()
	}
	gone, err := parseRegion(m.data[8:])
	if err != nil {
		return err
	}
	old := s.currentRegions()
	kept := make([]*region, 0, len(old))
	for _, r := range old {
		if r.gpa != gone.gpa || r.user != gone.user || r.size != gone.size {
			kept = append(kept, r)
		}
	}
	if len(kept) == len(old) {
		return fmt.Errorf("%w: no memory region of %#x bytes at %#x to remove", ErrProtocol, gone.size, gone.gpa)
	}
	return s.replaceTable(kept)
}

func (s *session) currentRegions() []*region {
	s.memMu.Lock()
	defer s.memMu.Unlock()
	if s.mem == nil {
		return nil
	}
	return s.mem.regions
}

// replaceTable puts another table in force. Requests that are under way keep the old one mapped until they end.
func (s *session) replaceTable(regions []*region) error {
	t, err := newTable(regions)
	if err != nil {
		return err
	}
	s.memMu.Lock()
	old := s.mem
	s.mem = t
	s.memNow.Store(t)
	s.memMu.Unlock()
	if old != nil {
		old.release()
	}
	for _, q := range s.queues {
		if r := q.run.Load(); r != nil {
			r.wake() // it lets go of the old table, and finds its rings in the new one
		}
	}
	if s.srv.opts.MemoryChanged != nil {
		s.srv.opts.MemoryChanged()
	}
	return nil
}

// table gives the memory of now, to be released; an error where the front end has told none yet.
func (s *session) table() (*table, error) {
	s.memMu.Lock()
	defer s.memMu.Unlock()
	if s.mem == nil {
		return nil, errors.New("vhost-user: no guest memory was told yet")
	}
	return s.mem.acquire(), nil
}

// changed reports whether t is not the memory of now.
func (s *session) changed(t *table) bool { return s.memNow.Load() != t }
