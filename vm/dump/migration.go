package dump

import (
	"compress/bzip2"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"

	"vmscope/mem"
	"vmscope/vm"
)

// The header of libvirt's managed save (src/qemu/qemu_saveimage.h, struct
// _virQEMUSaveHeader): magic, version, length of the XML, whether the guest ran,
// compression, and more up to 92 bytes. The stream is behind the XML.
const (
	libvirtMagic  = "LibvirtQemudSave"
	libvirtHeader = 92
)

// migration is a migration stream. What it does not tell is where the RAM lies.
type migration struct {
	*lazy
	src     source
	block   *ramBlock
	layouts []vm.Layout
	note    string // what it lacks
}

// openStream opens a migration stream, or one behind a header of libvirt. f is
// its own from then on.
func openStream(path string, f *os.File, o options) (vm.Machine, error) {
	src, err := plain(f)
	if err != nil {
		return nil, err
	}
	how := "QEMU migration stream:"
	snapshot := ""
	var magic [16]byte
	switch err := readFull(src, magic[:], 0); {
	case err == nil && string(magic[:4]) == qcowMagic:
		how = "QEMU snapshot in a qcow2 image:"
		q, err := openQcow(src)
		if err != nil {
			src.Close()
			return nil, err
		}
		src = q
		snapshot = fmt.Sprintf("; snapshot %.64q", q.name)
		if q.others > 0 {
			snapshot += fmt.Sprintf(", the latest of %d with memory", q.others+1)
		}
	case err == nil && string(magic[:]) == libvirtMagic:
		how = "libvirt save image:"
		behind, err := libvirtStream(src)
		if err != nil {
			src.Close()
			return nil, fmt.Errorf("libvirt save image: %w", err)
		}
		src = behind
	}
	s, err := parseStream(src, o.truncated)
	m := &migration{src: src}
	if err == nil {
		m.block, err = s.memory()
	}
	if err != nil {
		src.Close()
		return nil, err
	}
	if m.layouts, err = s.layouts(m.block.size); err != nil {
		src.Close()
		return nil, err
	}
	m.note = "of " + s.machine + snapshot
	switch {
	case !s.whole:
		m.note += "; its end was not found, and so no registers"
	case s.noRegs != nil:
		m.note += "; registers cannot be read: " + s.noRegs.Error()
	}
	l := m.layouts[0]
	m.lazy = newLazy(path, how, l.Name+" ("+m.note+"; to be proved)", m.in(l), src.Close)
	m.regs = s.regs
	return m, nil
}

// layouts lists where the RAM may lie, that of the machine's type first.
func (s *stream) layouts(size uint64) ([]vm.Layout, error) {
	var out []vm.Layout
	for part, kind := range map[string]string{"q35": "q35", "i440fx": "pc", "microvm": "microvm", "virt-": "virt"} {
		if strings.Contains(s.machine, part) {
			l, err := vm.Layouts(kind, size)
			if err != nil {
				return nil, err
			}
			out = l
		}
	}
	all, err := vm.Layouts("", size)
	for _, l := range all {
		if len(out) == 0 || !slices.Equal(l.Ranges, out[0].Ranges) {
			out = append(out, l)
		}
	}
	return out, err
}

// Layouts lists where the RAM may lie.
func (m *migration) Layouts() []vm.Layout { return append([]vm.Layout(nil), m.layouts...) }

// In looks at the same RAM in another layout.
func (m *migration) In(l vm.Layout) (vm.Machine, error) {
	sum := uint64(0)
	for _, r := range l.Ranges {
		sum += r.Size
	}
	if sum != m.block.size {
		return nil, fmt.Errorf("layout %q of %d bytes for %d bytes of RAM", l.Name, sum, m.block.size)
	}
	v := newLazy(m.info.Name, "", l.Name+" ("+m.note+"; tried)", m.in(l), func() error { return nil })
	v.info.Name, v.info.Route, v.unpack, v.regs = m.info.Name, m.info.Route, m.unpack, m.regs
	return v, nil
}

func (m *migration) in(l vm.Layout) store { return &placedBlock{m.src, m.block, l.Ranges} }

// placedBlock is a block of RAM in a layout.
type placedBlock struct {
	src   source
	block *ramBlock
	at    []mem.Range
}

func (p *placedBlock) find(pa mem.PA) (unit, error) {
	start := uint64(0)
	for _, r := range p.at {
		if pa >= r.Start && pa < r.End() {
			off := start + uint64(pa-r.Start)
			n := off / streamPage
			u := unit{pa: pa - mem.PA(off%streamPage), size: streamPage, src: p.src, len: streamPage, codec: blank}
			if g := p.block.pages[n/pageGroup]; g != nil && g[n%pageGroup] != 0 {
				u.codec, u.off = stored, g[n%pageGroup]
			}
			return u, nil
		}
		start += r.Size
	}
	return unit{}, mem.ErrNoRAM
}

func (p *placedBlock) ranges() []mem.Range { return p.at }

func (p *placedBlock) extents() ([]mem.Range, error) {
	var out []mem.Range
	groups := make([]uint64, 0, len(p.block.pages))
	for g := range p.block.pages {
		groups = append(groups, g)
	}
	slices.Sort(groups)
	start := uint64(0)
	for _, r := range p.at {
		for _, g := range groups {
			for i, off := range p.block.pages[g] {
				at := (g*pageGroup + uint64(i)) * streamPage
				if off == 0 || at < start || at >= start+r.Size {
					continue
				}
				pa := r.Start + mem.PA(at-start)
				if n := len(out); n > 0 && out[n-1].End() == pa {
					out[n-1].Size += streamPage
					continue
				}
				out = append(out, mem.Range{Start: pa, Size: streamPage})
			}
		}
		start += r.Size
	}
	return out, nil
}

// behind is a source without its first bytes.
type behind struct {
	source
	skip uint64
}

func (b behind) Size() uint64 { return b.source.Size() - b.skip }

func (b behind) ReadAt(p []byte, off int64) (int, error) {
	return b.source.ReadAt(p, off+int64(b.skip))
}

// libvirtStream gives the stream of a save image. One that is compressed as a
// whole is unpacked into memory, and f closed.
func libvirtStream(f source) (source, error) {
	var h [libvirtHeader]byte
	if err := readFull(f, h[:], 0); err != nil {
		return nil, fmt.Errorf("%w: header: %w", ErrTruncated, err)
	}
	le := binary.LittleEndian
	version, xml, packing := le.Uint32(h[16:]), uint64(le.Uint32(h[20:])), le.Uint32(h[28:])
	if version < 1 || version > 2 {
		return nil, fmt.Errorf("%w: version %d", ErrFormat, version)
	}
	if libvirtHeader+xml >= f.Size() {
		return nil, fmt.Errorf("%w: its %d bytes of XML reach to the end", ErrTruncated, xml)
	}
	b := behind{f, libvirtHeader + xml}
	in := io.NewSectionReader(b, 0, int64(b.Size()))
	var r io.Reader
	var err error
	switch packing {
	case 0:
		return b, nil
	case 1:
		r, err = gzip.NewReader(in)
	case 2:
		r = bzip2.NewReader(in)
	case 5:
		var z *zstd.Decoder
		z, err = zstd.NewReader(in, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxWindow))
		if err == nil {
			defer z.Close()
		}
		r = z
	default:
		name, ok := map[uint32]string{3: "xz", 4: "lzop", 6: "the sparse format"}[packing]
		if !ok {
			name = fmt.Sprintf("method %d", packing)
		}
		return nil, fmt.Errorf("%w: its stream is in %s; unpack what begins at byte %d", ErrFormat, name, b.skip)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: the stream at offset %#x: %w", ErrFormat, b.skip, err)
	}
	out, err := spool(r, f.Name())
	if err != nil {
		return nil, fmt.Errorf("%w (unpack what begins at byte %d)", err, b.skip)
	}
	src, err := plain(out)
	if err != nil {
		return nil, err
	}
	f.Close()
	return src, nil
}

// spool unpacks r into memory.
func spool(r io.Reader, name string) (*os.File, error) {
	fd, err := unix.MemfdCreate("vmscope stream", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("memory to unpack into: %w", err)
	}
	out := os.NewFile(uintptr(fd), name)
	buf := make([]byte, 64*mem.PageSize)
	for size := int64(0); ; {
		n, err := 0, error(nil)
		for n < len(buf) && err == nil {
			var k int
			k, err = r.Read(buf[n:])
			n += k
		}
		if size+int64(n) > maxUnpacked {
			out.Close()
			return nil, fmt.Errorf("%w: unpacked it has more than %d MiB", ErrFormat, maxUnpacked>>20)
		}
		if werr := writePages(out, buf[:n], size); werr != nil {
			out.Close()
			return nil, werr
		}
		size += int64(n)
		if errors.Is(err, io.EOF) {
			err = out.Truncate(size)
			if err == nil {
				return out, nil
			}
		}
		if err != nil {
			out.Close()
			return nil, fmt.Errorf("%w: its packed stream is broken or cut: %w", ErrFormat, err)
		}
	}
}
