package linux

import (
	"reflect"
	"testing"

	"vmscope/kernel"
)

func TestStateLetter(t *testing.T) {
	for _, c := range []struct {
		state, exit uint64
		want        string
	}{
		{0, 0, "R"},
		{0x200, 0, "R"},   // TASK_WAKING
		{0x800, 0, "R"},   // TASK_NEW
		{1, 0, "S"},       // TASK_INTERRUPTIBLE
		{0x2001, 0, "S"},  // with TASK_FREEZABLE
		{2, 0, "D"},       // TASK_UNINTERRUPTIBLE
		{0x102, 0, "D"},   // TASK_KILLABLE
		{0x104, 0, "T"},   // TASK_STOPPED
		{0x108, 0, "t"},   // TASK_TRACED
		{0x402, 0, "I"},   // TASK_IDLE
		{0x2402, 0, "I"},  // with TASK_FREEZABLE
		{0x40, 0, "P"},    // TASK_PARKED
		{0x80, 0x20, "Z"}, // TASK_DEAD, EXIT_ZOMBIE
		{0x80, 0x10, "X"}, // EXIT_DEAD
		{0x80, 0x30, "Z"}, // EXIT_TRACE
		{0x80, 0, "R"},    // about to become a zombie
		{0x1000, 0, "D"},  // TASK_RTLOCK_WAIT
		{0x8000, 0, "D"},  // TASK_FROZEN
		{^uint64(0), ^uint64(0), "D"},
	} {
		if got := stateLetter(c.state, c.exit); got != c.want {
			t.Errorf("state %#x, exit state %#x: %s, want %s", c.state, c.exit, got, c.want)
		}
	}
}

func TestSplit(t *testing.T) {
	for in, want := range map[string][]kernel.Text{
		"":             nil,
		"\x00":         {""},
		"a":            {"a"},
		"a\x00":        {"a"},
		"a\x00\x00":    {"a", ""},
		"a\x00b c\x00": {"a", "b c"},
		"a\x00\xff\n":  {"a", "\xff\n"},
		"\x00\x00":     {"", ""},
	} {
		if got := split([]byte(in)); !reflect.DeepEqual(got, want) {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

func TestMainGroup(t *testing.T) {
	unified := func(p kernel.Text) CGroup { return CGroup{Path: p} }
	v1 := func(id int, name, path kernel.Text) CGroup { return CGroup{Hierarchy: id, Name: name, Path: path} }
	for _, c := range []struct {
		name string
		in   []CGroup
		want kernel.Text
	}{
		{"unified", []CGroup{unified("/a")}, "/a"},
		{"root everywhere", []CGroup{unified("/"), v1(3, "", "/")}, "/"},
		{"hybrid", []CGroup{unified("/a"), v1(3, "", "/b"), v1(1, "systemd", "/c")}, "/a"},
		{"v1 with systemd", []CGroup{unified("/"), v1(3, "", "/b"), v1(1, "systemd", "/c")}, "/c"},
		{"v1 without", []CGroup{unified("/"), v1(3, "", "/b"), v1(4, "", "/c")}, "/b"},
	} {
		if got := mainGroup(c.in).Path; got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
}
