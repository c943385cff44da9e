package linux

import (
	"errors"
	"fmt"

	"vmscope/ctype"
	"vmscope/kernel"
	"vmscope/kernel/linux/vendorfile"
	"vmscope/mem"
)

// maxNotes bounds the kernel's notes, which have some hundred bytes.
const maxNotes = 1 << 16

// BuildID is the GNU build id of the kernel, in hexadecimal, as its memory has
// it: a number that the linker made from the whole file, and that tells which
// one it is. It fails with ErrUnsupported if the kernel has none.
func (v *View) BuildID() (string, error) {
	start, err := v.Symbol("__start_notes")
	if err != nil {
		return "", fmt.Errorf("build id: %w: %w", err, errors.ErrUnsupported)
	}
	end, err := v.Symbol("__stop_notes")
	if err != nil {
		return "", fmt.Errorf("build id: %w: %w", err, errors.ErrUnsupported)
	}
	if end < start || end-start > maxNotes {
		return "", errBroken("__start_notes", start, fmt.Sprintf("they end at %#x", uint64(end)))
	}
	b, err := v.readBlock(start, uint64(end-start))
	if err != nil {
		return "", fmt.Errorf("build id: %w", err)
	}
	id := vendorfile.BuildID(b)
	if id == "" {
		return "", fmt.Errorf("build id: the kernel's notes have none: %w", errors.ErrUnsupported)
	}
	return id, nil
}

// sectionLayout is what is read of the sections of modules as sysfs shows them
// (kernel/module/sysfs.c; before v5.19 kernel/module.c).
type sectionLayout struct {
	Attrs   ctype.Field `c:"module.sect_attrs"`
	List    ctype.Field `c:"module_sect_attrs.grp.bin_attrs"`
	Name    ctype.Field `c:"bin_attribute.attr.name"`
	Private ctype.Field `c:"bin_attribute.private"`
	// Before 4b2c11e4aaf7 ("module: sysfs: Drop member 'module_sect_attr::address'")
	// in v6.14.
	Attr    ctype.Field `c:"module_sect_attr.battr,optional"`
	Address ctype.Field `c:"module_sect_attr.address,optional"`
	PerCPU  ctype.Field `c:"module.percpu,optional"`
}

// Bounds of a module's sections and of the length of their names.
const (
	maxSections    = 1 << 14
	maxSectionName = 256
)

// ModuleSections lists where the sections of a module were loaded, by the names
// that they have in its file; those that were freed behind its start as well.
// Sizes are not known. The per-CPU data of the module begin at percpu, as an
// offset in each CPU's.
func (v *View) ModuleSections(m kernel.Module) (list []kernel.Region, percpu uint64, err error) {
	l, err := layout64[sectionLayout](v.Kernel)
	if err != nil {
		return nil, 0, err
	}
	attrs, err := v.Mem.Pointer(l.Attrs.At(m.Addr))
	if err != nil {
		return nil, 0, err
	}
	if attrs == 0 {
		return nil, 0, fmt.Errorf("sections of module %q: it keeps none: %w", string(m.Name), errors.ErrUnsupported)
	}
	if l.PerCPU.Size() == 8 {
		if percpu, err = v.Mem.Uint64(l.PerCPU.At(m.Addr)); err != nil {
			return nil, 0, err
		}
	}
	next, err := v.Mem.Pointer(l.List.At(attrs))
	if err != nil {
		return nil, percpu, err
	}
	for {
		attr, err := v.Mem.Pointer(next)
		if err != nil || attr == 0 {
			return list, percpu, err
		}
		if len(list) >= maxSections {
			return list, percpu, errBroken("module.sect_attrs", attr, fmt.Sprintf("more than %d sections", maxSections))
		}
		name, err := v.Mem.Pointer(l.Name.At(attr))
		if err != nil {
			return list, percpu, err
		}
		text, err := v.Mem.CString(name, maxSectionName)
		if err != nil {
			return list, percpu, err
		}
		at := l.Private.At(attr)
		if l.Address.Valid() && l.Attr.Valid() {
			at = l.Address.At(attr - mem.VA(l.Attr.Offset))
		}
		start, err := v.Mem.Pointer(at)
		if err != nil {
			return list, percpu, err
		}
		list = append(list, kernel.Region{Name: kernel.Text(text), Start: start})
		next += 8
	}
}

// ModuleBuildID is BuildID of a module, of which sections were listed.
func (v *View) ModuleBuildID(sections []kernel.Region) (string, error) {
	for _, s := range sections {
		if s.Name != ".note.gnu.build-id" {
			continue
		}
		var b [64]byte // of which 36 are used; it is not the last section of its pages' part
		n := len(b)
		if left := int(mem.PageSize - s.Start%mem.PageSize); left < n && left >= 36 {
			n = left
		}
		if _, err := v.Mem.Read(b[:n], s.Start); err != nil {
			return "", err
		}
		if id := vendorfile.BuildID(b[:n]); id != "" {
			return id, nil
		}
	}
	return "", fmt.Errorf("build id: the module has none: %w", errors.ErrUnsupported)
}
