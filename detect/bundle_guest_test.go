package detect

import (
	"context"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"vmscope"
	"vmscope/internal/guestlab"
	"vmscope/vm/dump"
)

// TestBundle bends guests, writes bundles, and finds the same in those, whatever
// the guest does meanwhile.
func TestBundle(t *testing.T) {
	for _, name := range []string{"bullseye-cloud", "sid-cloud"} {
		t.Run(name, func(t *testing.T) {
			lab := guestlab.Boot(t, guestlab.Config{Kernel: name, MemoryMiB: 256, Modules: []string{"loop"}})
			if _, err := lab.Spawn(t.Context(), guestlab.Spawn{Comm: []byte("sleeper")}); err != nil {
				t.Fatal(err)
			}
			g, err := vmscope.Open(t.Context(), lab.Name(), vmscope.Writable(), vmscope.Paused())
			if err != nil {
				t.Fatal(err)
			}
			defer g.Close()
			dir := t.TempDir()
			for _, c := range tamperings {
				if !slices.Contains([]string{"function hook", "hidden process"}, c.name) {
					continue
				}
				t.Run(c.name, func(t *testing.T) {
					v := &victim{T: t, g: g, lab: lab}
					path := filepath.Join(dir, strings.ReplaceAll(c.name, " ", "-"))
					r := v.bundle(path, NewReference(), c.check, c.do)
					v.silent() // and not what the bundle has
					same(t, path, r, All())
				})
			}
			t.Run("what the vendor's files show", func(t *testing.T) {
				v := &victim{T: t, g: g, lab: lab}
				path := filepath.Join(dir, "vendor")
				against := func() *Reference {
					ref := NewReference()
					ref.Vendor = vendorOf(t, lab)
					return ref
				}
				c := bendings[0]
				r := v.bundle(path, against(), c.check, func(v *victim) []string { return append(c.do(v), "build id") })
				same(t, path, r, Against(against()))
				r.Findings = slices.DeleteFunc(r.Findings, func(f Finding) bool { return f.Check == "text" || f.Check == "rodata" })
				same(t, path, r, All()) // without the files nothing tells
			})
			t.Run("changed code of a process", func(t *testing.T) {
				if _, err := lab.Spawn(t.Context(), guestlab.Spawn{Comm: []byte("patched"), Hold: &guestlab.Hold{Kinds: []string{"patched code"}}}); err != nil {
					t.Fatal(err)
				}
				path := filepath.Join(dir, "patched")
				var r Result
				if err := g.View(t.Context(), func(v *vmscope.View) (err error) {
					r, err = WriteBundle(t.Context(), v, NewReference(), path, dump.About{}, nil)
					return err
				}); err != nil {
					t.Fatal(err)
				}
				demand(t, r, "injection", []string{"patched", "0f0b0f0b"})
				same(t, path, r, All())
			})
			t.Run("without VMCOREINFO", func(t *testing.T) {
				if err := g.Update(t.Context(), func(tx *vmscope.Tx) error {
					traces, err := tx.Traces()
					for _, r := range traces {
						if _, err := tx.WritePhys(make([]byte, 64), r.Start); err != nil {
							t.Error(err)
						}
					}
					return err
				}); err != nil {
					t.Fatal(err)
				}
				path := filepath.Join(dir, "kallsyms")
				if err := vmscope.Look(t.Context(), lab.Name(), func(v *vmscope.View) error {
					if v.CoreInfo() != "" {
						t.Error("the kernel was found by what was wiped")
					}
					r, err := WriteBundle(t.Context(), v, NewReference(), path, dump.About{}, nil)
					same(t, path, r, All())
					return err
				}, vmscope.Paused()); err != nil {
					t.Fatal(err)
				}
			})
			if left, err := filepath.Glob(filepath.Join(dir, ".*")); err != nil || len(left) > 0 {
				t.Errorf("%q, %v: left behind", left, err)
			}
		})
	}
}

// bundle writes a bundle of the guest while it is tampered with.
func (v *victim) bundle(path string, ref *Reference, check string, tamper func(*victim) (words []string)) (r Result) {
	v.Helper()
	v.tampered(func() {
		words := tamper(v)
		var err error
		if r, err = WriteBundle(v.Context(), v.tx.View, ref, path, dump.About{}, nil); err != nil {
			v.Fatal(err)
		}
		demand(v.T, r, check, words)
	})
	return r
}

// same demands that checks of a bundle show what a sweep found.
func same(t *testing.T, path string, r Result, checks []Detector) {
	t.Helper()
	if err := vmscope.Look(t.Context(), path, func(v *vmscope.View) error {
		again := Sweep(t.Context(), v, checks)
		if len(again.Findings) != len(r.Findings) {
			t.Errorf("%d findings, %d in the bundle", len(r.Findings), len(again.Findings))
		}
		for i, f := range again.Findings[:min(len(again.Findings), len(r.Findings))] {
			if !reflect.DeepEqual(f, r.Findings[i]) {
				t.Errorf("in the bundle %+v\nbefore %+v", f, r.Findings[i])
			}
		}
		for i, x := range Explain(v, again.Findings...) {
			for _, p := range x.Places {
				if tampered(x.Finding) && (p.Problem != "" || len(p.Pages) < 3 || len(p.Found) == 0) {
					t.Errorf("%s cannot be shown: %+v", again.Findings[i].ID, p)
				}
			}
		}
		return again.Err()
	}); err != nil {
		t.Error(err)
	}
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 || st.Size() > 32<<20 {
		t.Errorf("%v, %v", st, err)
	} else {
		t.Logf("%d KiB", st.Size()>>10)
	}
}

// TestBundleOfBusyGuest writes bundles of a guest that runs on, with much that
// comes and goes.
func TestBundleOfBusyGuest(t *testing.T) {
	lab := guestlab.Boot(t, guestlab.Config{Kernel: "bookworm-cloud", MemoryMiB: 256, CPUs: 2, Modules: []string{"loop"}})
	g, err := vmscope.Open(t.Context(), lab.Name(), vmscope.Registers())
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- containers(ctx, lab) }()
	defer func() { cancel(); <-done }()
	path := filepath.Join(t.TempDir(), "busy")
	for i := range 3 {
		if err := g.View(t.Context(), func(v *vmscope.View) error {
			start := time.Now()
			r, err := WriteBundle(t.Context(), v, NewReference(), path, dump.About{}, nil)
			t.Logf("bundle %d: %v, %v", i, time.Since(start), err)
			for _, f := range r.Tampered() {
				t.Errorf("%s: %s", f.ID, f.Summary)
			}
			return err
		}); err != nil {
			t.Error(err)
		}
		if err := vmscope.Look(t.Context(), path, func(v *vmscope.View) error {
			cpus, err := v.Registers(t.Context())
			if len(cpus) != lab.Config().CPUs {
				t.Errorf("registers of %d vCPUs, which were asked for", len(cpus))
			}
			return err
		}); err != nil {
			t.Error(err)
		}
	}
}
