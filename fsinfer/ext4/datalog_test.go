package ext4

import "testing"

// TestDataUnderWay: blocks that were written, but are not mapped as written yet, are under way until a transaction says so, and
// for one more at least.
func TestDataUnderWay(t *testing.T) {
	var d dataLog
	check := func(what string, start, count uint64, want bool) {
		t.Helper()
		if got := d.underway(start, count); got != want {
			t.Errorf("%s: [%d, +%d) under way: %v", what, start, count, got)
		}
	}
	for b := uint64(100); b < 110; b++ {
		d.add(b)
	}
	d.add(50)
	check("written", 105, 1, true)
	check("written", 90, 11, true)
	check("not written", 60, 40, false)
	d.reset()
	check("of the transaction before", 105, 1, true)
	d.keep(100, 5)
	d.keep(200, 5)
	d.reset()
	check("kept", 100, 5, true)
	check("told long ago", 50, 1, false)
	d.add(120)
	d.take(100, 1000, func(span) {})
	d.settle()
	check("told", 100, 30, false)
	d.reset()
	d.reset()
	check("forgotten", 0, 1000, false)
}
