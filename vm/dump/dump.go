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
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"vmscope/internal/ramfile"
	"vmscope/vm"
)

// Option changes how a dump is opened.
type Option func(*options)

type options struct {
	layout    string
	truncated bool
	ctx       context.Context
	progress  func(done, total uint64)
}

// passed tells how much of a packed file was read, and ends the work with the context.
func (o *options) passed(done, total int64) error {
	o.progress(uint64(min(done, total)), uint64(total))
	return context.Cause(o.ctx)
}

// Layout says that the dump is raw and how it lies in guest-physical space: a
// kind that vm.Layouts knows, e.g. "q35". Without it the machine is vm.Ambiguous unless
// its size leaves one possibility.
func Layout(kind string) Option { return func(o *options) { o.layout = kind } }

// AllowTruncated opens an ELF dump of which the end is missing with the memory
// that is there.
func AllowTruncated() Option { return func(o *options) { o.truncated = true } }

// During says how long Open may work on a file that it has to read through: until ctx ends.
// What it read of one that is compressed as a whole is told to progress, in bytes, and
// zeros when that is over.
func During(ctx context.Context, progress func(done, total uint64)) Option {
	return func(o *options) { o.ctx, o.progress = ctx, progress }
}

// ErrTruncated says that a dump is shorter than its headers tell.
var ErrTruncated = errors.New("dump is truncated")

// ErrPartial says of an ErrTruncated that AllowTruncated opens what is there.
var ErrPartial = errors.New("open what is there with the option for truncated dumps")

// ErrFormat says that a file is no dump that this package can read. The
// message names the format, if it is a known one, and what to do.
var ErrFormat = errors.New("not a readable dump")

// headSize is how much of a file's first bytes tells its format.
const headSize = 4096

// Open opens the dump at path. The file is mapped, never changed, and costs no
// memory for the parts that are not read. Of compressed dumps those pages are
// unpacked that are read. A file that is compressed as a whole is read once; if then
// it cannot be read at random, it is unpacked into memory or, if it is large, into a
// file without a name in $TMPDIR.
//
// The machine is a mem.Ranger, a mem.Extenter, a vm.Describer, a vm.CPUs (ELF
// dumps hold registers) and, if raw, vm.Ambiguous. It may be a Bundle.
func Open(path string, opts ...Option) (vm.Machine, error) {
	o := options{ctx: context.Background(), progress: func(uint64, uint64) {}}
	for _, f := range opts {
		f(&o)
	}
	m, err := openPath(path, o)
	if o.ctx.Err() != nil { // whatever that was taken for
		if err == nil {
			m.Close()
		}
		return nil, fmt.Errorf("%q: %w", path, context.Cause(o.ctx))
	}
	if errors.Is(err, ErrTruncated) {
		err = fmt.Errorf("%w; copy it again", err)
		if o.truncated = !o.truncated; o.truncated {
			if m, perr := openPath(path, o); perr == nil {
				m.Close()
				err = fmt.Errorf("%w, or %w", err, ErrPartial)
			}
		}
	}
	return m, err
}

func openPath(path string, o options) (vm.Machine, error) {
	f, err := openRegular(path)
	if err != nil {
		return nil, err
	}
	head := make([]byte, headSize)
	n, err := f.ReadAt(head, 0)
	if n == 0 && err != nil {
		f.Close()
		if st, serr := os.Stat(path); serr == nil && st.Size() == 0 {
			return nil, fmt.Errorf("%q: %w: the file is empty", path, ErrFormat)
		}
		return nil, fmt.Errorf("read dump: %w", err)
	}
	m, err := openFile(path, f, head[:n], o)
	if err != nil {
		return nil, fmt.Errorf("%q: %w", path, err)
	}
	return m, nil
}

// openRegular opens a file that can be read at random. It waits for nobody, as who opens
// a pipe does for somebody who writes into it.
func openRegular(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
		f.Close()
		return nil, errors.Join(err, notRegular(path, st))
	}
	return f, nil
}

// notRegular says what a path is instead of a regular file, and what to do.
func notRegular(path string, st fs.FileInfo) error {
	switch {
	case st == nil:
		return nil
	case st.IsDir():
		return fmt.Errorf("%w: %q is a directory", ErrFormat, path)
	case st.Mode()&fs.ModeNamedPipe != 0:
		return fmt.Errorf("%w: %q is a pipe, not a regular file: write what comes by it into a file, and open that", ErrFormat, path)
	}
	return fmt.Errorf("%w: %q is not a regular file (%v): copy its content into one", ErrFormat, path, st.Mode().Type())
}

// openFile opens the format that the first bytes tell. f is its own from then on.
func openFile(path string, f *os.File, head []byte, o options) (vm.Machine, error) {
	// Who tells the layout says that the file is raw RAM. The guest writes the
	// first bytes of that and may make them look like any other format.
	if o.layout != "" {
		return openMapped(path, f, nil, o)
	}
	if err := foreign(head); err != nil {
		f.Close()
		return nil, err
	}
	p := packerOf(head)
	if p == nil && !isPaged(head) {
		return openMapped(path, f, head, o)
	}
	src, err := plain(f)
	defer during(o.ctx, src)()
	if err == nil && p != nil {
		src, head, err = p.unpack(src, 0, o)
		defer during(o.ctx, src)()
	}
	if err != nil {
		return nil, err
	}
	if isPaged(head) {
		return openPaged(path, src, head, o)
	}
	return openMapped(path, src.(*plainFile).File, head, o)
}

// isPaged tells the formats whose memory has to be searched for in the file.
func isPaged(head []byte) bool {
	for _, magic := range []string{kdumpMagic, flatMagic, avmlMagic, streamMagic, libvirtMagic, qcowMagic} {
		if bytes.HasPrefix(head, []byte(magic)) {
			return true
		}
	}
	return false
}

// isDump tells the formats that are known by their first bytes.
func isDump(head []byte) bool {
	return isPaged(head) || bytes.HasPrefix(head, []byte(elfMagic)) || bytes.HasPrefix(head, []byte(limeMagic)) || isVMware(head) || isWindows(head)
}

// openPaged opens a file that isPaged, which is its own from then on.
func openPaged(path string, src source, head []byte, o options) (vm.Machine, error) {
	switch {
	case bytes.HasPrefix(head, []byte(kdumpMagic)):
		return openKdump(path, src, false, o)
	case bytes.HasPrefix(head, []byte(flatMagic)):
		return openKdump(path, src, true, o)
	case bytes.HasPrefix(head, []byte(avmlMagic)):
		return openAVML(path, src, o)
	}
	return openStream(path, src, o)
}

// openMapped opens a file that holds memory as it is; without a head it is raw RAM.
// f is its own from then on.
func openMapped(path string, f *os.File, head []byte, o options) (vm.Machine, error) {
	file, err := ramfile.Map(f, false)
	if err != nil {
		return nil, fmt.Errorf("open dump: %w", err)
	}
	var m vm.Machine
	switch {
	case bytes.HasPrefix(head, []byte(elfMagic)) && isXenCore(head):
		m, err = openXenCore(path, file)
	case bytes.HasPrefix(head, []byte(elfMagic)):
		m, err = openELF(path, file, o)
	case bytes.HasPrefix(head, []byte(limeMagic)):
		m, err = openLime(path, file, o)
	case isVMware(head):
		m, err = openVMware(path, file, o)
	case isWindows(head):
		m, err = openWindows(path, file, o)
	default:
		m, err = openPlain(path, file, o)
	}
	if err != nil {
		file.Close()
		return nil, err
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
