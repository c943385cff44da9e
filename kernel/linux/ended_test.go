package linux

import (
	"errors"
	"fmt"
	"testing"

	"vmscope/internal/memtest"
	"vmscope/mem"
)

// listed is a world with a process of which something is listed.
type listed struct {
	*procWorld
	task Task
	n    int // how much there is
	list func(v *View) (int, error)
}

func listedWorlds(t *testing.T) map[string]listed {
	files := newProcWorld(t)
	ftask := files.task(7)
	fds, open, _ := files.table(ftask, 64)
	for fd := range 3 {
		files.set(fds, open, fd, files.file(files.dentry(files.root, "f"), 0o100644, 1))
	}
	areas, atask := newAreaWorld(t, false)
	fillAreas(areas)
	mounts, mtask := newMountWorld(t, false)
	mounts.describe(mounts.base, 1, 0x20, "ext4", "/dev/vda1")
	mounts.link()
	return map[string]listed{
		"files":  {files, ftask, 3, func(v *View) (int, error) { l, err := v.Files(ftask); return len(l), err }},
		"areas":  {areas.procWorld, atask, len(areas.areas), func(v *View) (int, error) { l, err := v.Areas(atask); return len(l), err }},
		"mounts": {mounts.procWorld, mtask, 1, func(v *View) (int, error) { l, err := v.Mounts(mtask); return len(l), err }},
	}
}

// TestAnothersMemory lists what a process has whose memory has become another
// process's since it was found: it must not be taken for the first one's, also
// where all of it is cached.
func TestAnothersMemory(t *testing.T) {
	for name, c := range listedWorlds(t) {
		phys := &memtest.Bytes{Data: c.b}
		for how, v := range map[string]*View{"mapped": viewOf(c.v.Kernel, phys), "cached": viewOf(c.v.Kernel, mem.NewCache(phys, 1<<10))} {
			if n, err := c.list(v); n != c.n || err != nil {
				t.Fatalf("%s, %s: %d, %v", name, how, n, err)
			}
			c.put(c.task.Addr, c.t.PID, 99)
			if n, err := c.list(v); n != 0 || err != nil {
				t.Errorf("%s, %s: %d of another process, %v", name, how, n, err)
			}
			c.put(c.task.Addr, c.t.PID, uint64(c.task.PID))
			c.put(c.task.Addr, c.t.Exit, 16)
			if n, err := c.list(v); n != 0 || err != nil {
				t.Errorf("%s, %s: %d of a dead process, %v", name, how, n, err)
			}
			c.put(c.task.Addr, c.t.Exit, 0)
		}
	}
}

// ending is a memory that cannot be reached any more after some reads.
type ending struct {
	mem.PhysReader
	left int
}

func (r *ending) ReadPhys(p []byte, pa mem.PA) (int, error) {
	if r.left--; r.left < 0 {
		return 0, &mem.FaultError{Op: "read", Space: "physical", Addr: uint64(pa), Err: fmt.Errorf("it ended: %w", mem.ErrUnreachable)}
	}
	return r.PhysReader.ReadPhys(p, pa)
}

// TestSourceEnds lists what a process has while the guest goes away: that is no
// process without files.
func TestSourceEnds(t *testing.T) {
	for name, c := range listedWorlds(t) {
		for left := range 1 << 10 {
			v := viewOf(c.v.Kernel, &ending{&memtest.Bytes{Data: c.b}, left})
			n, err := c.list(v)
			if err == nil && n == c.n {
				break
			}
			if !errors.Is(err, mem.ErrUnreachable) {
				t.Fatalf("%s: %d of %d after %d reads, %v", name, n, c.n, left, err)
			}
		}
	}
}

// TestThreadsOfAnother asks for the threads of a process whose memory has become
// another's.
func TestThreadsOfAnother(t *testing.T) {
	w := newTaskWorld(t)
	a, b := w.task(1, 1), w.task(2, 2)
	w.link()
	if got, err := w.v.ThreadsOf(taskAt(w, a)); len(got) != 1 || err != nil {
		t.Errorf("%v, %v", pids(got), err)
	}
	old := taskAt(w, a)
	w.put(a, w.p.t.PID, 3)
	w.put(a, w.p.t.TGID, 3)
	if got, err := w.v.ThreadsOf(old); !errors.Is(err, mem.ErrInconsistent) {
		t.Errorf("threads %v of another process, %v", pids(got), err)
	}
	w.put(a, w.p.t.Signal, w.get64(w.p.t.Signal.At(b)))
	if got, err := w.v.ThreadsOf(taskAt(w, a)); !errors.Is(err, mem.ErrInconsistent) {
		t.Errorf("threads %v of another process, %v", pids(got), err)
	}
}
