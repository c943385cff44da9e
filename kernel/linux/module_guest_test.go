package linux_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"sort"
	"strings"
	"testing"
	"time"

	"vmscope/ctype"
	"vmscope/internal/guestlab"
	"vmscope/kernel"
	"vmscope/kernel/linux"
	"vmscope/ksym"
	"vmscope/mem"
)

// moduleLine is a module in the words of /proc/modules.
func moduleLine(m kernel.Module) string {
	users := ""
	for _, u := range m.UsedBy {
		users += string(u) + ","
	}
	if m.Permanent {
		users += "[permanent],"
	}
	taint := m.Taint
	switch m.State {
	case "Loading":
		taint += "+"
	case "Unloading":
		taint += "-"
	}
	return fmt.Sprintf("%s %d %d %s %s %#x %s", m.Name, m.Size, m.Refs, users, m.State, uint64(m.Base), taint)
}

func (s *state) testModules(t *testing.T) {
	want, err := s.g.Modules(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for _, m := range want {
		users := ""
		for _, u := range m.UsedBy {
			users += u + ","
		}
		lines = append(lines, fmt.Sprintf("%s %d %d %s %s %#x %s", m.Name, m.Size, m.Refs, users, m.State, m.Addr, m.Taint))
	}
	s.view(t, func(v *linux.View) {
		mods, err := v.Modules()
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for i, m := range mods {
			got = append(got, moduleLine(m))
			if i >= len(want) {
				continue
			}
			// Every section that stayed lies in a part.
			for name, at := range want[i].Sections {
				if name == ".symtab" || name == ".strtab" {
					continue // these are of the time of its start
				}
				in := slices.ContainsFunc(m.Parts, func(p kernel.Region) bool { return mem.VA(at)-p.Start <= mem.VA(p.Size) })
				if !in && !strings.Contains(name, ".init") && !strings.Contains(name, "alloc_tags") && name != ".data..percpu" {
					t.Errorf("%s: section %s at %#x lies in no part of %+v", m.Name, name, at, m.Parts)
				}
			}
		}
		if !slices.Equal(got, lines) {
			t.Errorf("got\n%s\nthe guest says\n%s", strings.Join(got, "\n"), strings.Join(lines, "\n"))
		}
		if len(mods) == 0 {
			t.Error("no modules")
		}
		t.Logf("%d modules", len(mods))
	})
}

func (s *state) testModuleSymbols(t *testing.T) {
	all, err := s.g.Kallsyms(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	want := make(map[string][]string)
	for _, k := range all {
		if k.Module != "" {
			want[k.Module] = append(want[k.Module], fmt.Sprintf("%#x %c %s", k.Addr, k.Type|0x20, k.Name))
		}
	}
	s.view(t, func(v *linux.View) {
		mods, err := v.Modules()
		if err != nil {
			t.Fatal(err)
		}
		r, err := v.Resolver()
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		for _, m := range mods {
			list, err := v.ModuleSymbols(m)
			if err != nil {
				t.Error(err)
				continue
			}
			var got []string
			text := m.Parts[0]
			for sym := range list.All() {
				got = append(got, fmt.Sprintf("%#x %c %s", uint64(sym.Addr), sym.Type|0x20, sym.Name))
				if n%16 == 0 && sym.Addr-text.Start < mem.VA(text.Size) && sym.Size > 1 && sym.Type|0x20 == 't' {
					near, off, err := r.Nearest(sym.Addr + 1)
					if err != nil || near.Addr != sym.Addr || off != 1 || near.Module != m.Name {
						t.Errorf("nearest to %s+1 is %v+%d, %v", sym.Name, near, off, err)
					}
				}
				n++
			}
			sort.Strings(got)
			sort.Strings(want[string(m.Name)])
			if !slices.Equal(got, want[string(m.Name)]) {
				t.Errorf("%s: %d symbols, the guest says %d\n%v\n%v", m.Name, len(got), len(want[string(m.Name)]), got, want[string(m.Name)])
			}
		}
		t.Logf("%d symbols in %d modules", n, len(mods))
		m := string(mods[0].Name)
		names := []string{"init_task"}
		variables := slices.ContainsFunc(all, func(k guestlab.Symbol) bool { return k.Name == "__this_module" })
		if variables { // else kallsyms lists functions only
			names = append(names, "__this_module ["+m+"]", m+":__this_module")
		}
		for _, name := range names {
			sym, err := v.LookupSymbol(name)
			if err != nil {
				t.Error(err)
			}
			if sym.Module != "" && (string(sym.Module) != m || sym.Addr != mods[0].Addr) {
				t.Errorf("%q is %v at %#x, the module lies at %#x", name, sym, uint64(sym.Addr), uint64(mods[0].Addr))
			}
		}
		// Of several of one name none is taken, and all are told.
		same := make(map[string][]mem.VA)
		for _, k := range all {
			if k.Module == "" && !slices.Contains(same[k.Name], mem.VA(k.Addr)) {
				same[k.Name] = append(same[k.Name], mem.VA(k.Addr))
			}
		}
		var several *ksym.AmbiguousError
		tried := 0
		for name, want := range same {
			if len(want) < 2 || tried == 100 {
				continue
			}
			tried++
			slices.Sort(want)
			_, err := v.LookupSymbol(name)
			if _, serr := v.Symbol(name); !errors.As(serr, &several) || !errors.As(err, &several) || !slices.Equal(several.Addrs, want) {
				t.Errorf("%s is at %#x by the guest: %v; %v", name, want, err, serr)
			}
		}
		if tried == 0 {
			t.Error("no two symbols of the kernel bear one name")
		}
		if _, err := v.LookupSymbol("__this_module"); variables && len(mods) > 1 && (!errors.As(err, &several) || len(several.Addrs) != len(mods)) {
			t.Errorf("which __this_module of %d: %v", len(mods), err)
		}
		near, off, err := v.Nearest(s.k.Text + 1)
		if err != nil || near.Module != "" || off != 1 {
			t.Errorf("nearest to _stext+1: %v+%d, %v", near, off, err)
		}
	})
}

// testModuleTypes compares the types of modules with those that the guest gives
// in /sys/kernel/btf.
func (s *state) testModuleTypes(t *testing.T) {
	out, err := s.g.Run(t.Context(), "cd /sys/kernel/btf; ls")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, name := range strings.Fields(out) {
		if name == "vmlinux" {
			continue
		}
		raw, err := s.g.Run(t.Context(), "cat /sys/kernel/btf/"+name)
		if err != nil {
			t.Fatal(err)
		}
		want, err := ctype.ParseSplit([]byte(raw), s.k.Types)
		if err != nil {
			t.Errorf("%s, sum %x: %v", name, sha256.Sum256([]byte(raw)), err)
			continue
		}
		s.view(t, func(v *linux.View) {
			got, err := v.ModuleTypes(name)
			if err != nil {
				t.Error(err)
				return
			}
			if got.Len() != want.Len() {
				t.Errorf("%s: %d types, the guest has %d", name, got.Len(), want.Len())
			}
			for id := uint32(s.k.Types.Len()); id < uint32(min(got.Len(), want.Len())); id++ {
				if g, w := got.Type(id), want.Type(id); g.String() != w.String() || g.Size() != w.Size() || g.Kind() != w.Kind() {
					t.Errorf("%s: type %d is %v, the guest has %v", name, id, g, w)
				}
			}
		})
		n++
	}
	s.view(t, func(v *linux.View) {
		if _, err := v.ModuleTypes("no_such_module"); err == nil {
			t.Error("types of a module that is not there")
		} else {
			t.Log(err)
		}
	})
	t.Logf("types of %d modules", n)
}

// testModuleStorm loads and unloads modules while the list is read: each list
// must be one that there can be, or come with an error.
func (s *state) testModuleStorm(t *testing.T) {
	before, err := s.g.Modules(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	done := make(chan error, 1)
	go func() {
		_, err := s.g.Run(ctx, "rat modstorm 3 dummy")
		done <- err
	}()
	lists, failed, with := 0, 0, 0
	for {
		select {
		case err := <-done:
			t.Logf("%d lists, %d failed, %d with the module", lists, failed, with)
			if err != nil {
				t.Skipf("no storm: %v", err)
			}
			if failed*100 > lists {
				t.Errorf("%d of %d lists failed", failed, lists)
			}
			return
		default:
		}
		s.view(t, func(v *linux.View) {
			mods, err := v.Modules()
			lists++
			if err != nil {
				failed++
				return
			}
			rest := mods[:0]
			for _, m := range mods {
				if m.Name == "dummy" {
					with++
				} else {
					rest = append(rest, m)
				}
			}
			for i, m := range rest {
				if i >= len(before) || string(m.Name) != before[i].Name || m.Size != before[i].Size || uint64(m.Base) != before[i].Addr {
					t.Fatalf("list %d, place %d: %s", lists, i, moduleLine(m))
				}
			}
			if len(rest) != len(before) {
				t.Fatalf("list %d has %d modules of %d", lists, len(rest), len(before))
			}
		})
	}
}
