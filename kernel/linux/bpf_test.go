package linux

import (
	"testing"

	"vmscope/internal/memtest"
)

// FuzzBPF reads programs and links of a guest that answers each read as it
// likes.
func FuzzBPF(f *testing.F) {
	k := stockKernel(f)
	l, err := layout[bpfLayout](k)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(make([]byte, 4096))
	f.Fuzz(func(t *testing.T, answers []byte) {
		v := viewOf(k, &memtest.Script{Answers: answers})
		p, _ := v.bpfProgram(l, 0x1000)
		if len(p.Symbols) > 2*(maxBPFSubs+1) || len(p.Symbols) > len(answers)+2 {
			t.Errorf("%d symbols of %d bytes", len(p.Symbols), len(answers))
		}
		v.bpfLink(l, 0x2000)
		for _, kind := range []string{"raw_tracepoint", "kprobe_multi", "cgroup", "xdp", "tcx", "perf_event"} {
			v := viewOf(k, &memtest.Script{Answers: answers})
			if target, err := v.bpfTarget(kind, 0x1000); err == nil && len(target) > maxAttachPath+64 {
				t.Errorf("%s: a target of %d bytes", kind, len(target))
			}
		}
	})
}
