package vm

import (
	"slices"
	"testing"

	"vmscope/mem"
)

// What cannot be a layout is an error that says what can.
func TestLayoutsRefuse(t *testing.T) {
	for _, c := range []struct {
		kind string
		ram  uint64
	}{
		{"q35", 0}, {"", 1<<52 + 1}, {"nonsense", gib}, {"low=", gib}, {"low=0", gib}, {"low=5G", gib}, {"low=1", gib}, {"low=x", gib},
		{"low=17179869187G", gib}, // 3 GiB modulo 2^64
	} {
		if l, err := Layouts(c.kind, c.ram); err == nil {
			t.Errorf("Layouts(%q, %d) = %+v", c.kind, c.ram, l)
		}
	}
}

// Every layout holds all of the RAM, in ranges that do not overlap.
func TestLayoutsHoldAll(t *testing.T) {
	for _, ram := range []uint64{1 << 12, gib, 2815 * mib, 2816 * mib, 3583 * mib, 3584 * mib, 4 * gib, 4*gib + 4096, 600 * gib, 1 << 40, 1 << 41} {
		for _, kind := range []string{"q35", "pc", "microvm", "virt", "riscv-virt", "flat", "low=1G", "x86", ""} {
			all, err := Layouts(kind, ram)
			if err != nil || len(all) == 0 {
				t.Errorf("Layouts(%q, %d): %v", kind, ram, err)
			}
			for i, l := range all {
				var sum uint64
				for j, r := range l.Ranges {
					sum += r.Size
					if j > 0 && l.Ranges[j-1].End() > r.Start {
						t.Errorf("%q, %d: %+v overlaps", kind, ram, l)
					}
				}
				if sum != ram {
					t.Errorf("%q, %d: %+v holds %d bytes", kind, ram, l, sum)
				}
				for _, m := range all[:i] {
					if sameRanges(l.Ranges, m.Ranges) {
						t.Errorf("%q, %d: %s and %s are the same", kind, ram, l.Name, m.Name)
					}
				}
			}
		}
	}
}

// Little RAM may lie above 1 TiB too, which is tried after all else, and not where somebody says how it lies.
func TestLayoutsAboveTiB(t *testing.T) {
	for kind, low := range map[string][]mem.PA{"q35": nil, "pc": nil, "x86": {2 * gib, 3 * gib}, "": {2 * gib, 3 * gib}} {
		all, err := Layouts(kind, 8*gib)
		if err != nil || len(all) <= len(low) {
			t.Fatalf("%q: %+v, %v", kind, all, err)
		}
		var got []mem.PA
		for i, l := range all {
			if len(l.Ranges) == 2 && l.Ranges[1].Start == 1024*gib {
				got = append(got, l.Ranges[0].End())
			} else if len(got) > 0 {
				t.Errorf("%q: %s is number %d", kind, l.Name, i)
			}
		}
		if !slices.Equal(got, low) {
			t.Errorf("%q: %+v", kind, all)
		}
	}
}
