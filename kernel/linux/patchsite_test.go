package linux

import (
	"slices"
	"testing"
)

func TestMergePatchSites(t *testing.T) {
	a := []PatchSite{{At: 1}, {At: 5, Kind: StaticCall}, {At: 9}}
	b := []PatchSite{{At: 0}, {At: 5, Kind: JumpLabel}, {At: 9, Kind: Kprobe}, {At: 10}}
	got := merge(a, b)
	if len(got) != len(a)+len(b) || !slices.IsSortedFunc(got, byPlace) {
		t.Errorf("%v", got)
	}
	if got := merge(nil, b); len(got) != len(b) {
		t.Errorf("%v", got)
	}
	if got := merge(a, nil); len(got) != len(a) {
		t.Errorf("%v", got)
	}
}
