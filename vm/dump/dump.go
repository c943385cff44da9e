// Package dump opens files that hold a guest's memory: raw RAM (a live one's
// file too), the ELF cores of QEMU, libvirt and VirtualBox, kdump-compressed dumps, those
// of LiME and AVML, QEMU's migration streams and libvirt's save images, VMware's
// suspended machines and snapshots, cores of Xen domains, crash dumps of Windows,
// and bundles, which are compressed cores of some pages. Other formats are recognised
// and refused by name.
//
// A dump was written by the guest, or by somebody who sends one: nothing in its
// headers is believed beyond what the file's size allows.
package dump

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"vmscope/internal/ramfile"
	"vmscope/vm"
)

// Option changes how a dump is opened.
type Option func(*options)

type options struct {
	layout    string
	truncated bool
}

// Layout says that the dump is raw and how it lies in guest-physical space: a
// kind that vm.Layouts knows, e.g. "q35". Without it the machine is vm.Ambiguous unless
// its size leaves one possibility.
func Layout(kind string) Option { return func(o *options) { o.layout = kind } }

// AllowTruncated opens an ELF dump of which the end is missing with the memory
// that is there.
func AllowTruncated() Option { return func(o *options) { o.truncated = true } }

// ErrTruncated says that a dump is shorter than its headers tell.
var ErrTruncated = errors.New("dump is truncated")

// ErrFormat says that a file is no dump that this package can read. The
// message names the format, if it is a known one, and what to do.
var ErrFormat = errors.New("not a readable dump")

// Open opens the dump at path. The file is mapped, never changed, and costs no
// memory for the parts that are not read. Of kdump-compressed dumps those pages are
// unpacked that are read; but a core that is compressed as a whole, which may have
// 640 MiB, is unpacked into memory.
//
// The machine is a mem.Ranger, a mem.Extenter, a vm.Describer, a vm.CPUs (ELF
// dumps hold registers) and, if raw, vm.Ambiguous. It may be a Bundle.
func Open(path string, opts ...Option) (vm.Machine, error) {
	var o options
	for _, f := range opts {
		f(&o)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open dump: %w", err)
	}
	head := make([]byte, 4096)
	n, err := f.ReadAt(head, 0)
	if n == 0 && err != nil {
		f.Close()
		if st, serr := os.Stat(path); serr == nil && st.Size() == 0 {
			return nil, fmt.Errorf("%q: %w: the file is empty", path, ErrFormat)
		}
		return nil, fmt.Errorf("read dump: %w", err)
	}
	head = head[:n]
	// Who tells the layout says that the file is raw RAM. The guest writes the
	// first bytes of that and may make them look like any other format.
	raw := o.layout != ""
	if !raw && bytes.HasPrefix(head, []byte(zstdMagic)) {
		packed := f
		f, err = unpack(packed)
		packed.Close()
		if err != nil {
			return nil, fmt.Errorf("%q: %w", path, err)
		}
		head = []byte(elfMagic)
	}
	if !raw {
		m, err := openPacked(path, f, head, o)
		if err == nil && m == nil {
			if err = foreign(head); err != nil {
				f.Close()
			}
		}
		switch {
		case err != nil:
			return nil, fmt.Errorf("%q: %w", path, err)
		case m != nil:
			return m, nil
		}
	}
	file, err := ramfile.Map(f, false)
	if err != nil {
		return nil, fmt.Errorf("open dump: %w", err)
	}
	var m vm.Machine
	switch {
	case !raw && bytes.HasPrefix(head, []byte(elfMagic)) && isXenCore(head):
		m, err = openXenCore(path, file)
	case !raw && bytes.HasPrefix(head, []byte(elfMagic)):
		m, err = openELF(path, file, o)
	case !raw && bytes.HasPrefix(head, []byte(limeMagic)):
		m, err = openLime(path, file, o)
	case !raw && isVMware(head):
		m, err = openVMware(path, file, o)
	case !raw && isWindows(head):
		m, err = openWindows(path, file, o)
	default:
		m, err = openPlain(path, file, o)
	}
	if err != nil {
		file.Close()
		return nil, fmt.Errorf("%q: %w", path, err)
	}
	return m, nil
}

// openPlain opens RAM, of which a file beside it may tell how it lies.
func openPlain(path string, file *ramfile.File, o options) (vm.Machine, error) {
	if o.layout == "" {
		s, name, err := besideVMem(path)
		if err != nil {
			return nil, err
		}
		if s != nil {
			return s.open(path, file, 0, file.Size(), "told by "+name, o)
		}
	}
	return openRaw(path, file, o)
}

// openPacked opens the formats whose memory has to be searched for in the file;
// nil without an error: it is none of them, else f is theirs.
func openPacked(path string, f *os.File, head []byte, o options) (vm.Machine, error) {
	switch {
	case bytes.HasPrefix(head, []byte(kdumpMagic)):
		return openKdump(path, f, false, o)
	case bytes.HasPrefix(head, []byte(flatMagic)):
		return openKdump(path, f, true, o)
	case bytes.HasPrefix(head, []byte(avmlMagic)):
		return openAVML(path, f, o)
	case bytes.HasPrefix(head, []byte(streamMagic)), bytes.HasPrefix(head, []byte(libvirtMagic)), bytes.HasPrefix(head, []byte(qcowMagic)):
		return openStream(path, f, o)
	}
	return nil, nil
}

// machine is what raw and ELF dumps have in common.
type machine struct {
	*ramfile.Memory
	file *ramfile.File
	info vm.Info
	regs []vm.Registers
}

func newMachine(path string, file *ramfile.File, places []ramfile.Place, layout string) (*machine, error) {
	ram, err := ramfile.New(places)
	if err != nil {
		return nil, err
	}
	m := &machine{Memory: ram, file: file}
	m.info = vm.Info{Name: filepath.Base(path), VMM: "dump", Route: "mmap " + path, Layout: layout}
	for _, r := range ram.Ranges() {
		m.info.RAM += r.Size
	}
	return m, nil
}

// Info describes the dump.
func (m *machine) Info() vm.Info { return m.info }

// CPUs gives the registers that the dump holds.
func (m *machine) CPUs(context.Context) ([]vm.Registers, error) {
	return registersOf(m.info, m.regs)
}

// Close unmaps the dump. No reader may be at work.
func (m *machine) Close() error { return errors.Join(m.Memory.Close(), m.file.Close()) }
