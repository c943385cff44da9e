package dump

import (
	"context"
	"debug/elf"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"time"

	"github.com/klauspost/compress/zstd"

	"vmscope/mem"
	"vmscope/vm"
)

// A bundle is an ELF core, compressed with zstd, of those pages of a guest that
// somebody read: enough to read them again elsewhere. Its notes have the name
// noteBundle; docs/bundles.md describes them.
const (
	noteBundle = "VMSCOPE"
	ntAbout    = 1 // JSON of About
	ntExtra    = 2 // Bundle.Extra
	ntMSRs     = 3 // of each vCPU EFER and LSTAR, which no other note has
	ntEntries  = 4 // and CSTAR and SysenterEIP

	bundleFormat = 1
)

// About is what a bundle says of itself.
type About struct {
	By     string    `json:"by"`     // the program that wrote it, with its version
	Time   time.Time `json:"time"`   // when, by the host's clock
	Target string    `json:"target"` // what was looked at
	// RAM is all memory of the guest, sorted; the bundle has some pages of it.
	RAM []mem.Range `json:"-"`
}

// aboutNote is About as the note has it.
type aboutNote struct {
	Format int `json:"format"`
	About
	RAM []noteRange `json:"ram"`
}

type noteRange struct {
	Start mem.PA `json:"start"`
	Size  uint64 `json:"size"` // bytes
}

// Bundle is the capability of a machine that is a bundle.
type Bundle interface {
	About() About
	// Extra is what its writer put beside the memory, in a form of its own; nil
	// is nothing.
	Extra() []byte
}

// ErrNotKept says that a bundle does not hold a page of the guest's RAM. It is
// a mem.ErrUnreachable as well: the guest had something there, which cannot be
// told any more.
var ErrNotKept error = notKept{}

type notKept struct{}

func (notKept) Error() string        { return "the bundle does not hold this page" }
func (notKept) Is(target error) bool { return target == mem.ErrUnreachable }

// WriteBundle writes a bundle, which Open opens, of the given segments of a guest's memory; notes
// and progress are as of WriteCore.
func WriteBundle(ctx context.Context, out io.Writer, about About, extra []byte, notes []Note, segs []Segment, progress func(done, total uint64)) error {
	n := aboutNote{Format: bundleFormat, About: about}
	for _, r := range about.RAM {
		n.RAM = append(n.RAM, noteRange{r.Start, r.Size})
	}
	text, err := json.Marshal(n)
	if err != nil {
		return err
	}
	ours := []Note{{noteBundle, ntAbout, text}}
	if extra != nil {
		ours = append(ours, Note{noteBundle, ntExtra, extra})
	}
	z, err := zstd.NewWriter(out, zstd.WithWindowSize(maxWindow), zstd.WithEncoderConcurrency(1))
	if err != nil {
		return err
	}
	if err := WriteCore(ctx, z, elf.EM_X86_64, append(ours, notes...), segs, progress); err != nil {
		return err
	}
	return z.Close()
}

// bundle is a core that has some pages of a guest's memory. It is not
// mem.Mapped: readers of mapped memory would not learn that a page is not kept.
type bundle struct {
	core  *machine
	about About
	extra []byte
}

// bundleOf makes a bundle of a core that has the notes of one; nil if it has
// none. The notes may be anybody's.
func bundleOf(path string, m *machine, list []note) (*bundle, error) {
	b := &bundle{core: m}
	found := false
	for _, n := range list {
		switch {
		case n.name != noteBundle:
		case n.typ == ntExtra && b.extra == nil:
			b.extra = n.desc
		case n.typ == ntAbout && !found:
			found = true
			var a aboutNote
			if err := json.Unmarshal(n.desc, &a); err != nil {
				return nil, fmt.Errorf("%w: a bundle's note: %w", ErrFormat, err)
			}
			if a.Format != bundleFormat {
				return nil, fmt.Errorf("%w: a bundle of format %d, which is not known", ErrFormat, a.Format)
			}
			b.about = a.About
			for _, r := range a.RAM {
				b.about.RAM = append(b.about.RAM, mem.Range{Start: r.Start, Size: r.Size})
			}
		}
	}
	if !found {
		return nil, nil
	}
	if err := b.check(); err != nil {
		return nil, fmt.Errorf("%w: a bundle: %w", ErrFormat, err)
	}
	i := &m.info
	i.Name, i.Layout, i.RAM = filepath.Base(path), "as the bundle tells", 0
	i.Route = fmt.Sprintf("bundle %s of %q, by %s, %s", path, b.about.Target, b.about.By, b.about.Time.UTC().Format(time.RFC3339))
	for _, r := range b.about.RAM {
		i.RAM += r.Size
	}
	return b, nil
}

// maxBundleRAM is more than any machine has, and bounds sums.
const maxBundleRAM = 1 << 50

// check rejects a bundle whose RAM is no list of ranges, or leaves out pages
// that it has.
func (b *bundle) check() error {
	end, sum := mem.PA(0), uint64(0)
	for _, r := range b.about.RAM {
		if r.Size == 0 || r.Size > maxBundleRAM || r.Start > maxPA || r.Start < end || sum+r.Size > maxBundleRAM {
			return fmt.Errorf("%d bytes of RAM at %#x cannot be", r.Size, uint64(r.Start))
		}
		end, sum = r.End(), sum+r.Size
	}
	ram := b.about.RAM
	for _, r := range b.core.Ranges() {
		for len(ram) > 0 && ram[0].End() <= r.Start {
			ram = ram[1:]
		}
		if len(ram) == 0 || r.Start < ram[0].Start || r.End() > ram[0].End() {
			return fmt.Errorf("it has %d bytes at %#x, where it says is no RAM", r.Size, uint64(r.Start))
		}
	}
	return nil
}

// ReadPhys reads pages that the bundle has.
func (b *bundle) ReadPhys(p []byte, pa mem.PA) (int, error) {
	n, err := b.core.ReadPhys(p, pa)
	var f *mem.FaultError
	if errors.As(err, &f) && errors.Is(err, mem.ErrNoRAM) && b.isRAM(mem.PA(f.Addr)) {
		err = &mem.FaultError{Op: f.Op, Addr: f.Addr, Err: ErrNotKept}
	}
	return n, err
}

func (b *bundle) isRAM(pa mem.PA) bool {
	for _, r := range b.about.RAM {
		if pa >= r.Start && pa < r.End() {
			return true
		}
	}
	return false
}

// Ranges are those of the guest's RAM.
func (b *bundle) Ranges() []mem.Range { return append([]mem.Range(nil), b.about.RAM...) }

// Extents list the pages that the bundle has.
func (b *bundle) Extents() ([]mem.Range, error) { return b.core.Extents() }

// Info describes the bundle.
func (b *bundle) Info() vm.Info { return b.core.info }

// CPUs gives the registers that the bundle holds.
func (b *bundle) CPUs(ctx context.Context) ([]vm.Registers, error) { return b.core.CPUs(ctx) }

// About is what the bundle says of itself.
func (b *bundle) About() About { return b.about }

// Extra is what its writer put beside the memory.
func (b *bundle) Extra() []byte { return b.extra }

// Close frees the memory. No reader may be at work.
func (b *bundle) Close() error { return b.core.Close() }

var _ interface {
	vm.Machine
	vm.Describer
	vm.CPUs
	mem.Ranger
	mem.Extenter
	Bundle
} = (*bundle)(nil)
