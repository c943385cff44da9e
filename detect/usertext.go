package detect

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"

	"vmscope/arch"
	"vmscope/ctype"
	"vmscope/kernel/linux"
	"vmscope/ksym"
	"vmscope/mem"
)

// textWalk compares the code of processes with the files that it is from.
type textWalk struct {
	*Look
	files  map[mem.VA]*linux.PageCache // by struct address_space
	probes map[mem.VA][]uint64         // offsets of uprobes, by struct inode
	vdso   [][]mem.PA                  // the pages of each vdso image
	left   effort                      // for all processes together
	now    effort                      // for the process that is looked at

	expected, found [mem.PageSize]byte
}

func newTextWalk(l *Look, all effort) (*textWalk, error) {
	w := &textWalk{Look: l, files: make(map[mem.VA]*linux.PageCache), probes: make(map[mem.VA][]uint64), left: all}
	probes, err := l.Uprobes()
	if err != nil {
		return nil, err
	}
	for _, p := range probes {
		w.probes[p.Inode] = append(w.probes[p.Inode], p.Offset)
	}
	w.vdso, err = vdsoImages(l)
	return w, err
}

// maxVDSO bounds the pages of a vdso image, which has two to four.
const maxVDSO = 64

type vdsoLayout struct {
	Data ctype.Field `c:"vdso_image.data,optional"` // arch/x86/include/asm/vdso.h
	Size ctype.Field `c:"vdso_image.size,optional"`
}

// vdsoImages finds the pages that the kernel maps into processes as [vdso]: its
// image for 64-bit processes, and those for others if it has them.
func vdsoImages(l *Look) ([][]mem.PA, error) {
	f, err := bind[vdsoLayout](l)
	if err != nil || !f.Data.Valid() || !f.Size.Valid() {
		return nil, err
	}
	var out [][]mem.PA
	for _, name := range []string{"vdso_image_64", "vdso64_image", "vdso_image_x32", "vdsox32_image", "vdso_image_32", "vdso32_image"} {
		at, err := l.Symbol(name)
		if errors.Is(err, ksym.ErrNoSymbol) {
			continue
		}
		if err != nil {
			return nil, err
		}
		from, err := l.Mem.Pointer(f.Data.At(at))
		if err != nil {
			return nil, err
		}
		n, err := l.Mem.Uint64(f.Size.At(at))
		if err != nil {
			return nil, err
		}
		var image []mem.PA
		for i := uint64(0); i < n && len(image) < maxVDSO; i += mem.PageSize {
			m, err := l.Mem.Translate(from + mem.VA(i))
			if err != nil {
				return nil, err
			}
			image = append(image, m.PA)
		}
		out = append(out, image)
	}
	return out, nil
}

// unfinished is a process whose code was compared in part.
type unfinished struct {
	linux.Task
	tracer string
	from   mem.VA // areas from there on were not
}

// changed compares the code of a process that is not writable, from an address
// on, as far as its share of what may be done goes: one of so many. An area that
// does not fit in is left for later, and the rest with it, unless this is the
// last time.
func (w *injectionWalk) changed(ctx context.Context, u *unfinished, areas []linux.CodeArea, shares int, last bool) (done bool, err error) {
	if len(areas) == 0 {
		return true, nil
	}
	space, err := w.SpaceOf(u.Task)
	if err != nil {
		return true, nil // it ended
	}
	paging, ok := space.Tr.(arch.Paging)
	if !ok {
		return true, fmt.Errorf("page tables of process %d: %w", u.PID, errors.ErrUnsupported)
	}
	w.text.begin(shares)
	defer w.text.end()
	for _, a := range areas {
		if a.Start < u.from {
			continue
		}
		var c *comparison
		switch {
		case a.Perms[1] == 'w': // its own to write
		case a.Special && a.Path == "[vdso]":
			c = w.text.vdsoOf(paging, a)
		case a.Paged && a.Cache != 0 && a.Perms[3] == 'p':
			if c, err = w.text.file(a); err != nil {
				return true, err
			}
		}
		if c == nil {
			continue
		}
		c.space, c.paging, c.areas = space, paging, areas
		done, err := w.text.compare(ctx, a, c)
		if err != nil {
			return true, err
		}
		if !done && !last {
			u.from = a.Start
			return false, nil
		}
		w.differs(u.Task, a, c, u.tracer)
		if !done {
			w.groups.add(Finding{Check: "injection", Severity: Info, Confidence: Proved, Summary: "%s maps more code than a look compares: the rest was not"}, u.Task,
				Evidence{What: fmt.Sprintf("%s, not compared as a whole; nor what is behind it", a.Path), Addr: a.Start}, "rest")
			return true, nil
		}
	}
	return true, nil
}

// comparison is an area of code beside what it should be.
type comparison struct {
	space  *mem.Space
	paging arch.Paging
	areas  []linux.CodeArea // of the process
	// want is where page i of the area should lie; ok is false if that is not in
	// memory. Sure says that what is there is what the file holds.
	want func(i uint64) (pa mem.PA, ok bool, err error)
	sure func(i uint64) bool

	probes []uint64 // of the file, offsets
	probed int      // bytes that are explained by them
	edits  []edit
	more   int // edits that are not kept
}

// edit is a run of bytes that differ, and are not explained.
type edit struct {
	at              mem.VA
	offset          uint64 // in the file, or in the area
	expected, found []byte
}

// maxEdits bounds the places that a finding shows, maxEdit the bytes of each.
const (
	maxEdits = 8
	maxEdit  = 16
)

// file prepares a comparison with a file.
func (w *textWalk) file(a linux.CodeArea) (*comparison, error) {
	f := w.files[a.Cache]
	if f == nil {
		var err error
		if f, err = w.PageCache(a.Cache); err != nil {
			return nil, err
		}
		w.files[a.Cache] = f
	}
	first := a.Offset / mem.PageSize
	return &comparison{
		want:   func(i uint64) (mem.PA, bool, error) { return f.Frame(first + i) },
		sure:   func(i uint64) bool { return f.Settled(first + i) },
		probes: w.probes[a.Inode],
	}, nil
}

// vdsoOf prepares a comparison with the image that most of the area's pages are
// of; nil: it is none that is known.
func (w *textWalk) vdsoOf(p arch.Paging, a linux.CodeArea) *comparison {
	var best []mem.PA
	most := -1
	for _, image := range w.vdso {
		if uint64(len(image)) != uint64(a.End-a.Start)/mem.PageSize {
			continue
		}
		same := 0
		for i, pa := range image {
			if m, err := p.Translate(a.Start + mem.VA(i)*mem.PageSize); err == nil && m.PA == pa {
				same++
			}
		}
		if same > most {
			best, most = image, same
		}
	}
	if best == nil {
		return nil
	}
	return &comparison{
		want: func(i uint64) (mem.PA, bool, error) {
			if i >= uint64(len(best)) { // an area that ends amid a page
				return 0, false, nil
			}
			return best[i], true, nil
		},
		sure: func(uint64) bool { return true },
	}
}

// compare looks at all pages of an area that are in the process's page tables;
// not done, if that is more than the process may have done.
func (w *textWalk) compare(ctx context.Context, a linux.CodeArea, c *comparison) (done bool, err error) {
	if w.now.pages -= areaCost; w.now.spent() {
		return false, nil
	}
	last := ^uint64(0)
	for r, err := range c.paging.MappingsWithin(&w.now.tables, a.Start, a.End-1) {
		if err != nil {
			if errors.Is(err, mem.ErrUnreachable) {
				return true, err
			}
			return !errors.Is(err, arch.ErrTables), nil // else it ends, or its tables change
		}
		if err := ctx.Err(); err != nil {
			return true, err
		}
		// A large page may reach beyond the area at both ends.
		from, end := max(r.VA, a.Start), min(r.VA+mem.VA(r.Size)-1, a.End-1)
		for va := from; va < end; va += mem.PageSize {
			i := uint64(va-a.Start) / mem.PageSize
			w.now.pages--
			if i/64 != last {
				last = i / 64
				w.now.pages -= runCost
			}
			if w.now.spent() {
				return false, nil
			}
			want, ok, err := c.want(i)
			if err != nil || !ok || want == r.PA+mem.PA(va-r.VA) {
				continue // what is not in memory, or just goes, cannot be compared
			}
			w.now.pages -= copyCost
			if err := w.page(a, c, i); err != nil {
				return true, err
			}
		}
	}
	return true, nil
}

// page compares a page that is not the one that it should be: a process that
// writes to its code, or has it written by another, gets a copy of its own.
func (w *textWalk) page(a linux.CodeArea, c *comparison, i uint64) error {
	va := a.Start + mem.VA(i)*mem.PageSize
	for range persistLooks {
		m, err := c.paging.Translate(va)
		if err != nil {
			return nil
		}
		want, ok, err := c.want(i)
		if err != nil || !ok || want == m.PA || !c.sure(i) {
			return nil
		}
		if _, err := w.Phys.ReadPhys(w.expected[:], want); err != nil {
			return unreachable(err)
		}
		if _, err := w.Phys.ReadPhys(w.found[:], m.PA); err != nil {
			return unreachable(err)
		}
		if w.expected == w.found {
			return nil
		}
		if now, err := c.paging.Translate(va); err == nil && now.PA == m.PA && now.Entry == m.Entry {
			c.split(a, i, w.expected[:], w.found[:])
			return nil
		}
	}
	return nil
}

// unreachable is the error if the source failed; that there is no RAM at an
// address that the guest wrote is no failure.
func unreachable(err error) error {
	if errors.Is(err, mem.ErrUnreachable) {
		return err
	}
	return nil
}

// split gathers the runs of bytes in which page i differs and that no probe
// explains. Runs with few equal bytes between them are one.
func (c *comparison) split(a linux.CodeArea, i uint64, expected, found []byte) {
	const near = 4
	va, offset := a.Start+mem.VA(i)*mem.PageSize, a.Offset+i*mem.PageSize
	probed := c.explain(va, offset, expected, found)
	for n := 0; n < len(found); n++ {
		if found[n] == expected[n] {
			continue
		}
		if probed[n] {
			c.probed++
			continue
		}
		end := n + 1
		for k := end; k < len(found) && k < end+near; k++ {
			if found[k] != expected[k] && !probed[k] {
				end = k + 1
			}
		}
		if len(c.edits) == maxEdits {
			c.more++
		} else {
			show := min(end, n+maxEdit)
			c.edits = append(c.edits, edit{va + mem.VA(n), offset + uint64(n), bytes.Clone(expected[n:show]), bytes.Clone(found[n:show])})
		}
		n = end - 1
	}
}

// What a uprobe makes of the instruction that it is at (arch/x86/kernel/uprobes.c):
// a breakpoint; or, where there is a nop for that, a call to a trampoline which
// the kernel maps into the process. A nop of ten bytes holds more than the call,
// and is jumped over once the probe has gone.
const probeBytes = 10

var (
	nop10   = []byte{0x66, 0x2e, 0x0f, 0x1f, 0x84, 0, 0, 0, 0, 0}
	jumpNop = []byte{0xeb, probeBytes - 2}
)

// explain marks the bytes of a page that uprobes may have changed.
func (c *comparison) explain(va mem.VA, offset uint64, expected, found []byte) (out [mem.PageSize]bool) {
	for _, p := range c.probes {
		n := p - offset
		if n >= mem.PageSize {
			continue
		}
		b := found[n:min(n+probeBytes, mem.PageSize)]
		call := c.trampoline(va+mem.VA(n), b)
		switch {
		case call || bytes.HasPrefix(b, jumpNop):
			for k := range b {
				out[int(n)+k] = true
			}
		case b[0] == opInt3:
			out[n] = true
		}
	}
	for at := 0; ; {
		k := bytes.Index(expected[at:], nop10)
		if k < 0 {
			return out
		}
		at += k
		if bytes.HasPrefix(found[at:], jumpNop) {
			for k := range nop10 {
				out[at+k] = true
			}
		}
		at += len(nop10)
	}
}

// trampoline reports whether code calls memory that the kernel itself mapped, at
// once or behind an instruction of five bytes; the first byte may be a breakpoint
// just now.
func (c *comparison) trampoline(va mem.VA, b []byte) bool {
	for k := 0; k+5 <= len(b); k += 5 {
		if b[k] != opCall && !(k == 0 && b[0] == opInt3) {
			continue
		}
		to := va + mem.VA(k) + 5 + mem.VA(int64(int32(binary.LittleEndian.Uint32(b[k+1:]))))
		for _, a := range c.areas {
			if a.Special && to >= a.Start && to < a.End {
				return true
			}
		}
	}
	return false
}

// differs tells what was found in an area.
func (w *injectionWalk) differs(t linux.Task, a linux.CodeArea, c *comparison, tracer string) {
	if c.probed > 0 {
		w.groups.add(Finding{Check: "injection", Severity: Info, Confidence: Proved,
			Summary: fmt.Sprintf("%s of %%s has probes of the kernel in its code (uprobes)", a.Path)}, t,
			Evidence{What: fmt.Sprintf("%s, %d bytes that probes changed", a.Path, c.probed), Addr: a.Start}, "uprobes", string(a.Path))
	}
	if len(c.edits) == 0 {
		return
	}
	f := Finding{Check: "injection", Severity: Medium, Confidence: Likely,
		Summary: fmt.Sprintf("code of %s in process %d (%s) is not what the file has", a.Path, t.PID, t.Comm())}
	if a.Special {
		f.Summary = fmt.Sprintf("the vdso of process %d (%s) is not the kernel's", t.PID, t.Comm())
	}
	if why := w.harmless(t, a, c, tracer); why != "" {
		f.Severity, f.Confidence = Info, Possible
		f.Summary += ": " + why
	}
	for _, s := range c.edits {
		f.Evidence = append(f.Evidence, Evidence{What: fmt.Sprintf("%s+%#x", a.Path, s.offset), Addr: s.at,
			Owner: fmt.Sprintf("process %d (%s)", t.PID, t.Comm()), Expected: hex.EncodeToString(s.expected), Found: hex.EncodeToString(s.found),
			differ: differ(s.at, s.expected, s.found), pid: t.PID})
	}
	if c.more > 0 {
		f.Evidence = append(f.Evidence, Evidence{What: fmt.Sprintf("and %d more places", c.more)})
	}
	f.identify("changed", fmt.Sprint(t.PID), string(t.Comm()), string(a.Path))
	if bound := maxFindings + 1; f.Severity != Info && len(w.findings) < bound || len(w.findings) < maxGroups {
		w.findings = append(w.findings, f)
	}
}

// harmless says why code that differs need not be somebody's doing; "" if
// nothing explains it.
func (w *injectionWalk) harmless(t linux.Task, a linux.CodeArea, c *comparison, tracer string) string {
	if tracer != "" {
		return "it is traced by " + tracer
	}
	if a.Special {
		return ""
	}
	// Data is executable as well in such a process.
	if p, err := w.Mem.Uint32(w.f.Personality.At(t.Addr)); err != nil || p&readImpliesExec != 0 {
		return "all that it can read is executable (READ_IMPLIES_EXEC)"
	}
	head := make([]byte, mem.PageSize)
	if !w.text.read(a.Cache, head, 0) {
		if _, err := c.space.Read(head, a.Start-mem.VA(a.Offset)); err != nil {
			return "the head of the file is not in memory"
		}
	}
	image, ok := parseImage(head)
	if !ok {
		return "the file is no ELF file"
	}
	why := ""
	for _, s := range c.edits {
		why = image.harmless(s.at, s.offset, func(p []byte, offset uint64, at mem.VA) bool {
			if w.text.read(a.Cache, p, offset) {
				return true
			}
			_, err := c.space.Read(p, at)
			return err == nil
		})
		if why == "" {
			break
		}
	}
	return why
}

// read fills p with what a file has at offset, if that is in the page cache.
func (w *textWalk) read(cache mem.VA, p []byte, offset uint64) bool {
	for n := 0; n < len(p); {
		at := offset + uint64(n)
		pa, ok, err := w.files[cache].Frame(at / mem.PageSize)
		if err != nil || !ok || !w.files[cache].Settled(at/mem.PageSize) {
			return false
		}
		in := at % mem.PageSize
		k := min(len(p)-n, int(mem.PageSize-in))
		if _, err := w.Phys.ReadPhys(p[n:n+k], pa+mem.PA(in)); err != nil {
			return false
		}
		n += k
	}
	return true
}

// readImpliesExec is READ_IMPLIES_EXEC of include/uapi/linux/personality.h.
const readImpliesExec = 0x0400000
