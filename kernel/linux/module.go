package linux

import (
	"fmt"
	"slices"

	"vmscope/ctype"
	"vmscope/kernel"
	"vmscope/mem"
)

// moduleLayout is what is read of struct module (include/linux/module.h).
type moduleLayout struct {
	State ctype.Field `c:"module.state"`
	List  ctype.Field `c:"module.list"`
	Name  ctype.Field `c:"module.name"`

	// All kernels have these; of one whose types are inferred they may not be known.
	Taints ctype.Field `c:"module.taints,optional"`
	Init   ctype.Field `c:"module.init,optional"`

	// Not there without CONFIG_MODULE_UNLOAD.
	Exit   ctype.Field `c:"module.exit,optional"`
	Refs   ctype.Field `c:"module.refcnt,optional"`
	Users  ctype.Field `c:"module.source_list,optional"`
	User   ctype.Field `c:"module_use.source_list,optional"`
	Source ctype.Field `c:"module_use.source,optional"`

	// Where its parts lie: ac3b43283923 ("module: replace module_layout with
	// module_memory") in v6.4. Before, two runs: what stays, what is freed once
	// the module has started.
	Mem      ctype.Field `c:"module.mem,optional"`
	MemBase  ctype.Field `c:"module_memory.base,optional"`
	MemSize  ctype.Field `c:"module_memory.size,optional"`
	MemEach  uint64      `c:"sizeof(module_memory),optional"`
	Core     ctype.Field `c:"module.core_layout,optional"`
	CoreInit ctype.Field `c:"module.init_layout,optional"`
	Base     ctype.Field `c:"module_layout.base,optional"`
	Size     ctype.Field `c:"module_layout.size,optional"`

	Live     uint64 `c:"enum(MODULE_STATE_LIVE)"`
	Coming   uint64 `c:"enum(MODULE_STATE_COMING)"`
	Going    uint64 `c:"enum(MODULE_STATE_GOING)"`
	Unformed uint64 `c:"enum(MODULE_STATE_UNFORMED)"`
}

// Bounds of the list of modules, far above what any machine loads.
const (
	maxModules = 1 << 16
	maxUsers   = 1 << 20 // of all modules together
	maxParts   = 64      // of a module; the kernel has 7 kinds
)

// memNames are the kinds of module memory (enum mod_mem_type).
var memNames = [...]kernel.Text{"text", "data", "rodata", "ro_after_init", "init_text", "init_data", "init_rodata"}

// taints are the letters of the taints that a module can have, by bit, as in
// /proc/modules (Documentation/admin-guide/tainted-kernels.rst; taint_flags in
// kernel/panic.c says which of them modules show).
var taints = []struct {
	bit    uint
	letter byte
}{
	{0, 'P'}, {1, 'F'}, {10, 'C'}, {12, 'O'}, {13, 'E'}, {15, 'K'}, {16, 'X'}, {17, 'T'}, {18, 'N'}, {19, 'J'},
}

// Modules lists the loaded modules in the kernel's order, the newest first, as
// /proc/modules does. A module that is being set up and has no form yet is left
// out there; here it is listed with the state "Unformed".
func (v *View) Modules() ([]kernel.Module, error) {
	head, err := v.variable("modules")
	if err != nil {
		return nil, err
	}
	if first, err := v.Mem.Pointer(head); err == nil && first == head {
		return nil, nil // none, whatever they would look like
	}
	r, err := v.moduleReader()
	if err != nil {
		return nil, err
	}
	var out []kernel.Module
	err = v.settle(func() error {
		out, r.used = out[:0], 0
		return v.List(head, func(node mem.VA) error {
			if len(out) >= maxModules {
				return errBroken("modules", node, fmt.Sprintf("more than %d", maxModules))
			}
			m, err := r.module(node - mem.VA(r.l.List.Offset))
			if err != nil {
				return err
			}
			out = append(out, m)
			return nil
		})
	})
	return out, err
}

type moduleReader struct {
	v *View
	l *moduleLayout
	o object

	used int // users met so far
	// unknown are the fields of a Module that this kernel's types do not tell.
	unknown []string
}

func (v *View) moduleReader() (*moduleReader, error) {
	l, err := known[moduleLayout](v.Kernel)
	if err != nil {
		return nil, err
	}
	switch {
	case l.Mem.Valid() && l.MemBase.Valid() && l.MemSize.Valid() && l.MemEach > 0:
	case l.Core.Valid() && l.CoreInit.Valid() && l.Base.Valid() && l.Size.Valid():
	default:
		return nil, fmt.Errorf("the kernel's types do not tell where modules lie: %w", ctype.ErrNoMember)
	}
	n, err := span(l.State, l.List, l.Name, l.Taints, l.Init, l.Exit, l.Refs, l.Users, l.Mem, l.Core, l.CoreInit)
	if err != nil {
		return nil, err
	}
	r := &moduleReader{v: v, l: l, o: object{b: make([]byte, n)}}
	if !l.Taints.Valid() {
		r.unknown = append(r.unknown, "taint")
	}
	if v.Types == nil && !l.Refs.Valid() {
		r.unknown = append(r.unknown, "refs", "used_by")
	}
	return r, nil
}

// module reads the struct module at addr.
func (r *moduleReader) module(addr mem.VA) (kernel.Module, error) {
	l, o := r.l, &r.o
	if err := o.read(r.v, addr); err != nil {
		return kernel.Module{}, err
	}
	m := kernel.Module{Name: kernel.Text(cstr(o.bytes(l.Name))), Addr: addr, Refs: -1, Taint: taintLetters(o.uint(l.Taints)), Unknown: slices.Clip(r.unknown)}
	switch s := o.uint(l.State); s {
	case l.Live:
		m.State = "Live"
	case l.Coming:
		m.State = "Loading"
	case l.Going:
		m.State = "Unloading"
	case l.Unformed:
		m.State = "Unformed"
	default:
		return m, errBroken("module", addr, fmt.Sprintf("state %d", s))
	}
	if m.Name == "" {
		return m, errBroken("module", addr, "it has no name")
	}
	r.places(&m)
	if l.Refs.Valid() {
		// The count starts at MODULE_REF_BASE, 1.
		m.Refs = int(int32(o.uint(l.Refs))) - 1
		m.Permanent = o.uint(l.Init) != 0 && o.uint(l.Exit) == 0
	}
	if !l.Init.Valid() && o.uint(l.Exit) == 0 {
		m.Unknown = append(m.Unknown, "permanent")
	}
	if m.State == "Unformed" || !l.Users.Valid() || !l.User.Valid() || !l.Source.Valid() {
		return m, nil
	}
	var err error
	m.UsedBy, err = r.users(l.Users.At(addr))
	return m, err
}

// users lists the names of the modules that use the one whose source_list is at
// head.
func (r *moduleReader) users(head mem.VA) ([]kernel.Text, error) {
	var out []kernel.Text
	err := r.v.List(head, func(node mem.VA) error {
		if r.used++; r.used > maxUsers {
			return errBroken("module.source_list", head, fmt.Sprintf("more than %d users of modules", maxUsers))
		}
		src, err := r.v.Mem.Pointer(node - mem.VA(r.l.User.Offset) + mem.VA(r.l.Source.Offset))
		if err != nil {
			return err
		}
		name, err := r.v.Mem.CString(r.l.Name.At(src), int(min(r.l.Name.Size(), maxObject)))
		if err != nil {
			return err
		}
		out = append(out, kernel.Text(name))
		return nil
	})
	return out, err
}

// places tells where the module lies. Its size is the sum of all parts, as
// /proc/modules has it; what was freed after start counts no more.
func (r *moduleReader) places(m *kernel.Module) {
	l, o := r.l, &r.o
	add := func(name kernel.Text, base mem.VA, size uint64) {
		m.Size += size
		if size != 0 {
			m.Parts = append(m.Parts, kernel.Region{Name: name, Start: base, Size: size})
		}
	}
	if l.Mem.Valid() {
		b := o.bytes(l.Mem)
		for i := uint64(0); i < maxParts && (i+1)*l.MemEach <= uint64(len(b)); i++ {
			one := object{b: b[i*l.MemEach : (i+1)*l.MemEach]}
			name := kernel.Text(fmt.Sprint(i))
			if i < uint64(len(memNames)) {
				name = memNames[i]
			}
			if i == 0 {
				m.Base = one.ptr(l.MemBase)
			}
			add(name, one.ptr(l.MemBase), one.uint(l.MemSize))
		}
		return
	}
	core, init := object{b: o.bytes(l.Core)}, object{b: o.bytes(l.CoreInit)}
	m.Base = core.ptr(l.Base)
	add("core", m.Base, core.uint(l.Size))
	add("init", init.ptr(l.Base), init.uint(l.Size))
}

// taintLetters prints the taints of a module as module_flags_taint does.
func taintLetters(bits uint64) string {
	var b []byte
	for _, t := range taints {
		if bits>>t.bit&1 != 0 {
			b = append(b, t.letter)
		}
	}
	return string(b)
}
