package linux_test

import (
	"slices"
	"strings"
	"testing"

	"vmscope/kernel/linux"
	"vmscope/kernel/linux/infer"
	"vmscope/ksym"
	"vmscope/mem"
)

// symbolOf finds symbols.
type symbolOf func(string) (mem.VA, error)

// nothingBut are the symbols of functions that kallsyms has in any kernel.
func nothingBut(k *linux.Kernel) symbolOf {
	return func(name string) (mem.VA, error) {
		s, err := ksym.Only(name, k.Symbols.LookupAll(name))
		if err == nil && !strings.ContainsRune("tTwW", rune(s.Type)) {
			err = ksym.ErrNoSymbol
		}
		return s.Addr, err
	}
}

// runInfer infers types of a kernel that tells them, and variables that are not among
// the symbols given, and compares: there must be none that is wrong.
func runInfer(t *testing.T, v *linux.View, symbol symbolOf) (r *infer.Result, err error) {
	t.Helper()
	err = mem.Guard(func() (err error) {
		r, err = infer.Run(t.Context(), infer.Kernel{Mem: v.Mem, Symbol: symbol, Text: v.Text, Arch: v.Arch})
		return err
	})
	if err != nil {
		return nil, err
	}
	for _, name := range r.Members {
		typ, path, _ := strings.Cut(name, ".")
		inferred, err := r.Types.Lookup(typ)
		if err != nil {
			t.Fatal(err)
		}
		off, err := inferred.Offset(path)
		if err != nil {
			t.Fatal(err)
		}
		truth, err := v.Types.Lookup(typ)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		want := uint64(0)
		switch name {
		case "module_memory.end":
			want = truth.Size()
		case "task_struct.__state":
			if want, err = truth.Offset("__state"); err != nil {
				want, err = truth.Offset("state")
			}
		default:
			want, err = truth.Offset(path)
		}
		if err != nil || off != want {
			t.Errorf("%s is inferred at %d, lies at %d (%v)", name, off, want, err)
		}
	}
	for name, at := range r.Variables {
		if want, err := v.Symbol(name); err != nil || at != want {
			t.Errorf("%s is inferred at %#x, lies at %#x (%v)", name, uint64(at), uint64(want), err)
		}
	}
	if r.OffsReal != 0 {
		boot, err := v.BootTime()
		if err != nil {
			t.Fatal(err)
		}
		ahead, err := v.Mem.Uint64(r.OffsReal)
		if err != nil {
			t.Fatal(err)
		}
		asleep, err := v.Mem.Uint64(r.OffsBoot)
		if err != nil || boot.UnixNano() != int64(ahead-asleep) {
			t.Errorf("boot time %d, is %d (%v)", int64(ahead-asleep), boot.UnixNano(), err)
		}
	}
	return r, nil
}

// inferable are the members that every stock kernel must give away.
var inferable = []string{
	"cred.egid", "cred.euid", "cred.gid", "cred.uid", "module.list", "module.name", "module.refcnt", "module.source_list", "module.state", "signal_struct.thread_head",
	"task_struct.__state", "task_struct.comm", "task_struct.flags", "task_struct.mm", "task_struct.pid", "task_struct.real_cred", "task_struct.real_parent",
	"task_struct.signal", "task_struct.start_boottime", "task_struct.tasks", "task_struct.tgid", "task_struct.thread_node",
}

// testInferred infers types of a guest that runs: with all symbols, and with those of
// functions only.
func (s *state) testInferred(t *testing.T) {
	s.inferAll(t, s.k.Symbol)
	s.inferAll(t, nothingBut(s.k))
}

func (s *state) inferAll(t *testing.T, symbol symbolOf) {
	t.Helper()
	var missing []string
	for range 10 { // what it changes under the inference may hide a member
		s.view(t, func(v *linux.View) {
			r, err := runInfer(t, v, symbol)
			if err != nil {
				missing = []string{err.Error()}
				return
			}
			missing = slices.DeleteFunc(slices.Clone(inferable), func(name string) bool {
				// The code that tells credentials is not read on 32-bit Arm.
				return slices.Contains(r.Members, name) || v.Arch == "armv7l" && (strings.HasPrefix(name, "cred.") || name == "task_struct.real_cred")
			})
			if r.OffsReal == 0 {
				missing = append(missing, "the clocks")
			}
			if len(missing) > 0 {
				t.Log(r.Unproved)
			}
		})
		if len(missing) == 0 || t.Failed() {
			return
		}
	}
	t.Errorf("not inferred: %v", missing)
}
