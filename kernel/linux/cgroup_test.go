package linux

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"vmscope/mem"
)

// hierarchy makes a cgroup in a hierarchy of version 1 and returns the node by
// which a css_set links to it.
func (w *taskWorld) hierarchy(id int, mask uint32, name string, kn mem.VA) (link mem.VA) {
	c := w.p.c
	root, cgrp := w.alloc(8<<10), w.alloc(4<<10)
	link = w.alloc(64)
	w.put(root, c.ID, uint64(id))
	w.put(root, c.Mask, uint64(mask))
	w.bytes(c.Name.At(root), name)
	w.put(cgrp, c.Root, uint64(root))
	w.put(cgrp, c.KN, uint64(kn))
	w.put(link, c.LinkTo, uint64(cgrp))
	return c.LinkNode.At(link)
}

// controller is the bit of a controller in a mask.
func (w *taskWorld) controller(name string) uint32 {
	w.t.Helper()
	n, err := w.v.Types.Enum(name + "_cgrp_id")
	if err != nil {
		w.t.Fatal(err)
	}
	return 1 << n
}

func TestGroups(t *testing.T) {
	w := newTaskWorld(t)
	task := w.task(1, 1)
	dir := func(name string) mem.VA { return w.kernfs(w.kernfs(0, ""), name) }
	set := w.cgroupSet(w.kernfs(0, ""))
	own := mem.VA(w.get64(w.p.c.Links.At(set)))
	w.list(w.p.c.Links.At(set),
		w.hierarchy(1, 0, "systemd", dir("machine.slice")), own,
		w.hierarchy(4, w.controller("cpu")|w.controller("cpuacct"), "", dir("lxc.payload.web")),
		w.hierarchy(5, w.controller("io"), strings.Repeat("n", 63), dir("x")))
	w.put(task, w.p.d.CGroups, uint64(set))
	w.link()
	got, err := w.v.CGroups(taskAt(w, task))
	want := "[{0 []  /} {1 [] systemd /machine.slice} {4 [cpu cpuacct]  /lxc.payload.web} {5 [blkio] " + strings.Repeat("n", 63) + " /x}]"
	if err != nil || fmt.Sprintf("%v", got) != want {
		t.Errorf("got  %v, %v\nwant %s", got, err, want)
	}
	if p := w.one(); p.CGroup != "/machine.slice" || p.Container != "web" {
		t.Errorf("%q, container %q", p.CGroup, p.Container)
	}
}

// TestGroupsHostile gives a css_set links that lie.
func TestGroupsHostile(t *testing.T) {
	for _, c := range []struct {
		name string
		lie  func(w *taskWorld, set mem.VA)
	}{
		{"a ring without the head", func(w *taskWorld, set mem.VA) {
			a, b := w.hierarchy(1, 0, "a", w.kernfs(0, "")), w.hierarchy(2, 0, "b", w.kernfs(0, ""))
			w.list(a, b)
			w.put64(w.p.c.Links.At(set), uint64(a))
		}},
		{"too many", func(w *taskWorld, set mem.VA) {
			other := w.hierarchy(1, 0, "a", w.kernfs(0, ""))
			to := w.get64(w.p.c.LinkTo.At(other - mem.VA(w.p.c.LinkNode.Offset)))
			var all []mem.VA
			for range maxHierarchies + 1 {
				link := w.alloc(64)
				w.put(link, w.p.c.LinkTo, to)
				all = append(all, w.p.c.LinkNode.At(link))
			}
			w.list(w.p.c.Links.At(set), all...)
		}},
	} {
		w := newTaskWorld(t)
		task := w.task(1, 1)
		set := w.cgroupSet(w.kernfs(0, ""))
		c.lie(w, set)
		w.put(task, w.p.d.CGroups, uint64(set))
		w.link()
		got, err := w.v.CGroups(taskAt(w, task))
		if !errors.Is(err, mem.ErrInconsistent) || len(got) > maxHierarchies {
			t.Errorf("%s: %d groups, %v", c.name, len(got), err)
		}
		if p := w.one(); p.CGroup != "/" || len(p.Missing) != 1 {
			t.Errorf("%s: %q, missing %q", c.name, p.CGroup, p.Missing)
		}
	}
}

func TestFullName(t *testing.T) {
	w := newTaskWorld(t)
	long, short, worker, user := w.task(1, 1), w.task(2, 2), w.task(3, 3), w.task(4, 4)
	k, name := w.alloc(256), w.alloc(128)
	w.bytes(name, "a_kernel_thread_of_long_name"+strings.Repeat("x", 64))
	w.put(k, w.p.d.FullName, uint64(name))
	for _, at := range []mem.VA{long, worker, user} {
		w.put(at, w.p.d.KThread, uint64(k))
	}
	w.put(long, w.p.t.Flags, pfKThread)
	w.put(short, w.p.t.Flags, pfKThread)
	w.put(worker, w.p.t.Flags, pfKThread|pfWQWorker)
	w.link()
	for _, full := range []bool{false, true} {
		w.p.fullNames = full
		supply(w.v.Kernel, w.p)
		all, err := w.v.Processes()
		if err != nil || len(all) != 4 {
			t.Fatalf("%d processes, %v", len(all), err)
		}
		want := ("a_kernel_thread_of_long_name" + strings.Repeat("x", 64))[:63]
		if string(all[0].Comm) != want || all[1].Comm != "task" || (string(all[2].Comm) == want) != full || all[3].Comm != "task" {
			t.Errorf("%q %q %q %q", all[0].Comm, all[1].Comm, all[2].Comm, all[3].Comm)
		}
	}
}
