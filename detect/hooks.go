package detect

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"vmscope/ctype"
	"vmscope/kernel"
	"vmscope/kernel/linux"
	"vmscope/ksym"
	"vmscope/mem"
)

// Hooks finds pointers to code that belongs to nobody, in the places that
// rootkits change most: what /proc, sysfs and the roots of file systems do,
// packet filters, notifiers, line disciplines, security modules, protocols and
// program formats. It also looks at the programs that the kernel itself starts.
//
// A pointer of the kernel's own data, or of a module's, that leads into another
// module is inventory: drivers do that, and so do rootkits that hide nothing.
type Hooks struct{}

// Name implements Detector.
func (Hooks) Name() string { return "hooks" }

// hook is a variable of the kernel from which pointers to code can be found.
type hook struct {
	symbol string
	walker
}

// hooks are looked at one after the other. A kernel that lacks the symbol, or
// the types that a walker asks for, has no such hook.
var hooks = []hook{
	// What files do.
	{"proc_root", walker{walk: (*hookWalk).proc}},
	{"sysfs_root_kn", walker{walk: (*hookWalk).sysfs}},
	{"super_blocks", walker{(*hookWalk).superBlocks, true}},
	{"file_systems", walker{walk: (*hookWalk).fileSystems}},

	// Who is told of keys, modules, reboots, addresses and failures.
	{"keyboard_notifier_list", notifiers("atomic_notifier_head")},
	{"vt_notifier_list", notifiers("atomic_notifier_head")},
	{"module_notify_list", notifiers("blocking_notifier_head")},
	{"reboot_notifier_list", notifiers("blocking_notifier_head")},
	{"restart_handler_list", notifiers("atomic_notifier_head")},
	{"panic_notifier_list", notifiers("atomic_notifier_head")},
	{"die_chain", notifiers("atomic_notifier_head")},
	{"oom_notify_list", notifiers("blocking_notifier_head")},
	{"pm_chain_head", notifiers("blocking_notifier_head")},
	{"acpi_chain_head", notifiers("blocking_notifier_head")},
	{"fb_notifier_list", notifiers("blocking_notifier_head")},
	{"crypto_chain", notifiers("blocking_notifier_head")},
	{"netdev_chain", notifiers("raw_notifier_head")},
	{"netlink_chain", notifiers("blocking_notifier_head")},
	{"netevent_notif_chain", notifiers("atomic_notifier_head")},
	{"inetaddr_chain", notifiers("blocking_notifier_head")},
	{"inet6addr_chain", notifiers("atomic_notifier_head")},

	// Terminals and programs.
	{"tty_ldiscs", array("tty_ldisc_ops")},
	{"formats", list("linux_binfmt.lh")},
	{"machine_ops", object("machine_ops")},

	// Networks.
	{"net_namespace_list", walker{(*hookWalk).networks, true}},
	{"net_families", array("net_proto_family")},
	{"inet_protos", array("net_protocol")},
	{"inet6_protos", array("inet6_protocol")},
	{"inetsw", lists("inet_protosw.list", "prot", "ops")},
	{"inetsw6", lists("inet_protosw.list", "prot", "ops")},
	{"proto_list", list("proto.node")},
	{"tcp_prot", object("proto")},
	{"tcpv6_prot", object("proto")},
	{"udp_prot", object("proto")},
	{"udpv6_prot", object("proto")},
	{"ipv4_specific", object("inet_connection_sock_af_ops")},
	{"ipv6_specific", object("inet_connection_sock_af_ops")},
	{"tcp_cong_list", list("tcp_congestion_ops.list")},
	{"tcp_ulp_list", list("tcp_ulp_ops.list")},
	{"ptype_base", lists("packet_type.list")},
	{"ptype_all", list("packet_type.list")},

	// Security modules: lists of hooks, and static calls since v6.12.
	{"security_hook_heads", walker{walk: (*hookWalk).securityLists}},
	{"static_calls_table", walker{walk: (*hookWalk).securityCalls}},
}

// Inspect implements Detector.
func (d Hooks) Inspect(ctx context.Context, l *Look, report func(Finding)) error {
	err := persists(ctx, l, report, func(report func(Finding)) error {
		w, err := newHookWalk(ctx, l, report)
		if err != nil {
			return err
		}
		errs := []error{w.unsure}
		for _, h := range hooks {
			errs = append(errs, w.hook(h))
		}
		return errors.Join(errs...)
	})
	return errors.Join(err, usermodeHelpers(l, report))
}

// hookWalk is one look at all hooks.
type hookWalk struct {
	*Look
	ctx     context.Context
	code    Code
	unsure  error // why code lacks some
	data    Code  // memory that holds the kernel's and modules' variables
	modules map[kernel.Text]kernel.Module
	types   map[string]*opsType
	seen    map[site]bool
	union   map[mem.VA]byte // what the operations of /proc's own kinds of files say of their entry
	symbol  string          // of the hook that is looked at
	steps   int             // pointers looked at
	found   map[bool]int    // findings, of inventory and not
	report  func(Finding)
}

// site is an object that was looked at.
type site struct {
	at  mem.VA
	typ *opsType
}

func newHookWalk(ctx context.Context, l *Look, report func(Finding)) (*hookWalk, error) {
	code, unsure := l.Code()
	if len(code) == 0 {
		return nil, unsure
	}
	modules, err := l.Modules()
	if err != nil {
		return nil, err
	}
	w := &hookWalk{Look: l, ctx: ctx, code: code, unsure: unsure, modules: make(map[kernel.Text]kernel.Module), types: make(map[string]*opsType), seen: make(map[site]bool), found: make(map[bool]int), report: report}
	w.union = make(map[mem.VA]byte)
	for name, kind := range map[string]byte{"proc_seq_ops": unionSeq, "proc_net_seq_ops": unionSeq, "proc_single_ops": unionShow, "proc_net_single_ops": unionShow} {
		if at, err := l.Symbol(name); err == nil {
			w.union[at] = kind
		}
	}
	var data []kernel.Code
	for _, m := range modules {
		w.modules[m.Name] = m
		for _, p := range m.Parts {
			data = append(data, kernel.Code{Region: kernel.Region{Name: m.Name, Start: p.Start, Size: p.Size}, Kind: "module"})
		}
	}
	if start, _, size, err := l.Image(); err == nil {
		data = append(data, kernel.Code{Region: kernel.Region{Name: "kernel", Start: start, Size: size}, Kind: "kernel"})
	}
	w.data = flatten(data)
	return w, nil
}

// hook looks at one, again if it changed meanwhile.
func (w *hookWalk) hook(h hook) error {
	syms := w.Symbols.LookupAll(h.symbol)
	if len(syms) > 1 {
		syms = slices.DeleteFunc(syms, func(s ksym.Symbol) bool { return !h.ring || !w.heads(s.Addr) })
	}
	if len(syms) != 1 {
		return nil
	}
	w.symbol = h.symbol
	err := again(w.ctx, w.Look, func() error { return h.walk(w, syms[0]) })
	if errors.Is(err, ctype.ErrNoType) || errors.Is(err, ctype.ErrNoMember) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("%s: %w", h.symbol, err)
	}
	return nil
}

// heads reports whether a list (struct list_head) begins at an address.
func (w *hookWalk) heads(at mem.VA) bool {
	next, err := w.Mem.Pointer(at)
	if err != nil {
		return false
	}
	back, err := w.Mem.Pointer(next + 8)
	return err == nil && back == at
}

// again calls f until what it reads holds together, some times at most. A link
// to memory that is not mapped is then a contradiction.
func again(ctx context.Context, l *Look, f func() error) error {
	var err error
	for range persistLooks {
		err = f()
		if err == nil || ctx.Err() != nil || !errors.Is(err, mem.ErrInconsistent) && !errors.Is(err, mem.ErrNotMapped) {
			return err
		}
		forget(l)
	}
	if errors.Is(err, mem.ErrNotMapped) {
		return fmt.Errorf("%w: %w", mem.ErrInconsistent, err)
	}
	return err
}

// maxHooks bounds the pointers that are looked at, whatever the guest's lists say
// in all. A guest with a hundred network namespaces has some 20,000.
const maxHooks = 1 << 18

// step counts a pointer.
func (w *hookWalk) step(at mem.VA) error {
	if w.steps++; w.steps > maxHooks {
		return &mem.FaultError{Op: "walk", Space: "kernel", Addr: uint64(at), Err: fmt.Errorf("%w: more than %d pointers to code", mem.ErrInconsistent, maxHooks)}
	}
	return w.ctx.Err()
}

// opsType is a type of the kernel whose objects hold pointers to code.
type opsType struct {
	ctype.Type
	funcs []ctype.Member
	size  int // up to the end of the last of them
}

// maxOpsSize bounds an object that is looked at, bytes.
const maxOpsSize = 1 << 16

// ops is what a type's objects hold.
func (w *hookWalk) ops(name string) (*opsType, error) {
	if t, ok := w.types[name]; ok {
		return t, nil
	}
	types, err := w.NeedTypes()
	if err != nil {
		return nil, err
	}
	typ, err := types.Lookup(name)
	if err != nil {
		return nil, err
	}
	t := &opsType{Type: typ}
	for m := range typ.Members() {
		if u := m.Type.Underlying(); u.Kind() == ctype.Pointer && u.Elem().Underlying().Kind() == ctype.FuncProto && m.Offset < maxOpsSize-8 {
			t.funcs = append(t.funcs, m)
			t.size = max(t.size, int(m.Offset)+8)
		}
	}
	w.types[name] = t
	return t, nil
}

// object looks at the pointers to code of an object of a type, once. Label names
// the object for good, if its address has no symbol.
func (w *hookWalk) object(at mem.VA, typ string, label func() string) error {
	t, err := w.ops(typ)
	if err == nil {
		err = w.step(at)
	}
	if err != nil || at == 0 || w.seen[site{at, t}] {
		return err
	}
	b := make([]byte, t.size)
	if _, err := w.Mem.Read(b, at); err != nil {
		return err
	}
	w.seen[site{at, t}] = true
	for _, m := range t.funcs {
		w.leads(m.At(at), pointerAt(b, int(m.Offset)), func() (string, string) { return m.Name + " of " + typ, label() })
	}
	return nil
}

// leads looks at a pointer to code that stands at an address of the guest. Name
// says what it is, and whose.
func (w *hookWalk) leads(at, to mem.VA, name func() (what, whose string)) {
	if to == 0 {
		return
	}
	o, ok := w.code.Owner(to)
	if ok && o.Kind == "kernel" {
		return
	}
	good := ok && callable(o)
	by, owned := w.data.Owner(at)
	if good && (o.Kind != "module" || !owned || by.Kind == "module" && (by.Name == o.Name || w.uses(by.Name, o.Name))) {
		return
	}
	if w.found[good]++; w.found[good] > maxFindings+1 {
		return // no more are shown
	}
	what, whose := name()
	f := Finding{Check: "hooks", Severity: High, Confidence: Proved,
		Summary: fmt.Sprintf("%s (%s %s) leads to %#x, code of %s", what, w.symbol, whose, uint64(to), w.code.OwnerName(to)),
		Evidence: []Evidence{
			{What: fmt.Sprintf("%s, %s", what, whose), Addr: at, Symbol: w.Name(at), Owner: w.data.OwnerName(at), Expected: "code of the kernel or of the module whose it is", Found: fmt.Sprintf("%#x", uint64(to))},
			{What: leadsThere, Addr: to, Symbol: w.Name(to), Owner: w.code.OwnerName(to), Found: peek(w.Look, to, 32)},
		}}
	if !owned {
		f.Evidence[0].Owner = ""
	}
	about := []string{w.symbol, what, whose}
	if w.unsure != nil {
		f.Confidence = Possible
	}
	if good {
		f.Severity, f.Confidence = Info, Possible
		about = append(about, string(o.Name))
	}
	f.identify(about...)
	w.report(f)
}

// uses reports whether a module depends on another.
func (w *hookWalk) uses(module, other kernel.Text) bool {
	for _, user := range w.modules[other].UsedBy {
		if user == module {
			return true
		}
	}
	return false
}

// label names an object by its symbol, or else by what led to it.
func (w *hookWalk) label(at mem.VA, way func() string) func() string {
	return func() string {
		if name := w.Name(at); name != "" {
			return name
		}
		return way()
	}
}

// proc looks at /proc: what its entries do, in all network namespaces. What it
// does for processes is at the root of the file system, and in superBlocks.
func (w *hookWalk) proc(root ksym.Symbol) error {
	f, err := bind[procHooks](w.Look)
	if err != nil {
		return err
	}
	if err := w.procEntry(f, root.Addr, true); err != nil {
		return err
	}
	return w.ProcEntries(root.Addr, func(entry mem.VA, dir bool) error { return w.procEntry(f, entry, dir) })
}

type procHooks struct {
	Inode ctype.Field `c:"proc_dir_entry.proc_iops"` // fs/proc/internal.h
	Ops   ctype.Field `c:"proc_dir_entry.proc_ops"`
	Names ctype.Field `c:"proc_dir_entry.proc_dops,optional"`
	Seq   ctype.Field `c:"proc_dir_entry.seq_ops"`
	Write ctype.Field `c:"proc_dir_entry.write"`
}

// What the union of an entry of /proc holds: the address of its struct
// seq_operations, or of its function single_show.
const (
	unionSeq = iota + 1
	unionShow
)

// procEntry looks at one entry. Which member of a union it has is told by its
// operations: the four kinds of fs/proc/generic.c and proc_net.c.
func (w *hookWalk) procEntry(f *procHooks, entry mem.VA, dir bool) error {
	path := func() string {
		p, _ := w.ProcPath(entry)
		return "/proc" + p
	}
	ops, err := w.Mem.Pointer(f.Ops.At(entry))
	if err != nil {
		return err
	}
	members := []member{{f.Inode, "inode_operations"}, {f.Names, "dentry_operations"}, {f.Ops, "proc_ops"}}
	if dir {
		members[2].typ = "file_operations"
	} else {
		switch w.union[ops] {
		case unionSeq:
			members = append(members, member{f.Seq, "seq_operations"})
		case unionShow:
			if err := w.function(f.Seq.At(entry), "single_show of proc_dir_entry", path); err != nil {
				return err
			}
		}
		if err := w.function(f.Write.At(entry), "write of proc_dir_entry", path); err != nil {
			return err
		}
	}
	return w.members(entry, path, members...)
}

// sysfs looks at what files of sysfs do, and the kinds of objects behind its
// directories.
func (w *hookWalk) sysfs(root ksym.Symbol) error {
	f, err := bind[struct {
		Type  ctype.Field `c:"kobject.ktype"` // include/linux/kobject.h
		Sysfs ctype.Field `c:"kobj_type.sysfs_ops"`
	}](w.Look)
	if err != nil {
		return err
	}
	top, err := w.Mem.Pointer(root.Addr)
	if err != nil || top == 0 {
		return err
	}
	return w.KernfsNodes(top, func(n linux.KernfsNode) error {
		path := func() string {
			p, _ := w.KernfsPath(n.Addr)
			return "/sys" + p
		}
		if !n.Dir {
			return w.object(n.Ops, "kernfs_ops", w.label(n.Ops, path))
		}
		if n.Priv == 0 {
			return nil
		}
		ktype, err := w.Mem.Pointer(f.Type.At(n.Priv))
		if err != nil || ktype == 0 {
			return err
		}
		if err := w.object(ktype, "kobj_type", w.label(ktype, path)); err != nil {
			return err
		}
		return w.members(ktype, path, member{f.Sysfs, "sysfs_ops"})
	})
}
