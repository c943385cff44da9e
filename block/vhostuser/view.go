package vhostuser

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"

	"vmscope/internal/ramfile"
	"vmscope/mem"
	"vmscope/vm"
)

// Region is a part of a guest's memory, as the front end told it: Size bytes from Offset on in File lie at the
// guest-physical address PA.
type Region struct {
	PA           mem.PA
	Size, Offset uint64
	File         *os.File
}

// Regions gives the guest's memory as it is now, by address. The files are the caller's to close; they may be passed to
// another process, which opens them with OpenMemory. It is an error if no front end has told of memory.
func (s *Server) Regions() ([]Region, error) {
	s.mu.Lock()
	x := s.session
	s.mu.Unlock()
	if x == nil {
		return nil, errors.New("vhost-user: no front end is connected")
	}
	t, err := x.table()
	if err != nil {
		return nil, err
	}
	defer t.release()
	var list []Region
	for _, r := range t.regions {
		fd, err := unix.FcntlInt(r.file.Fd(), unix.F_DUPFD_CLOEXEC, 3)
		if err != nil {
			closeRegions(list)
			return nil, fmt.Errorf("vhost-user: %w", err)
		}
		list = append(list, Region{mem.PA(r.gpa), r.size, r.offset, os.NewFile(uintptr(fd), r.file.Name())})
	}
	return list, nil
}

func closeRegions(list []Region) {
	for _, r := range list {
		r.File.Close()
	}
}

// Memory opens the guest's memory as it is now.
func (s *Server) Memory() (*Memory, error) {
	list, err := s.Regions()
	if err != nil {
		return nil, err
	}
	return OpenMemory(list)
}

// Memory is a guest's memory, read-only. It stays as it was when it was opened: memory that the guest gets later is not
// in it, and what it has lost is.
type Memory struct {
	*ramfile.Memory
	files []*ramfile.File
	parts []part
}

// part is what a region of an open memory is.
type part struct {
	pa           mem.PA
	size, offset uint64
	dev, ino     uint64
}

func partOf(r *Region) (part, error) {
	st, err := r.File.Stat()
	if err != nil {
		return part{}, err
	}
	sys, ok := st.Sys().(*syscall.Stat_t)
	if !ok {
		return part{}, errors.ErrUnsupported
	}
	return part{r.PA, r.Size, r.Offset, sys.Dev, sys.Ino}, nil
}

// Is reports whether the memory is that of regions: neither another machine's, nor the same one's with more of it or less.
func (m *Memory) Is(list []Region) bool {
	return slices.EqualFunc(m.parts, list, func(p part, r Region) bool {
		q, err := partOf(&r)
		return err == nil && p == q
	})
}

// Info implements vm.Describer.
func (m *Memory) Info() vm.Info {
	i := vm.Info{VMM: "vhost-user", Live: true, Route: "mmap of what the front end shares", Layout: "as the front end tells it"}
	for _, p := range m.parts {
		i.RAM += p.size
	}
	return i
}

// OpenMemory maps regions. It owns their files from then on, also if there is an error.
func OpenMemory(list []Region) (_ *Memory, err error) {
	m := &Memory{}
	mapped := map[part]*ramfile.File{}
	left := list
	defer func() {
		if err != nil {
			closeRegions(left)
			m.Close()
		}
	}()
	var places []ramfile.Place
	for len(left) > 0 {
		r := left[0]
		p, err := partOf(&r)
		if err != nil {
			return nil, err
		}
		left = left[1:]
		m.parts = append(m.parts, p)
		key := part{dev: p.dev, ino: p.ino}
		f := mapped[key]
		if f != nil {
			r.File.Close()
		} else {
			if f, err = ramfile.Map(r.File, false); err != nil {
				return nil, err
			}
			mapped[key] = f
			m.files = append(m.files, f)
		}
		places = append(places, ramfile.Place{PA: r.PA, File: f, Off: r.Offset, Size: r.Size})
	}
	if m.Memory, err = ramfile.New(places); err != nil {
		return nil, err
	}
	return m, nil
}

// Close unmaps the memory. No reader may be at work.
func (m *Memory) Close() error {
	var err error
	if m.Memory != nil {
		err = m.Memory.Close()
	}
	for _, f := range m.files {
		err = errors.Join(err, f.Close())
	}
	m.files = nil
	return err
}
