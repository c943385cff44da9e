package x86_test

import (
	"testing"

	"vmscope/arch/x86"
	"vmscope/internal/memtest"
	"vmscope/mem"
)

// checkSteps compares the steps to va with what Translate made of the same
// tables.
func checkSteps(t *testing.T, p *x86.Paging, va mem.VA, m mem.Mapping, translated error) {
	t.Helper()
	steps, err := p.Steps(va)
	if (err == nil) != (translated == nil) || err != nil && err.Error() != translated.Error() {
		t.Fatalf("steps end with %v, Translate with %v", err, translated)
	}
	if err != nil {
		return
	}
	perm := mem.Exec | mem.Write | mem.User
	for i, s := range steps {
		if i > 0 && s.Level != steps[i-1].Level-1 {
			t.Fatalf("steps %+v", steps)
		}
		perm &= s.Perm
	}
	if last := steps[len(steps)-1]; last.Entry != m.Entry || last.Level != m.Level || perm != m.Perm {
		t.Fatalf("steps %+v, permissions %v together; Translate %+v", steps, perm, m)
	}
}

func TestSteps(t *testing.T) {
	data := make([]byte, ramSize)
	tb := memtest.NewTables(data, base, 0x3000, 4)
	tb.Map(0xffffffff81000000, 0x1000000, 2<<20, 2, 0)
	tb.Map(0x402000, 0x5000, 4096, 1, u|w|nx)
	both(t, data, func(t *testing.T, phys mem.PhysReader) {
		p := x86.NewPaging(phys, tb.Root, x86.Level4)
		for _, c := range []struct {
			va    mem.VA
			steps int
		}{{0xffffffff81123456, 3}, {0x402fff, 4}, {0x403000, 4}, {0x40000000, 2}, {1 << 60, 0}} {
			m, err := p.Translate(c.va)
			checkSteps(t, p, c.va, m, err)
			if s, _ := p.Steps(c.va); len(s) != c.steps || c.steps > 0 && s[0].At&^(mem.PageSize-1) != tb.Root {
				t.Errorf("%#x: steps %+v", uint64(c.va), s)
			}
		}
	})
}
