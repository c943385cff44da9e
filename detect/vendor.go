package detect

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"vmscope/kernel"
	"vmscope/kernel/linux"
	"vmscope/kernel/linux/vendorfile"
	"vmscope/mem"
)

// Vendor is the vendor's own files of a guest's kernel and modules, for Text and
// Rodata to compare with (Reference.Vendor). It is for one guest and one
// goroutine.
type Vendor struct {
	kernel *vendorfile.Kernel
	file   string              // of the kernel
	files  map[string][]string // of modules, by the name of the module

	guest   *linux.Kernel // for which the kernel is relocated
	sites   *vendorfile.Sites
	loaded  map[loadKey]*vendored
	exports map[string]*vendored // names of symbols that modules export
	errs    map[string]error     // modules whose files are of another build
}

// loadKey names one load of a module.
type loadKey struct {
	name kernel.Text
	addr mem.VA
	load uint64
}

// vendored is a file of the vendor's, relocated for the guest.
type vendored struct {
	*vendorfile.Image
	sites  *vendorfile.Sites
	file   string
	module *vendorfile.Module // nil for the kernel
	ready  bool               // relocated
	why    string             // why there is nothing to compare with; "" if there is
}

func (f *vendored) String() string { return fmt.Sprintf("%s, build id %s", f.file, f.ID) }

// noFile is why most modules that are not compared are not.
const noFile = "no file"

// Bounds of files.
const (
	maxVendorFile  = 512 << 20
	maxVendorFiles = 1 << 18
)

// OpenVendor reads a kernel's file, vmlinuz, and lists the modules in a
// directory and below it; modules may be "".
func OpenVendor(ctx context.Context, kernelFile, modules string) (*Vendor, error) {
	b, err := readAll(kernelFile)
	if err != nil {
		return nil, err
	}
	v := &Vendor{file: filepath.Base(kernelFile), files: make(map[string][]string)}
	if v.kernel, err = vendorfile.ParseKernel(ctx, b); err != nil {
		return nil, fmt.Errorf("%s: %w", kernelFile, err)
	}
	if modules == "" {
		return v, nil
	}
	n := 0
	err = filepath.WalkDir(modules, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		if name, ok := moduleName(d.Name()); ok {
			v.files[name] = append(v.files[name], path)
		}
		if n++; n > maxVendorFiles {
			return fmt.Errorf("%s: more than %d files", modules, maxVendorFiles)
		}
		return ctx.Err()
	})
	if err == nil && len(v.files) == 0 {
		err = fmt.Errorf("%s: no modules (.ko, .ko.xz, .ko.zst, .ko.gz) there", modules)
	}
	return v, err
}

// moduleName is what the kernel calls the module in a file of a name.
func moduleName(file string) (string, bool) {
	name, packed, ok := strings.Cut(file, ".ko")
	if !ok || !slices.Contains([]string{"", ".xz", ".zst", ".gz"}, packed) {
		return "", false
	}
	return strings.ReplaceAll(name, "-", "_"), true
}

func readAll(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxVendorFile+1))
	if err == nil && len(b) > maxVendorFile {
		err = fmt.Errorf("%s: more than %d MiB", name, maxVendorFile>>20)
	}
	return b, err
}

// begin makes sure that the files are for the guest that is looked at, and
// relocates the kernel for it.
func (v *Vendor) begin(l *Look) error {
	if v.guest == l.Kernel {
		return nil // a Guest keeps a Kernel only while it runs on
	}
	id, err := l.BuildID()
	if err != nil {
		return err
	}
	if id != v.kernel.ID {
		return fmt.Errorf("%s is not the file of the guest's kernel: it has build id %s, the guest's kernel has %s", v.file, v.kernel.ID, id)
	}
	linked, ok := v.kernel.Linked("_stext")
	if !ok {
		return fmt.Errorf("%s: no symbol _stext: %w", v.file, vendorfile.ErrFormat)
	}
	if err := v.kernel.Relocate(uint64(l.Text - linked)); err != nil {
		return fmt.Errorf("%s: %w", v.file, err)
	}
	if v.sites, err = v.kernel.Sites(); err != nil {
		return fmt.Errorf("%s: %w", v.file, err)
	}
	v.guest = l.Kernel
	v.loaded, v.exports, v.errs = make(map[loadKey]*vendored), make(map[string]*vendored), make(map[string]error)
	return nil
}

// of is the file for a run of memory of the guest; its why says if there is none.
func (v *Vendor) of(m *run, live map[kernel.Text]kernel.Module) *vendored {
	if m.Kind == "kernel" {
		return &vendored{Image: &v.kernel.Image, sites: v.sites, file: v.file}
	}
	if f := v.loaded[loadKey{m.Name, live[m.Name].Addr, m.Load}]; f != nil {
		return f
	}
	return &vendored{why: noFile}
}

// amid reports whether by its file an address lies within a function of a module,
// behind its beginning.
func (v *Vendor) amid(module kernel.Text, at mem.VA) bool {
	for k, f := range v.loaded {
		if k.name == module && f.ready && f.module.Amid(at) {
			return true
		}
	}
	return false
}

// load takes up the files of modules that have started.
func (v *Vendor) load(l *Look, live map[kernel.Text]kernel.Module, ids map[kernel.Text]uint64) error {
	now := make(map[loadKey]bool, len(live))
	for name, m := range live {
		k := loadKey{name, m.Addr, ids[name]}
		now[k] = true
		if v.loaded[k] != nil {
			continue
		}
		f, err := v.place(l, m)
		if err != nil {
			return err
		}
		v.loaded[k] = f
		if f.module != nil {
			for _, name := range f.module.Exports() {
				v.exports[name] = f
			}
		}
	}
	for k, f := range v.loaded {
		if !now[k] {
			delete(v.loaded, k)
			delete(v.errs, string(k.name))
			for name, by := range v.exports {
				if by == f {
					delete(v.exports, name)
				}
			}
		}
	}
	for _, f := range v.loaded {
		if f.ready || f.why != "" {
			continue
		}
		err := f.module.Relocate(func(name string) (uint64, bool) {
			if n, ok := v.kernel.Global(name); ok {
				return n, true
			}
			if by := v.exports[name]; by != nil {
				if va, ok := by.Symbol(name); ok {
					return uint64(va), true
				}
			}
			// Of a module without a file; what it says of itself has to do.
			r, _ := l.symbols()
			s, err := r.Lookup(name)
			return uint64(s.Addr), err == nil && s.Module != ""
		})
		if err == nil {
			f.sites, err = f.module.Sites()
		}
		if f.ready = err == nil; err != nil {
			f.why = fmt.Sprintf("%s: %v", f.file, err)
		}
	}
	return nil
}

// place finds the file of a module and places it where the guest has the module.
func (v *Vendor) place(l *Look, m kernel.Module) (*vendored, error) {
	delete(v.errs, string(m.Name))
	files := v.files[string(m.Name)]
	if len(files) == 0 {
		return &vendored{why: noFile}, nil
	}
	sections, percpu, err := l.ModuleSections(m)
	var id string
	if err == nil {
		id, err = l.ModuleBuildID(sections)
	}
	if errors.Is(err, errors.ErrUnsupported) {
		return &vendored{why: err.Error()}, nil
	}
	if err != nil {
		return nil, err
	}
	at := make(map[string]mem.VA, len(sections))
	for _, s := range sections {
		at[string(s.Name)] = s.Start
	}
	var others []string
	for _, file := range files {
		b, err := readAll(file)
		if err != nil {
			return nil, err
		}
		mod, err := vendorfile.ParseModule(v.kernel, b)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		if mod.ID != id {
			others = append(others, mod.ID)
			continue
		}
		mod.Place(func(name string) (mem.VA, bool) { va, ok := at[name]; return va, ok }, percpu)
		return &vendored{Image: &mod.Image, module: mod, file: filepath.Base(file)}, nil
	}
	v.errs[string(m.Name)] = fmt.Errorf("%s is not the file of the guest's module %s: it has build id %s, the guest's module has %s",
		files[0], m.Name, strings.Join(others, ", "), id)
	return &vendored{why: "a file of another build"}, nil
}

// err is what the guest's modules and the files disagree in.
func (v *Vendor) err() error {
	names := make([]string, 0, len(v.errs))
	for name := range v.errs {
		names = append(names, name)
	}
	slices.Sort(names)
	var errs []error
	for _, name := range names {
		errs = append(errs, v.errs[name])
	}
	return errors.Join(errs...)
}

// uncompared reports, as inventory, the modules that there is nothing to compare
// with.
func (v *Vendor) uncompared(check string, report func(Finding)) {
	var names []string
	f := Finding{Check: check, Severity: Info, Confidence: Proved, Evidence: []Evidence{}}
	for k, by := range v.loaded {
		if by.why == "" {
			continue
		}
		names = append(names, k.name.String())
		if by.why != noFile {
			f.Evidence = append(f.Evidence, Evidence{What: fmt.Sprintf("module %s: %s", k.name, by.why), Addr: k.addr})
		}
	}
	if len(names) == 0 {
		return
	}
	slices.Sort(names)
	slices.SortFunc(f.Evidence, func(a, b Evidence) int { return strings.Compare(a.What, b.What) })
	f.Summary = fmt.Sprintf("not compared with a file of the vendor's: %s", strings.Join(names, ", "))
	f.identify("uncompared")
	report(f)
}

// withVendor calls inspect with the vendor's files; with none if they are not for
// the guest, which is its error then.
func (r *Reference) withVendor(l *Look, inspect func(*Vendor) error) error {
	if r.Vendor == nil {
		return inspect(nil)
	}
	if err := r.Vendor.begin(l); err != nil {
		return errors.Join(inspect(nil), err)
	}
	err := inspect(r.Vendor)
	return errors.Join(err, r.Vendor.err())
}
