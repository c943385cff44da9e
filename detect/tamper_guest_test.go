package detect

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"vmscope"
	"vmscope/internal/guestlab"
	"vmscope/kernel"
	"vmscope/kernel/linux"
	"vmscope/mem"
)

// victim is a guest that is tampered with from outside.
type victim struct {
	*testing.T
	g    *vmscope.Guest
	lab  *guestlab.Guest
	tx   *vmscope.Tx // while a tampering is made
	undo []patch
	arch string // once it was looked at
}

type patch struct {
	at  mem.VA
	old []byte
}

// sweep looks at the guest once.
func (v *victim) sweep() Result {
	v.Helper()
	var r Result
	if err := v.g.View(v.Context(), func(view *vmscope.View) error {
		v.arch = view.Arch
		r = Sweep(v.Context(), view, allOn(view.Arch))
		return r.Err()
	}); err != nil {
		v.Fatal(err)
	}
	return r
}

// tampered does something to the guest, which is undone behind it.
func (v *victim) tampered(do func()) {
	v.Helper()
	if err := v.g.Update(v.Context(), func(tx *vmscope.Tx) error {
		v.tx = tx
		defer func() {
			for _, p := range slices.Backward(v.undo) {
				if _, err := tx.Write(tx.Mem, p.old, p.at); err != nil {
					v.Error(err)
				}
			}
		}()
		do()
		return nil
	}); err != nil {
		v.Fatal(err)
	}
}

// allOn are the checks that hold on an architecture.
func allOn(arch string) []Detector {
	return slices.DeleteFunc(All(), func(d Detector) bool { return fits(d.Name(), arch) != nil })
}

// testOthers demands that checks of another processor find nothing, and say so.
func (v *victim) testOthers(t *testing.T) {
	if err := v.g.View(t.Context(), func(view *vmscope.View) error {
		r := Sweep(t.Context(), view, All())
		if err := r.Err(); len(r.Tampered()) > 0 || !errors.Is(err, ErrProcessor) {
			t.Errorf("%d findings, %v", len(r.Tampered()), err)
		}
		for _, c := range r.Checks {
			if other := !slices.Contains(anywhere, c.Name); errors.Is(c.Err, ErrProcessor) != other || !other && c.Err != nil {
				t.Errorf("check %s: %v", c.Name, c.Err)
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}

// testRodata changes a word of read-only data between two looks.
func (v *victim) testRodata(t *testing.T) {
	checks := []Detector{Rodata{NewReference()}}
	err := v.g.Update(t.Context(), func(tx *vmscope.Tx) error {
		v := &victim{T: t, tx: tx}
		if r := Sweep(t.Context(), tx.View, checks); len(r.Findings) > 0 || r.Err() != nil {
			t.Errorf("at first sight: %+v", r)
		}
		at := v.symbol("sys_call_table") + 8*63
		v.put(at, uint64(v.nowhere()))
		demand(t, Sweep(t.Context(), tx.View, checks), "rodata", []string{"sys_call_table", fmt.Sprintf("%#x", uint64(at)), "init_task"})
		_, err := tx.Write(tx.Mem, v.undo[0].old, at)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// silent demands that the guest shows nothing.
func (v *victim) silent() {
	v.Helper()
	for _, f := range v.sweep().Tampered() {
		v.Errorf("a guest that nobody tampers with: %s: %s %+v", f.ID, f.Summary, f.Evidence)
	}
}

func (v *victim) write(at mem.VA, b []byte) {
	v.Helper()
	old := make([]byte, len(b))
	if _, err := v.tx.Mem.Read(old, at); err != nil {
		v.Fatal(err)
	}
	v.undo = append(v.undo, patch{at, old})
	if _, err := v.tx.Write(v.tx.Mem, b, at); err != nil {
		v.Fatal(err)
	}
}

func (v *victim) put(at mem.VA, word uint64) {
	v.Helper()
	v.write(at, binary.LittleEndian.AppendUint64(nil, word))
}

func (v *victim) symbol(name string) mem.VA {
	v.Helper()
	s, err := v.tx.LookupSymbol(name)
	if err != nil {
		v.Fatal(err)
	}
	return s.Addr
}

func (v *victim) pointer(at mem.VA) mem.VA {
	v.Helper()
	p, err := v.tx.Mem.Pointer(at)
	if err != nil {
		v.Fatal(err)
	}
	return p
}

// has reports whether the kernel has a symbol.
func (v *victim) has(name string) bool { return len(v.tx.Named(name)) > 0 }

// unlink takes a node out of the list it is in.
func (v *victim) unlink(node mem.VA) {
	v.Helper()
	next, prev := v.pointer(node), v.pointer(node+8)
	v.put(prev, uint64(next))
	v.put(next+8, uint64(prev))
}

// module is a loaded module by its name.
func (v *victim) module(name string) kernel.Module {
	v.Helper()
	list, err := v.tx.Modules()
	if err != nil {
		v.Fatal(err)
	}
	i := slices.IndexFunc(list, func(m kernel.Module) bool { return string(m.Name) == name })
	if i < 0 {
		v.Fatalf("no module %q", name)
	}
	return list[i]
}

// member is where a member is in an object at an address: "module.list".
func (v *victim) member(at mem.VA, typ, path string) mem.VA {
	v.Helper()
	o, err := v.tx.Object(at, typ)
	if err != nil {
		v.Fatal(err)
	}
	f, err := o.Field(path)
	if err != nil {
		v.Fatal(err)
	}
	return f.Addr
}

// nowhere is memory of the kernel's data that nothing accounts for as code.
func (v *victim) nowhere() mem.VA { return v.symbol("init_task") }

// tampering is what is done to a guest. It names the check that must find it,
// and words that the finding must hold.
type tampering struct {
	name  string
	check string
	do    func(v *victim) (words []string)
}

var tamperings = []tampering{
	{"system call", "syscalls", func(v *victim) []string {
		at := v.symbol("sys_call_table") + 8*63 // uname
		v.put(at, uint64(v.nowhere()))
		return []string{"sys_call_table[63]", fmt.Sprintf("%#x", uint64(v.nowhere())), "nobody"}
	}},
	{"system call of another", "syscalls", func(v *victim) []string {
		table := v.symbol("sys_call_table")
		v.put(table+8*63, uint64(v.pointer(table+8*39))) // getpid
		return []string{"sys_call_table[63]", "getpid", "sys_newuname"}
	}},
	{"interrupt", "interrupts", func(v *victim) []string {
		at := v.symbol("idt_table") + 16*3 // int3
		to := uint64(v.nowhere())
		gate := make([]byte, 16)
		if _, err := v.tx.Mem.Read(gate, at); err != nil {
			v.Fatal(err)
		}
		binary.LittleEndian.PutUint16(gate, uint16(to))
		binary.LittleEndian.PutUint16(gate[6:], uint16(to>>16))
		v.write(at, gate)
		return []string{"idt_table[3]", fmt.Sprintf("%#x", to)}
	}},
	{"interrupt table", "interrupts", func(v *victim) []string {
		v.put(v.symbol("idt_descr")+2, uint64(v.nowhere()))
		return []string{"idt_descr", fmt.Sprintf("%#x", uint64(v.nowhere()))}
	}},
	{"code in a gap", "pages", func(v *victim) []string {
		at := v.symbol("_etext")
		v.write(at, []byte("\x90\x90\xc3"))
		return []string{fmt.Sprintf("%#x", uint64(at)), "nobody", "9090c3"}
	}},
	{"function hook", "text", func(v *victim) []string {
		v.hook(v.symbol("commit_creds"), v.nowhere())
		return []string{"commit_creds", "jmp", fmt.Sprintf("%#x", uint64(v.nowhere())), "nobody"}
	}},
	{"function hook past its ftrace site", "text", func(v *victim) []string {
		v.hook(v.ftraceSite("vfs_read")+5, v.nowhere())
		return []string{"vfs_read", "jmp", fmt.Sprintf("%#x", uint64(v.nowhere())), "nobody"}
	}},
	{"jump label", "text", func(v *victim) []string {
		site := v.jumpLabel()
		v.hook(site.At, v.symbol("commit_creds"))
		return []string{fmt.Sprintf("%#x", uint64(site.At)), "jump label", fmt.Sprintf("%#x", uint64(site.Target)), "commit_creds"}
	}},
	{"ftrace site", "text", func(v *victim) []string {
		at := v.ftraceSite("vfs_write")
		v.call(at, v.symbol("commit_creds"))
		return []string{"vfs_write", "ftrace site", "call", "commit_creds"}
	}},
	{"ftrace site that calls a module", "text", func(v *victim) []string {
		v.call(v.ftraceSite("vfs_write"), v.module("loop").Base+0x40)
		return []string{"vfs_write", "ftrace site", "call"}
	}},
	{"call of ftrace", "text", func(v *victim) []string {
		v.call(v.symbol("ftrace_call"), v.symbol("commit_creds"))
		return []string{"ftrace_call", "call of ftrace", "commit_creds"}
	}},
	{"static call", "text", func(v *victim) []string {
		site := v.staticCall()
		v.call(site.At, v.symbol("commit_creds"))
		return []string{fmt.Sprintf("%#x", uint64(site.At)), "static call", "static_call_key", fmt.Sprintf("%#x", uint64(site.Key)), "commit_creds"}
	}},
	{"hidden module", "modules", func(v *victim) []string {
		m := v.module("loop")
		v.unlink(v.member(m.Addr, "module", "list"))
		return []string{`"loop"`, "sysfs", "mod_tree"}
	}},
	{"hidden process", "processes", func(v *victim) []string {
		tasks, err := v.tx.Tasks()
		if err != nil {
			v.Fatal(err)
		}
		i := slices.IndexFunc(tasks, func(t linux.Task) bool { return t.Comm() == "sleeper" })
		if i < 0 {
			v.Fatal("no sleeper")
		}
		v.unlink(v.member(tasks[i].Addr, "task_struct", "tasks"))
		return []string{fmt.Sprintf("process %d (sleeper)", tasks[i].PID), "process ids", "children"}
	}},
	{"tracepoint", "tracepoints", func(v *victim) []string {
		array := v.spare(4 * 8)
		v.put(array, uint64(v.nowhere()))
		tp := v.symbol("__tracepoint_sys_enter")
		v.put(v.member(tp, "tracepoint", "funcs"), uint64(array))
		return []string{"sys_enter", fmt.Sprintf("%#x", uint64(v.nowhere()))}
	}},
	{"tracepoint of a module", "tracepoints", func(v *victim) []string {
		array := v.spare(4 * 8)
		v.put(array, uint64(v.nowhere()))
		own := v.pointer(v.member(v.module("nbd").Addr, "module", "tracepoints_ptrs"))
		tp := own + mem.VA(int64(int32(v.pointer(own))))
		v.put(v.member(tp, "tracepoint", "funcs"), uint64(array))
		return []string{"probe 0 of tracepoint \"nbd_", fmt.Sprintf("%#x", uint64(v.nowhere()))}
	}},
	{"ftrace", "ftrace", func(v *victim) []string {
		at := v.spare(512)
		f := at
		v.put(v.member(f, "ftrace_ops", "func"), uint64(v.nowhere()))
		v.put(v.member(f, "ftrace_ops", "next"), uint64(v.symbol("ftrace_list_end")))
		v.put(v.symbol("ftrace_ops_list"), uint64(f))
		return []string{"func of ftrace_ops", fmt.Sprintf("%#x", uint64(f))}
	}},
	{"kprobe", "kprobes", func(v *victim) []string {
		p := v.spare(512)
		v.put(v.member(p, "kprobe", "addr"), uint64(v.symbol("do_exit")))
		v.put(v.member(p, "kprobe", "pre_handler"), uint64(v.nowhere()))
		v.put(v.symbol("kprobe_table")+8*5, uint64(p))
		return []string{"pre_handler", "do_exit", fmt.Sprintf("%#x", uint64(v.nowhere()))}
	}},
	{"kretprobe", "kprobes", func(v *victim) []string {
		p := v.spare(1024)
		v.put(v.member(p, "kretprobe", "kp.addr"), uint64(v.symbol("do_exit")))
		v.put(v.member(p, "kretprobe", "kp.pre_handler"), uint64(v.symbol("pre_handler_kretprobe")))
		v.put(v.symbol("kprobe_table")+8*6, uint64(p)) // kp.hlist is the first member
		return v.bend(v.member(p, "kretprobe", "handler"), "handler of a kprobe on do_exit")
	}},
	{"function graph", "ftrace", func(v *victim) []string {
		if v.has("fgraph_array") {
			return v.replaced(v.symbol("fgraph_array"), "fgraph_ops", "entryfunc", "entryfunc of fgraph_ops 0")
		}
		return v.bend(v.symbol("ftrace_graph_return"), "the handler of ftrace_graph_return")
	}},
	{"probe of a function", "ftrace", func(v *victim) []string {
		probe := v.spare(2048)
		switch {
		case v.has("fprobe_table"):
			list := probe + 1024
			v.put(v.symbol("fprobe_table"), uint64(v.member(list, "fprobe_hlist", "hlist")))
			v.put(v.member(list, "fprobe_hlist", "fp"), uint64(probe))
		case v.has("fprobe_handler"):
			ops := v.member(probe, "fprobe", "ops")
			v.put(v.member(ops, "ftrace_ops", "func"), uint64(v.symbol("fprobe_handler")))
			v.put(v.member(ops, "ftrace_ops", "next"), uint64(v.symbol("ftrace_list_end")))
			v.put(v.symbol("ftrace_ops_list"), uint64(ops))
		default:
			guestlab.Skip(v.T, "this kernel has no probes of functions (CONFIG_FPROBE)")
		}
		return v.bend(v.member(probe, "fprobe", "entry_handler"), "entry_handler of an fprobe")
	}},
	// The guest is young: what looks like a kernel that boots must not end all checks.
	{"system call, and a first process that has not begun", "syscalls", func(v *victim) []string {
		v.fakeFirst()
		v.put(v.symbol("sys_call_table")+8*63, uint64(v.nowhere()))
		return []string{"sys_call_table[63]", "nobody"}
	}},
	{"system call, and a kernel that says that it boots", "syscalls", func(v *victim) []string {
		v.fakeFirst()
		v.write(v.symbol("system_state"), make([]byte, 4))
		v.put(v.symbol("sys_call_table")+8*63, uint64(v.nowhere()))
		return []string{"sys_call_table[63]", "nobody"}
	}},
}

// fakeFirst puts a task at the head of the list that looks like the first process
// of a kernel that boots.
func (v *victim) fakeFirst() {
	v.Helper()
	head := v.member(v.symbol("init_task"), "task_struct", "tasks")
	first, fake := v.pointer(head), v.spare(mem.PageSize)
	node := v.member(fake, "task_struct", "tasks")
	v.write(v.member(fake, "task_struct", "pid"), []byte{1, 0, 0, 0})
	v.write(v.member(fake, "task_struct", "tgid"), []byte{1, 0, 0, 0})
	v.put(node, uint64(first))
	v.put(node+8, uint64(head))
	v.put(first+8, uint64(node))
	v.put(head, uint64(node))
}

// spare is memory of the guest that does not matter while it is stopped: the
// first page of kernel data that is all zeros, zeroed again afterwards.
func (v *victim) spare(n int) mem.VA {
	v.Helper()
	var page [mem.PageSize]byte
	for at := v.symbol("__bss_start"); at < v.symbol("__bss_stop"); at += mem.PageSize {
		at = (at + mem.PageSize - 1) &^ (mem.PageSize - 1)
		if _, err := v.tx.Mem.Read(page[:], at); err != nil {
			v.Fatal(err)
		}
		if page == [mem.PageSize]byte{} {
			v.write(at, make([]byte, n))
			return at
		}
	}
	v.Fatal("no page of the kernel's data is all zeros")
	return 0
}

// TestTampering bends guests' kernels from outside and demands that each
// bending is found, with its evidence, and nothing once it is undone. A guest
// that goes on running with what was bent would crash at times: it is stopped
// meanwhile, as a rootkit would make sure that nothing goes wrong.
func TestTampering(t *testing.T) {
	for _, name := range []string{"bullseye-cloud", "bookworm-cloud", "sid-cloud", "trixie-cloud-arm64"} {
		t.Run(name, func(t *testing.T) {
			lab := guestlab.Boot(t, guestlab.Config{Kernel: name, MemoryMiB: 256, Modules: []string{"loop", "nbd"}})
			pids := make(map[string]int)
			for _, s := range []guestlab.Spawn{
				{Comm: []byte("sleeper")},
				{Comm: []byte("holder"), Hold: &guestlab.Hold{Kinds: []string{"bpf"}}},
				{Comm: []byte("waiter"), Hold: &guestlab.Hold{Kinds: []string{"socket waits"}}},
			} {
				pid, err := lab.Spawn(t.Context(), s)
				if err != nil {
					t.Fatal(err)
				}
				pids[string(s.Comm)] = pid
			}
			asleep(t, lab, pids["holder"], pids["waiter"])
			g, err := vmscope.Open(t.Context(), lab.Name(), vmscope.Writable(), vmscope.Paused())
			if err != nil {
				t.Fatal(err)
			}
			defer g.Close()
			v := &victim{T: t, g: g, lab: lab}
			v.silent()
			for _, c := range slices.Concat(tamperings, sleepTamperings, hookTamperings, credTamperings, bpfTamperings, injectionTamperings) {
				if fits(c.check, v.arch) != nil {
					continue
				}
				t.Run(c.name, func(t *testing.T) {
					v := &victim{T: t, g: g, lab: lab, arch: v.arch}
					v.tampered(func() {
						words := c.do(v)
						r := Sweep(t.Context(), v.tx.View, allOn(v.arch))
						if err := r.Err(); err != nil {
							t.Error(err)
						}
						demand(t, r, c.check, words)
					})
					v.silent()
				})
			}
			if v.arch == "x86_64" { // the modules are
				t.Run("modules", func(t *testing.T) { testRootkits(t, lab) })
			} else {
				t.Run("read-only data", v.testRodata)
				t.Run("checks of another processor", v.testOthers)
			}
		})
	}
}

// demand wants a finding of a check with words in it, and none of other checks
// that are not about the same.
func demand(t *testing.T, r Result, check string, words []string) {
	t.Helper()
	for _, f := range r.Findings {
		if f.Check != check {
			continue
		}
		all := string(f.Severity) + " " + f.Summary
		for _, e := range f.Evidence {
			all += "\n" + fmt.Sprintf("%#x", uint64(e.Addr)) + " " + e.What + " " + e.Symbol + " " + e.Owner + " " + e.Expected + " " + e.Found
		}
		if !slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(all, w) }) {
			return
		}
		t.Logf("not it: %s", all)
	}
	t.Errorf("check %s did not find it (%d findings)", check, len(r.Findings))
}
