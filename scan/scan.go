// Package scan searches the memory of a guest for patterns: that of each
// process, that of the kernel, and RAM as it lies.
//
// A process's memory is searched as the process sees it, so that what crosses
// from a page to the next is found wherever the two lie. A page that several
// processes share is searched once, and what was found in it is told of each.
package scan

import (
	"context"
	"errors"
	"fmt"
	"time"

	"vmscope"
	"vmscope/arch"
	"vmscope/kernel"
	"vmscope/kernel/linux"
	"vmscope/mem"
	"vmscope/pattern"
)

// Options say what is searched.
type Options struct {
	Processes bool  // the memory of every process
	PIDs      []int // of these; instead of Processes
	Kernel    bool  // what the kernel maps, but for the pages of processes
	Physical  bool  // RAM, by its physical addresses

	// Max bounds the matches of one rule that are given of one process, or of the
	// kernel; 0: DefaultMax.
	Max int
	// Progress, if it is set, is called every few milliseconds.
	Progress func(Progress)
}

// DefaultMax is how many matches of a rule are given if nothing else is said.
const DefaultMax = 1000

// Progress is how far a search has come.
type Progress struct {
	Done, RAM uint64 // bytes that were searched; bytes of RAM, the most there can be
	Matches   int
	What      string // that is searched now
}

// Match is a place where a pattern of a rule that holds was found. A rule that
// holds without any has one Match without an address.
type Match struct {
	Rule   string      `json:"rule"`
	String string      `json:"string,omitempty"` // the pattern's name
	Kind   string      `json:"kind"`             // "process", "kernel" or "physical"
	PID    int         `json:"pid,omitempty"`
	Comm   kernel.Text `json:"comm,omitempty"`
	VA     mem.VA      `json:"addr,omitempty"`
	PA     *mem.PA     `json:"pa,omitempty"`     // of its first byte
	Area   kernel.Text `json:"area,omitempty"`   // the mapped file, [heap], or what the kernel has there
	Offset *uint64     `json:"offset,omitempty"` // in the file, or from the symbol or start of the area
	Len    int         `json:"len,omitempty"`
	Data   Data        `json:"data,omitempty"` // how it begins
}

// Data is the first bytes of a match.
type Data []byte

// MarshalText writes them in hexadecimal.
func (d Data) MarshalText() ([]byte, error) { return fmt.Appendf(nil, "%x", []byte(d)), nil }

// maxData bounds them.
const maxData = 32

// Report says what a search came to.
type Report struct {
	Searched uint64 // bytes, each page once
	Matches  int    // that were given
	// Limited are the rules of which more matches were found than were given.
	Limited []string
}

// Run searches the guest and calls found with each match, those of one process
// together, by address. It ends early with ctx's error, or that of found; what
// was found by then has been given.
func Run(ctx context.Context, v *vmscope.View, set *pattern.Set, o Options, found func(Match) error) (Report, error) {
	if o.Max <= 0 {
		o.Max = DefaultMax
	}
	s := &search{View: v, ctx: ctx, set: set, scanner: set.Scanner(), o: o, found: found, phys: v.Phys}
	if c, ok := v.Phys.(*mem.Cache); ok {
		s.phys = c.Source() // every page is read once
	}
	s.frames = newFrames(s.phys)
	err := s.run()
	return s.report, err
}

// search is one run.
type search struct {
	*vmscope.View
	ctx     context.Context
	set     *pattern.Set
	scanner *pattern.Scanner
	o       Options
	found   func(Match) error
	phys    mem.PhysReader
	frames  *frames
	report  Report
	unit    *unit     // that is searched now
	told    time.Time // when Progress was called last

	pages []page // that are next to each other; see chunk
	lead  bool   // the first of them has been searched
	vecs  []mem.Vec
	buf   []byte
}

func (s *search) run() error {
	tasks, err := s.tasks()
	if err != nil {
		return err
	}
	for _, t := range tasks {
		if err := s.process(t); err != nil {
			return err
		}
	}
	if s.o.Kernel {
		if err := s.kernel(); err != nil {
			return err
		}
	}
	if s.o.Physical {
		return s.physical()
	}
	return nil
}

// tasks are the processes to be searched.
func (s *search) tasks() (out []linux.Task, err error) {
	if len(s.o.PIDs) > 0 {
		for _, pid := range s.o.PIDs {
			t, err := s.TaskByPID(pid)
			if err != nil {
				return nil, err
			}
			if t.KThread() {
				return nil, fmt.Errorf("pid %d (%s): %w", pid, t.Comm(), linux.ErrNoSpace)
			}
			out = append(out, t)
		}
		return out, nil
	}
	if !s.o.Processes {
		return nil, nil
	}
	return s.user()
}

// user are all processes but threads of the kernel.
func (s *search) user() (out []linux.Task, err error) {
	all, err := s.Tasks()
	for _, t := range all {
		if !t.KThread() {
			out = append(out, t)
		}
	}
	return out, err
}

// Where the halves of the address space end and begin, whatever the paging of 64
// bits (Documentation/arch/x86/x86_64/mm.rst, arch/arm64/memory.rst).
const (
	userEnd     mem.VA = 0x00ffffffffffffff
	kernelStart mem.VA = 0xff00000000000000
)

// parts are the last address of processes and the first of the kernel. With 32
// bits the kernel's begin with the map of RAM, or the modules before it.
func (s *search) parts() (last, first mem.VA) {
	if s.Mode.PointerSize() == 4 {
		h := s.Halves()
		start := h.Direct.Start
		if h.Modules.End != 0 {
			start = min(start, h.Modules.Start)
		}
		return start - 1, start
	}
	return userEnd, kernelStart
}

// process searches the memory of a process. One that has ended has none.
func (s *search) process(t linux.Task) error {
	space, err := s.SpaceOf(t)
	if errors.Is(err, linux.ErrNoProcess) || errors.Is(err, linux.ErrNoSpace) {
		return nil
	}
	if err != nil {
		return err
	}
	s.begin(&unit{kind: "process", task: t, what: fmt.Sprintf("process %d (%s)", t.PID, t.Comm()), space: space})
	last, _ := s.parts()
	err = s.walk(space, 0, last, func(arch.Region) bool { return true }, false)
	return errors.Join(s.end(), err)
}

// kernel searches what the kernel maps in its half: its image, modules and what
// it allocated by pages first, then the rest of RAM where it maps all of that,
// without the pages of processes.
func (s *search) kernel() error {
	tasks, err := s.user()
	if err != nil {
		return err
	}
	for _, t := range tasks {
		if err := s.own(t); err != nil {
			return err
		}
	}
	s.begin(&unit{kind: "kernel", what: "the kernel", space: s.Mem})
	direct := s.Halves().Direct
	_, first := s.parts()
	// What never held data is not worth a look, and there is much of it.
	if extents, err := mem.Extents(s.phys); err == nil {
		s.frames.pass(extents)
	}
	for _, rest := range []bool{false, true} {
		err := s.walk(s.Mem, first, ^mem.VA(0), func(r arch.Region) bool { return direct.Holds(r.VA) == rest }, rest)
		if err != nil {
			return errors.Join(s.end(), err)
		}
	}
	return s.end()
}

// own marks the pages of a process, which are not the kernel's.
func (s *search) own(t linux.Task) error {
	space, err := s.SpaceOf(t)
	if err != nil {
		return nil // it ended
	}
	last, _ := s.parts()
	for r, err := range space.Tr.(arch.Paging).Mappings(0, last) {
		if err != nil {
			if errors.Is(err, mem.ErrUnreachable) {
				return err
			}
			continue
		}
		for at := uint64(0); at < r.Size; at += mem.PageSize {
			s.frames.own(r.PA + mem.PA(at))
		}
		if err := s.ctx.Err(); err != nil {
			return err
		}
	}
	return nil
}

// physical searches RAM where it may hold anything.
func (s *search) physical() error {
	extents, err := mem.Extents(s.phys)
	if err != nil {
		return err
	}
	s.frames = newFrames(s.phys) // all pages are to be told by their physical addresses, too
	s.begin(&unit{kind: "physical", what: "RAM", space: mem.NewSpace("physical", s.phys, mem.Identity{})})
	for _, r := range extents {
		err := s.feed(arch.Region{VA: mem.VA(r.Start), PA: r.Start, Size: r.Size}, false)
		if err == nil {
			err = s.flush(false)
		}
		if err != nil {
			return errors.Join(s.end(), err)
		}
	}
	return s.end()
}
