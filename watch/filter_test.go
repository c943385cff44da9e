package watch

import (
	"strings"
	"testing"

	"vmscope/event"
)

func TestMatches(t *testing.T) {
	for _, c := range []struct {
		watchpoint, path string
		want             bool
	}{
		{"/", "/a", true},
		{"/etc", "/etc", true},
		{"/etc", "/etc/passwd", true},
		{"/etc", "/etcetera", false},
		{"/etc", "/e", false},
		{"/etc", "/", false},
		{"/etc/", "/etc/x", true},
		{"/etc/../root", "/root/x", true},
		{"/*/passwd", "/etc/passwd", true},
		{"/*/passwd", "/etc/a/passwd", false},
		{"/etc/pass*", "/etc/passwd.new", true},
		{"/etc/pass*", "/etc/pass/word", true}, // below what matches
		{"/e?c", "/etc/x", true},
		{"/[d-f]tc", "/etc", true},
		{"/[^d-f]tc", "/etc", false},
		{"/**/.ssh", "/.ssh", true},
		{"/**/.ssh", "/home/u/.ssh/id", true},
		{"/**/.ssh", "/home/u/ssh", false},
		{"/home/**", "/home", true},
		{"/home/**/x/**/y", "/home/x/y", true},
		{"/home/**/x/**/y", "/home/a/x/b/c/y/z", true},
		{"/home/**/x/**/y", "/home/a/y/b/x", false},
		{"/**/a/b", "/a/a/b", true},
		{"/**/a/b/**/a/c", "/a/b/a/a/b/a/c/d", true},
		{"/**/a/b/**/a/c", "/a/c/a/b", false},
		{"/**/**", "/", true},
		{"/a/**/b", "/a", false},
		{`/a\*`, "/a*", true},
		{`/a\*`, "/ab", false},
		{"/\xff*", "/\xff\xfe", true}, // names are bytes
		{"/a\n", "/a\n/b", true},
		{"/*", "/", false},
		{"/etc/.", "/etc", true},
		{"/etc/.", "/etc/passwd", true},
		{"/etc/.", "/etc/ssh/key", false},
		{"/etc/.", "/", false},
		{"/etc/x/../.", "/etc/passwd", true},
		{"/.", "/", true},
		{"/.", "/etc", true},
		{"/.", "/etc/passwd", false},
		{"/*/.", "/", false},
		{"/*/.", "/etc", true},
		{"/*/.", "/etc/passwd", true},
		{"/*/.", "/etc/ssh/key", false},
		{"/home/**/.ssh/.", "/home/u/.ssh/id", true},
		{"/home/**/.ssh/.", "/home/u/.ssh/old/id", false},
		{"/home/**/.ssh/.", "/home/u/x", false},
		{"/home/**/a/.", "/home/a/b/a/c", true}, // the ** stands for a/b
		{"/home/**/.", "/home/u/v/w", true},
	} {
		f, err := newFilter([]string{c.watchpoint}, nil)
		if err != nil {
			t.Errorf("%q: %v", c.watchpoint, err)
			continue
		}
		if got := f.watched(c.path); got != c.want {
			t.Errorf("%q, %q: %v", c.watchpoint, c.path, got)
		}
	}
	for _, p := range []string{"", "etc", "/[", "*/x", "/[/.", "."} {
		if _, err := newFilter([]string{p}, nil); err == nil {
			t.Errorf("%q is taken", p)
		}
	}
}

// TestDeepPaths: the time that a path takes does not depend on what a guest calls its directories.
func TestDeepPaths(t *testing.T) {
	f, err := newFilter([]string{"/**/a/**/a/**/a/**/a/**/a/**/a/**/b"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if deep := strings.Repeat("/a", 1<<13); f.watched(deep) || !f.watched(deep+"/b") {
		t.Error("matched wrongly")
	}
	if f, err = newFilter([]string{"/**/a/**/a/**/a/**/a/**/a/**/b/."}, nil); err != nil {
		t.Fatal(err)
	}
	if deep := strings.Repeat("/a", 1<<13); f.watched(deep) || !f.watched(deep+"/b/c") || f.watched(deep+"/b/c/d") {
		t.Error("matched wrongly")
	}
}

func TestFilter(t *testing.T) {
	f, err := newFilter([]string{"/not/there/yet"}, []event.Op{event.MkDir, event.Rename, event.Mount})
	if err != nil {
		t.Fatal(err)
	}
	told := func(op event.Op, old, path string) bool {
		return f.passes(&event.Event{Op: op, OldPath: old, Path: path})
	}
	for _, c := range []struct {
		op        event.Op
		old, path string
		want      bool
	}{
		{event.MkDir, "", "/not/there/yet", true},
		{event.MkDir, "", "/not/there/yet/x", true},
		{event.MkDir, "", "/not/there/other", false},
		{event.MkFile, "", "/not/there/yet/x", false}, // another kind
		{event.Rename, "/tmp/x", "/not/there/yet", true},
		{event.Rename, "/not/there/yet/x", "/tmp/x", true},
		{event.Rename, "/a", "/b", false},
		{event.Rename, "/not/there", "/b", true}, // what lies in it goes with it
		{event.Rename, "/b", "/not", true},
		{event.MkDir, "", "/not/there", false},
		{event.Mount, "", "/", true},
		{event.Unmount, "", "/", false},
		{event.Lost, "", "", true},
		{event.Attached, "", "/", true},
	} {
		if got := told(c.op, c.old, c.path); got != c.want {
			t.Errorf("%s %q %q: %v", c.op, c.old, c.path, got)
		}
	}
	if err := f.add("/a"); err != nil || !told(event.Rename, "/a", "/b") {
		t.Errorf("added, %v", err)
	}
	if f.passes(&event.Event{Op: event.Rename, OldPath: "/not", Path: "/b", Attr: &event.Attr{Kind: event.File}}) {
		t.Error("in a file lies nothing")
	}
	if f.remove("/b") || !f.remove("/a/") || told(event.Rename, "/a", "/b") {
		t.Error("not removed")
	}
	// The last watchpoint that goes does not make it a watch of everything.
	if !f.remove("/not/there/yet") || told(event.MkDir, "", "/x") {
		t.Error("a watch of nothing tells something")
	}
	if err := f.set([]string{"/a", "/b/"}); err != nil || !told(event.MkDir, "", "/b/x") || told(event.MkDir, "", "/c") {
		t.Errorf("set, %v", err)
	}
	if err := f.set([]string{"/a", "/b/."}); err != nil || !told(event.MkDir, "", "/b/x") || told(event.MkDir, "", "/b/x/y") || f.remove("/b") {
		t.Errorf("set, %v", err)
	}
	if !f.remove("/b/x/../.") || told(event.MkDir, "", "/b/x") {
		t.Error("not removed")
	}
	if err := f.set([]string{"/c", "d"}); err == nil || told(event.MkDir, "", "/c") || !told(event.MkDir, "", "/a") {
		t.Errorf("a wrong watchpoint among others changed them, %v", err)
	}
	all, err := newFilter(nil, nil)
	if err != nil || !all.watched("/c") {
		t.Fatalf("not a watch of everything, %v", err)
	}
	if err := all.set(nil); err != nil || all.watched("/c") {
		t.Errorf("none were set: still a watch of everything, %v", err)
	}
}
