package main

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"vmscope"
	"vmscope/internal/guestlab"
	"vmscope/internal/guestlab/isf"
	"vmscope/kernel/linux/profile"
	"vmscope/ksym"
	"vmscope/mem"
)

// testNoTypes asks for everything about a kernel that carries no types: what
// takes none works, the rest says why not and guesses nothing. With a file that
// tells the types all is as it was with those in memory.
func (c *cli) testNoTypes(t *testing.T) {
	if c.g.RAMFile() == "" {
		t.Fatal("the guest's RAM has no file")
	}
	image, err := c.g.Kernel().ELF(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("XDG_CACHE_HOME", t.TempDir()) // no profile is there
	path := filepath.Join(t.TempDir(), "ram")
	// Of one moment: all that is read later is read of it.
	err = vmscope.Look(t.Context(), c.g.Name(), func(*vmscope.View) error {
		out, err := exec.Command("cp", "--sparse=always", c.g.RAMFile(), path).CombinedOutput()
		if err != nil {
			err = fmt.Errorf("%w: %s", err, out)
		}
		return err
	}, vmscope.Paused())
	if err != nil {
		t.Fatal(err)
	}
	n := &noTypes{cli: c, ram: path, image: image, want: make(map[string]answer)}
	for _, line := range typed {
		n.want[line] = n.ask(t, line)
	}
	n.wipe(t, "__start_BTF", make([]byte, 24))
	t.Run("none", n.testNone)
	n.files(t)
	t.Run("types", n.testTypes)
	t.Run("made ahead", n.testAhead)
	t.Run("other kernel", n.testOther)
	t.Run("symbols", n.testSymbols)
}

// inferred are commands that can do with types that are inferred; typed are they
// and commands that need all.
var (
	inferred = []string{"ps", "lsmod", "ps -T"}
	typed    = append(slices.Clip(inferred), "mount", "lsof", "ss", "maps --pid 1", "env --pid 1")
)

// answer is what a command says.
type answer struct {
	out, err string
	status   int
}

// noTypes is a copy of a guest's RAM that is robbed of what tells types.
type noTypes struct {
	*cli
	ram   string
	image string            // the kernel's ELF file, with its BTF
	want  map[string]answer // what commands said when it was whole
	blob  []byte            // the BTF
	// Files that tell types.
	btf, isf  string
	systemMap string
}

func (n *noTypes) ask(t *testing.T, line string, flags ...string) answer {
	t.Helper()
	name, rest, _ := strings.Cut(line, " ")
	out, stderr, status := run(t, append(append([]string{name, n.ram, "--json"}, strings.Fields(rest)...), flags...)...)
	return answer{out, stderr, status}
}

// same asks again, with what tells the types.
func (n *noTypes) same(t *testing.T, line string, flags ...string) {
	t.Helper()
	got, want := n.ask(t, line, flags...), n.want[line]
	if want.out == "" {
		t.Fatalf("%s of the whole memory: status %d, %s", line, want.status, want.err)
	}
	if got != want {
		t.Errorf("%s %q: status %d, %s\n%.2000s\nwant status %d, %s\n%.2000s", line, flags, got.status, got.err, got.out, want.status, want.err, want.out)
	}
}

// place is where a kernel symbol lies in the file: below the hole, where offsets
// are addresses.
func (n *noTypes) place(t *testing.T, at func(v *vmscope.View) (mem.VA, error)) int64 {
	t.Helper()
	var pa mem.PA
	err := vmscope.Look(t.Context(), n.ram, func(v *vmscope.View) error {
		va, err := at(v)
		if err != nil {
			return err
		}
		m, err := v.Mem.Translate(va)
		pa = m.PA
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return int64(pa)
}

// wipe overwrites what is at a symbol.
func (n *noTypes) wipe(t *testing.T, symbol string, with []byte) {
	t.Helper()
	n.write(t, n.place(t, func(v *vmscope.View) (mem.VA, error) { return v.Symbol(symbol) }), with)
}

func (n *noTypes) write(t *testing.T, at int64, b []byte) {
	t.Helper()
	f, err := os.OpenFile(n.ram, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(b, at); err != nil {
		t.Fatal(err)
	}
}

func (n *noTypes) testNone(t *testing.T) {
	for _, args := range []string{
		"info", "dmesg", "sym init_task", "read --sym linux_banner --string", "read --pa 0x1000", "dump " + filepath.Join(t.TempDir(), "core"),
	} {
		name, rest, _ := strings.Cut(args, " ")
		line := append([]string{name, n.ram}, strings.Fields(rest)...)
		if _, stderr, status := run(t, line...); status != 0 || stderr != "" {
			t.Errorf("%s: status %d, %q", args, status, stderr)
		}
	}
	out, _, _ := run(t, "info", n.ram, "--json")
	if !strings.Contains(out, `"source":"inferred from memory"`) || !strings.Contains(out, `"confidence":"inferred"`) {
		t.Errorf("info: %s", out)
	}
	for _, line := range inferred {
		n.lessThanAll(t, line)
	}
	for _, args := range append([]string{"type task_struct", "read --sym init_task --type task_struct", "read --pid 1 --va 0x400000"}, typed[len(inferred):]...) {
		name, rest, _ := strings.Cut(args, " ")
		line := append([]string{name, n.ram}, strings.Fields(rest)...)
		failed(t, line, "types of this kernel are not known", "--types")
	}
}

// lessThanAll asks without what tells the types: each field is as with it, or said to
// be unknown.
func (n *noTypes) lessThanAll(t *testing.T, line string, flags ...string) {
	t.Helper()
	got, want := n.ask(t, line, flags...), n.want[line]
	all, less := objects(t, want.out), objects(t, got.out)
	if got.status != 0 || len(less) != len(all) || len(all) == 0 {
		t.Fatalf("%s: status %d, %s; %d objects, want %d", line, got.status, got.err, len(less), len(all))
	}
	unknown := make(map[string]bool)
	for i, o := range less {
		names, _ := o["unknown"].([]any)
		for _, name := range names {
			field := name.(string)
			if _, ok := o[field]; ok {
				t.Errorf("%s: %s is said to be unknown: %v", line, field, o)
			}
			unknown[field] = true
			delete(all[i], field)
		}
		delete(o, "unknown")
		if !reflect.DeepEqual(o, all[i]) {
			t.Errorf("%s:\n got %v\nwant %v", line, o, all[i])
		}
	}
	for _, field := range []string{"pid", "ppid", "comm", "state", "uid", "start_time", "threads", "kthread", "name", "size", "base"} {
		if unknown[field] && (field != "state") { // a zombie's may be
			t.Errorf("%s: %s is unknown", line, field)
		}
	}
	name, rest, _ := strings.Cut(line, " ")
	out, stderr, status := run(t, append(append([]string{name, n.ram}, strings.Fields(rest)...), flags...)...)
	if status != 0 || !strings.Contains(out, "?") || !strings.Contains(stderr, "--types") {
		t.Errorf("%s: status %d, %s\n%.2000s", line, status, stderr, out)
	}
}

// nameless asks for processes with the types but without the names of variables: all
// is as it was but the names of files, which are said to be missing.
func (n *noTypes) nameless(t *testing.T, flags ...string) {
	t.Helper()
	got, want := n.ask(t, "ps", flags...), n.want["ps"]
	all, less := objects(t, want.out), objects(t, got.out)
	if got.status != 0 || len(less) != len(all) || len(all) == 0 {
		t.Fatalf("ps %q: status %d, %s; %d objects, want %d", flags, got.status, got.err, len(less), len(all))
	}
	for i, o := range less {
		if _, named := all[i]["exe"]; named && (o["exe"] != nil || !strings.Contains(fmt.Sprint(o["missing"]), "lack variables")) {
			t.Errorf("ps %q: %v", flags, o)
		}
		for _, m := range []map[string]any{o, all[i]} {
			delete(m, "exe")
			delete(m, "missing")
		}
		if !reflect.DeepEqual(o, all[i]) {
			t.Errorf("ps %q:\n got %v\nwant %v", flags, o, all[i])
		}
	}
}

// files makes those that tell what the memory does not any more.
func (n *noTypes) files(t *testing.T) {
	t.Helper()
	f, err := elf.Open(n.image)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if n.blob, err = f.Section(".BTF").Data(); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	n.btf, n.isf, n.systemMap = filepath.Join(dir, "a"), filepath.Join(dir, "b"), filepath.Join(dir, "c")
	if err := os.WriteFile(n.btf, n.blob, 0o644); err != nil {
		t.Fatal(err)
	}
	all, err := n.g.Kallsyms(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var syms []isf.Symbol
	var text bytes.Buffer
	for _, s := range all {
		if s.Module == "" {
			syms = append(syms, isf.Symbol{Name: s.Name, Addr: s.Addr})
			fmt.Fprintf(&text, "%016x %c %s\n", s.Addr, s.Type, s.Name)
		}
	}
	if err := os.WriteFile(n.systemMap, text.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
	banner, _ := object(t, n.ask(t, "info").out)["version"].(string)
	b, err := isf.Write(n.blob, syms, banner)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(n.isf, b, 0o644); err != nil {
		t.Fatal(err)
	}
}

func (n *noTypes) testTypes(t *testing.T) {
	for _, line := range typed {
		n.same(t, line, "--types", n.image)
	}
	for _, file := range []string{n.btf, n.isf} {
		n.same(t, "ps", "--types", file)
		n.same(t, "lsmod", "--types", file)
	}
	if vmlinux := os.Getenv("VMSCOPE_VMLINUX"); vmlinux != "" { // by hand: DWARF of this very kernel, 600 MB
		t.Setenv("XDG_CACHE_HOME", t.TempDir())
		t.Log(decoded[profileRow](t, "profile", vmlinux))
		for _, line := range typed {
			n.same(t, line)
		}
	}
	for file, want := range map[string]string{
		n.image: `(BTF), same build id`, n.isf: `(Volatility symbols), same banner`, n.btf: `per-CPU variables as in kallsyms`,
	} {
		got := n.ask(t, "info", "--types", file)
		if got.status != 0 || !strings.Contains(got.out, want) || !strings.Contains(got.out, `"confidence":"proved"`) {
			t.Errorf("info: %+v, want %s", got, want)
		}
	}
}

// testAhead makes a profile once.
func (n *noTypes) testAhead(t *testing.T) {
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	file := filepath.Join(t.TempDir(), "p")
	rows := decoded[profileRow](t, "profile", n.image, "-o", file)
	if len(rows) != 1 || rows[0].Types < 10000 || rows[0].BuildID == "" || string(rows[0].Output) != file {
		t.Fatalf("%+v", rows)
	}
	n.same(t, "ps")
	n.same(t, "lsmod")
	if err := os.Remove(string(rows[0].Cached)); err != nil {
		t.Fatal(err)
	}
	failed(t, []string{"mount", n.ram}, "types of this kernel are not known")
	n.same(t, "ps", "--types", file)
	failed(t, []string{"profile", n.image, "-o", file}, "--force")
	failed(t, []string{"profile", n.btf}, "build id", "-o")
}

// testOther gives files of other kernels.
func (n *noTypes) testOther(t *testing.T) {
	rows := decoded[profileRow](t, "profile", n.image)
	id := rows[0].BuildID
	b, err := os.ReadFile(n.image)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := hex.DecodeString(id)
	if err != nil || bytes.Count(b, raw) == 0 {
		t.Fatalf("build id %q is not in the file: %v", id, err)
	}
	otherID := strings.Repeat("5", len(id))
	file := filepath.Join(t.TempDir(), "other")
	other, _ := hex.DecodeString(otherID)
	if err := os.WriteFile(file, bytes.ReplaceAll(b, raw, other), 0o644); err != nil {
		t.Fatal(err)
	}
	failed(t, []string{"ps", n.ram, "--types", file}, "another kernel", id, otherID, "-dbg")
	failed(t, []string{"ps", n.ram, "--types", n.systemMap}, "--sysmap")
	failed(t, []string{"ps", n.ram, "--types", n.ram}, "not a file that tells")
	failed(t, []string{"ps", n.ram, "--sysmap", n.btf}, "tells none")
}

// wipeData takes the names of all but functions out of the memory's kallsyms, as
// if the kernel were built without CONFIG_KALLSYMS_ALL (scripts/kallsyms.c says
// how it lies there).
func (n *noTypes) wipeData(t *testing.T) {
	t.Helper()
	var names, tokens, index mem.VA
	var num uint64
	var layout string // of kallsyms, where the test does not know it
	le := binary.LittleEndian
	var table, recs, offs []byte
	err := vmscope.Look(t.Context(), n.ram, func(v *vmscope.View) error {
		if l := v.Symbols.Proof().Layout; l != ksym.BaseFirst {
			layout = l.String()
			return nil
		}
		for line := range strings.SplitSeq(v.CoreInfo(), "\n") {
			for key, at := range map[string]*mem.VA{"kallsyms_names": &names, "kallsyms_token_table": &tokens, "kallsyms_token_index": &index} {
				fmt.Sscanf(line, "SYMBOL("+key+")=%x", at)
			}
			var at mem.VA
			if k, _ := fmt.Sscanf(line, "SYMBOL(kallsyms_num_syms)=%x", &at); k == 1 {
				count, err := v.Mem.Uint(at, 4)
				if err != nil {
					return err
				}
				num = count
			}
		}
		recs, table, offs = make([]byte, tokens-names), make([]byte, 1<<14), make([]byte, 512)
		for _, x := range []struct {
			b  []byte
			at mem.VA
		}{{recs, names}, {table, tokens}, {offs, index}} {
			if _, err := v.Mem.Read(x.b, x.at); err != nil {
				return err
			}
		}
		return nil
	})
	if layout != "" {
		guestlab.Skip(t, "the test knows how to wipe kallsyms of kernels up to 6.3 only: here it has "+layout)
	}
	if err != nil || num < 1000 {
		t.Fatalf("%d symbols, %v", num, err)
	}
	at, left := 0, 0
	for range num {
		length := int(recs[at])
		at++
		if length&0x80 != 0 {
			length = length&0x7f | int(recs[at])<<7
			at++
		}
		rec := recs[at : at+length]
		if first := table[le.Uint16(offs[2*int(rec[0]):])]; !strings.ContainsRune("tTwW", rune(first)) {
			for i := range rec {
				rec[i] = 't' // which stands for itself
			}
		} else {
			left++
		}
		at += length
	}
	// The markers stay; the index by name behind them is wrong now.
	clear(recs[(at+7)&^7+4*int((num+255)/256):])
	n.write(t, n.place(t, func(*vmscope.View) (mem.VA, error) { return names, nil }), recs)
	t.Logf("%d of %d symbols are left", left, num)
}

func (n *noTypes) testSymbols(t *testing.T) {
	n.wipeData(t)
	t.Setenv("XDG_CACHE_HOME", t.TempDir()) // no profile is there
	// Of one layout: each is searched for another kernel.
	for _, line := range inferred {
		n.lessThanAll(t, line, "--layout", "q35")
	}
	n.same(t, "lsmod", "--layout", "q35", "--types", n.image)
	n.same(t, "env --pid 1", "--layout", "q35", "--types", n.image)
	n.nameless(t, "--layout", "q35", "--types", n.image)
	for _, line := range []string{"mount", "lsof", "ss", "maps --pid 1"} {
		name, rest, _ := strings.Cut(line, " ")
		failed(t, append([]string{name, n.ram, "--layout", "q35", "--types", n.image}, strings.Fields(rest)...), "lack variables", "--sysmap")
	}
	for _, flags := range [][]string{
		{"--types", n.image, "--sysmap", n.systemMap}, {"--types", n.isf},
	} {
		n.same(t, "ps", flags...)
		n.same(t, "lsmod", flags...)
	}
	n.same(t, "mount", "--types", n.image, "--sysmap", n.systemMap)
	got := n.ask(t, "sym init_task", "--sysmap", n.systemMap)
	if want, err := os.ReadFile(n.systemMap); err != nil || got.status != 0 || !strings.Contains(string(want), object(t, got.out)["addr"].(string)[2:]+" D init_task\n") {
		t.Errorf("sym: %+v", got)
	}
	// Both made ahead: the kernel states its build id in VMCOREINFO.
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	p, err := profile.Open(t.Context(), n.isf)
	if err != nil {
		t.Fatal(err)
	}
	p.BuildID = decoded[profileRow](t, "profile", n.image)[0].BuildID
	cache, err := profile.UserCache()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := cache.Store(p); err != nil {
		t.Fatal(err)
	}
	n.same(t, "ps")
	n.same(t, "lsmod")
	// A list in which the functions lie elsewhere.
	b, err := os.ReadFile(n.systemMap)
	if err != nil {
		t.Fatal(err)
	}
	var moved bytes.Buffer
	for line := range strings.Lines(string(b)) {
		var at uint64
		fmt.Sscanf(line, "%x", &at)
		if !strings.HasSuffix(line, " _stext\n") {
			at += 0x40
		}
		fmt.Fprintf(&moved, "%016x%s", at, line[16:])
	}
	file := filepath.Join(t.TempDir(), "moved")
	if err := os.WriteFile(file, moved.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
	failed(t, []string{"ps", n.ram, "--layout", "q35", "--types", n.image, "--sysmap", file}, "another kernel", "elsewhere")
}
