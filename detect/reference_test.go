package detect

import (
	"bytes"
	"errors"
	"io"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"

	"vmscope"
	"vmscope/internal/memtest"
	"vmscope/kernel/linux"
	"vmscope/mem"
)

// lookAt is a look at nothing but bytes, which lie at base.
func lookAt(base mem.VA, data []byte) *Look {
	phys := &memtest.Bytes{Base: mem.PA(base), Data: data}
	return &Look{View: &vmscope.View{View: &linux.View{Phys: phys, Mem: mem.NewSpace("kernel", phys, mem.Identity{})}}}
}

const base mem.VA = 0x10000

// pattern is n bytes of which no page equals another.
func pattern(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i*7 + i>>8)
	}
	return b
}

func TestReferenceCompare(t *testing.T) {
	data := pattern(3*mem.PageSize + 100)
	was := bytes.Clone(data)
	l, ref := lookAt(base, data), NewReference()
	ref.runs = make(map[runKey]*run)
	keys := []runKey{{Part: "text", Kind: "kernel", Name: "kernel", Start: base, Size: uint64(len(data))}}
	look := func() *run {
		t.Helper()
		runs, err := ref.compare(t.Context(), l, "text", keys)
		if err != nil || len(runs) != 1 {
			t.Fatalf("%d runs, %v", len(runs), err)
		}
		return runs[0]
	}
	m := look()
	if !m.first || m.asItWas() || !bytes.Equal(m.was, was) {
		t.Error("the first look is none")
	}
	if len(ref.runs) != 0 || ref.Grown() {
		t.Error("kept before it was inspected")
	}
	ref.keep([]*run{m})
	if !ref.Grown() {
		t.Error("nothing kept")
	}
	if m := look(); m.first || !m.asItWas() || m.fresh(0, 1) {
		t.Error("memory that is as it was deserves no look")
	}

	// Across two pages, and the last byte.
	for _, i := range []int{mem.PageSize - 1, mem.PageSize, len(data) - 1} {
		data[i] ^= 0xff
	}
	m = look()
	if m.asItWas() || !m.fresh(mem.PageSize-1, 1) || m.fresh(2*mem.PageSize, 8) || !m.fresh(3*mem.PageSize-4, 8) {
		t.Error("the wrong pages deserve a look")
	}
	var got [][2]int
	m.differences(func(from, to int) { got = append(got, [2]int{from, to}) })
	if len(got) != 2 || got[0] != [2]int{mem.PageSize - 1, mem.PageSize + 1} || got[1] != [2]int{len(data) - 1, len(data)} {
		t.Errorf("differences at %v", got)
	}
	b := make([]byte, 16)
	if n := m.at(b, mem.PageSize-8); n != 16 || !bytes.Equal(b, data[mem.PageSize-8:mem.PageSize+8]) {
		t.Errorf("now there are % x", b[:n])
	}
	if n := m.at(b, len(data)-3); n != 3 || !bytes.Equal(b[:3], data[len(data)-3:]) {
		t.Errorf("%d bytes at the end: % x", n, b[:n])
	}
	copy(data, was)
	if !look().asItWas() {
		t.Error("what was undone still differs")
	}

	// What was odd at first sight is looked at again and again.
	m.found(2*mem.PageSize + 5)
	if m := look(); m.asItWas() || !m.fresh(2*mem.PageSize, 1) || m.fresh(0, 1) {
		t.Error("what was odd is forgotten")
	}

	// A module that is gone, and one that comes to its place.
	if _, err := ref.compare(t.Context(), l, "rodata", nil); err != nil || len(ref.runs) != 1 {
		t.Errorf("another part: %v, %d runs", err, len(ref.runs))
	}
	keys[0].Load = 7
	if m := look(); !m.first {
		t.Error("another load counts as the same")
	}
	if len(ref.runs) != 1 {
		t.Error("the kernel's is gone") // a kernel does not go
	}
}

// TestReferenceGone has modules come, go and come back.
func TestReferenceGone(t *testing.T) {
	data := pattern(200 * mem.PageSize)
	l, ref := lookAt(base, data), NewReference()
	ref.runs = make(map[runKey]*run)
	look := func(keys ...runKey) []*run {
		t.Helper()
		runs, err := ref.compare(t.Context(), l, "text", keys)
		if err != nil {
			t.Fatal(err)
		}
		ref.keep(runs)
		return runs
	}
	key := func(i int, load uint64) runKey {
		return runKey{Part: "text", Kind: "module", Name: "m", Start: base + mem.VA(i*mem.PageSize), Size: mem.PageSize, Load: load}
	}
	look(key(0, 1))
	look()
	data[5] ^= 1
	if m := look(key(0, 1)); len(m) != 1 || m[0].asItWas() {
		t.Error("what was away for a moment is seen for the first time")
	}
	runs, err := ref.compare(t.Context(), l, "text", []runKey{key(0, 2)})
	if err != nil || len(runs) != 1 || !runs[0].first || len(runs[0].before) != mem.PageSize || runs[0].before[5] == runs[0].was[5] {
		t.Errorf("what was there before another load is forgotten: %v", err)
	}
	for i := range 199 {
		look(key(i, uint64(100+i)))
	}
	if n := len(ref.runs); n > maxGone+1 {
		t.Errorf("%d are kept", n)
	}
	// A module that claims everything takes nothing from the kernel.
	big := runKey{Part: "text", Kind: "module", Name: "big", Start: 0, Size: maxReference}
	own := runKey{Part: "text", Kind: "kernel", Name: "kernel", Start: base, Size: mem.PageSize}
	if runs, err := ref.compare(t.Context(), l, "text", []runKey{big, own}); !errors.Is(err, mem.ErrInconsistent) || len(runs) != 1 || runs[0].runKey != own {
		t.Errorf("%d runs, %v", len(runs), err)
	}
}

func TestReferenceBounds(t *testing.T) {
	l, ref := lookAt(base, pattern(mem.PageSize)), NewReference()
	keys := []runKey{{Part: "text", Kind: "kernel", Start: base, Size: maxReference + 1}}
	if _, err := ref.compare(t.Context(), l, "text", keys); !errors.Is(err, mem.ErrInconsistent) {
		t.Errorf("a kernel of more than %d bytes: %v", maxReference, err)
	}
	keys[0].Size = 2 * mem.PageSize
	if _, err := ref.compare(t.Context(), l, "text", keys); !errors.Is(err, mem.ErrNoRAM) {
		t.Errorf("a kernel beyond RAM: %v", err)
	}
}

func TestContinues(t *testing.T) {
	old := boot{Banner: "Linux version 6.1", Text: 0xffffffff81000000, Phys: 0x1000000, Root: 0x2000, Up: time.Hour, At: time.Unix(1e9, 0)}
	after := func(host, guest time.Duration) boot {
		b := old
		b.At, b.Up = b.At.Add(host), b.Up+guest
		return b
	}
	other := after(time.Minute, time.Minute)
	other.Text += 0x200000
	for _, c := range []struct {
		name string
		now  boot
		want bool
	}{
		{"at once", after(0, 0), true},
		{"a minute later", after(time.Minute, time.Minute), true},
		{"stopped meanwhile", after(time.Hour, time.Second), true},
		{"a clock that is a little fast", after(7*24*time.Hour, 7*24*time.Hour+time.Minute), true},
		{"booted anew", after(time.Minute, -59*time.Minute), false},
		{"ahead of the host", after(time.Minute, 2*time.Minute), false},
		{"another slide", other, false},
	} {
		if got := c.now.continues(old); got != c.want {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
	if old.continues(boot{}) {
		t.Error("goes on where nothing was")
	}
}

// saved is a reference of two runs, as a file.
func saved(t testing.TB) (*Reference, []byte) {
	t.Helper()
	r := NewReference()
	r.boot = boot{Banner: "Linux version 6.1", Text: base, Up: time.Hour, At: time.Unix(1e9, 0).UTC()}
	r.runs = make(map[runKey]*run)
	for _, k := range []runKey{
		{Part: "text", Kind: "kernel", Name: "kernel", Start: base, Size: 5000},
		{Part: "rodata", Kind: "module", Name: "\xff\"\n", Start: base + 0x10000, Size: 100, Load: 42},
	} {
		r.runs[k] = &run{runKey: k, was: pattern(int(k.Size))}
	}
	r.runs[runKey{Part: "text", Kind: "kernel", Name: "kernel", Start: base, Size: 5000}].found(4096)
	r.grown = true
	var b bytes.Buffer
	if err := r.Save(&b); err != nil {
		t.Fatal(err)
	}
	return r, b.Bytes()
}

func TestReferenceFile(t *testing.T) {
	want, file := saved(t)
	if want.Grown() {
		t.Error("grown since it was saved")
	}
	got, err := LoadReference(bytes.NewReader(file))
	if err != nil {
		t.Fatal(err)
	}
	if got.boot != want.boot || got.Name() != want.Name() || got.Grown() || len(got.runs) != 2 {
		t.Errorf("loaded %+v, want %+v", got.boot, want.boot)
	}
	for k, m := range want.runs {
		is := got.runs[k]
		if is == nil || is.runKey != k || is.first || !bytes.Equal(is.was, m.was) || is.fresh(4096, 1) != m.fresh(4096, 1) {
			t.Errorf("%+v is %+v", k, is)
		}
	}
	for i := range len(file) {
		if _, err := LoadReference(bytes.NewReader(file[:i])); err == nil {
			t.Fatalf("the first %d of %d bytes are a reference", i, len(file))
		}
	}
	if _, err := LoadReference(io.MultiReader(bytes.NewReader(file), bytes.NewReader(file))); err == nil {
		t.Error("two references are one")
	}
}

// FuzzLoadReference loads anything, and what can be loaded must be saved and
// loaded as the same.
func FuzzLoadReference(f *testing.F) {
	_, file := saved(f)
	f.Add(file)
	f.Add(plainZstd(f, `{"format":1,"runs":[{"part":"text","kind":"kernel","start":"0x1000","size":99999999,"name":"a2VybmVs"}]}`+"\nabc"))
	f.Add(plainZstd(f, `{"format":1,"runs":null}`+"\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := LoadReference(bytes.NewReader(b))
		if err != nil {
			return
		}
		for k, m := range r.runs {
			if uint64(len(m.was)) != k.Size {
				t.Errorf("%d bytes of %d", len(m.was), k.Size)
			}
		}
		var out bytes.Buffer
		if err := r.Save(&out); err != nil {
			t.Skip(err) // a year that JSON cannot write
		}
		again, err := LoadReference(&out)
		if err != nil || len(again.runs) != len(r.runs) || again.Name() != r.Name() {
			t.Errorf("saved and loaded: %v", err)
		}
	})
}

func plainZstd(tb testing.TB, s string) []byte {
	tb.Helper()
	var b bytes.Buffer
	z, err := zstd.NewWriter(&b)
	if err != nil {
		tb.Fatal(err)
	}
	if _, err := io.WriteString(z, s); err != nil {
		tb.Fatal(err)
	}
	if err := z.Close(); err != nil {
		tb.Fatal(err)
	}
	return b.Bytes()
}
