package dump

import (
	"fmt"

	"vmscope/internal/ramfile"
	"vmscope/mem"
	"vmscope/vm"
)

// raw is a file that is RAM and nothing else. What the file cannot tell is
// where the RAM above the hole lies, or which board it was.
type raw struct {
	*machine
	size    uint64 // of the RAM in the file
	layouts []vm.Layout
}

func openRaw(path string, file *ramfile.File, o options) (vm.Machine, error) {
	// A file that ends within a page is no RAM file as a monitor makes it; the
	// whole pages are still good.
	size := file.Size() &^ (mem.PageSize - 1)
	if size == 0 {
		return nil, fmt.Errorf("%w: %d bytes are less than a page", ErrFormat, file.Size())
	}
	layouts, err := vm.Layouts(o.layout, size)
	if err != nil {
		return nil, err
	}
	r := &raw{size: size, layouts: layouts}
	how := "told"
	if o.layout == "" {
		how = "likeliest for the size, to be proved"
	}
	r.machine, err = r.view(path, file, layouts[0], how)
	if err != nil {
		return nil, err
	}
	return r, nil
}

func (r *raw) view(path string, file *ramfile.File, l vm.Layout, how string) (*machine, error) {
	var places []ramfile.Place
	off := uint64(0)
	for _, x := range l.Ranges {
		places = append(places, ramfile.Place{PA: x.Start, File: file, Off: off, Size: x.Size})
		off += x.Size
	}
	if off != r.size {
		return nil, fmt.Errorf("layout %q of %d bytes for %d bytes of RAM", l.Name, off, r.size)
	}
	return newMachine(path, file, places, fmt.Sprintf("%s (%s)", l.Name, how))
}

// Layouts lists where the RAM may lie. A single one was told.
func (r *raw) Layouts() []vm.Layout { return append([]vm.Layout(nil), r.layouts...) }

// In looks at the dump in another layout.
func (r *raw) In(l vm.Layout) (vm.Machine, error) {
	m, err := r.view(r.info.Name, r.file, l, "tried")
	if err != nil {
		return nil, err
	}
	m.info.Name, m.info.Route = r.info.Name, r.info.Route
	return &view{m}, nil
}

// view shares the mapping of the machine it was made from.
type view struct{ *machine }

// Close does nothing: the machine that the view was made from is closed.
func (*view) Close() error { return nil }
