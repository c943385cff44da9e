package profile

import (
	"debug/elf"
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"vmscope/ctype"
	"vmscope/internal/guestlab"
)

// compile makes a small kernel with debug information.
func compile(t testing.TB, flags ...string) string {
	t.Helper()
	gcc, err := exec.LookPath("gcc")
	if err != nil {
		guestlab.SkipOrFail(t, "gcc is not installed")
	}
	out := filepath.Join(t.TempDir(), "vmlinux")
	args := append([]string{"-O0", "-nostdlib", "-static", "-fno-pie", "-no-pie", "-Wl,-e,0", "-Wl,--build-id=0x0123456789abcdef0123456789abcdef", "-o", out}, flags...)
	if msg, err := exec.Command(gcc, append(args, "testdata/kernel.c", "testdata/other.c")...).CombinedOutput(); err != nil {
		t.Fatalf("gcc: %v: %s", err, msg)
	}
	return out
}

// wanted reads what the compiler says of places.
func wanted(t *testing.T, path string) []uint64 {
	t.Helper()
	f, err := elf.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	syms, err := f.Symbols()
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range syms {
		if s.Name != "want" {
			continue
		}
		sec := f.Sections[s.Section]
		b := make([]byte, s.Size)
		if _, err := sec.ReadAt(b, int64(s.Value-sec.Addr)); err != nil {
			t.Fatal(err)
		}
		out := make([]uint64, len(b)/8)
		for i := range out {
			out[i] = binary.LittleEndian.Uint64(b[8*i:])
		}
		return out
	}
	t.Fatal("no symbol want")
	return nil
}

// TestDWARF compares the types of a compiled file with what the compiler says of
// them, for each version of DWARF.
func TestDWARF(t *testing.T) {
	for _, flags := range [][]string{
		{"-gdwarf-2", "-gstrict-dwarf"}, {"-gdwarf-3", "-gstrict-dwarf"}, {"-gdwarf-4"}, {"-gdwarf-5"}, {"-gdwarf-5", "-gz=zlib"},
	} {
		t.Run(fmt.Sprint(flags), func(t *testing.T) {
			path := compile(t, flags...)
			p, err := Open(t.Context(), path)
			if err != nil {
				t.Fatal(err)
			}
			if p.Format != "DWARF" || p.BuildID != "0123456789abcdef0123456789abcdef" || p.Banner != "Linux version 0.0.1-small (nobody@nowhere) #1" {
				t.Errorf("%s, build id %s, %q", p.Format, p.BuildID, p.Banner)
			}
			checkSmall(t, p.Types, wanted(t, path))
			checkBits(t, p, path)
		})
	}
}

// checkSmall compares places.
func checkSmall(t *testing.T, types *ctype.Types, want []uint64) {
	t.Helper()
	task := lookup(t, types, "task_struct")
	got := []uint64{task.Size(), lookup(t, types, "packed").Size(), lookup(t, types, "union value").Size()}
	for _, path := range []string{
		"state", "tasks", "tasks.prev", "name", "comm", "grid", "grid[2][4]", "low", "high", "value",
		"point.y", "flag", "exit", "big", "other", "get", "load", "packed", "packed.word", "packed.s", "rest",
	} {
		off, err := task.Offset(path)
		if err != nil {
			t.Error(err)
		}
		got = append(got, off)
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("places\n %v, the compiler has\n %v", got, want)
	}
	for path, want := range map[string]string{
		"state": "volatile long int", "name": "const char * const", "comm": "char [16]", "grid": "int [3][5]", "flag": "_Bool",
		"exit": "enum state", "other": "struct elsewhere *", "point.x": "s8", "first": "u32", "load": "double", "rest": "char [0]",
		"get": "struct task_struct * (*)(struct task_struct *, int, ...)", "low": "u32", "tasks.next": "struct list_head *",
	} {
		if m, err := task.Member(path); err != nil || m.Type.String() != want {
			t.Errorf("%s is %v, %v; want %s", path, m.Type, err, want)
		}
	}
	for name, want := range map[string]int64{"RUNNING": 0, "STOPPED": 4, "DEAD": -1, "HUGE_VALUE": 1 << 40} {
		if v, err := types.Enum(name); err != nil || v != want {
			t.Errorf("%s is %d, %v", name, v, err)
		}
	}
	other, err := task.Member("other")
	if err != nil {
		t.Fatal(err)
	}
	// Only declared where the task is, defined in the other unit.
	if f, err := other.Type.Elem().Member("list.prev"); err != nil || f.Offset != 16 {
		t.Errorf("elsewhere.list.prev at %d, %v", f.Offset, err)
	}
	n := 0
	for typ := range types.All() {
		if typ.Name() == "list_head" {
			n++
		}
	}
	if n != 1 {
		t.Errorf("list_head is there %d times", n)
	}
}

// checkBits reads bit-fields where the types have them, in the file.
func checkBits(t *testing.T, p *Profile, path string) {
	t.Helper()
	f, err := elf.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	s, err := p.Symbols.Lookup("init_task")
	if err != nil {
		t.Fatal(err)
	}
	sec := f.Section(".data")
	b := make([]byte, s.Size+8)
	if n, err := sec.ReadAt(b, int64(uint64(s.Addr)-sec.Addr)); n < int(s.Size) {
		t.Fatal(err)
	}
	task := lookup(t, p.Types, "task_struct")
	for name, want := range map[string]uint64{"first": 5, "second": 0x55, "third": 0xabcd, "wide": 0x123456789a} {
		m, err := task.Member(name)
		if err != nil {
			t.Error(err)
			continue
		}
		got := binary.LittleEndian.Uint64(b[m.Offset:]) >> m.BitOffset & (1<<m.BitSize - 1)
		if m.BitSize == 0 || got != want {
			t.Errorf("%s at %d, bit %d, %d bits: %#x, want %#x", name, m.Offset, m.BitOffset, m.BitSize, got, want)
		}
	}
}

func lookup(t testing.TB, types *ctype.Types, name string) ctype.Type {
	t.Helper()
	typ, err := types.Lookup(name)
	if err != nil {
		t.Fatal(err)
	}
	return typ
}

// TestDebian reads the vmlinux of a distribution, if there is one: of Debian's
// linux-image-*-dbg, for example. Its DWARF and its BTF, which pahole made of it,
// must agree.
func TestDebian(t *testing.T) {
	path := os.Getenv("VMSCOPE_VMLINUX")
	if path == "" {
		t.Skip("VMSCOPE_VMLINUX names no vmlinux with DWARF and BTF: 600 MB, 10 s")
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	want, err := Open(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	file, err := elf.NewFile(f)
	if err != nil {
		t.Fatal(err)
	}
	blob, err := (&elfFile{file}).dwarf(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	got, err := ctype.Parse(blob)
	if err != nil {
		t.Fatal(err)
	}
	n, bad := 0, 0
	for typ := range want.Types.All() {
		if k := typ.Kind(); k != ctype.Struct || typ.Name() == "" || lookup(t, want.Types, "struct "+typ.Name()) != typ {
			continue
		}
		other, err := got.Lookup("struct " + typ.Name())
		n++
		same := err == nil && other.Size() == typ.Size()
		for m := range typ.Members() {
			if !same || m.Name == "" {
				break
			}
			f, err := other.Member(m.Name)
			same = err == nil && f.Offset == m.Offset && f.BitOffset == m.BitOffset && f.BitSize == m.BitSize && f.Size() == m.Size()
		}
		if !same {
			if bad++; bad < 20 {
				t.Logf("%v, of %d bytes: %v, %d bytes", typ, typ.Size(), err, other.Size())
			}
		}
	}
	t.Logf("%d structs, %d differ: several of one name, or in the scope of a function", n, bad)
	if n < 5000 || bad > n/200 {
		t.Errorf("%d of %d structs differ", bad, n)
	}
}
