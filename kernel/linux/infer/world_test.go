package infer

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"vmscope/internal/memtest"
	"vmscope/mem"
)

const page = 4096

// baseOf is where the memory of a world begins whose pointers have so many bytes.
func baseOf(word int) mem.VA {
	if word == 4 {
		return 0xc0000000
	}
	return 0xffff888000000000
}

// space maps the world's memory by small pages.
type space struct {
	word int // bytes of a pointer
	size uint64
	exec map[mem.VA]bool // pages of code
}

func (s space) PointerSize() int { return s.word }

func (s space) Translate(va mem.VA) (mem.Mapping, error) {
	off := uint64(va - baseOf(s.word))
	if off >= s.size {
		return mem.Mapping{}, &mem.FaultError{Op: "translate", Addr: uint64(va), Err: mem.ErrNotMapped}
	}
	m := mem.Mapping{PA: mem.PA(off), Size: page, Leaf: mem.Leaf{Level: 1}}
	if s.exec[va&^(page-1)] {
		m.Perm = mem.Exec
	}
	return m, nil
}

// world is a kernel's memory made by hand: what is not said to be something is
// noise.
type world struct {
	word  int // bytes of a pointer
	base  mem.VA
	b     []byte
	next  mem.VA
	exec  map[mem.VA]bool
	names map[string]mem.VA // symbols
	// variables are those that no symbol tells; nil: all do.
	variables map[string]mem.VA
	r         *rand.Rand
	at        map[string]int // where members lie
	each      int            // size of an entry of module memory
	tasks     []mem.VA       // idle, init, kthreadd, …
	mods      []mem.VA
}

// newWorld is a world the pointers of which have so many bytes. Members are where they
// are to be found, by name.
func newWorld(seed uint64, word int) *world {
	w := &world{
		word: word, base: baseOf(word), b: make([]byte, 4<<20), next: baseOf(word) + page, exec: make(map[mem.VA]bool), names: make(map[string]mem.VA),
		r: rand.New(rand.NewPCG(seed, 1)), at: make(map[string]int),
	}
	// Blocks of members that lie together, in any order, with gaps: numbers of 4 bytes,
	// pointers (*), lists (**).
	blocks := [][]string{
		{"__state", "stack*", "usage", "flags", "ptrace", ""}, {"tasks**"}, {"mm*", "active_mm*"}, {"pid", "tgid"},
		{"real_parent*", "parent*", "children**", "sibling**", "group_leader*"}, {"thread_node**"},
		{"start_time", "", "start_boottime", ""}, {"real_cred*", "cred*"}, {"comm", "", "", ""}, {"signal*"},
		{"exit_state", "exit_code", "exit_signal", "pdeath_signal"}, {"worker_private*"},
	}
	w.r.Shuffle(len(blocks), func(i, j int) { blocks[i], blocks[j] = blocks[j], blocks[i] })
	off := 208 // behind what system calls read of struct cred
	for _, block := range blocks {
		for _, entry := range block {
			name := strings.TrimRight(entry, "*")
			pointers := len(entry) - len(name)
			if pointers > 0 {
				off = (off + word - 1) &^ (word - 1)
			}
			w.at["task_struct."+name] = off
			off += max(4, pointers*word)
		}
		off = (off+7)&^7 + 8*w.r.IntN(20)
	}
	w.at["signal_struct.thread_head"] = 16
	uid := 4 + 4*w.r.IntN(4)
	w.at["cred.uid"], w.at["cred.gid"], w.at["cred.euid"], w.at["cred.egid"] = uid, uid+4, uid+16, uid+20
	w.at["kthread.full_name"] = word * w.r.IntN(12)
	w.make()
	w.modules(seed%2 == 0)
	w.clock()
	return w
}

func (w *world) alloc(n, align int) mem.VA {
	w.next = (w.next + mem.VA(align-1)) &^ mem.VA(align-1)
	at := w.next
	w.next += mem.VA(n)
	return at
}

// noise is an object of n bytes of no meaning.
func (w *world) noise(n, align int) mem.VA {
	at := w.alloc(n, align)
	for i := 0; i+w.word <= n; i += w.word {
		v := w.r.Uint64()
		switch w.r.IntN(4) {
		case 0:
			v = 0
		case 1:
			v %= 1000
		case 2:
			v = uint64(w.base) + v%uint64(len(w.b))&^7
		}
		w.put(at+mem.VA(i), v)
	}
	return at
}

func (w *world) put64(at mem.VA, v uint64) { binary.LittleEndian.PutUint64(w.b[at-w.base:], v) }
func (w *world) put32(at mem.VA, v uint32) { binary.LittleEndian.PutUint32(w.b[at-w.base:], v) }
func (w *world) text(at mem.VA, s string)  { copy(w.b[at-w.base:], s+"\x00") }
func (w *world) size() mem.VA              { return mem.VA(w.word) }

// put and get are of words of a pointer's size.
func (w *world) put(at mem.VA, v uint64) {
	if w.word == 4 {
		w.put32(at, uint32(v))
	} else {
		w.put64(at, v)
	}
}

func (w *world) get(at mem.VA) uint64 {
	if w.word == 4 {
		return uint64(binary.LittleEndian.Uint32(w.b[at-w.base:]))
	}
	return binary.LittleEndian.Uint64(w.b[at-w.base:])
}
func (w *world) of(o mem.VA, name string) mem.VA { return o + mem.VA(w.at["task_struct."+name]) }

// hang puts nodes into the list at head.
func (w *world) hang(head mem.VA, nodes ...mem.VA) {
	all := append([]mem.VA{head}, nodes...)
	for i, n := range all {
		next := all[(i+1)%len(all)]
		w.put(n, uint64(next))
		w.put(next+w.size(), uint64(n))
	}
}

// function is code that loads from offsets of pointers: mov off(%rax),%rcx, or
// off(%eax),%ecx; ret.
func (w *world) function(name string, offs ...int) {
	at := w.alloc(64, 16)
	w.names[name] = at
	for _, off := range offs {
		copy(w.b[at-w.base:], []byte{0x48, 0x8b, 0x88})
		w.put32(at+3, uint32(off))
		at += 7
	}
	w.b[at-w.base] = 0xc3
}

const taskSize = 4 << 10

// task makes a task in the state of a thread of the kernel that sleeps.
func (w *world) task(pid uint32, name string, parent mem.VA) mem.VA {
	o := w.noise(taskSize, 64)
	n := len(w.tasks)
	w.put32(w.of(o, "__state"), 1)
	w.put(w.of(o, "stack"), uint64(w.alloc(page, page)))
	w.put32(w.of(o, "usage"), 1)
	w.put32(w.of(o, "flags"), 0x208040)
	w.put32(w.of(o, "ptrace"), 0)
	w.put(w.of(o, "mm"), 0)
	w.put(w.of(o, "active_mm"), 0)
	w.put32(w.of(o, "pid"), pid)
	w.put32(w.of(o, "tgid"), pid)
	if parent == 0 {
		parent = o
	}
	w.put(w.of(o, "real_parent"), uint64(parent))
	w.put(w.of(o, "parent"), uint64(parent))
	w.put(w.of(o, "group_leader"), uint64(o))
	w.put64(w.of(o, "start_time"), uint64(n)*1e8)
	w.put64(w.of(o, "start_boottime"), uint64(n)*1e8+min(uint64(n), 1)*uint64(100+w.r.IntN(900)))
	w.clearText(w.of(o, "comm"), 16)
	w.text(w.of(o, "comm"), name)
	for _, e := range []string{"exit_state", "exit_code", "pdeath_signal"} {
		w.put32(w.of(o, e), 0)
	}
	w.put32(w.of(o, "exit_signal"), 17*min(pid, 1))
	cred := w.noise(192, 64)
	if pid == 0 {
		w.names["init_cred"] = cred
	}
	w.put(w.of(o, "real_cred"), uint64(cred))
	w.put(w.of(o, "cred"), uint64(cred))
	private := w.noise(256, 64)
	w.put(private+mem.VA(w.at["kthread.full_name"]), 0)
	w.put(w.of(o, "worker_private"), uint64(private))
	signal := w.noise(512, 64)
	w.put(w.of(o, "signal"), uint64(signal))
	if pid == 0 {
		w.names["init_signals"] = signal
	}
	w.hang(signal+16, w.of(o, "thread_node"))
	w.tasks = append(w.tasks, o)
	return o
}

func (w *world) clearText(at mem.VA, n int) { clear(w.b[at-w.base:][:n]) }

// program makes the task one of user space.
func (w *world) program(o mem.VA) mem.VA {
	mm := uint64(w.noise(512, 64))
	w.put(w.of(o, "mm"), mm)
	w.put(w.of(o, "active_mm"), mm)
	w.put32(w.of(o, "flags"), 0x400100)
	w.put(w.of(o, "worker_private"), 0)
	return o
}

// make fills the world with tasks.
func (w *world) make() {
	idle := w.task(0, "swapper/0", 0)
	w.names["init_task"] = idle
	w.put32(w.of(idle, "__state"), 0)
	w.put(w.of(idle, "active_mm"), uint64(w.noise(512, 64)))
	init := w.program(w.task(1, "init", idle))
	kthreadd := w.task(2, "kthreadd", idle)
	for i := range uint32(12) {
		name := fmt.Sprintf("kworker/0:%d", i)
		if i == 7 {
			name = "ext4-rsv-conver"
		}
		o := w.task(3+i, name, kthreadd)
		if i%2 == 0 {
			w.put32(w.of(o, "__state"), 0x402)
		}
		if i >= 7 { // others have none but comm
			text := w.alloc(64, 8)
			w.text(text, strings.Replace(name, "conver", "conversion", 1))
			w.put(mem.VA(w.get(w.of(o, "worker_private")))+mem.VA(w.at["kthread.full_name"]), uint64(text))
		}
	}
	parent := init
	for i := range uint32(9) {
		o := w.program(w.task(100+3*i, fmt.Sprintf("prog-%d", i), parent))
		if i%3 == 0 {
			parent = o
		}
		if i == 4 { // with a thread
			th := w.program(w.task(5000, "thread", parent))
			w.tasks = w.tasks[:len(w.tasks)-1]
			w.put32(w.of(th, "tgid"), 100+3*i)
			w.put(w.of(th, "signal"), w.get(w.of(o, "signal")))
			w.hang(mem.VA(w.get(w.of(o, "signal")))+16, w.of(o, "thread_node"), w.of(th, "thread_node"))
		}
	}
	dead := w.task(900, "gone", parent)
	w.put(w.of(dead, "stack"), 0)
	w.put(w.of(dead, "worker_private"), 0)
	w.put32(w.of(dead, "flags"), 0x40010c)
	w.put32(w.of(dead, "__state"), 0x80)
	w.put32(w.of(dead, "exit_state"), 0x20)
	w.link()
	w.function("__x64_sys_getppid", w.at["task_struct.real_parent"])
	w.function("get_task_mm", w.at["task_struct.flags"], w.at["task_struct.mm"])
	for call, id := range map[string]string{"getuid": "uid", "getgid": "gid", "geteuid": "euid", "getegid": "egid"} {
		w.function("__x64_sys_"+call, w.at["task_struct.cred"], w.at["cred."+id], 136)
	}
}

// link puts the tasks into the list of all, and into those of their parents.
func (w *world) link() {
	var all []mem.VA
	children := make(map[mem.VA][]mem.VA)
	for _, o := range w.tasks {
		children[o] = nil
	}
	for _, o := range w.tasks[1:] {
		all = append(all, w.of(o, "tasks"))
		p := mem.VA(w.get(w.of(o, "real_parent")))
		children[p] = append(children[p], w.of(o, "sibling"))
	}
	for _, o := range slices.Sorted(maps.Keys(children)) {
		w.hang(w.of(o, "children"), children[o]...)
	}
	w.hang(w.of(w.tasks[0], "tasks"), all...)
}

// modules fills the world with modules, as kernels have them that know kinds of module
// memory, or as others do.
func (w *world) modules(kinds bool) {
	word := w.word
	list, name := word, 3*word
	sizeAt := word
	n, each, back := 2, 9*word+8, word+16
	if kinds {
		n, each, back = 7, 9*word, 2*word
	}
	kobject := name + 64 - word + 8*w.r.IntN(8)
	uses := kobject + 72 + 8*w.r.IntN(8)
	layout := uses + 64 + 8*w.r.IntN(8)
	if kinds {
		w.at["module.mem"] = layout
		w.at["module_memory.base"], w.at["module_memory.size"], w.at["module_memory.end"] = 0, sizeAt, each
	} else {
		w.at["module.core_layout"], w.at["module.init_layout"] = layout, layout+each
		w.at["module_layout.base"], w.at["module_layout.size"] = 0, sizeAt
	}
	w.each = each
	maps.Copy(w.at, map[string]int{
		"module.state": 0, "module.list": list, "module.name": name, "module.source_list": uses, "module.exit": uses + 4*word, "module.refcnt": uses + 5*word,
		"module_use.source_list": 0, "module_use.source": 4 * word,
	})
	head := w.alloc(16, 16)
	w.names["modules"] = head
	var nodes []mem.VA
	for i := range 6 {
		text, data := w.alloc(3*page, page), w.alloc(page, page)
		w.exec[text] = true
		if !kinds {
			data = text + 2*page
		}
		w.next = data + 64
		o := w.noise(1280, 64)
		w.put32(o, 0)
		w.clearText(o+mem.VA(name), 64-word)
		called := fmt.Sprintf("mod_%c", 'a'+i)
		w.text(o+mem.VA(name), called)
		copied := w.alloc(16, 8)
		w.text(copied, called)
		w.put(o+mem.VA(kobject), uint64(copied))
		w.put(o+mem.VA(kobject+6*word), uint64(o))
		for j := range n {
			e := o + mem.VA(layout+j*each)
			var at, size uint64
			switch {
			case j == 0 && !kinds:
				at, size = uint64(text), 3*page
			case j == 0:
				at, size = uint64(text), 2*page
			case j == 1 && kinds:
				at, size = uint64(data), page
			}
			w.put(e, at)
			w.put32(e+mem.VA(sizeAt), uint32(size))
			w.put32(e+mem.VA(sizeAt)+4, 0)
			if !kinds {
				w.put32(e+mem.VA(sizeAt)+4, uint32(size/3)) // of its text
				w.put32(e+mem.VA(sizeAt)+8, uint32(size/2&0xfffff000))
				w.put32(e+mem.VA(sizeAt)+12, 0)
			}
			w.put(e+mem.VA(back), uint64(o))
		}
		w.hang(o + mem.VA(uses))
		w.hang(o + mem.VA(uses+2*word))
		w.put(o+mem.VA(uses+4*word), uint64(text)+0x40)
		w.put32(o+mem.VA(uses+5*word), 1)
		w.next = (w.next + page - 1) &^ (page - 1)
		w.mods = append(w.mods, o)
		nodes = append(nodes, o+mem.VA(list))
	}
	w.hang(head, nodes...)
	// The second uses the first.
	use := w.alloc(48, 16)
	w.hang(w.mods[0]+mem.VA(uses), use)
	w.hang(w.mods[1]+mem.VA(uses+2*word), use+2*w.size())
	w.put(use+4*w.size(), uint64(w.mods[1]))
	w.put(use+5*w.size(), uint64(w.mods[0]))
	w.put32(w.mods[0]+mem.VA(uses+5*word), 2)
}

// clock makes a timekeeper.
func (w *world) clock() {
	const second = 1000000000
	at := w.noise(maxClock, 64)
	w.names["tk_core"] = at
	ahead := uint64(1790000000*second + 123456789)
	at += 8 * mem.VA(w.r.IntN(100))
	sec := -int64(1790000000) - 1
	w.put64(at, uint64(sec))
	w.put(at+8, second-123456789)
	real := at + 8 + w.size()
	w.put64(real, ahead)
	w.put64(real+8, 5*second)
	w.put64(real+16, ahead+37*second)
	w.names["real"] = real
}

func (w *world) symbol(name string) (mem.VA, error) {
	if at, ok := w.names[name]; ok {
		return at, nil
	}
	return 0, errors.New("no symbol " + name)
}

func (w *world) kernel() Kernel {
	s := mem.NewSpace("world", &memtest.Bytes{Data: w.b}, w.space())
	return Kernel{Mem: s, Symbol: w.symbol, Text: w.base, Arch: map[int]string{4: "i686", 8: "x86_64"}[w.word]}
}

func (w *world) space() space { return space{w.word, uint64(len(w.b)), w.exec} }

// bare takes away what a kernel without the symbols of variables does not tell.
func (w *world) bare() {
	w.variables = make(map[string]mem.VA)
	for _, name := range []string{"init_task", "modules", "init_signals", "init_cred", "tk_core"} {
		w.variables[name] = w.names[name]
		delete(w.names, name)
	}
}

// wrong lists the members that a Result has elsewhere than they are.
func (w *world) wrong(t testing.TB, r *Result) (out []string) {
	t.Helper()
	for _, name := range r.Members {
		typ, member := cut(name)
		st, err := r.Types.Lookup(typ)
		if err != nil {
			t.Fatal(err)
		}
		f, err := st.Member(member)
		want, ok := w.at[name]
		if err != nil || !ok || int(f.Offset) != want {
			out = append(out, fmt.Sprintf("%s at %d, is at %d (%v)", name, f.Offset, want, err))
		}
	}
	for name, at := range r.Variables {
		if at != w.variables[name] {
			out = append(out, fmt.Sprintf("%s at %#x, is at %#x", name, uint64(at), uint64(w.variables[name])))
		}
	}
	if r.OffsReal != 0 && (r.OffsReal != w.names["real"] || r.OffsBoot != r.OffsReal+8) {
		out = append(out, fmt.Sprintf("clocks at %#x", uint64(r.OffsReal)))
	}
	return out
}
