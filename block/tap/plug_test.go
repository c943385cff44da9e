package tap

import (
	"slices"
	"testing"
)

// TestRenamed plugs disks in and out: each keeps its name, and new ones get what is free.
func TestRenamed(t *testing.T) {
	disk := func(k kind, id string) Disk {
		return Disk{ID: id, QDev: "/machine/peripheral/" + id, Node: "n-" + id, kind: k}
	}
	names := func(all []Disk) (out []string) {
		for _, d := range all {
			out = append(out, d.ID+"="+d.Name)
		}
		return out
	}
	other := disk("vd", "b")
	other.Node = "another"
	var known []Disk
	for i, step := range []struct {
		now       []Disk
		all, came []string
	}{
		{[]Disk{disk("vd", "a"), disk("vd", "b"), disk("sd", "s"), disk("vd", "c")}, []string{"a=vda", "b=vdb", "s=sda", "c=vdc"}, []string{"a=vda", "b=vdb", "s=sda", "c=vdc"}},
		{[]Disk{disk("vd", "a"), disk("sd", "s"), disk("vd", "c")}, []string{"a=vda", "s=sda", "c=vdc"}, nil},
		{[]Disk{disk("vd", "d"), disk("vd", "c"), disk("sd", "s"), disk("nvme", "n"), disk("vd", "e")}, []string{"d=vda", "c=vdc", "s=sda", "n=nvme0n1", "e=vdb"}, []string{"d=vda", "n=nvme0n1", "e=vdb"}},
		{[]Disk{disk("vd", "b"), disk("vd", "c")}, []string{"b=vda", "c=vdc"}, []string{"b=vda"}},
		{[]Disk{disk("vd", "c"), other}, []string{"c=vdc", "b=vda"}, []string{"b=vda"}},
	} {
		came := renamed(step.now, known)
		if got := names(step.now); !slices.Equal(got, step.all) {
			t.Errorf("step %d: %q, want %q", i, got, step.all)
		}
		if got := names(came); !slices.Equal(got, step.came) {
			t.Errorf("step %d: %q came, want %q", i, got, step.came)
		}
		known = step.now
	}
}
