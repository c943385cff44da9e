package profile

import (
	"bytes"
	"compress/gzip"
	"compress/zlib"
	"debug/elf"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
	"golang.org/x/sys/unix"

	"vmscope/ctype"
	"vmscope/internal/guestlab/isf"
	"vmscope/ksym"
)

// stockBTF is the BTF of Debian's 6.1 cloud kernel.
func stockBTF(t testing.TB) []byte {
	t.Helper()
	b, err := os.ReadFile("../../../ctype/testdata/bookworm-cloud-vmlinux.btf.zst")
	if err != nil {
		t.Fatal(err)
	}
	if b, err = unpack(b, zstdReader); err != nil {
		t.Fatal(err)
	}
	return b
}

// smallBTF is a BTF that is told for a kernel's.
func smallBTF(t testing.TB) []byte {
	t.Helper()
	b := ctype.NewBuilder()
	long := b.Int("long int", 8, ctype.Signed)
	task := b.Reserve(ctype.Struct, "task_struct", 32)
	b.Define(task, []ctype.NewMember{
		{Name: "state", Type: long}, {Name: "bits", Type: long, Offset: 64, BitSize: 3},
		{Name: "parent", Type: b.To(ctype.Pointer, task), Offset: 128},
		{Type: b.Anonymous(ctype.Union, 8, []ctype.NewMember{{Name: "a", Type: long}, {Name: "b", Type: b.Array(b.Int("char", 1, ctype.Signed), 8)}}), Offset: 192},
	})
	b.Enum("state", 4, true, []ctype.NewValue{{Name: "DEAD", Value: -1}, {Name: "ALIVE", Value: 1}})
	blob, err := b.Blob()
	if err != nil {
		t.Fatal(err)
	}
	return blob
}

const smallBanner = "Linux version 6.6.6 (nobody@nowhere) #1 SMP"

var smallSymbols = []isf.Symbol{
	{Name: "_stext", Addr: 0xffffffff81000000}, {Name: "linux_banner", Addr: 0xffffffff82000040}, {Name: "init_task", Addr: 0xffffffff82a00000},
}

const smallMap = `0000000000000000 A fixed_percpu_data
ffffffff81000000 T _stext
ffffffff81000010 t helper
ffffffff82000040 R linux_banner
ffffffff82a00000 D init_task
ffffffff83000000 b zeroed
`

func smallISF(t testing.TB) []byte {
	t.Helper()
	b, err := isf.Write(smallBTF(t), smallSymbols, smallBanner)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestISFKernel compares all structs of a real kernel that another reader wrote
// as Volatility's with what they are by the kernel's BTF.
func TestISFKernel(t *testing.T) {
	blob := stockBTF(t)
	text, err := isf.Write(blob, smallSymbols, smallBanner)
	if err != nil {
		t.Fatal(err)
	}
	p, err := Parse(t.Context(), text)
	if err != nil {
		t.Fatal(err)
	}
	if p.Format != "Volatility symbols" || p.Banner != smallBanner || p.BuildID != "" || p.Symbols.Len() != 3 || p.Types.PtrSize() != 8 {
		t.Errorf("%s, banner %q, id %q, %d symbols, pointers of %d", p.Format, p.Banner, p.BuildID, p.Symbols.Len(), p.Types.PtrSize())
	}
	want, err := ctype.Parse(blob)
	if err != nil {
		t.Fatal(err)
	}
	structs, members, bits := 0, 0, 0
	for typ := range want.All() {
		if k := typ.Kind(); k != ctype.Struct && k != ctype.Union || typ.Name() == "" || lookup(t, want, typ.String()) != typ {
			continue
		}
		got, err := p.Types.Lookup(typ.Name())
		if other, _ := want.Lookup(typ.Name()); other != typ {
			continue // a union by the name of a struct: Volatility's have but one
		}
		if err != nil || got.Size() != typ.Size() {
			t.Errorf("%v: %d bytes, want %d: %v", typ, got.Size(), typ.Size(), err)
			continue
		}
		structs++
		for m := range typ.Members() {
			if m.Name == "" {
				continue
			}
			f, err := got.Member(m.Name)
			if m.BitSize != 0 {
				if bits++; !errors.Is(err, ctype.ErrNoMember) {
					t.Errorf("%v.%s: a bit-field was taken", typ, m.Name)
				}
				continue
			}
			if members++; err != nil || f.Offset != m.Offset || f.Size() != m.Size() || signOf(f.Type) != signOf(m.Type) || f.Type.IsChar() != m.Type.IsChar() {
				t.Errorf("%v.%s: at %d, %d bytes, want at %d, %d: %v", typ, m.Name, f.Offset, f.Size(), m.Offset, m.Size(), err)
			}
		}
	}
	if structs < 5000 || members < 40000 || bits < 1000 {
		t.Errorf("only %d structs, %d members, %d bit-fields", structs, members, bits)
	}
	if v, err := p.Types.Enum("MODULE_STATE_GOING"); err != nil || v != 2 {
		t.Errorf("MODULE_STATE_GOING is %d, %v", v, err)
	}
	// Through a struct without a name.
	for _, path := range []string{"task_struct.rcu_users", "mm_struct.pgd", "dentry.d_u"} {
		name, member, _ := strings.Cut(path, ".")
		f, err := lookup(t, p.Types, name).Member(member)
		if w, werr := lookup(t, want, name).Member(member); err != nil || werr != nil || f.Offset != w.Offset {
			t.Errorf("%s at %d, %v; want %d, %v", path, f.Offset, err, w.Offset, werr)
		}
	}
}

// signOf is the sign of an integer. Of enumerations the fixture does not tell it.
func signOf(t ctype.Type) bool { return t.Underlying().Kind() == ctype.Int && t.Signed() }

// TestPacked reads the same file packed in each way.
func TestPacked(t *testing.T) {
	text := smallISF(t)
	pack := func(f func(w io.Writer) io.WriteCloser) []byte {
		var b bytes.Buffer
		w := f(&b)
		if _, err := w.Write(text); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}
	packed := map[string][]byte{
		"none": text,
		"gzip": pack(func(w io.Writer) io.WriteCloser { return gzip.NewWriter(w) }),
		"zstd": pack(func(w io.Writer) io.WriteCloser { z, _ := zstd.NewWriter(w); return z }),
		"xz":   pack(func(w io.Writer) io.WriteCloser { x, _ := xz.NewWriter(w); return x }),
	}
	if path, err := exec.LookPath("xz"); err == nil { // with the check sums of the real tool
		c := exec.Command(path, "-c")
		c.Stdin = bytes.NewReader(text)
		if packed["xz's"], err = c.Output(); err != nil {
			t.Fatal(err)
		}
	}
	for name, b := range packed {
		p, err := Parse(t.Context(), b)
		if err != nil || p.Banner != smallBanner {
			t.Errorf("%s: %v", name, err)
		}
		if name == "none" {
			continue
		}
		if _, err := Parse(t.Context(), b[:len(b)/2]); !errors.Is(err, ErrFormat) {
			t.Errorf("%s, cut: %v", name, err)
		}
	}
	text = packed["gzip"]
	if _, err := Parse(t.Context(), pack(func(w io.Writer) io.WriteCloser { return gzip.NewWriter(w) })); !errors.Is(err, ErrFormat) {
		t.Errorf("packed twice: %v", err)
	}
}

// TestWrite writes what was read of each kind of file and reads it again.
func TestWrite(t *testing.T) {
	for name, b := range map[string][]byte{"ISF": smallISF(t), "BTF": smallBTF(t)} {
		p, err := Parse(t.Context(), b)
		if err != nil {
			t.Fatal(err)
		}
		checkWritten(t, name, p)
	}
	p, err := Open(t.Context(), compile(t, "-gdwarf-5"))
	if err != nil {
		t.Fatal(err)
	}
	checkWritten(t, "DWARF", p)
}

func checkWritten(t *testing.T, name string, p *Profile) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "profile")
	if err := p.WriteFile(path); err != nil {
		t.Fatal(err)
	}
	q, err := Open(t.Context(), path)
	if err != nil {
		t.Errorf("%s: %v", name, err)
		return
	}
	if q.BuildID != p.BuildID || q.Banner != p.Banner || !bytes.Equal(q.btf, p.btf) || q.Format != "BTF" || q.machine != p.machine {
		t.Errorf("%s: build id %q, want %q; banner %q, want %q; %s", name, q.BuildID, p.BuildID, q.Banner, p.Banner, q.Format)
	}
	if p.Symbols == nil {
		if q.Symbols != nil && q.Symbols.Len() > 0 {
			t.Errorf("%s: %d symbols from nowhere", name, q.Symbols.Len())
		}
		return
	}
	n := 0
	for s := range p.Symbols.All() {
		n++
		got := q.Symbols.LookupAll(s.Name)
		ok := false
		for _, g := range got {
			ok = ok || g.Addr == s.Addr && g.Size == s.Size && (g.Type == s.Type || s.Type == '?' || s.Type|0x20 == 'w') && g.Absolute == s.Absolute
		}
		if !ok {
			t.Errorf("%s: %+v became %+v", name, s, got)
		}
	}
	if q.Symbols.Len() != n {
		t.Errorf("%s: %d symbols became %d", name, n, q.Symbols.Len())
	}
	// Other readers of ELF find it sound.
	if nm, err := exec.LookPath("nm"); err == nil {
		out, err := exec.Command(nm, path).CombinedOutput()
		if err != nil {
			t.Fatalf("%s: nm: %v: %s", name, err, out)
		}
		l, err := ksym.ParseSystemMap(bytes.NewReader(out))
		if err != nil || l.Len() != n {
			t.Errorf("%s: nm has %d symbols, want %d: %v", name, l.Len(), n, err)
		}
	}
	if readelf, err := exec.LookPath("readelf"); err == nil {
		if out, err := exec.Command(readelf, "--wide", "--sections", "--notes", "--symbols", path).CombinedOutput(); err != nil || bytes.Contains(out, []byte("arning")) {
			t.Errorf("%s: readelf: %v: %s", name, err, out)
		}
	}
	if pahole, err := exec.LookPath("pahole"); err == nil {
		out, err := exec.Command(pahole, "-C", "task_struct", "-F", "btf", path).CombinedOutput()
		if err != nil || !bytes.Contains(out, []byte("struct task_struct {")) {
			t.Errorf("%s: pahole: %v: %s", name, err, out)
		}
	}
}

func TestSystemMap(t *testing.T) {
	p, err := Parse(t.Context(), []byte(smallMap))
	if err != nil || p.Format != "System.map" || p.Types != nil || p.Symbols.Len() != 6 {
		t.Fatalf("%+v, %v", p, err)
	}
}

// TestRefused says of each file that is none what it is instead.
func TestRefused(t *testing.T) {
	vmlinuz := make([]byte, 0x400)
	copy(vmlinuz[0x202:], "HdrS")
	big := bytes.Clone(smallBTF(t))
	big[0], big[1] = big[1], big[0]
	object := filepath.Join(t.TempDir(), "x.o")
	if gcc, err := exec.LookPath("gcc"); err == nil {
		if msg, err := exec.Command(gcc, "-g", "-c", "-o", object, "testdata/other.c").CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, msg)
		}
	}
	module, _ := os.ReadFile(object)
	stripped, _ := os.ReadFile(compile(t, "-s"))
	noTask := ctype.NewBuilder()
	noTask.Int("int", 4, ctype.Signed)
	other, err := noTask.Blob()
	if err != nil {
		t.Fatal(err)
	}
	for _, x := range []struct {
		name string
		b    []byte
		say  string
	}{
		{"empty", nil, "no vmlinux"},
		{"text", []byte("hello\nworld\n"), `"hello\nworld\n"`},
		{"vmlinuz", vmlinuz, "extract-vmlinux"},
		{"Debian's System.map", []byte("ffffffffffffffff B The real System.map is in the linux-image-6.1.0-50-amd64-dbg package\n"), "linux-image-6.1.0-50-amd64-dbg"},
		{"big-endian BTF", big, "big-endian"},
		{"BTF of something else", other, "task_struct"},
		{"JSON", []byte(`{"a": 1}`), "neither user_types nor symbols"},
		{"JSON, cut", smallISF(t)[:300], "Volatility"},
		{"JSON of the wrong shape", []byte(`{"user_types": [1]}`), "Volatility"},
		{"ELF, cut", stripped[:100], ""},
		{"stripped", stripped, "neither DWARF, BTF nor symbols"},
		{"object file", module, "module"},
		{"BTF, cut", smallBTF(t)[:40], "BTF"},
	} {
		p, err := Parse(t.Context(), x.b)
		if p != nil || !errors.Is(err, ErrFormat) || !strings.Contains(err.Error(), x.say) {
			t.Errorf("%s: %v, want a word of %q", x.name, err, x.say)
		}
	}
	if _, err := Open(t.Context(), t.TempDir()); !errors.Is(err, ErrFormat) {
		t.Errorf("a directory: %v", err)
	}
	if _, err := Open(t.Context(), "/nonexistent"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
}

func TestCache(t *testing.T) {
	c := Cache{filepath.Join(t.TempDir(), "a", "b")}
	p, err := Open(t.Context(), compile(t, "-gdwarf-5"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Load(t.Context(), p.BuildID); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("nothing kept: %v", err)
	}
	for range 2 {
		path, err := c.Store(p)
		if err != nil || filepath.Dir(path) != c.Dir {
			t.Fatalf("%q, %v", path, err)
		}
	}
	q, err := c.Load(t.Context(), p.BuildID)
	if err != nil || q.Types.Len() != p.Types.Len() {
		t.Errorf("%v", err)
	}
	if list, err := os.ReadDir(c.Dir); err != nil || len(list) != 1 {
		t.Errorf("%v in the cache, %v", list, err)
	}
	// What a guest says its build id is.
	for _, id := range []string{"", "../../../../etc/passwd", "ABCDEF0123456789", "0123", strings.Repeat("a", 200), "0123456789abcde/"} {
		if q, err := c.Load(t.Context(), id); q != nil || err == nil || errors.Is(err, os.ErrNotExist) {
			t.Errorf("id %q: %v", id, err)
		}
	}
	// A file that bears another's name.
	id := strings.Repeat("5", 32)
	if err := p.WriteFile(filepath.Join(c.Dir, id)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Load(t.Context(), id); !errors.Is(err, ErrFormat) {
		t.Errorf("of another kernel: %v", err)
	}
	if p, err = Parse(t.Context(), smallBTF(t)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Store(p); !errors.Is(err, ErrNoBuildID) {
		t.Errorf("without a build id: %v", err)
	}
}

// TestNoFile: what is no regular file is refused, and a pipe not waited for.
func TestNoFile(t *testing.T) {
	pipe := filepath.Join(t.TempDir(), "pipe")
	if err := unix.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{pipe, filepath.Dir(pipe), "/dev/zero"} {
		if _, err := Open(t.Context(), name); !errors.Is(err, ErrFormat) || !strings.Contains(err.Error(), "no regular file") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestLargeWhenUnpacked: debug information that would be too large is not unpacked to find that out.
func TestLargeWhenUnpacked(t *testing.T) {
	var bomb bytes.Buffer
	bomb.WriteString("ZLIB")
	bomb.Write([]byte{0, 0, 0, 2, 0, 0, 0, 0}) // 8 GiB
	z := zlib.NewWriter(&bomb)
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	w := &elfWriter{}
	w.section(".zdebug_info", elf.SHT_PROGBITS, 0, 0, bomb.Bytes())
	var file bytes.Buffer
	if err := w.write(&file); err != nil {
		t.Fatal(err)
	}
	if _, err := Parse(t.Context(), file.Bytes()); !errors.Is(err, ErrFormat) || !strings.Contains(err.Error(), "4096 MiB of debug information") {
		t.Error(err)
	}
}
