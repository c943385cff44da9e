package main

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"vmscope/arch/x86"
	"vmscope/internal/memtest"
	"vmscope/mem"
)

// guest is a raw RAM file and where in it things lie.
type guest struct {
	ram    string
	low    uint64 // bytes of the file that lie below 4 GiB; the rest begins there
	root   uint64
	levels int
	addrs  string
}

const (
	high      = 4 << 30
	directMap = 0xffff888000000000 // Linux, 4-level, without KASLR
)

// buildGuest makes the RAM file of a guest as Linux lays it out: all RAM mapped
// at the direct map by pages of the given level, every page in use.
func buildGuest(dir string, size uint64, level int) (*guest, error) {
	g := &guest{ram: filepath.Join(dir, "ram"), addrs: filepath.Join(dir, "addrs"), low: min(size, 2<<30), levels: 4}
	f, err := os.Create(g.ram)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if err := f.Truncate(int64(size)); err != nil {
		return nil, err
	}
	data, err := unix.Mmap(int(f.Fd()), 0, int(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map %s: %w", g.ram, err)
	}
	defer unix.Munmap(data)
	for i := uint64(0); i < size; i += mem.PageSize {
		data[i] = 1
	}
	t := memtest.NewTables(data[:g.low], 0, 1<<20, g.levels)
	t.Map(directMap, 0, g.low, level, memtest.W|memtest.NX)
	t.Map(directMap+high, high, size-g.low, level, memtest.W|memtest.NX)
	g.root = uint64(t.Root)

	r := rand.New(rand.NewPCG(1, 2))
	var b []byte
	for range 1 << 16 {
		off := r.Uint64N(size/mem.PageSize) * mem.PageSize
		if off >= g.low {
			off += high - g.low
		}
		b = binary.LittleEndian.AppendUint64(b, directMap+off)
	}
	return g, os.WriteFile(g.addrs, b, 0o600)
}

// open maps the guest as our sources do and reads the list of addresses.
func (g *guest) open() (s *mem.Space, addrs []mem.VA, closeGuest func(), err error) {
	b, err := os.ReadFile(g.addrs)
	if err != nil {
		return nil, nil, nil, err
	}
	for ; len(b) >= 8; b = b[8:] {
		addrs = append(addrs, mem.VA(binary.LittleEndian.Uint64(b)))
	}
	if len(addrs) == 0 {
		return nil, nil, nil, fmt.Errorf("%s: no addresses", g.addrs)
	}
	f, err := os.Open(g.ram)
	if err != nil {
		return nil, nil, nil, err
	}
	st, err := f.Stat()
	if err != nil {
		return nil, nil, nil, err
	}
	data, err := unix.Mmap(int(f.Fd()), 0, int(st.Size()), unix.PROT_READ, unix.MAP_SHARED|unix.MAP_POPULATE)
	if err != nil {
		return nil, nil, nil, fmt.Errorf("map %s: %w", g.ram, err)
	}
	g.low = min(g.low, uint64(len(data)))
	seg := func(pa mem.PA, from, to uint64) mem.Segment {
		h := mem.NewHoles(to-from, func(p []byte, off int64) (int, error) { return f.ReadAt(p, int64(from)+off) })
		h.MarkData(0, to-from)
		return mem.Segment{PA: pa, Data: data[from:to], Holes: h}
	}
	segs := []mem.Segment{seg(0, 0, g.low)}
	if g.low < uint64(len(data)) {
		segs = append(segs, seg(high, g.low, uint64(len(data))))
	}
	ram, err := mem.NewRAM(segs...)
	if err != nil {
		return nil, nil, nil, err
	}
	mode := x86.Level4
	if g.levels == 5 {
		mode = x86.Level5
	}
	s = mem.NewSpace("kernel", ram, x86.NewPaging(ram, mem.PA(g.root), mode))
	return s, addrs, func() { unix.Munmap(data); f.Close() }, nil
}
