package vmscope

import (
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"strings"

	"vmscope/kernel"
	"vmscope/kernel/linux"
	"vmscope/mem"
	"vmscope/vm/dump"
)

// WriteProcessCore writes the memory of one process as an ELF core that gdb
// opens with the executable beside it: also its threads with the registers that
// they had when they last left user mode, its auxiliary vector and the names of
// the mapped files. Pages that are not in RAM (never touched, swapped out) read
// as zeros, or where a file is mapped, from that file if the debugger has it;
// missing counts their bytes.
func (v *View) WriteProcessCore(ctx context.Context, out io.Writer, t linux.Task, progress func(done, total uint64)) (missing uint64, err error) {
	if v.Arch != "x86_64" { // whose registers it would have to tell
		return 0, fmt.Errorf("dump: the core of a process on %s: %w", v.Arch, errors.ErrUnsupported)
	}
	space, err := v.SpaceOf(t)
	if err != nil {
		return 0, err
	}
	areas, err := v.Areas(t)
	if err != nil {
		return 0, err
	}
	var segs []dump.Segment
	for _, a := range areas {
		if a.End <= a.Start || a.Start >= 1<<63 { // the vsyscall page is the kernel's
			continue
		}
		s := dump.Segment{VA: a.Start, Size: uint64(a.End - a.Start), Flags: flagsOf(a.Perms)}
		s.Data = presentRuns(ctx, space, a.Start, a.End)
		read := space
		if a.Path == "[vdso]" {
			// The kernel has it whole; a process only what it called.
			if m, err := v.vdso(a); err == nil {
				read, s.Data = m, []dump.Run{{Size: s.Size}}
			}
		}
		left := s.Size
		for _, r := range s.Data {
			left -= r.Size
		}
		missing += left
		s.Read = func(p []byte, off uint64) error {
			for len(p) > 0 {
				n := min(len(p), mem.PageSize)
				if _, err := read.Read(p[:n], a.Start+mem.VA(off)); err != nil {
					if errors.Is(err, mem.ErrUnreachable) {
						return err
					}
					clear(p[:n]) // went away since it was listed
					missing += uint64(n)
				}
				p, off = p[n:], off+uint64(n)
			}
			return nil
		}
		if strings.HasPrefix(string(a.Path), "/") && len(s.Data) <= maxPieces {
			segs = append(segs, pieces(s)...)
		} else {
			segs = append(segs, s)
		}
	}
	notes, err := v.processNotes(t, areas)
	if err != nil {
		return 0, err
	}
	err = dump.WriteCore(ctx, out, elf.EM_X86_64, notes, segs, progress)
	return missing, err
}

// maxPieces bounds into how many segments the area of a mapped file is cut. What
// is torn more is written whole.
const maxPieces = 64

// pieces cuts a segment into its runs of data and the gaps between them, of
// which the core has nothing: zeros there would hide the file's own bytes, and
// debuggers follow them (the list of threads in the C library's data).
func pieces(s dump.Segment) (out []dump.Segment) {
	part := func(off, size uint64, absent bool) {
		if size == 0 {
			return
		}
		p := dump.Segment{VA: s.VA + mem.VA(off), Size: size, Flags: s.Flags, Absent: absent}
		if !absent {
			p.Read = func(b []byte, at uint64) error { return s.Read(b, off+at) }
		}
		out = append(out, p)
	}
	end := uint64(0)
	for _, r := range s.Data {
		part(end, r.Off-end, true)
		part(r.Off, r.Size, false)
		end = r.Off + r.Size
	}
	part(end, s.Size-end, true)
	return out
}

// vdso is the kernel's own copy of the code that it maps into each process
// (vdso_image_64; arch/x86/include/asm/vdso.h), at the addresses of a.
func (v *View) vdso(a kernel.Area) (*mem.Space, error) {
	image, err := v.Var("vdso_image_64")
	if err != nil {
		return nil, err
	}
	size, err := image.Number("size")
	if err != nil {
		return nil, err
	}
	if uint64(size) != uint64(a.End-a.Start) {
		return nil, fmt.Errorf("a vDSO of %d bytes, mapped are %d: %w", size, a.End-a.Start, errors.ErrUnsupported)
	}
	f, err := image.Field("data")
	if err != nil {
		return nil, err
	}
	data, err := f.Pointer()
	if err != nil {
		return nil, err
	}
	return mem.NewSpace("vDSO", v.Phys, shifted{v.Mem, data - a.Start}), nil
}

// shifted shows part of a space at other addresses.
type shifted struct {
	space *mem.Space
	by    mem.VA
}

// Translate looks the address up where it is.
func (s shifted) Translate(va mem.VA) (mem.Mapping, error) { return s.space.Translate(va + s.by) }

// processNotes has what a core tells of a process besides its memory, in the
// order of fill_note_info in fs/binfmt_elf.c. The thread t is first, and so the
// one that gdb shows.
func (v *View) processNotes(t linux.Task, areas []kernel.Area) ([]dump.Note, error) {
	p, err := v.Process(t)
	if err != nil {
		return nil, err
	}
	info := dump.ProcessInfo{PID: p.TGID, PPID: p.PPID, UID: p.UID, GID: p.GID, Name: string(p.Comm)}
	if p.State != "" {
		info.State = p.State[0]
	}
	for i, arg := range p.Cmdline {
		if len(info.Args) > 80 {
			break
		}
		if i > 0 {
			info.Args += " "
		}
		info.Args += string(arg[:min(len(arg), 80)])
	}
	first, err := v.threadNote(t, p.PPID)
	if err != nil {
		return nil, err
	}
	notes := []dump.Note{first, info.Note()}
	aux, err := v.AuxVector(t)
	switch {
	case err == nil:
		notes = append(notes, dump.AuxVNote(aux))
	case !errors.Is(err, errors.ErrUnsupported):
		return nil, err
	}
	var files []dump.MappedFile
	for _, a := range areas {
		if strings.HasPrefix(string(a.Path), "/") {
			files = append(files, dump.MappedFile{Start: a.Start, End: a.End, Off: a.Offset, Path: string(a.Path)})
		}
	}
	notes = append(notes, dump.FilesNote(files))
	threads, err := v.ThreadsOf(t)
	if err != nil {
		return nil, err
	}
	for _, other := range threads {
		if other.PID == t.PID {
			continue
		}
		n, err := v.threadNote(other, p.PPID)
		if err != nil {
			return nil, err
		}
		notes = append(notes, n)
	}
	return notes, nil
}

// threadNote tells of one thread; a kernel whose stacks are not known leaves
// the registers zero.
func (v *View) threadNote(t linux.Task, ppid int) (dump.Note, error) {
	r, err := v.UserRegs(t)
	if err != nil && !errors.Is(err, errors.ErrUnsupported) {
		return dump.Note{}, err
	}
	return dump.ThreadNote(t.PID, ppid, (*dump.UserRegs)(&r)), nil
}

// presentRuns lists the runs of pages between start and end that are in RAM.
func presentRuns(ctx context.Context, s *mem.Space, start, end mem.VA) []dump.Run {
	runs := []dump.Run{}
	for va := start; va < end && ctx.Err() == nil; {
		m, err := s.Translate(va)
		size := uint64(mem.PageSize)
		if err != nil {
			// A whole table may be missing: go on behind what it would map.
			var f *mem.FaultError
			if errors.As(err, &f) && f.Level > 1 && f.Level <= 5 {
				size = 1 << (12 + 9*(f.Level-1))
				size -= uint64(va) & (size - 1)
			}
		} else {
			size = m.Left()
		}
		size = min(size, uint64(end-va))
		if err == nil {
			off := uint64(va - start)
			if n := len(runs); n > 0 && runs[n-1].Off+runs[n-1].Size == off {
				runs[n-1].Size += size
			} else {
				runs = append(runs, dump.Run{Off: off, Size: size})
			}
		}
		va += mem.VA(size)
	}
	return runs
}

// flagsOf turns rwxp into the flags of a program header.
func flagsOf(perms string) (f uint32) {
	for i, bit := range []uint32{4, 2, 1} {
		if i < len(perms) && perms[i] != '-' {
			f |= bit
		}
	}
	return f
}
