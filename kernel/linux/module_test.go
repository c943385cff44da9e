package linux

import (
	"errors"
	"reflect"
	"strings"
	"testing"

	"vmscope/internal/memtest"
	"vmscope/kernel"
	"vmscope/ksym"
	"vmscope/mem"
)

func TestTaintLetters(t *testing.T) {
	for _, c := range []struct {
		bits uint64
		want string
	}{
		{0, ""}, {1 << 0, "P"}, {1 << 12, "O"}, {1<<12 | 1<<13, "OE"}, {1<<0 | 1<<1 | 1<<10 | 1<<15 | 1<<16 | 1<<17 | 1<<18, "PFCKXTN"},
		{1<<2 | 1<<7 | 1<<9, ""}, // of the kernel, not of a module
	} {
		if got := taintLetters(c.bits); got != c.want {
			t.Errorf("%#x is %q, want %q", c.bits, got, c.want)
		}
	}
}

// module makes a module that nobody uses.
func (w *world) module(name string, state, refs uint64) mem.VA {
	l := layoutOf[moduleLayout](w)
	m := w.alloc(1024)
	w.bytes(l.Name.At(m), name+"\x00")
	w.put(m, l.State, state)
	w.put(m, l.Refs, refs)
	w.put(m, l.Taints, 1<<12|1<<13)
	w.put(l.Core.At(m), l.Base, 0xffffffffc0000000)
	w.put(l.Core.At(m), l.Size, 0x4000)
	w.list(l.Users.At(m))
	return m
}

func TestModule(t *testing.T) {
	w := newWorld(t)
	l := layoutOf[moduleLayout](w)
	user := w.alloc(1024)
	w.bytes(l.Name.At(user), "bridge\x00")
	make := w.module
	r, err := w.v.moduleReader()
	if err != nil {
		t.Fatal(err)
	}

	m := make("llc", l.Live, 3)
	use := w.alloc(64)
	w.put(use, l.Source, uint64(user))
	w.list(l.Users.At(m), l.User.At(use))
	got, err := r.module(m)
	want := kernel.Module{Name: "llc", Size: 0x4000, Base: 0xffffffffc0000000, Refs: 2, UsedBy: []kernel.Text{"bridge"}, State: "Live", Taint: "OE", Addr: m,
		Parts: []kernel.Region{{Name: "core", Start: 0xffffffffc0000000, Size: 0x4000}}}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, %v\nwant %+v", got, err, want)
	}

	m = make("starting", l.Coming, 1)
	w.put(m, l.Init, 0x1234)
	w.put(l.CoreInit.At(m), l.Base, 0xffffffffc1000000)
	w.put(l.CoreInit.At(m), l.Size, 0x1000)
	if got, err := r.module(m); err != nil || got.State != "Loading" || got.Size != 0x5000 || len(got.Parts) != 2 || !got.Permanent || got.Refs != 0 {
		t.Errorf("got %+v, %v", got, err)
	}
	if got, err := r.module(make("ending", l.Going, 0)); err != nil || got.State != "Unloading" || got.Refs != -1 {
		t.Errorf("got %+v, %v", got, err)
	}
	for name, m := range map[string]mem.VA{"state": make("x", 77, 1), "name": make("", l.Live, 1)} {
		if _, err := r.module(m); !errors.Is(err, mem.ErrInconsistent) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestSymtab(t *testing.T) {
	w := newWorld(t)
	syms, names, types := w.alloc(240), w.alloc(64), w.alloc(16)
	w.bytes(names, "\x00first\x00second\x00")
	w.bytes(types, " tD")
	for i, s := range []struct{ name, value uint64 }{{0, 0}, {1, 0xffffffffc0001000}, {7, 0xffffffffc0002000}} {
		at := syms + mem.VA(24*i)
		w.put64(at, s.name|3<<48) // in section 3
		w.put64(at+8, s.value)
		w.put64(at+16, 16)
	}
	list, err := w.v.readSymtab("m", syms, 3, names, types)
	if err != nil {
		t.Fatal(err)
	}
	s, err := list.Lookup("second")
	if err != nil || s.Addr != 0xffffffffc0002000 || s.Type != 'D' || list.Len() != 2 {
		t.Errorf("got %+v, %v, %d symbols", s, err, list.Len())
	}
	for name, f := range map[string]func() (*ksym.List, error){
		"too many": func() (*ksym.List, error) { return w.v.readSymtab("m", syms, 1<<40, names, types) },
		"far name": func() (*ksym.List, error) {
			w.put64(syms, 0xffffffff)
			return w.v.readSymtab("m", syms, 3, names, types)
		},
		"no memory": func() (*ksym.List, error) { return w.v.readSymtab("m", 1<<40, 3, names, types) },
	} {
		if _, err := f(); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestSplitName(t *testing.T) {
	for _, c := range []struct{ in, module, name string }{
		{"init_task", "", "init_task"}, {"ext4_fill_super [ext4]", "ext4", "ext4_fill_super"}, {"ext4:ext4_fill_super", "ext4", "ext4_fill_super"},
		{"a::b", "", "a::b"}, {"x [y", "", "x [y"},
	} {
		if m, n := splitName(c.in); m != c.module || n != c.name {
			t.Errorf("%q is %q in %q", c.in, n, m)
		}
	}
}

// FuzzModules walks a list of modules that answers as the fuzzer likes.
func FuzzModules(f *testing.F) {
	list := func(v *View) (mods []kernel.Module, err error) {
		r, err := v.moduleReader()
		if err != nil {
			return nil, err
		}
		err = v.List(0x100, func(node mem.VA) error {
			m, err := r.module(node - mem.VA(r.l.List.Offset))
			if err == nil {
				mods = append(mods, m)
			}
			return err
		})
		return mods, err
	}
	w := newWorld(f)
	l := layoutOf[moduleLayout](w)
	one, two, use := w.module("one", l.Live, 2), w.module("two", l.Coming, 1), w.alloc(64)
	w.list(0x100, l.List.At(one), l.List.At(two))
	w.put(use, l.Source, uint64(two))
	w.list(l.Users.At(one), l.User.At(use))
	f.Add([]byte{})
	f.Add(w.answers(func(v *View) {
		if mods, err := list(v); err != nil || len(mods) != 2 {
			f.Fatal(mods, err)
		}
	}))
	f.Fuzz(func(t *testing.T, in []byte) {
		s := &memtest.Script{Answers: in}
		mods, err := list(viewOf(w.v.Kernel, s))
		if err == nil && len(in) == 0 || s.Reads > len(in)+4 {
			t.Errorf("%d reads of %d bytes, %v", s.Reads, len(in), err)
		}
		for _, m := range mods {
			if m.Name == "" || m.State == "" || strings.Contains(string(m.Name), "\x00") {
				t.Errorf("%+v", m)
			}
		}
	})
}

// FuzzSymtab reads a module's symbols.
func FuzzSymtab(f *testing.F) {
	w := newWorld(f)
	for i := range uint64(3) {
		w.put64(0x1000+mem.VA(24*i), 1+2*i|3<<48)
		w.put64(0x1008+mem.VA(24*i), 0xffffffffc0000000+i)
	}
	w.bytes(0x2000, "\x00a\x00b\x00c\x00")
	w.bytes(0x3000, "tdr")
	f.Add(uint64(3), w.answers(func(v *View) {
		if list, err := v.readSymtab("m", 0x1000, 3, 0x2000, 0x3000); err != nil || list.Len() != 3 {
			f.Fatal(list, err)
		}
	}))
	f.Fuzz(func(t *testing.T, n uint64, in []byte) {
		s := &memtest.Script{Answers: in}
		list, err := viewOf(w.v.Kernel, s).readSymtab("m", 0x1000, n, 0x2000, 0x3000)
		if (list == nil) != (err != nil) {
			t.Errorf("%v, %v", list, err)
		}
		if list != nil && list.Len() > len(in)/symSize {
			t.Errorf("%d symbols in %d bytes", list.Len(), len(in))
		}
	})
}
