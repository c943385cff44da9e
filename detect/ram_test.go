package detect

import (
	"encoding/binary"
	"maps"
	"math"
	"math/rand/v2"
	"regexp"
	"runtime"
	"slices"
	"testing"

	"vmscope"
	"vmscope/kernel/linux"
	"vmscope/mem"
)

// ram is a copy of a guest's memory, to be tampered with. It is not mapped, as
// far as readers know: it sees every read, and ends a sweep that reads without
// end.
type ram struct {
	ranges []mem.Range
	data   [][]byte
	reads  int
	most   int
	saw    func(pa mem.PA, n int)
	turns  map[mem.PA]uint64 // words that are something else in every other read
}

// endless is what a sweep that reads without end is ended by.
type endless struct{}

// copyRAM copies what a machine holds.
func copyRAM(t *testing.T, from mem.PhysReader) *ram {
	t.Helper()
	m := &ram{ranges: from.(mem.Ranger).Ranges(), most: math.MaxInt}
	for _, r := range m.ranges {
		m.data = append(m.data, make([]byte, r.Size))
	}
	extents, err := mem.Extents(from)
	if err != nil {
		t.Fatal(err)
	}
	for _, x := range extents {
		if b := m.at(x.Start); b == nil {
			t.Fatalf("data at %#x, where no RAM is", uint64(x.Start))
		} else if _, err := from.ReadPhys(b[:x.Size], x.Start); err != nil {
			t.Fatal(err)
		}
	}
	return m
}

// at is the memory from an address on; nil if there is none.
func (m *ram) at(pa mem.PA) []byte {
	for i, r := range m.ranges {
		if uint64(pa-r.Start) < r.Size {
			return m.data[i][pa-r.Start:]
		}
	}
	return nil
}

// Ranges implements mem.Ranger.
func (m *ram) Ranges() []mem.Range { return slices.Clone(m.ranges) }

// ReadPhys implements mem.PhysReader.
func (m *ram) ReadPhys(p []byte, pa mem.PA) (n int, err error) {
	if m.reads++; m.reads > m.most {
		panic(endless{})
	}
	if m.saw != nil {
		m.saw(pa, len(p))
	}
	n = copy(p, m.at(pa))
	if n < len(p) {
		err = &mem.FaultError{Op: "read", Addr: uint64(pa) + uint64(n), Err: mem.ErrNoRAM}
	}
	if m.reads%2 == 0 {
		return n, err
	}
	for at, word := range m.turns {
		for i := range mem.PA(8) {
			if off := at + i - pa; off < mem.PA(n) {
				p[off] = byte(word >> (8 * i))
			}
		}
	}
	return n, err
}

// scene is a guest's memory with what a sweep needs to know of the guest.
type scene struct {
	*testing.T
	ram    *ram
	kernel *linux.Kernel
	mem    *mem.Space // its kernel's, as it is now
	ref    *Reference // as of the guest that nobody tampered with
	direct mem.VA     // where the kernel maps all RAM
	reads  int        // of a sweep of all checks then
	undo   []patchPA
}

type patchPA struct {
	at  []byte
	old []byte
}

func (s *scene) view() *vmscope.View { return &vmscope.View{View: s.kernel.View(s.ram)} }

// set writes a word at a physical address, until restore.
func (s *scene) set(pa mem.PA, word uint64) { s.write(pa, binary.LittleEndian.AppendUint64(nil, word)) }

func (s *scene) write(pa mem.PA, b []byte) {
	to := s.ram.at(pa)
	to = to[:min(len(to), len(b))]
	s.undo = append(s.undo, patchPA{to, slices.Clone(to)})
	copy(to, b)
}

func (s *scene) restore() {
	for _, p := range slices.Backward(s.undo) {
		copy(p.at, p.old)
	}
	s.undo, s.ram.turns, s.ram.saw = nil, nil, nil
}

// pa is where a virtual address of the kernel lies.
func (s *scene) pa(va mem.VA) mem.PA {
	s.Helper()
	m, err := s.mem.Translate(va)
	if err != nil {
		s.Fatal(err)
	}
	return m.PA
}

func (s *scene) put(va mem.VA, word uint64) { s.Helper(); s.set(s.pa(va), word) }

func (s *scene) pointer(va mem.VA) mem.VA {
	s.Helper()
	p, err := s.mem.Pointer(va)
	if err != nil {
		s.Fatal(err)
	}
	return p
}

func (s *scene) symbol(name string) mem.VA {
	s.Helper()
	at, err := s.kernel.Symbol(name)
	if err != nil {
		s.Fatal(err)
	}
	return at
}

// member is where a member is in an object at an address.
func (s *scene) member(at mem.VA, typ, path string) mem.VA {
	s.Helper()
	o, err := s.view().Object(at, typ)
	if err != nil {
		s.Fatal(err)
	}
	f, err := o.Field(path)
	if err != nil {
		s.Fatal(err)
	}
	return f.Addr
}

// unlink takes a node out of the list it is in.
func (s *scene) unlink(node mem.VA) {
	next, prev := s.pointer(node), s.pointer(node+8)
	s.put(prev, uint64(next))
	s.put(next+8, uint64(prev))
}

// reference is a copy of what the guest was.
func (s *scene) reference() *Reference {
	r := *s.ref
	r.runs = make(map[runKey]*run, len(s.ref.runs))
	for k, m := range s.ref.runs {
		c := *m
		c.odd = maps.Clone(m.odd)
		r.runs[k] = &c
	}
	return &r
}

// Bounds of a sweep over memory that is as bad as can be, by what one of a sound
// guest takes.
const (
	maxReads  = 300
	maxAllocs = 4 << 30 // bytes in all; what is held at a time is far less
)

// address is what an error must hold to be of use.
var address = regexp.MustCompile(`0x[0-9a-f]+`)

// sweep runs checks over the memory as it is and demands what holds for any
// memory: an end, and that errors say where.
func (s *scene) sweep(checks []Detector) (r Result) {
	s.Helper()
	defer func() {
		s.ram.most = math.MaxInt
		if e := recover(); e != nil {
			if _, ok := e.(endless); !ok {
				panic(e)
			}
			s.Errorf("more than %d reads", s.ram.most)
		}
	}()
	s.ram.reads, s.ram.most = 0, maxReads*max(s.reads, 1<<16)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	r = sweep(s.Context(), newLook(s.view()), checks)
	runtime.ReadMemStats(&after)
	if n := after.TotalAlloc - before.TotalAlloc; n > maxAllocs {
		s.Errorf("%d MiB allocated", n>>20)
	}
	for _, c := range r.Checks {
		if c.Err != nil && !address.MatchString(c.Err.Error()) && len(r.Findings) < maxFindings {
			s.Errorf("%s: an error that says not where: %v", c.Name, c.Err)
		}
	}
	for _, f := range r.Findings {
		if f.ID == "" || f.Summary == "" || len(f.Evidence) == 0 || len(f.Summary) > 2*maxTold {
			s.Errorf("%+v", f)
		}
	}
	return r
}

// said reports whether anything was said of a kind of check; "" is any.
func said(r Result, check string) bool {
	return slices.ContainsFunc(r.Findings, func(f Finding) bool {
		return f.Severity != Info && (check == "" || f.Check == check)
	}) || slices.ContainsFunc(r.Checks, func(c Check) bool { return c.Err != nil && (check == "" || c.Name == check) })
}

// bend makes another word out of one that stands at an address.
func (s *scene) bend(r *rand.Rand, at mem.PA, old uint64, others []mem.PA) uint64 {
	other := others[r.IntN(len(others))]
	self := uint64(s.direct) + uint64(at)
	words := []uint64{
		old ^ 1<<r.IntN(64), old ^ 1<<r.IntN(16), old&^0xff | uint64(r.IntN(256)), r.Uint64(),
		0, ^uint64(0), 1, 0xffffffff, 0x7fffffff, 1 << 20, old << 8, old | 0xffff, // counts
		old + 8, old - 8, old + 0x1000, old | 0xfff, old&^0xfff | 0xffc, // next to what is there; page ends
		self, self - 8, self + 8, uint64(s.direct) + uint64(other), uint64(s.direct) + uint64(other)&^0xfff + 0xffc, // loops, other objects
		0x400000, 0x7ffffffff000, 0x8000000000000000, uint64(s.direct) + 1<<44, uint64(s.direct) - 8, // user space, nowhere, outside of RAM
		uint64(s.kernel.Root) | 0x67, uint64(other)&^0xfff | 0x63, old | 0x80, old &^ (1 << 63), old ^ 2, 1<<45 | 0x63, // page tables
	}
	return words[r.IntN(len(words))]
}
