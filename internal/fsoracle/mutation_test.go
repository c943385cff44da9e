package fsoracle

import (
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"vmscope/event"
	"vmscope/internal/guestlab/wire"
)

// stream makes a long stream of random events that is possible throughout, with the tree that it leads to. Each
// event is a transaction of its own and bears the attributes that its inode then has.
func stream(t *testing.T, seed uint64, n int) (events []event.Event, start, end []wire.File) {
	t.Helper()
	rng := rand.New(rand.NewPCG(seed, 1))
	start = small()
	r, err := New(start)
	if err != nil {
		t.Fatal(err)
	}
	names := []string{"a", "b", "c", "d", "e", "f", "sub", "x"}
	for ino := uint64(100); len(events) < n; {
		tree := r.Tree()
		at := func() wire.File { return tree[rng.IntN(len(tree))] }
		fresh := func() string {
			for {
				if d := at(); d.Kind == "dir" {
					return strings.TrimSuffix(string(d.Path), "/") + "/" + names[rng.IntN(len(names))]
				}
			}
		}
		f := at()
		e := event.Event{Op: operations[rng.IntN(len(operations))], Path: string(f.Path), Inode: f.Inode, Generation: f.Generation,
			TID: uint64(len(events) + 1), Source: event.Journal}
		e.Attr = &event.Attr{Kind: event.Kind(f.Kind), Mode: f.Mode, UID: f.UID, GID: f.GID, Size: f.Size, Nlink: f.Nlink}
		switch e.Op {
		case event.MkDir, event.MkFile, event.Symlink, event.Mknod:
			ino++
			e.Path, e.Inode, e.Generation = fresh(), ino, uint32(ino)
			e.Attr = &event.Attr{Kind: kinds[e.Op][0], Mode: uint32(rng.IntN(0o1000)), Size: rng.Int64N(9), Nlink: 1}
			if e.Op == event.MkDir {
				e.Attr.Nlink = 2
			}
		case event.Link:
			e.Path, e.OldPath = fresh(), e.Path
			e.Attr.Nlink++
		case event.Rename:
			e.Path, e.OldPath = fresh(), e.Path
		case event.RmDir, event.RmFile:
			e.Attr.Nlink--
		case event.Write, event.Truncate:
			e.Attr.Size = f.Size + 1
		case event.Chmod:
			e.Attr.Mode ^= 1
		case event.Chown:
			e.Attr.UID++
		}
		trial, err := New(tree)
		if err != nil {
			t.Fatal(err)
		}
		if len(append(trial.Apply(e), trial.Finish()...)) > 0 {
			continue
		}
		e.Seq = uint64(len(events) + 1)
		if found := r.Apply(e); len(found) > 0 {
			t.Fatal(found)
		}
		events = append(events, e)
	}
	if found := r.Finish(); len(found) > 0 {
		t.Fatal(found)
	}
	return events, start, r.Tree()
}

var operations = []event.Op{
	event.MkDir, event.MkFile, event.MkFile, event.Symlink, event.Mknod, event.RmDir, event.RmFile, event.Link, event.Rename,
	event.Rename, event.Write, event.Truncate, event.Chmod, event.Chown,
}

// verdict replays events and says what is wrong with them.
func verdict(t *testing.T, start []wire.File, events []event.Event, end []wire.File) []string {
	t.Helper()
	r, err := New(start)
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for _, f := range replay(r, events) {
		lines = append(lines, f.String())
	}
	return append(lines, r.Compare(end)...)
}

// renumber makes numbers rise by one: what is wrong must show in the tree, not in the numbers.
func renumber(events []event.Event) []event.Event {
	for i := range events {
		events[i].Seq = uint64(i + 1)
	}
	return events
}

// covered says that nobody can miss event i: each event bears all attributes of its inode and so gives away that an
// earlier change was left out, unless it changes the same, or the inode goes.
func covered(events []event.Event, i int) bool {
	class := map[event.Op]int{event.Write: 1, event.Truncate: 1, event.Chmod: 2, event.Chown: 3}
	e := events[i]
	if class[e.Op] == 0 {
		return false
	}
	for _, next := range events[i+1:] {
		if next.Inode == e.Inode {
			gone := next.Op == event.RmDir || next.Op == event.RmFile && next.Attr.Nlink == 0
			return gone || class[next.Op] == class[e.Op]
		}
	}
	return false
}

// TestEveryEventCounts drops, doubles and swaps the events of a stream, one by one.
func TestEveryEventCounts(t *testing.T) {
	events, start, end := stream(t, 1, 400)
	if wrong := verdict(t, start, events, end); len(wrong) > 0 {
		t.Fatal(wrong)
	}
	used := map[event.Op]int{}
	for i, e := range events {
		used[e.Op]++
		dropped := slices.Delete(slices.Clone(events), i, i+1)
		doubled := slices.Insert(slices.Clone(events), i, e)
		for what, changed := range map[string][]event.Event{"dropped": dropped, "doubled": doubled} {
			if len(verdict(t, start, changed, end)) == 0 {
				t.Errorf("event %d, %s %q: nobody noticed that it was %s", i, e.Op, e.Path, what)
			}
		}
		names := !slices.Contains([]event.Op{event.Write, event.Truncate, event.Chmod, event.Chown}, e.Op)
		if len(verdict(t, start, renumber(dropped), end)) == 0 && !covered(events, i) {
			t.Errorf("event %d, %s %q: nobody noticed that it was dropped and the others renumbered", i, e.Op, e.Path)
		}
		if names && len(verdict(t, start, renumber(doubled), end)) == 0 {
			t.Errorf("event %d, %s %q: nobody noticed that it was doubled and the others renumbered", i, e.Op, e.Path)
		}
		if i == 0 {
			continue
		}
		swapped := slices.Clone(events)
		swapped[i-1], swapped[i] = swapped[i], swapped[i-1]
		if len(verdict(t, start, swapped, end)) == 0 {
			t.Errorf("event %d, %s %q: nobody noticed that it came too early", i, e.Op, e.Path)
		}
	}
	if len(used) != len(slices.Compact(slices.Sorted(slices.Values(operations)))) {
		t.Errorf("the stream has only %v", used)
	}
}
