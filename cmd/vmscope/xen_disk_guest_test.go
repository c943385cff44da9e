package main

import (
	"fmt"
	"strconv"
	"strings"
	"testing"

	"vmscope/internal/guestlab"
)

// writer has a guest write to files in turn, each of which is on the disk before the next one's turn comes: file N gets the
// number of its last turn. What the guest was told of as written is known at any time.
type writer struct {
	*xenCLI
	domain *guestlab.Domain
	dir    string
}

// writerFiles is how many files there are. A write that is lost is seen as long as the file has had no other turn.
const writerFiles = 500

// inside runs a script in the guest.
func (x *xenCLI) inside(t *testing.T, d *guestlab.Domain, script string) string {
	t.Helper()
	return x.hostCLI.inside(t, &d.Agent, script)
}

// write begins to write, and returns when something is written.
func (x *xenCLI) write(t *testing.T, d *guestlab.Domain, dir string) *writer {
	t.Helper()
	w := &writer{x, d, dir}
	x.inside(t, d, fmt.Sprintf(`rm -f /tmp/stop /tmp/acked /tmp/failed /tmp/stopped; cd %s || exit
{ i=0; while [ ! -e /tmp/stop ]; do
	i=$((i+1)); echo $i >ack$((i %% %d)) || echo $i >>/tmp/failed
	sync; echo $i >/tmp/next; mv /tmp/next /tmp/acked
done; touch /tmp/stopped; } >/dev/null 2>&1 </dev/null &`, dir, writerFiles))
	w.goOn(t, 0, 3)
	return w
}

// acked is the number of the last turn that is on the disk, by the word that the guest got.
func (w *writer) acked(t *testing.T) int {
	t.Helper()
	out := w.inside(t, w.domain, "cat /tmp/acked 2>/dev/null || echo 0; cat /tmp/failed 2>/dev/null | tr '\\n' ' '")
	number, failed, _ := strings.Cut(out, "\n")
	n, err := strconv.Atoi(number)
	if err != nil || failed != "" {
		t.Fatalf("the guest's writes: %q, failed in turn %q", number, failed)
	}
	return n
}

// goOn waits until the guest has had so many turns more than it had.
func (w *writer) goOn(t *testing.T, had, more int) {
	t.Helper()
	last := 0
	w.await(t, "the guest writes on", "true", func(string) bool {
		last = w.acked(t)
		return last >= had+more
	})
}

// stop ends the writing and gives the last turn.
func (w *writer) stop(t *testing.T) int {
	t.Helper()
	w.inside(t, w.domain, "touch /tmp/stop; until [ -e /tmp/stopped ]; do sleep 0.1; done")
	return w.acked(t)
}

// check compares what files hold with the turns they have had.
func (w *writer) check(t *testing.T, last int, files map[string]string) {
	t.Helper()
	for i := max(1, last-writerFiles+1); i <= last; i++ {
		name := fmt.Sprintf("ack%d", i%writerFiles)
		if got := files[name]; got != fmt.Sprintf("%d\n", i) {
			t.Errorf("%s holds %q, and was written in turn %d of %d", name, got, i, last)
		}
	}
}

const xenMount = "mkdir -p /mnt; mount -t ext4 /dev/xvda /mnt; "

// testEvents is the paper's monitor of /root, on a domain's disk that we serve.
func (x *xenCLI) testEvents(t *testing.T, d *guestlab.Domain, disk *xenDisk) {
	x.inside(t, d, xenMount+"mkdir /mnt/root; touch /mnt/root/bar; sync")
	x.inside(t, d, "cd /mnt/root; mkdir foo; sync; touch dummy; sync; rm bar; sync")
	disk.events(t, "MKDIR: /root/foo", "MKFILE: /root/dummy", "RMFILE: /root/bar")
}

// testDisk goes on where testEvents ended, whatever happens to us or to the domain.
func (x *xenCLI) testDisk(t *testing.T, d *guestlab.Domain, disk *xenDisk) {
	var w *writer
	step := func(name string, f func(*testing.T)) {
		if !t.Failed() { // each goes on where the last one ended
			t.Run(name, f)
		}
	}
	step("write", func(t *testing.T) {
		w = x.write(t, d, "/mnt/root")
		disk.events(t, "MKFILE: /root/ack2")
	})
	// The process that serves the disk outlives the command: to the guest nothing happens.
	step("command killed", func(t *testing.T) {
		receiver := disk.process(t, "vmscope-receiver")
		x.run(t, 0, fmt.Sprintf("kill -9 %d", disk.process(t, "vmscope")))
		w.goOn(t, w.acked(t), 20)
		if now := disk.process(t, "vmscope-receiver"); now != receiver {
			t.Errorf("process %d served the disk, now %d does", receiver, now)
		}
		out := x.run(t, 2, "vmscope xen-block --image "+disk.image)
		if !strings.Contains(out, "in use") || !strings.Contains(out, "vmscope-receiver") || strings.Count(out, "\n") != 1 {
			t.Errorf("started anew beside it: %q", out)
		}
	})
	// Who serves it is started anew.
	step("receiver killed", func(t *testing.T) {
		receiver := disk.process(t, "vmscope-receiver")
		x.run(t, 0, fmt.Sprintf("kill -9 %d", receiver))
		w.goOn(t, w.acked(t), 20)
		if now := disk.process(t, "vmscope-receiver"); now == receiver {
			t.Errorf("process %d serves the disk although it was killed", now)
		}
	})
	// With nobody left the guest waits, as long as that takes, and then goes on as if nothing had been.
	step("all killed", func(t *testing.T) {
		disk.killAll(t)
		at := w.acked(t)
		x.run(t, 0, "sleep 2")
		// The answers to one turn may have been under way.
		if now := w.acked(t); now > at+1 {
			t.Errorf("%d turns while nobody served the disk", now-at)
		}
		disk.start(t)
		w.goOn(t, at, 20)
		w.check(t, w.stop(t), disk.content(t, "/root"))
	})
	step("reboot", func(t *testing.T) {
		last := w.acked(t)
		was := d.ID
		if err := d.Reboot(t.Context()); err != nil {
			t.Fatal(err)
		}
		if d.ID == was {
			t.Fatalf("still domain %d", was)
		}
		x.inside(t, d, xenMount+"touch /mnt/root/again; sync")
		files := map[string]string{}
		for line := range strings.Lines(x.inside(t, d, "cd /mnt/root; grep . ack*") + "\n") {
			name, content, _ := strings.Cut(line, ":")
			files[name] = content
		}
		w.check(t, last, files)
		disk.events(t, "MKFILE: /root/again")
	})
	step("destroy", func(t *testing.T) {
		w = x.write(t, d, "/mnt/root")
		last := w.stop(t)
		x.inside(t, d, "while :; do dd if=/dev/zero of=/mnt/noise bs=64k count=16; sync; done >/dev/null 2>&1 </dev/null &")
		if err := d.Destroy(t.Context()); err != nil {
			t.Fatal(err)
		}
		x.await(t, "the disk is gone from the store", "xenstore-ls /local/domain/0/backend/vbd 2>/dev/null; true", func(out string) bool {
			return !strings.Contains(out, disk.image)
		})
		w.check(t, last, disk.content(t, "/root"))
		disk.end(t)
	})
}
