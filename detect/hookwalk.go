package detect

import (
	"encoding/binary"
	"fmt"
	"strings"

	"vmscope/ctype"
	"vmscope/kernel/linux"
	"vmscope/ksym"
	"vmscope/mem"
)

// walker looks at the pointers to code that a variable leads to.
type walker struct {
	walk func(w *hookWalk, at ksym.Symbol) error
	// ring says that the variable heads a list: by that it is told from others of
	// its name. Of several that no list tells apart none is looked at.
	ring bool
}

// Bounds of what is walked. Linux has 46 families, 256 protocols, 32 line
// disciplines; a chain of notifiers has some tens.
const (
	maxArray = 1 << 10
	maxChain = 1 << 12
)

func pointerAt(b []byte, off int) mem.VA { return mem.VA(binary.LittleEndian.Uint64(b[off:])) }

// member is a pointer of an object to another, of the type named.
type member struct {
	field ctype.Field
	typ   string
}

// members looks at what an object points to.
func (w *hookWalk) members(at mem.VA, way func() string, members ...member) error {
	for _, m := range members {
		if !m.field.Valid() {
			continue
		}
		to, err := w.Mem.Pointer(m.field.At(at))
		if err != nil {
			return err
		}
		if err := w.object(to, m.typ, w.label(to, way)); err != nil {
			return err
		}
	}
	return nil
}

// function looks at one pointer to code.
func (w *hookWalk) function(at mem.VA, what string, whose func() string) error {
	to, err := w.Mem.Pointer(at)
	if err == nil {
		err = w.step(at)
	}
	if err == nil {
		w.leads(at, to, func() (string, string) { return what, whose() })
	}
	return err
}

// object looks at an object of a type.
func object(typ string) walker {
	return walker{walk: func(w *hookWalk, at ksym.Symbol) error {
		return w.object(at.Addr, typ, func() string { return at.Name })
	}}
}

// array looks at the objects that an array points to.
func array(typ string) walker {
	return walker{walk: func(w *hookWalk, at ksym.Symbol) error {
		b := make([]byte, 8*min(at.Size/8, maxArray))
		if _, err := w.Mem.Read(b, at.Addr); err != nil {
			return err
		}
		for i := 0; i < len(b); i += 8 {
			if err := w.object(pointerAt(b, i), typ, func() string { return fmt.Sprintf("[%d]", i/8) }); err != nil {
				return err
			}
		}
		return nil
	}}
}

// list looks at the objects on a list that hang in it by a member:
// "linux_binfmt.lh".
func list(link string) walker {
	return walker{ring: true, walk: func(w *hookWalk, at ksym.Symbol) error { return w.list(at.Addr, link) }}
}

// lists is list for an array of lists; and it looks at what more members of the
// objects point to.
func lists(link string, more ...string) walker {
	return walker{walk: func(w *hookWalk, at ksym.Symbol) error {
		for i := range mem.VA(min(at.Size/16, maxArray)) {
			if err := w.list(at.Addr+16*i, link, more...); err != nil {
				return err
			}
		}
		return nil
	}}
}

// list looks at the objects on the list at head, if there is one.
func (w *hookWalk) list(head mem.VA, link string, more ...string) error {
	typ, name, _ := strings.Cut(link, ".")
	t, err := w.ops(typ)
	if err != nil {
		return err
	}
	off, err := t.Offset(name)
	if err != nil {
		return err
	}
	if first, err := w.Mem.Pointer(head); err != nil || first == 0 {
		return err // behind the last list of an array
	}
	n := 0
	return w.List(head, func(node mem.VA) error {
		n++
		at := node - mem.VA(off)
		way := func() string { return fmt.Sprintf("entry %d", n) }
		if err := w.object(at, typ, w.label(at, way)); err != nil {
			return err
		}
		for _, path := range more {
			f, err := t.Member(path)
			if err != nil {
				return err
			}
			if err := w.members(at, way, member{f, f.Type.Underlying().Elem().Underlying().Name()}); err != nil {
				return err
			}
		}
		return nil
	})
}

// notifiers looks at a chain of notifiers behind a head of a type.
func notifiers(head string) walker {
	return walker{walk: func(w *hookWalk, at ksym.Symbol) error {
		t, err := w.ops(head)
		if err != nil {
			return err
		}
		off, err := t.Offset("head")
		if err != nil {
			return err
		}
		return w.chain(at.Addr+mem.VA(off), "notifier_block")
	}}
}

// chain follows the member next of objects from a pointer to the first.
func (w *hookWalk) chain(from mem.VA, typ string) error {
	t, err := w.ops(typ)
	if err != nil {
		return err
	}
	next, err := t.Offset("next")
	if err != nil {
		return err
	}
	at, err := w.Mem.Pointer(from)
	for n := 0; err == nil && at != 0; n++ {
		if n >= maxChain {
			return &mem.FaultError{Op: "walk", Space: "kernel", Addr: uint64(from), Err: fmt.Errorf("%w: more than %d of %s", mem.ErrInconsistent, n, typ)}
		}
		if err := w.object(at, typ, w.label(at, func() string { return fmt.Sprintf("entry %d", n+1) })); err != nil {
			return err
		}
		at, err = w.Mem.Pointer(at + mem.VA(next))
	}
	return err
}

// fileSystems looks at the types of file systems: a chain, or since v7.1 a list.
func (w *hookWalk) fileSystems(at ksym.Symbol) error {
	t, err := w.ops("file_system_type")
	if err != nil {
		return err
	}
	off, err := t.Offset("list")
	if err != nil {
		return w.chain(at.Addr, "file_system_type")
	}
	return w.HList(at.Addr, func(node mem.VA) error {
		fs := node - mem.VA(off)
		return w.object(fs, "file_system_type", w.label(fs, func() string { return "a file system" }))
	})
}

// superBlocks looks at what the mounted file systems and their root directories
// do.
func (w *hookWalk) superBlocks(head ksym.Symbol) error {
	f, err := bind[struct {
		List    ctype.Field `c:"super_block.s_list"` // include/linux/fs.h
		Type    ctype.Field `c:"super_block.s_type"`
		Ops     ctype.Field `c:"super_block.s_op"`
		Names   ctype.Field `c:"super_block.__s_d_op|super_block.s_d_op"` // renamed in v6.17
		Root    ctype.Field `c:"super_block.s_root"`
		Dentry  ctype.Field `c:"dentry.d_op"`
		Inode   ctype.Field `c:"dentry.d_inode"`
		IOps    ctype.Field `c:"inode.i_op"`
		FOps    ctype.Field `c:"inode.i_fop"`
		Mapping ctype.Field `c:"inode.i_mapping"`
		AOps    ctype.Field `c:"address_space.a_ops"`
		ID      ctype.Field `c:"super_block.s_id"`
	}](w.Look)
	if err != nil {
		return err
	}
	return w.List(head.Addr, func(node mem.VA) error {
		sb := node - mem.VA(f.List.Offset)
		name := func() string {
			b, _ := w.Mem.CString(f.ID.At(sb), int(min(f.ID.Size(), 64)))
			return fmt.Sprintf("file system %q", b)
		}
		if err := w.members(sb, name, member{f.Ops, "super_operations"}, member{f.Names, "dentry_operations"}, member{f.Type, "file_system_type"}); err != nil {
			return err
		}
		root, err := w.Mem.Pointer(f.Root.At(sb))
		if err != nil || root == 0 {
			return err // it comes or goes
		}
		if err := w.members(root, name, member{f.Dentry, "dentry_operations"}); err != nil {
			return err
		}
		inode, err := w.Mem.Pointer(f.Inode.At(root))
		if err != nil || inode == 0 {
			return err
		}
		if err := w.members(inode, name, member{f.IOps, "inode_operations"}, member{f.FOps, "file_operations"}); err != nil {
			return err
		}
		mapping, err := w.Mem.Pointer(f.Mapping.At(inode))
		if err != nil || mapping == 0 {
			return err
		}
		return w.members(mapping, name, member{f.AOps, "address_space_operations"})
	})
}

// networks looks at each network namespace: its packet filters, its /proc/net,
// and who is given its packets.
func (w *hookWalk) networks(ksym.Symbol) error {
	all, err := w.NetNamespaces()
	if err != nil {
		return err
	}
	f, err := bind[struct {
		NF       ctype.Field `c:"net.nf,optional"` // include/net/net_namespace.h, include/net/netns/netfilter.h
		Proc     ctype.Field `c:"net.proc_net,optional"`
		ProcStat ctype.Field `c:"net.proc_net_stat,optional"`
		All      ctype.Field `c:"net.ptype_all,optional"`
		Specific ctype.Field `c:"net.ptype_specific,optional"` // both since v6.15
	}](w.Look)
	if err != nil {
		return err
	}
	proc, err := bind[procHooks](w.Look)
	if err != nil {
		return err
	}
	for _, ns := range all {
		net := ns.Addr
		if err := w.netfilter(f.NF, ns); err != nil {
			return err
		}
		for _, lists := range []ctype.Field{f.All, f.Specific} {
			if lists.Valid() {
				if err := w.list(lists.At(net), "packet_type.list"); err != nil {
					return err
				}
			}
		}
		for _, root := range []ctype.Field{f.Proc, f.ProcStat} {
			if !root.Valid() {
				continue
			}
			at, err := w.Mem.Pointer(root.At(net))
			if err != nil {
				return err
			}
			if at == 0 {
				continue
			}
			if err := w.ProcEntries(at, func(entry mem.VA, dir bool) error { return w.procEntry(proc, entry, dir) }); err != nil {
				return err
			}
		}
	}
	return nil
}

// netfilter looks at the filters of one network namespace: all members of
// struct netns_nf that are arrays of lists of them.
func (w *hookWalk) netfilter(nf ctype.Field, ns linux.NetNamespace) error {
	f, err := bind[struct {
		Count ctype.Field `c:"nf_hook_entries.num_hook_entries"` // include/linux/netfilter.h
		Hooks ctype.Field `c:"nf_hook_entries.hooks"`
		Hook  ctype.Field `c:"nf_hook_entry.hook"`
		Each  uint64      `c:"sizeof(nf_hook_entry)"`
	}](w.Look)
	if err != nil || !nf.Valid() {
		return nil // a kernel without netfilter
	}
	for m := range nf.Type.Members() {
		u := m.Type.Underlying()
		if u.Kind() != ctype.Array || u.Elem().Underlying().Kind() != ctype.Pointer || u.Elem().Underlying().Elem().Underlying().Name() != "nf_hook_entries" {
			continue
		}
		for i := range mem.VA(min(u.Len(), maxArray)) {
			entries, err := w.Mem.Pointer(nf.At(ns.Addr) + mem.VA(m.Offset) + 8*i)
			if err != nil {
				return err
			}
			if entries == 0 {
				continue
			}
			n, err := w.Mem.Uint(f.Count.At(entries), int(f.Count.Size())) // 16 bits
			if err != nil {
				return err
			}
			for k := range mem.VA(min(n, 1<<16)) {
				at := f.Hook.At(f.Hooks.At(entries) + k*mem.VA(f.Each))
				if err := w.function(at, fmt.Sprintf("packet filter %d of %s[%d]", k, m.Name, i), func() string { return fmt.Sprintf("of network namespace %d", ns.Inode) }); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// securityLists looks at the hooks of security modules: one list for each kind
// of hook.
func (w *hookWalk) securityLists(heads ksym.Symbol) error {
	t, err := w.ops("security_hook_heads")
	if err != nil {
		return err
	}
	f, err := bind[struct {
		Hook ctype.Field `c:"security_hook_list.hook"` // include/linux/lsm_hooks.h
		List ctype.Field `c:"security_hook_list.list"`
	}](w.Look)
	if err != nil {
		return err
	}
	for m := range t.Members() {
		err := w.HList(m.At(heads.Addr), func(node mem.VA) error {
			return w.function(f.Hook.At(node-mem.VA(f.List.Offset)), "hook "+m.Name, func() string { return w.Name(node) })
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// securityCalls looks at the static calls that go to security modules: an array
// of them for each kind of hook.
func (w *hookWalk) securityCalls(table ksym.Symbol) error {
	t, err := w.ops("lsm_static_calls_table")
	if err != nil {
		return err
	}
	f, err := bind[struct {
		Key  ctype.Field `c:"lsm_static_call.key"` // include/linux/lsm_hooks.h
		List ctype.Field `c:"lsm_static_call.hl"`
		Func ctype.Field `c:"static_call_key.func"`
		Hook ctype.Field `c:"security_hook_list.hook"`
		Each uint64      `c:"sizeof(lsm_static_call)"`
	}](w.Look)
	if err != nil {
		return err
	}
	for m := range t.Members() {
		for i := range mem.VA(min(m.Type.Underlying().Len(), maxArray)) {
			call := m.At(table.Addr) + i*mem.VA(f.Each)
			whose := func() string { return fmt.Sprintf("%s[%d]", m.Name, i) }
			for _, way := range []struct{ pointer, function ctype.Field }{{f.Key, f.Func}, {f.List, f.Hook}} {
				at, err := w.Mem.Pointer(way.pointer.At(call))
				if err != nil {
					return err
				}
				if at == 0 {
					continue
				}
				if err := w.function(way.function.At(at), "security hook", whose); err != nil {
					return err
				}
			}
		}
	}
	return nil
}
