package detect

import (
	"encoding/binary"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"vmscope"
	"vmscope/internal/guestlab"
	"vmscope/mem"
)

// hostileVariable is how long TestHostile goes on, instead of some seconds.
const hostileVariable = "VMSCOPE_HOSTILE"

// newScene copies the memory of a guest that has been up for a moment.
func newScene(t *testing.T, name string) *scene {
	t.Helper()
	lab := guestlab.Boot(t, guestlab.Config{Kernel: name, MemoryMiB: 256, Modules: []string{"loop"}})
	for _, s := range []guestlab.Spawn{{Comm: []byte("sleeper")}, {Comm: []byte("holder"), Hold: &guestlab.Hold{Kinds: []string{"bpf", "socketpair"}}}} {
		if _, err := lab.Spawn(t.Context(), s); err != nil {
			t.Fatal(err)
		}
	}
	g, err := vmscope.Open(t.Context(), lab.Name(), vmscope.Paused())
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	s := &scene{T: t, ref: NewReference()}
	if err := g.View(t.Context(), func(v *vmscope.View) error {
		s.ram, s.kernel = copyRAM(t, v.Phys), v.Kernel
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	lab.Close()
	s.mem = s.view().Mem
	s.idle()
	s.direct = 0xffff888000000000
	if at, err := s.kernel.Symbol("page_offset_base"); err == nil { // KASLR
		s.direct = s.pointer(at)
	}
	for range 2 { // the first fills the reference
		r := s.sweep(Against(s.ref))
		for _, f := range r.Tampered() {
			t.Fatalf("a guest that nobody tampers with: %s: %s", f.ID, f.Summary)
		}
		if err := r.Err(); err != nil {
			t.Fatal(err)
		}
		s.reads = s.ram.reads
	}
	t.Logf("a sweep makes %d reads", s.reads)
	return s
}

// idle makes the copy one of a guest that has nothing to do. Its clock stands, and
// the checks wait for a guest to go on that looks as if it were at something:
// each sweep that finds anything would take seconds.
func (s *scene) idle() {
	s.Helper()
	l := newLook(s.view())
	q, err := bind[queueLayout](l)
	if err != nil {
		s.Fatal(err)
	}
	g, err := bind[graceLayout](l)
	if err != nil {
		s.Fatal(err)
	}
	rqs, err := l.LookupSymbol("runqueues")
	if err != nil {
		s.Fatal(err)
	}
	offsets, err := perCPU(l)
	if err != nil {
		s.Fatal(err)
	}
	for _, off := range offsets {
		if m, err := s.mem.Translate(q.Running.At(rqs.Addr + off)); err == nil { // else a CPU that can not be
			clear(s.ram.at(m.PA)[:4])
		}
	}
	s.ram.at(s.pa(g.Seq.At(s.symbol("rcu_state"))))[0] &^= 3 // no grace period
}

// TestHostile changes words of a guest's memory that the checks read, in ways
// that break what reads them, and demands that each sweep ends, soon, with
// something to say where something must be said.
func TestHostile(t *testing.T) {
	long, err := time.ParseDuration(os.Getenv(hostileVariable))
	for _, name := range guestlab.TestKernels(t) {
		t.Run(name, func(t *testing.T) {
			s := newScene(t, name)
			seed := uint64(1)
			if err == nil {
				seed = uint64(time.Now().UnixNano())
			}
			r := rand.New(rand.NewPCG(seed, 0))
			words := s.touched()
			names := slices.Sorted(maps.Keys(words))
			end := time.Now().Add(long)
			for n := 0; n < 150 || time.Now().Before(end); n++ {
				check := names[r.IntN(len(names))]
				s.mutate(r, seed, n, check, words[check])
				if t.Failed() {
					return
				}
			}
			s.mustTell(r)
		})
	}
}

// touched are the words that each check reads of a guest, small reads and large
// ones alike often.
func (s *scene) touched() map[string][]mem.PA {
	out := make(map[string][]mem.PA)
	for _, d := range Against(s.reference()) {
		seen := make(map[mem.PA]bool)
		s.ram.saw = func(pa mem.PA, n int) {
			seen[pa&^7] = true
			if n > 8 && n <= mem.PageSize {
				for off := 8; off < n; off += 8 + n/16 {
					seen[(pa+mem.PA(off))&^7] = true
				}
			}
		}
		s.sweep([]Detector{d})
		if len(seen) > 0 { // Frames reads nothing here: it is about guests of Xen
			out[d.Name()] = slices.Sorted(maps.Keys(seen))
		}
		s.ram.saw = nil
	}
	return out
}

// mutate changes some words that a check reads and has it look.
func (s *scene) mutate(r *rand.Rand, seed uint64, n int, check string, words []mem.PA) {
	defer s.restore()
	what := fmt.Sprintf("%s %d, mutation %d of check %s:", hostileVariable, seed, n, check)
	for range 1 + r.IntN(3) {
		pa := words[r.IntN(len(words))]
		to := s.ram.at(pa)
		if len(to) < 8 {
			continue
		}
		old := binary.LittleEndian.Uint64(to)
		word := s.bend(r, pa, old, words)
		what += fmt.Sprintf(" %#x at %#x, which was %#x", word, uint64(pa), old)
		if r.IntN(4) == 0 {
			what += " (at times)"
			if s.ram.turns == nil {
				s.ram.turns = make(map[mem.PA]uint64)
			}
			s.ram.turns[pa] = word
		} else {
			s.set(pa, word)
		}
	}
	checks := Against(s.reference())
	if r.IntN(8) > 0 {
		checks = slices.DeleteFunc(checks, func(d Detector) bool { return d.Name() != check })
	}
	defer func() {
		if e := recover(); e != nil {
			s.Log(what)
			panic(e)
		}
		if s.Failed() {
			s.Log(what)
		}
	}()
	s.sweep(checks)
}

// mustTell changes what must never change without a word.
func (s *scene) mustTell(r *rand.Rand) {
	v := s.view()
	sites, err := v.PatchSites()
	if err != nil {
		s.Fatal(err)
	}
	rewritten := make(map[mem.VA]bool)
	for _, site := range sites {
		for i := range mem.VA(siteSize) {
			rewritten[site.At+i] = true
		}
	}
	for _, f := range []struct {
		check    string
		from, to string
		n        int
	}{{"text", "_text", "_etext", 20}, {"rodata", "__start_rodata", "__end_rodata", 20}, {"interrupts", "idt_table", "", 5}, {"syscalls", "sys_call_table", "", 5}} {
		from := s.symbol(f.from)
		for n := 0; n < f.n; n++ {
			var at mem.VA
			bit := byte(1) << r.IntN(8)
			switch f.check {
			case "interrupts":
				at, bit = from+mem.VA(16*r.IntN(32)+r.IntN(2)), 0xff // of the handler's address
				if gate := s.ram.at(s.pa(at &^ 15)); gate[5]&0x80 == 0 {
					continue
				}
				at |= 8 // bits 32 to 63
			case "syscalls":
				at = from + mem.VA(8*r.IntN(300)+r.IntN(4))
			default:
				if at = from + mem.VA(r.Uint64N(uint64(s.symbol(f.to)-from))); rewritten[at] {
					continue
				}
			}
			pa := s.pa(at)
			s.write(pa, []byte{s.ram.at(pa)[0] ^ bit})
			res := s.sweep(slices.DeleteFunc(Against(s.reference()), func(d Detector) bool { return d.Name() != f.check }))
			if !said(res, f.check) {
				s.Errorf("%s: a bit that flipped at %#x is not told", f.check, uint64(at))
			}
			s.restore()
		}
	}
}

// tables are pages of RAM that no check reads, for page tables and forged objects.
func (s *scene) tables(n int) []mem.PA {
	s.Helper()
	used := make(map[mem.PA]bool)
	for _, words := range s.touched() {
		for _, pa := range words {
			used[pa&^(mem.PageSize-1)] = true
		}
	}
	last := s.ram.ranges[0]
	var out []mem.PA
	for pa := last.Start + mem.PA(last.Size) - mem.PageSize; len(out) < n; pa -= mem.PageSize {
		if _, err := s.mem.Translate(s.direct + mem.VA(pa)); err == nil && !used[pa] {
			out = append(out, pa)
		}
	}
	return out
}

// fill writes a table of 512 entries, of which two alternate.
func (s *scene) fill(pa mem.PA, even, odd uint64) {
	for i := range mem.PA(512) {
		if i%2 == 0 {
			s.set(pa+8*i, even)
		} else {
			s.set(pa+8*i, odd)
		}
	}
}

// TestBlinded tampers with a guest and tries to blind the check that finds it,
// as one would who has read its source.
func TestBlinded(t *testing.T) {
	s := newScene(t, "bookworm-cloud")
	free := s.tables(4)
	root := s.kernel.Root
	slot := mem.PA(0)
	for i := mem.PA(256); i < 511; i++ { // not in use
		if binary.LittleEndian.Uint64(s.ram.at(root+8*i)) == 0 {
			slot = root + 8*i
			break
		}
	}
	const table, page, large, nx = 0x63, 0x61, 0xe1, 1 << 63
	gap := func() string { // code that belongs to nobody
		at := s.symbol("_etext")
		s.write(s.pa(at), []byte("\x90\x90\xc3"))
		return fmt.Sprintf("%#x", uint64(at))
	}
	module := func(name string) mem.VA {
		list, err := s.view().Modules()
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range list {
			if string(m.Name) == name {
				return m.Addr
			}
		}
		t.Fatalf("no module %q", name)
		return 0
	}
	task := func(comm string) mem.VA {
		list, err := s.view().Tasks()
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range list {
			if string(p.Comm()) == comm {
				return p.Addr
			}
		}
		t.Fatalf("no process %q", comm)
		return 0
	}
	put32 := func(va mem.VA, n uint32) { s.write(s.pa(va), binary.LittleEndian.AppendUint32(nil, n)) }
	for _, c := range []struct {
		name  string
		check string
		do    func() (word string)
	}{
		{"page tables that are three pages over and over", "pages", func() string {
			s.fill(free[0], uint64(free[1])|table, uint64(free[1])|table)
			s.fill(free[1], uint64(free[2])|table, uint64(free[2])|table)
			s.fill(free[2], uint64(free[3])|page, uint64(free[3])|page|nx)
			s.set(slot, uint64(free[0])|table)
			return "regions of executable memory"
		}},
		{"terabytes of executable memory", "pages", func() string {
			s.fill(free[0], uint64(free[1])|table, uint64(free[1])|table)
			s.fill(free[1], large, large)
			s.set(slot, uint64(free[0])|table)
			return "belong to nobody"
		}},
		{"a page table that refers to itself", "pages", func() string {
			s.set(slot, uint64(root)|table)
			return ""
		}},
		{"a page table outside of RAM", "pages", func() string {
			s.set(slot, 1<<45|table)
			return gap()
		}},
		{"code where init text was", "pages", func() string {
			at := s.symbol("_sinittext")
			m, err := s.mem.Translate(at)
			if err != nil {
				t.Skip("init text is not mapped") // nor can it be executed
			}
			s.write(m.PA, []byte("\x90\x90\xc3"))
			e := s.entry(at)
			s.set(e, binary.LittleEndian.Uint64(s.ram.at(e))&^nx)
			return fmt.Sprintf("%#x", uint64(at))
		}},
		{"a null before the slot", "syscalls", func() string {
			at := s.symbol("sys_call_table")
			s.put(at+8*20, 0)
			s.put(at+8*63, uint64(s.symbol("init_task")))
			return "sys_call_table[63]"
		}},
		{"a system call that is none", "syscalls", func() string {
			at := s.symbol("sys_call_table")
			s.put(at+8*63, uint64(s.symbol("__x64_sys_ni_syscall")))
			return "sys_call_table[63]"
		}},
		{"a hidden module that is being unloaded for good", "modules", func() string {
			m := module("loop")
			s.unlink(s.member(m, "module", "list"))
			put32(s.member(m, "module", "state"), 2) // MODULE_STATE_GOING
			return `"loop"`
		}},
		{"a hidden module and a list that leads nowhere", "modules", func() string {
			s.unlink(s.member(module("loop"), "module", "list"))
			s.put(s.symbol("module_bug_list"), 0xffffdead00000000)
			return `"loop"`
		}},
		{"a hidden process that exits for good", "processes", func() string {
			p := task("sleeper")
			s.unlink(s.member(p, "task_struct", "tasks"))
			put32(s.member(p, "task_struct", "exit_state"), 16) // EXIT_DEAD
			return "(sleeper)"
		}},
		{"a hidden process without a number", "processes", func() string {
			p := task("sleeper")
			s.unlink(s.member(p, "task_struct", "tasks"))
			put32(s.member(p, "task_struct", "pid"), 0)
			return "(sleeper)"
		}},
		{"a hidden process and a table of ids that is broken", "processes", func() string {
			s.unlink(s.member(task("sleeper"), "task_struct", "tasks"))
			s.put(s.member(s.member(s.symbol("init_pid_ns"), "pid_namespace", "idr"), "idr", "idr_rt.xa_head"), 0xffffdead00000002)
			return "(sleeper)"
		}},
		{"credentials of a process whose threads do not hold together", "creds", func() string {
			p := task("sleeper")
			s.put(s.member(p, "task_struct", "real_cred"), uint64(s.symbol("init_cred")))
			s.put(s.member(p, "task_struct", "thread_node")+8, 0xffff888000000000)
			return "contradict"
		}},
		{"a kprobe and a chain that leads nowhere", "kprobes", func() string {
			p := s.direct + mem.VA(free[0])
			s.fill(free[0], 0, 0)
			s.put(s.member(p, "kprobe", "addr"), uint64(s.symbol("do_exit")))
			s.put(s.member(p, "kprobe", "pre_handler"), uint64(s.symbol("init_task")))
			s.put(s.symbol("kprobe_table"), 0xffffdead00000000)
			s.put(s.symbol("kprobe_table")+8*5, uint64(p))
			return "pre_handler of a kprobe on do_exit"
		}},
		{"handlers of ftrace behind an end that is none", "ftrace", func() string {
			p := s.direct + mem.VA(free[0])
			s.fill(free[0], 0, 0)
			s.put(s.member(p, "ftrace_ops", "func"), uint64(s.symbol("ftrace_stub")))
			s.put(s.symbol("ftrace_ops_list"), uint64(p))
			return "does not end where it should"
		}},
		{"handlers of ftrace that loop", "ftrace", func() string {
			p := s.direct + mem.VA(free[0])
			s.fill(free[0], 0, 0)
			s.put(s.member(p, "ftrace_ops", "func"), uint64(s.symbol("ftrace_stub")))
			s.put(s.member(p, "ftrace_ops", "next"), uint64(p))
			s.put(s.symbol("ftrace_ops_list"), uint64(p))
			return "loop"
		}},
		{"text that passes for a trampoline", "text", func() string {
			at := s.symbol("commit_creds")
			s.write(s.pa(at+64), []byte("\xcc\xcc"))
			ops := s.direct + mem.VA(free[0])
			start := s.symbol("_text") - 16
			s.put(s.member(ops, "ftrace_ops", "trampoline"), uint64(start))
			s.put(s.member(ops, "ftrace_ops", "trampoline_size"), 64)
			head, node := s.symbol("ftrace_ops_trampoline_list"), s.member(ops, "ftrace_ops", "list")
			first := s.pointer(head)
			s.put(node, uint64(first))
			s.put(node+8, uint64(head))
			s.put(head, uint64(node))
			s.put(first+8, uint64(node))
			return "commit_creds"
		}},
		{"a branch amid the dispatch of system calls, from the start", "syscalls", func() string {
			at := s.symbol("x64_sys_call")
			code := make([]byte, 8<<10)
			if _, err := s.mem.Read(code, at); err != nil {
				t.Fatal(err)
			}
			for i := 0; i < len(code)-5; i++ { // the jump to uname
				to := at + mem.VA(i+5) + mem.VA(int64(int32(binary.LittleEndian.Uint32(code[i+1:]))))
				if code[i] == opJump && to == s.symbol("__x64_sys_newuname") {
					s.ref.runs = nil // as at the first look
					s.write(s.pa(at+mem.VA(i+1)), binary.LittleEndian.AppendUint32(nil, uint32(s.symbol("init_task")-(at+mem.VA(i+5)))))
					return "goes to the functions of system calls"
				}
			}
			t.Fatal("no jump to uname")
			return ""
		}},
		{"text and a list of code that leads nowhere", "text", func() string {
			s.write(s.pa(s.symbol("commit_creds")+64), []byte("\xcc\xcc"))
			s.put(s.symbol("bpf_kallsyms"), 0xffffdead00000000)
			return "commit_creds"
		}},
		{"a hook and a list of code that leads nowhere", "hooks", func() string {
			s.put(s.member(s.symbol("tcp_prot"), "proto", "connect"), uint64(s.symbol("init_task")))
			s.put(s.symbol("bpf_kallsyms"), 0xffffdead00000000)
			return "connect of proto"
		}},
		{"a hook that passes for a slot of kprobes", "hooks", func() string {
			s.put(s.member(s.symbol("tcp_prot"), "proto", "connect"), uint64(s.symbol("init_task")))
			page := s.direct + mem.VA(free[0])
			s.put(s.member(page, "kprobe_insn_page", "insns"), uint64(s.symbol("init_task"))&^0xfff)
			head, node := s.member(s.symbol("kprobe_insn_slots"), "kprobe_insn_cache", "pages"), s.member(page, "kprobe_insn_page", "list")
			first := s.pointer(head)
			s.put(node, uint64(first))
			s.put(node+8, uint64(head))
			s.put(head, uint64(node))
			s.put(first+8, uint64(node))
			return "connect of proto"
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := s
			s.T = t
			runs := s.ref.runs
			defer func() { s.ref.runs = runs; s.restore() }()
			word := c.do()
			r := s.sweep(Against(s.reference()))
			if !slices.ContainsFunc(r.Findings, func(f Finding) bool {
				return f.Check == c.check && f.Severity != Info && strings.Contains(f.Summary+fmt.Sprint(f.Evidence), word)
			}) {
				t.Errorf("%s did not find %q", c.check, word)
				for _, f := range r.Tampered() {
					t.Logf("%s: %s", f.ID, f.Summary)
				}
				t.Log(r.Err())
			}
		})
	}
}

// entry is where the entry of a page table stands that maps an address.
func (s *scene) entry(va mem.VA) mem.PA {
	var last mem.PA
	s.ram.saw = func(pa mem.PA, n int) {
		if n == 8 {
			last = pa
		}
	}
	_, err := s.mem.Translate(va)
	s.ram.saw = nil
	if err != nil {
		s.Fatal(err)
	}
	return last
}
