package linux

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"vmscope/ctype"
	"vmscope/kernel/linux/infer"
	"vmscope/kernel/linux/profile"
	"vmscope/ksym"
	"vmscope/mem"
)

// Files are what the caller has of the kernel besides its memory. Each is
// checked: what is of another kernel is refused.
type Files struct {
	// Types has the kernel's types, which go before those in its memory; nil: none.
	Types *profile.Profile
	// Symbols has symbols that kallsyms may lack; nil: those of Types, if any.
	Symbols *profile.Profile
	// Ahead gives the profile that was made ahead of the kernel with a build id; none
	// is an os.ErrNotExist. It is asked for a kernel whose memory does not tell its
	// types, or not the symbols of its data. The id is what the guest says.
	Ahead func(buildID string) (*profile.Profile, error)
}

// ErrOtherKernel says that a file is of another kernel than the guest's.
var ErrOtherKernel = errors.New("it is of another kernel")

// ErrNoTypes says that neither a kernel's memory nor a file tells its types.
var ErrNoTypes = errors.New("the types of this kernel are not known")

// ErrNoData says that a kernel's kallsyms has not the symbols of its variables,
// and no file tells them (CONFIG_KALLSYMS_ALL).
var ErrNoData = errors.New("the kernel's own symbols (kallsyms) lack variables")

// linked are symbols of a file, moved to where a kernel lies.
type linked struct {
	list  *ksym.List
	slide mem.VA
}

func (l *linked) move(s ksym.Symbol) ksym.Symbol {
	if !s.Absolute {
		s.Addr += l.slide
	}
	return s
}

func (l *linked) lookupAll(name string) []ksym.Symbol {
	if l == nil {
		return nil
	}
	all := l.list.LookupAll(name)
	for i := range all {
		all[i] = l.move(all[i])
	}
	return all
}

// Named lists the symbols of that name, by address: those of kallsyms, else
// those of the file that was supplied, else the one in VMCOREINFO. None is an
// empty list.
func (k *Kernel) Named(name string) []ksym.Symbol {
	if k.Symbols != nil {
		if all := k.Symbols.LookupAll(name); len(all) > 0 {
			return all
		}
	}
	if all := k.more.lookupAll(name); len(all) > 0 || k.info == nil {
		return all
	}
	if at, ok := k.info.Symbol(name); ok {
		return []ksym.Symbol{{Name: name, Addr: at, Type: 'd'}}
	}
	return nil
}

// bare reports whether functions are all that is known by name of the kernel, but
// for what VMCOREINFO tells.
func (k *Kernel) bare() bool { return len(k.Named("init_task")) == 0 }

// NeedData is an ErrNoData for a kernel that names functions only: what takes
// symbols that some kernels have not would take them all for missing.
func (k *Kernel) NeedData() error {
	if k.bare() {
		return ErrNoData
	}
	return nil
}

// variable is Symbol, else where the variable was inferred to be.
func (k *Kernel) variable(name string) (mem.VA, error) {
	at, err := k.Symbol(name)
	if errors.Is(err, ErrNoData) && k.inferred != nil {
		if at, ok := k.inferred.Variables[name]; ok {
			return at, nil
		}
	}
	return at, err
}

// lacks says beside a symbol's absence why it is.
func (k *Kernel) lacks(err error) error {
	if errors.Is(err, ksym.ErrNoSymbol) && k.bare() {
		return fmt.Errorf("%w: %w", ErrNoData, err)
	}
	return err
}

// nearest finds the symbol that va lies in: of kallsyms, or of the file if that
// has one closer to it.
func (k *Kernel) nearest(va mem.VA) (ksym.Symbol, uint64, error) {
	s, off, err := k.Symbols.Nearest(va)
	if k.more != nil {
		if t, o, e := k.more.list.Nearest(va - k.more.slide); e == nil && (err != nil || o < off) {
			return k.more.move(t), o, nil
		}
	}
	return s, off, err
}

// fileError says that a file does not fit the kernel, and what is needed.
func (k *Kernel) fileError(p *profile.Profile, format string, args ...any) error {
	release := k.Release
	if release == "" && k.info != nil {
		release = k.info.OSRelease()
	}
	need := fmt.Sprintf("needed is a file of exactly the guest's kernel %s", release)
	if id := k.idOf(); id != "" {
		need += ", build id " + id
	}
	if strings.Contains(k.Banner, "Debian") {
		need += " (Debian has it in linux-image-" + release + "-dbg)"
	}
	return fmt.Errorf("%s (%s): %w: %s; %s", p.Name, p.Format, ErrOtherKernel, fmt.Sprintf(format, args...), need)
}

// idOf is the build id that the kernel states, "" if none.
func (k *Kernel) idOf() string {
	if k.info != nil && k.info.BuildID() != "" {
		return k.info.BuildID()
	}
	return k.notesID
}

// sampled is how many symbols of a file are compared with kallsyms, about.
const sampled = 4096

// place finds out where the symbols of a file lie in the kernel: all as far from
// _stext as in kallsyms.
func (k *Kernel) place(p *profile.Profile) (l *linked, same int, err error) {
	text, err := p.Symbols.Lookup("_stext")
	if err != nil {
		return nil, 0, k.fileError(p, "it has no symbol _stext")
	}
	l = &linked{list: p.Symbols, slide: k.Text - text.Addr}
	other, n, step := "", 0, 1+p.Symbols.Len()/sampled
	different := 0
	for s := range p.Symbols.All() {
		if n++; n%step != 0 || s.Absolute {
			continue
		}
		all := k.Symbols.LookupAll(s.Name)
		switch at := l.move(s).Addr; {
		case len(all) == 0:
		case contains(all, at):
			same++
		default:
			if different++; other == "" {
				other = fmt.Sprintf("%s should be at %#x and is at %#x", s.Name, uint64(at), uint64(all[0].Addr))
			}
		}
	}
	// A list of a running kernel may have symbols of modules that bear names of the
	// kernel's.
	if same < 16 || different > same/64 {
		return nil, same, k.fileError(p, "of its symbols %d lie where those of the guest's kernel do, %d elsewhere; %s", same, different, other)
	}
	return l, same, nil
}

func contains(all []ksym.Symbol, at mem.VA) bool {
	for _, s := range all {
		if s.Addr == at {
			return true
		}
	}
	return false
}

// supply takes up symbols from a file, before the kernel is proved: what is
// needed for that may not be in kallsyms. A file that does not fit is told when
// the kernel was found.
func (f *finder) supply(k *Kernel) {
	files := &f.hints.Files
	p := files.Symbols
	if p == nil && files.Types != nil && files.Types.Symbols != nil {
		p = files.Types
	}
	given := p != nil
	if _, err := k.Symbol("init_task"); !given && err != nil {
		p = f.ahead(k)
	}
	if p == nil || p.Symbols == nil {
		return
	}
	l, same, err := k.place(p)
	switch {
	case err == nil:
		k.more, k.moreFrom, k.moreSame = l, p, same
	case given:
		k.unfit = err
	}
}

// ahead is the profile that was made of the kernel ahead, nil if none.
func (f *finder) ahead(k *Kernel) *profile.Profile {
	id := k.idOf()
	if id == "" || f.hints.Files.Ahead == nil {
		return nil
	}
	p, err := f.hints.Files.Ahead(id)
	if err != nil {
		if !errors.Is(err, os.ErrNotExist) {
			f.step("read the profile made ahead", "%v", err)
		}
		return nil
	}
	return p
}

// readTypes finds the kernel's types: in the file that was given, else in its
// memory, else in a profile made ahead. A kernel without is no failure: it is
// said by who needs types. A file that does not fit is one.
func (f *finder) readTypes(k *Kernel) error {
	v := k.View(f.phys)
	if id, err := v.BuildID(); err == nil {
		k.notesID = id
	}
	if k.unfit != nil {
		return k.unfit
	}
	if k.more != nil {
		f.report.Findings = append(f.report.Findings, Finding{"more symbols", fmt.Sprint(k.more.list.Len()),
			fmt.Sprintf("%s (%s), %d symbols as in kallsyms", filepath.Base(k.moreFrom.Name), k.moreFrom.Format, k.moreSame), "proved"})
	}
	if p := f.hints.Files.Types; p != nil {
		if err := f.typesOf(v, p); err != nil {
			return err
		}
	} else {
		f.ownTypes(v)
	}
	if k.Types == nil || k.bare() {
		f.infer(k)
	}
	return f.ctx.Err() // which may have ended one of them
}

// ownTypes takes the types in the kernel's memory, else those of a profile made ahead.
func (f *finder) ownTypes(v *View) {
	k := v.Kernel
	k.Types, k.TypesErr = k.btf(v)
	if k.TypesErr == nil {
		f.step("read BTF", "%d types", k.Types.Len())
		f.report.Findings = append(f.report.Findings, Finding{"types", fmt.Sprintf("%d", k.Types.Len()), "BTF in the image", "proved"})
		return
	}
	f.step("read BTF", "%v", k.TypesErr)
	if p := f.ahead(k); p != nil && p.Types != nil {
		if err := f.typesOf(v, p); err != nil { // of a profile that nobody named
			k.Types = nil
			k.TypesErr = fmt.Errorf("%w; a profile made ahead does not fit: %w", k.TypesErr, err)
		}
	}
}

// infer makes do without types, or without the symbols of variables. A guest that runs may change what is compared just
// then: that is tried again.
func (f *finder) infer(k *Kernel) {
	var r *infer.Result
	var err error
	for range 3 {
		phys := f.phys
		if mem.RAMOf(phys) == nil {
			phys = mem.NewCache(phys, inferPages)
		}
		v := k.View(phys)
		if r, err = infer.Run(f.ctx, infer.Kernel{Mem: v.Mem, Symbol: k.Symbol, Text: k.Text, Arch: k.Arch}); err == nil || f.ctx.Err() != nil {
			break
		}
	}
	if err == nil && k.Types != nil {
		err = agrees(r, k.Types)
	}
	if err != nil {
		f.step("infer types", "%v", err)
		return
	}
	k.inferred = r
	note := fmt.Sprintf("%d members", len(r.Members))
	for _, err := range r.Unproved {
		note += "; " + err.Error()
	}
	f.step("infer types", "%s", note)
	if len(r.Variables) > 0 {
		names := slices.Sorted(maps.Keys(r.Variables))
		f.report.Findings = append(f.report.Findings, Finding{"variables", strings.Join(names, ", "), "inferred from memory", "inferred"})
	}
	if k.Types != nil {
		return
	}
	var structs []string
	for _, name := range r.Members {
		typ, _, _ := strings.Cut(name, ".")
		structs = append(structs, typ)
	}
	f.report.Findings = append(f.report.Findings, Finding{"types", fmt.Sprintf("%d members of %s", len(structs), strings.Join(slices.Compact(structs), ", ")),
		"inferred from memory", "inferred"})
}

// agrees compares what was inferred with types that are known: variables that
// were inferred by other places than theirs would be wrong ones.
func agrees(r *infer.Result, types *ctype.Types) error {
	for _, name := range []string{"task_struct.tasks", "task_struct.comm", "task_struct.pid", "task_struct.real_parent", "module.list", "module.name"} {
		typ, member, _ := strings.Cut(name, ".")
		t, err := r.Types.Lookup(typ)
		if err != nil {
			continue // none was found
		}
		got, err := t.Offset(member)
		if err != nil {
			return err
		}
		if t, err = types.Lookup(typ); err != nil {
			return err
		}
		want, err := t.Offset(member)
		if err == nil && got != want {
			err = fmt.Errorf("%s seems to be at %d, and is at %d: %w", name, got, want, infer.ErrUnproved)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// inferPages bounds the cache in which types are inferred, where memory is not
// mapped: some pages for each of 500 tasks.
const inferPages = 1 << 13

// typesOf takes the types from a file that fits the kernel.
func (f *finder) typesOf(v *View, p *profile.Profile) error {
	why, sure, err := v.fits(p)
	if err != nil {
		return err
	}
	v.Kernel.Types, v.Kernel.TypesErr, v.foreign = p.Types, nil, true
	f.step("read types", "%d types of %s", p.Types.Len(), p.Name)
	f.report.Findings = append(f.report.Findings, Finding{"types", fmt.Sprintf("%d", p.Types.Len()),
		fmt.Sprintf("%s (%s), %s", filepath.Base(p.Name), p.Format, why), sure})
	return nil
}

// fits checks that types of a file are the kernel's, by all that both tell:
// which build they are of, how they name themselves, where their symbols lie;
// and for files that tell none of these, sizes and places that the kernel states
// in VMCOREINFO, and where it has its per-CPU variables.
func (v *View) fits(p *profile.Profile) (why, confidence string, err error) {
	k := v.Kernel
	var proofs []string
	if id := k.idOf(); id != "" && p.BuildID != "" {
		if id != p.BuildID {
			return "", "", k.fileError(p, "its build id is %s", p.BuildID)
		}
		proofs = append(proofs, "same build id")
	}
	if k.Banner != "" && p.Banner != "" && len(proofs) == 0 {
		if k.Banner != p.Banner {
			return "", "", k.fileError(p, "it says it is %q, the guest's says %q", p.Banner, k.Banner)
		}
		proofs = append(proofs, "same banner")
	}
	if p.Symbols != nil {
		_, same, err := k.place(p)
		if err != nil {
			return "", "", err
		}
		proofs = append(proofs, fmt.Sprintf("%d symbols as in kallsyms", same))
	}
	same, different := k.perCPU(p.Types)
	if different != "" {
		return "", "", k.fileError(p, "%s", different)
	}
	if same > 0 {
		proofs = append(proofs, fmt.Sprintf("%d per-CPU variables as in kallsyms", same))
	}
	confidence = "proved"
	if len(proofs) == 0 {
		confidence = "stated"
	}
	stated, different := k.statedLayouts(p.Types)
	if different != "" {
		return "", "", k.fileError(p, "%s", different)
	}
	if stated > 0 {
		proofs = append(proofs, fmt.Sprintf("%d places as VMCOREINFO states", stated))
	}
	if err := v.idleTask(p); err != nil {
		return "", "", err
	}
	return strings.Join(proofs, ", "), confidence, nil
}

// perCPU compares where types have per-CPU variables with where the symbols have
// them.
func (k *Kernel) perCPU(types *ctype.Types) (same int, different string) {
	base, err := k.Symbol("__per_cpu_start")
	if err != nil {
		return 0, ""
	}
	for t := range types.All() {
		if t.Kind() != ctype.DataSec || t.Name() != ".data..percpu" {
			continue
		}
		for variable, off := range t.Vars() {
			at, err := k.Symbol(variable.Name())
			switch {
			case err != nil: // a namesake, or left out of kallsyms
			case at == base+mem.VA(off):
				same++
			case different == "":
				different = fmt.Sprintf("its per-CPU variable %s is at %#x, that of the guest's kernel at %#x", variable.Name(), off, uint64(at-base))
			}
		}
	}
	return same, different
}

// statedLayouts compares types with what VMCOREINFO states of some of them.
func (k *Kernel) statedLayouts(types *ctype.Types) (same int, different string) {
	if k.info == nil {
		return 0, ""
	}
	for line := range strings.SplitSeq(k.info.Text(), "\n") {
		key, _, _ := strings.Cut(line, "=")
		what, name, ok := strings.Cut(strings.TrimSuffix(key, ")"), "(")
		typ, path, _ := strings.Cut(name, ".")
		t, err := types.Lookup(typ)
		if !ok || err != nil || t.Size() == 0 {
			continue
		}
		var has uint64
		var says int64
		switch what {
		case "SIZE":
			has = t.Size()
			says, ok = k.info.Size(name)
		case "OFFSET":
			has, err = t.Offset(path)
			says, ok = k.info.Offset(name)
		default:
			continue
		}
		switch {
		case err != nil || !ok:
		case has == uint64(says):
			same++
		case different == "":
			different = fmt.Sprintf("%s is %d in it, and %d in the guest's kernel", key, has, says)
		}
	}
	return same, different
}

// idleTask checks that the types find the idle task's name where it is.
func (v *View) idleTask(p *profile.Profile) error {
	at, err := v.Symbol("init_task")
	if err != nil {
		return nil
	}
	t, err := p.Types.Lookup("task_struct")
	if err != nil {
		return err
	}
	comm, err := t.Member("comm")
	if err != nil {
		return v.fileError(p, "its task_struct has no name")
	}
	b, err := v.Mem.CString(comm.At(at), int(min(comm.Size(), 64)))
	if err != nil && !strings.HasPrefix(string(b), "swapper") {
		return err
	}
	if !strings.HasPrefix(string(b), "swapper") {
		return v.fileError(p, "by it the idle task's name is at %#x, where there is %.16q", uint64(comm.At(at)), b)
	}
	return nil
}
