package vendorfile

import (
	"bytes"
	"encoding/binary"
	"os"
	"slices"
	"strings"
	"testing"

	"vmscope/internal/guestlab"
	"vmscope/mem"
)

// TestKernelFiles reads the kernels of the lab.
func TestKernelFiles(t *testing.T) {
	if testing.Short() {
		t.Skip("fetches kernels; not under -short")
	}
	for _, name := range guestlab.Kernels() {
		t.Run(name, func(t *testing.T) {
			file, err := guestlab.Fetch(t.Context(), name)
			if err != nil {
				t.Fatal(err)
			}
			b, err := os.ReadFile(file.Image())
			if err != nil {
				t.Fatal(err)
			}
			k, err := ParseKernel(t.Context(), b)
			if err != nil {
				t.Fatal(err)
			}
			if at, ok := k.Linked("_stext"); !ok || at < 0xffffffff81000000 || at > 0xffffffff81001000 {
				t.Errorf("_stext is linked at %#x, %v", uint64(at), ok)
			}
			nested := widened(t, k)
			if newer := name == "trixie-cloud" || name == "sid-cloud"; (nested > 0) != newer {
				t.Errorf("%d alternatives are nested", nested)
			}
			was := bytes.Clone(k.Section(".text").Data)
			for _, slide := range []uint64{0x1e00000, 0} {
				if err := k.Relocate(slide); err != nil {
					t.Fatal(err)
				}
				if same := bytes.Equal(was, k.Section(".text").Data); same != (slide == 0) {
					t.Errorf("moved by %#x its text is as it was: %v", slide, same)
				}
				sites, err := k.Sites()
				if err != nil {
					t.Fatal(err)
				}
				text, n := k.Section(".text"), make(map[Kind]int)
				for _, s := range sites.list {
					if s.At >= text.Addr && s.At < text.End() {
						n[s.Kind]++
					}
				}
				for _, kind := range []Kind{Alternative, Lock, Return, Retpoline, Ftrace, JumpLabel, StaticCall} {
					if n[kind] < 100 {
						t.Errorf("%d places of kind %v", n[kind], kind)
					}
				}
				if slide != 0 {
					callable(t, k)
				}
				t.Logf("build id %s, %d places: %v", k.ID, sites.Len(), n)
			}
		})
	}
}

// callable demands that each static call may lead to the function that it begins
// with, that a tracepoint's may lead to all probes that the kernel has for it
// (include/trace/trace_events.h, perf.h, bpf_probe.h), that of a hook of security
// modules to those of AppArmor and of BPF, and that few may lead to a function of
// another prototype.
func callable(t *testing.T, k *Kernel) {
	t.Helper()
	at := func(name string) (mem.VA, bool) {
		s, err := k.symbols.Lookup(name)
		return s.Addr + mem.VA(k.slide), err == nil
	}
	stranger, ok := at("commit_creds")
	keys, probes, narrow := 0, 0, 0
	for s := range k.symbols.All() {
		name, is := strings.CutPrefix(s.Name, "__SCK__")
		if !is {
			continue
		}
		key := s.Addr + mem.VA(k.slide)
		if first := mem.VA(binary.LittleEndian.Uint64(k.At(key))); first != 0 && !k.Callable(&k.Image, key, first) {
			t.Errorf("%s may not call the function at %#x with which it begins", s.Name, uint64(first))
		}
		keys++
		if !k.Callable(&k.Image, key, stranger) {
			narrow++
		}
		if k.Callable(&k.Image, key, stranger+1) {
			t.Errorf("%s may call amid a function", s.Name)
		}
		name, _ = strings.CutPrefix(name, "tp_func_")
		if name, is = strings.CutPrefix(name, "lsm_static_call_"); is {
			name = strings.TrimRight(name, "_0123456789")
		}
		for _, prefix := range []string{"trace_event_raw_event_", "perf_trace_", "__bpf_trace_", "__probestub_", "probe_", "bpf_lsm_", "apparmor_"} {
			if probe, ok := at(prefix + name); ok {
				probes++
				if !k.Callable(&k.Image, key, probe) {
					t.Errorf("%s may not call %s%s", s.Name, prefix, name)
				}
			}
		}
	}
	for key, to := range map[string]string{"cond_resched": "__cond_resched", "might_resched": "__cond_resched", "preempt_schedule": "preempt_schedule_thunk",
		"irqentry_exit_cond_resched": "raw_irqentry_exit_cond_resched", "pv_sched_clock": "kvm_sched_clock_read", "pv_steal_clock": "kvm_steal_clock"} {
		sck, ok := at("__SCK__" + key)
		va, ok2 := at(to)
		if ok && ok2 && !k.Callable(&k.Image, sck, va) {
			t.Errorf("%s may not call %s", key, to)
		}
	}
	if !ok || probes < 500 || narrow < keys*2/3 {
		t.Errorf("%d keys of static calls, of which %d may not call commit_creds; %d probes of tracepoints and hooks", keys, narrow, probes)
	}
	t.Logf("%d keys of static calls, of which %d may not call commit_creds; %d probes of tracepoints and hooks", keys, narrow, probes)
}

// widened makes alternatives as long as another one of the same place, as the
// kernel does where they are nested, and counts those that this makes longer.
func widened(t *testing.T, k *Kernel) (longer int) {
	s, l := k.Section(".altinstructions"), k.tables
	length := make(map[mem.VA][]uint8) // by place
	entries(s.Addr, s.Data, l.Alt, func(at mem.VA, b []byte) {
		code := away(at, b, l.AltInstr.Offset)
		length[code] = append(length[code], b[l.AltLen.Offset])
	})
	entries(s.Addr, s.Data, l.Alt, func(at mem.VA, b []byte) {
		n, most := b[l.AltLen.Offset], slices.Max(length[away(at, b, l.AltInstr.Offset)])
		if n < most {
			longer++
		}
		at += mem.VA(l.AltLen.Offset)
		if k.Widened(at, most) != (n < most) || k.Widened(at, most+1) || k.Widened(at, 0) || k.Widened(at+1, most) {
			t.Errorf("an alternative of %d bytes where the longest has %d", n, most)
		}
	})
	return longer
}
