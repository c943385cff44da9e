package ctype

import (
	"errors"
	"testing"
)

// kernel parses the fixture.
func kernel(t testing.TB) *Types {
	t.Helper()
	ts, err := Parse(fixture(t, ""))
	if err != nil {
		t.Fatal(err)
	}
	return ts
}

func TestKnownOffsets(t *testing.T) {
	ts := kernel(t)
	// Debian 6.1.176, measured by another prototype.
	for _, c := range []struct {
		typ, member string
		off         uint64
	}{
		{"task_struct", "tasks", 2192},
		{"struct task_struct", "mm", 2272},
		{"task_struct", "pid", 2416},
		{"task_struct", "real_parent", 2432},
		{"task_struct", "cred", 2960},
		{"task_struct", "comm", 2976},
		{"task_struct", "comm[3]", 2979},
		{"task_struct", "tasks.prev", 2200},
		{"mm_struct", "pgd", 72},
		{"cred", "uid", 8},
	} {
		typ, err := ts.Lookup(c.typ)
		if err != nil {
			t.Error(err)
			continue
		}
		if off, err := typ.Offset(c.member); err != nil || off != c.off {
			t.Errorf("%s.%s at %d, %v; want %d", c.typ, c.member, off, err, c.off)
		}
	}
	if v, err := ts.Enum("MODULE_STATE_LIVE"); v != 0 || err != nil {
		t.Errorf("MODULE_STATE_LIVE = %d, %v", v, err)
	}
	if _, err := ts.Lookup("no_such"); !errors.Is(err, ErrNoType) {
		t.Error(err)
	}
}

func TestSplit(t *testing.T) {
	ts := kernel(t)
	mod, err := ParseSplit(fixture(t, fixtureModule), ts)
	if err != nil {
		t.Fatal(err)
	}
	typ, err := mod.Lookup("virtio_blk")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ts.Lookup("virtio_blk"); !errors.Is(err, ErrNoType) {
		t.Errorf("the kernel knows a module's type: %v", err)
	}
	f, err := typ.Member("vdev")
	if err != nil {
		t.Fatal(err)
	}
	want, err := ts.Lookup("virtio_device")
	if err != nil {
		t.Fatal(err)
	}
	if f.Type.Elem() != want {
		t.Errorf("vdev points to %#v, want %#v", f.Type.Elem(), want)
	}
}
