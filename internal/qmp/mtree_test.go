package qmp

import (
	"slices"
	"testing"

	"vmscope/mem"
)

const someTree = `FlatView #0
 AS "I/O", root: io
 Root memory region: io
  0000000000000000-0000000000000007 (prio 0, i/o): dma-chan

FlatView #1
 AS "memory", root: system
 AS "cpu-memory-0", root: system
 Root memory region: system
  0000000000000000-000000000009ffff (prio 0, ram): pc.ram KVM
  00000000000a0000-00000000000bffff (prio 1, i/o): vga-lowmem
  00000000000c0000-00000000000fffff (prio 0, rom): pc.ram @00000000000c0000 KVM
  0000000000100000-00000000bfffffff (prio 0, ram): pc.ram @0000000000100000 KVM
  00000000fd000000-00000000fdffffff (prio 1, ram): vga.vram KVM
  00000000fffc0000-00000000ffffffff (prio 0, rom): pc.bios KVM
  0000000100000000-000000013fffffff (prio 0, ram): pc.ram @00000000c0000000 KVM
  0000000140000000-000000014fffffff (prio 0, ram): /objects/dimm1 KVM

FlatView #2
 AS "cpu-smm-0", root: memory
  0000000000000000-000000000009ffff (prio 0, ram): pc.ram KVM
`

func TestParseTree(t *testing.T) {
	want := []Region{
		{"pc.ram", 0, 0, 0xc0000000},
		{"pc.ram", 4 << 30, 0xc0000000, 1 << 30},
		{"dimm1", 5 << 30, 0, 256 << 20},
	}
	if got := ParseTree(someTree, []string{"pc.ram", "dimm1"}); !slices.Equal(got, want) {
		t.Errorf("%#x, want %#x", got, want)
	}
	if got := ParseTree(someTree, []string{"other"}); got != nil {
		t.Errorf("RAM of no backend: %#x", got)
	}
}

func FuzzTree(f *testing.F) {
	f.Add(someTree)
	f.Fuzz(func(t *testing.T, s string) {
		end := mem.PA(0)
		for _, r := range ParseTree(s, []string{"pc.ram", "dimm1"}) {
			if r.Size == 0 || r.PA < end || r.PA+mem.PA(r.Size) < r.PA {
				t.Fatalf("%#x", r)
			}
			end = r.PA + mem.PA(r.Size)
		}
	})
}
