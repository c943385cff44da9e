package detect

import (
	"bytes"
	"cmp"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"vmscope"
	"vmscope/ctype"
	"vmscope/internal/guestlab"
)

// builder builds the kernel modules of testdata/modules for a guest: against the
// types and addresses of the kernel that runs there, which any guest with BTF
// has. The headers package of its very release may be gone from the mirrors, and
// may want a newer compiler.
type builder struct {
	g   *vmscope.Guest
	dir string // with guest.h
}

// guestTypes are the types that the modules use; each before those that hold it.
// A kernel may lack some.
var guestTypes = []string{
	"list_head", "kobject", "module_kobject", "module", "task_struct", "idr", "pid_namespace", "file_operations", "seq_operations",
	"ftrace_ops", "kprobe", "nf_hook_ops", "notifier_block", "linux_binfmt", "tty_ldisc_ops", "security_hook_heads", "security_hook_list",
	"klp_func", "klp_object", "klp_patch",
}

func newBuilder(t *testing.T, g *vmscope.Guest) *builder {
	t.Helper()
	guestlab.Need(t, "gcc")
	b := &builder{g: g, dir: t.TempDir()}
	var h header
	if err := g.View(t.Context(), func(v *vmscope.View) error {
		types, err := v.NeedTypes()
		if err != nil {
			return err
		}
		for _, name := range guestTypes {
			typ, err := types.Lookup(name)
			switch {
			case err == nil:
				h.define(typ)
			case !errors.Is(err, ctype.ErrNoType):
				return err
			}
		}
		var tree struct {
			Owner ctype.Field `c:"module.mem[0].mtn.mod|module.core_layout.mtn.mod"`
			Parts ctype.Field `c:"module.mem,optional"`
		}
		err = ctype.Bind(types, &tree)
		parts := max(1, tree.Parts.Type.Len())
		fmt.Fprintf(&h, "enum { OWNER = %d, PARTS = %d, PART = %d }; // of struct module\n", tree.Owner.Offset, parts, tree.Parts.Size()/uint64(parts))
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(b.dir, "guest.h"), h.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
	return b
}

// header is C that declares a guest's types as they lie in memory.
type header struct {
	bytes.Buffer
	pads int
}

// define declares a struct: its members where they are, and bytes between them.
func (h *header) define(t ctype.Type) {
	fmt.Fprintf(h, "struct %s ", t.Name())
	h.body(t)
	fmt.Fprintf(h, " __attribute__((packed));\n_Static_assert(sizeof(struct %s) == %d, \"size\");\n", t.Name(), t.Size())
}

// body declares the members of a struct or union. Bit-fields are left out.
func (h *header) body(t ctype.Type) {
	h.WriteString("{\n")
	at := uint64(0)
	for m := range t.Members() {
		if m.BitSize != 0 || m.Size() == 0 || m.Offset < at {
			continue
		}
		h.pad(m.Offset - at)
		if m.Name == "" {
			h.WriteString(map[ctype.Kind]string{ctype.Struct: "struct ", ctype.Union: "union "}[m.Type.Underlying().Kind()])
			h.body(m.Type)
			h.WriteString(" __attribute__((packed));\n")
		} else {
			fmt.Fprintf(h, "%s;\n", h.declare(m.Type, m.Name))
		}
		if t.Underlying().Kind() == ctype.Struct {
			at = m.Offset + m.Size()
		}
	}
	h.pad(t.Size() - at)
	h.WriteString("}")
}

func (h *header) pad(n uint64) {
	if n > 0 {
		fmt.Fprintf(h, "char pad%d[%d];\n", h.pads, n)
		h.pads++
	}
}

// declare declares a member. What is of no type that the modules use is bytes.
func (h *header) declare(t ctype.Type, name string) string {
	u := t.Underlying()
	known := func(t ctype.Type) bool {
		return t.Underlying().Kind() == ctype.Struct && slices.Contains(guestTypes, t.Underlying().Name())
	}
	switch u.Kind() {
	case ctype.Pointer:
		if known(u.Elem()) {
			return "struct " + u.Elem().Underlying().Name() + " *" + name
		}
		return "void *" + name
	case ctype.Array:
		return h.declare(u.Elem(), fmt.Sprintf("%s[%d]", name, u.Len()))
	case ctype.Int, ctype.Enum:
		switch n := u.Size(); n {
		case 1:
			return "char " + name
		case 2, 4, 8:
			return fmt.Sprintf("u%d %s", 8*n, name)
		}
	}
	if known(u) {
		return "struct " + u.Name() + " " + name
	}
	return fmt.Sprintf("char %s[%d]", name, u.Size())
}

// build gives a module, ready to be loaded.
func (b *builder) build(t *testing.T, source, name string, flags ...string) []byte {
	t.Helper()
	file := filepath.Join(b.dir, name+".o")
	gcc := exec.Command("gcc", append([]string{
		"-c", "-O2", "-Werror=implicit-function-declaration", "-Werror=int-conversion", "-std=gnu11", "-ffreestanding", "-nostdinc", "-I", b.dir, "-DNAME=\"" + name + "\"",
		"-fno-pie", "-mcmodel=kernel", "-mno-red-zone", "-mgeneral-regs-only", "-fno-stack-protector", "-fcf-protection=none",
		"-fno-asynchronous-unwind-tables", "-fno-strict-aliasing", "-fno-common", "-o", file, filepath.Join("testdata", "modules", source+".c"),
	}, flags...)...)
	if out, err := gcc.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	object, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	b.bind(t, object)
	return object
}

// bind gives the symbols that an object file lacks the addresses that they have
// in the guest: absolute ones, so that the kernel needs not have exported them.
func (b *builder) bind(t *testing.T, object []byte) {
	t.Helper()
	f, err := elf.NewFile(bytes.NewReader(object))
	if err != nil {
		t.Fatal(err)
	}
	symbols, err := f.Symbols()
	if err != nil {
		t.Fatal(err)
	}
	table := f.SectionByType(elf.SHT_SYMTAB).Offset
	if err := b.g.View(t.Context(), func(v *vmscope.View) error {
		for i, s := range symbols {
			if s.Section != elf.SHN_UNDEF {
				continue
			}
			found := slices.Concat(v.Symbols.LookupAll(s.Name), v.Symbols.LookupAll(s.Name+"_noprof")) // as allocators are called since v6.10
			if len(found) != 1 {
				return fmt.Errorf("the guest has %d of %s", len(found), s.Name)
			}
			entry := object[table+uint64(i+1)*elf.Sym64Size:]
			binary.LittleEndian.PutUint16(entry[6:], uint16(elf.SHN_ABS))
			binary.LittleEndian.PutUint64(entry[8:], uint64(found[0].Addr))
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}

// has reports whether the guest's kernel has a symbol.
func (b *builder) has(t *testing.T, symbol string) (found bool) {
	t.Helper()
	if err := b.g.View(t.Context(), func(v *vmscope.View) error {
		found = len(v.Symbols.LookupAll(symbol)) > 0
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return found
}

// rootkit is a module that tampers with the kernel, the check that must find it,
// and words that the finding must hold.
type rootkit struct {
	source string
	check  string
	words  []string
	also   map[string][]string // words of other checks' findings
	flags  []string            // of the compiler
	needs  string              // a symbol: kernels without it cannot be bent so

	// Scripts for the guest. Before runs first; the others load and unload the
	// module, with nothing to do beside.
	before, load, unload string
}

// A stranger's code (testdata/modules/module.h) is mov eax, N; ret.
var rootkits = []rootkit{
	{source: "syscall", check: "syscalls", words: []string{"sys_call_table[163]", "acct [bad_syscall]", "module bad_syscall", "the function of sys_acct"}},
	{
		source: "dispatch", check: "text", words: []string{"x64_sys_call", "acct [bad_dispatch]"}, needs: "x64_sys_call",
		also: map[string][]string{"syscalls": {"x64_sys_call+0x", "acct [bad_dispatch]", "module bad_dispatch"}},
	},
	{source: "inline", check: "text", words: []string{"__x64_sys_acct", "jmp", "acct [bad_inline]"}},
	{source: "rodata", check: "rodata", words: []string{"null_fops", "swallow [bad_rodata]", "write_null"}},
	{source: "interrupt", check: "interrupts", words: []string{"interrupt 9", "idt_table[9]", "handler [bad_interrupt]"}},
	{source: "ftrace", check: "ftrace", words: []string{"func of ftrace_ops", "nobody", "b800000000c3"}},
	{source: "kprobe", check: "kprobes", words: []string{"pre_handler", "__x64_sys_acct", "nobody", "b800000000c3"}},
	{
		source: "livepatch", check: "ftrace", words: []string{`new_func of a live patch of "__x64_sys_acct"`, "nobody", "b800000000c3"}, needs: "klp_enable_patch",
		load: enablePatch, unload: disablePatch,
	},
	{source: "tracepoint", check: "tracepoints", words: []string{"sched_process_exec", "nobody", "b800000000c3"}},
	{source: "pages", check: "pages", words: []string{"executable", "r-x", "nobody", "b837130000c3"}},
	{source: "netfilter", check: "hooks", words: []string{"packet filter", "hooks_ipv4[1]", "nobody", "b801000000c3"}},
	{source: "keyboard", check: "hooks", words: []string{"keyboard_notifier_list", "nobody", "b800000000c3"}},
	{source: "connections", check: "hooks", words: []string{"show of seq_operations", "tcp4_seq_ops", "nobody", "b800000000c3"}},
	{source: "readdir", check: "hooks", words: []string{"iterate_shared of file_operations", "proc_root_operations", "nobody", "b800000000c3"}},
	{source: "tty", check: "hooks", words: []string{"receive_buf2 of tty_ldisc_ops", "tty_ldiscs [0]", "nobody", "b800000000c3"}},
	{source: "binfmt", check: "hooks", words: []string{"load_binary of linux_binfmt", "nobody", "b8f8ffffffc3"}},
	{source: "lsm", check: "hooks", words: []string{"hook quotactl", "nobody", "b800000000c3"}, needs: "security_hook_heads"},
	{
		source: "nothing", check: "hooks", words: []string{`the kernel starts "/tmp/x" by itself (modprobe_path)`, "where anybody may write"}, // and no module
		load: "echo /tmp/x >/proc/sys/kernel/modprobe", unload: "echo /sbin/modprobe >/proc/sys/kernel/modprobe",
	},
	{source: "process", check: "processes", words: []string{"(sleeper)", "hidden", "process ids", "children"}},
	{
		source: "runqueue", check: "processes", words: []string{"(spinner) is hidden: not in the list of tasks, but in a CPU's run queue"},
		before: "sh -c 'printf spinner >/proc/$$/comm; while :; do :; done' >/dev/null 2>&1 & while ! grep -q spinner /proc/$!/comm; do :; done",
		unload: "rmmod bad_runqueue && killall -9 spinner",
	},
	{
		source: "runqueue", flags: []string{`-DVICTIM="sleep"`}, check: "processes",
		words: []string{"(sleep) is hidden: not in the list of tasks, but in ", "a process group or session", "the list of a control group", "a timer that is to wake it"},
	},
	{source: "creds", check: "creds", words: []string{"(sleeper)", "shares the credentials of process 1 "}},
	{
		source: "hidden", check: "modules", words: []string{`"bad_hidden"`, "hidden", "the tree of module text", "memory that is mapped for nobody (vmap areas)", "a table of module symbols (kallsyms)"},
		load: "insmod /tmp/bad_hidden.ko && insmod /tmp/nothing.ko", unload: "rmmod nothing && rmmod bad_hidden",
	},
	{
		source: "hidden", check: "pages", words: []string{"executable", "r-x", "nobody"}, flags: []string{"-DALL"},
		also: map[string][]string{
			"kprobes": {"pre_handler", "__x64_sys_acct", "nobody"}, "hooks": {"module_notify_list", "nobody"},
			"modules": {`"bad_hidden" is loaded and hidden: not in the list of modules, but in memory that is mapped for nobody (vmap areas), a table of module symbols (kallsyms)`, "probed"},
		},
		load: "insmod /tmp/bad_hidden.ko && insmod /tmp/nothing.ko", unload: "rmmod nothing && rmmod bad_hidden",
	},
}

// A live patch takes a while to get to be what all tasks go through, or none.
const (
	enablePatch  = "insmod /tmp/bad_livepatch.ko && cd /sys/kernel/livepatch/bad_livepatch && while ! grep -q 0 transition; do sleep 0.1; done; grep -q 1 enabled"
	disablePatch = "cd /sys/kernel/livepatch && echo 0 >bad_livepatch/enabled && while [ -d bad_livepatch ]; do sleep 0.1; done; rmmod bad_livepatch"
)

// honest are modules that use the kernel's ways in the open, as drivers, tracers
// and vendors of live patches do.
var honest = []rootkit{
	{source: "ftrace"},
	{source: "kprobe"},
	{source: "tracepoint"},
	{source: "netfilter"},
	{source: "keyboard"},
	{source: "binfmt"},
	{source: "livepatch", needs: "klp_enable_patch", load: enablePatch, unload: disablePatch},
}

// lair is a running guest into which modules are loaded.
type lair struct {
	lab       *guestlab.Guest
	g         *vmscope.Guest
	b         *builder
	detectors []Detector
}

// sweep looks at the guest while a module is loaded. A guest without what the
// module needs skips the test.
func (l *lair) sweep(t *testing.T, k rootkit) Result {
	t.Helper()
	if k.needs != "" && !l.b.has(t, k.needs) {
		guestlab.Skip(t, "this kernel has no "+k.needs)
	}
	name := "bad_" + k.source
	l.put(t, k.source, name, k.flags...)
	if k.before != "" {
		l.run(t, k.before)
	}
	l.run(t, cmp.Or(k.load, "insmod /tmp/"+name+".ko"))
	r := l.look(t)
	l.run(t, cmp.Or(k.unload, "rmmod "+name))
	return r
}

func (l *lair) look(t *testing.T) (r Result) {
	t.Helper()
	if err := l.g.View(t.Context(), func(v *vmscope.View) error {
		r = Sweep(t.Context(), v, l.detectors)
		return r.Err()
	}); err != nil {
		t.Fatal(err)
	}
	return r
}

func (l *lair) run(t *testing.T, script string) {
	t.Helper()
	if _, err := l.lab.Run(t.Context(), script); err != nil {
		t.Fatalf("%s: %v", script, err)
	}
}

func (l *lair) put(t *testing.T, source, name string, flags ...string) {
	t.Helper()
	if err := l.lab.Put(t.Context(), "/tmp/"+name+".ko", l.b.build(t, source, name, flags...), 0o644); err != nil {
		t.Fatal(err)
	}
}

// silent demands that a sweep shows nothing but inventory.
func silent(t *testing.T, r Result) {
	t.Helper()
	for _, f := range r.Tampered() {
		t.Errorf("nobody tampers with it: %s: %s %+v", f.ID, f.Summary, f.Evidence)
	}
}

// testRootkits loads modules that tamper with the kernel into a running guest
// with processes "sleeper" and "sleep". It demands that each is found, with its evidence,
// and nothing once it is gone; nor ever of an honest module.
func testRootkits(t *testing.T, lab *guestlab.Guest) {
	g, err := vmscope.Open(t.Context(), lab.Name())
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	l := &lair{lab: lab, g: g, b: newBuilder(t, g), detectors: All()}
	l.put(t, "nothing", "nothing")
	silent(t, l.look(t))
	for _, k := range rootkits {
		t.Run(k.source+strings.Join(k.flags, ""), func(t *testing.T) {
			r := l.sweep(t, k)
			demand(t, r, k.check, k.words)
			for check, words := range k.also {
				demand(t, r, check, words)
			}
			silent(t, l.look(t))
		})
	}
	t.Run("entries", func(t *testing.T) { testEntries(t, l) })
	for _, k := range honest {
		t.Run("honest "+k.source, func(t *testing.T) {
			k.flags = []string{"-DHONEST"}
			silent(t, l.sweep(t, k))
		})
	}
	silent(t, l.look(t))
}
