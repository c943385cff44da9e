package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"vmscope/internal/guestlab"
)

// serve serves a new disk to domains, out of dom0's memory, and gives xl's line for it.
func (x *xenCLI) serve(t *testing.T, image, vdev string) (line string) {
	t.Helper()
	here := filepath.Join(t.TempDir(), "image")
	guestlab.MakeFS(t, here, 16<<20, "-t", "ext4")
	data, err := os.ReadFile(here)
	if err != nil {
		t.Fatal(err)
	}
	if err := x.host.Put(t.Context(), image, data, 0o644); err != nil {
		t.Fatal(err)
	}
	x.run(t, 0, "vmscope xen-block --print-script >/etc/xen/scripts/block-vmscope && chmod +x /etc/xen/scripts/block-vmscope")
	x.start(t, image)
	return fmt.Sprintf("vdev=%s,access=rw,backendtype=phy,script=block-vmscope,target=%s", vdev, image)
}

// start has xen-block serve an image; its events go to a file beside that.
func (x *xenCLI) start(t *testing.T, image string) {
	t.Helper()
	x.run(t, 0, fmt.Sprintf("{ setsid vmscope xen-block --image %[1]s --watch /root </dev/null >>%[1]s.events 2>>%[1]s.err & }", image))
}

// events waits for events of a disk, in this order.
func (x *xenCLI) events(t *testing.T, image string, want ...string) {
	t.Helper()
	var got string
	for range 120 {
		rest, n := x.run(t, 0, "cat "+image+".events"), 0
		got = rest
		for n < len(want) {
			_, behind, ok := strings.Cut(rest, want[n]+"\n")
			if !ok {
				break
			}
			rest, n = behind, n+1
		}
		if n == len(want) {
			return
		}
		time.Sleep(500 * time.Millisecond)
	}
	t.Fatalf("events\n%s\nlack some of %q; %s", got, want, x.run(t, 0, "cat "+image+".err"))
}

// testDisk is the paper's monitor of /root on a domain's disk that we serve, whatever happens to us.
func (x *xenCLI) testDisk(t *testing.T, d *guestlab.Domain, image string) {
	inside := func(script string) string {
		out, err := d.Run(t.Context(), script)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	inside("mkdir -p /mnt; mount -t ext4 /dev/xvda /mnt; mkdir /mnt/root; touch /mnt/root/bar; sync")
	inside("cd /mnt/root; mkdir foo; sync; touch dummy; sync; rm bar; sync")
	x.events(t, image, "MKDIR: /root/foo", "MKFILE: /root/dummy", "RMFILE: /root/bar")

	// Killed, and started anew, while the guest writes: what was acknowledged to it is there at the end.
	const files = 60
	done := make(chan error, 1)
	go func() {
		_, err := d.Run(t.Context(), fmt.Sprintf("cd /mnt/root; for i in $(seq %d); do echo $i >ack$i; sync; done", files))
		done <- err
	}()
	x.events(t, image, "MKFILE: /root/ack3")
	x.run(t, 0, `for p in /proc/[0-9]*; do case "$(readlink $p/exe)" in */vmscope) kill -9 ${p#/proc/};; esac; done`)
	select {
	case err := <-done:
		t.Fatalf("the guest was done before all was killed: %v", err)
	case <-time.After(2 * time.Second):
	}
	x.start(t, image)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	x.events(t, image, fmt.Sprintf("MKFILE: /root/ack%d", files))
	if err := d.Destroy(t.Context()); err != nil {
		t.Fatal(err)
	}
	for i := 1; i <= files; i++ {
		if got := x.run(t, 0, fmt.Sprintf("vmscope cat %s /root/ack%d", image, i)); got != fmt.Sprintf("%d\n", i) {
			t.Errorf("ack%d holds %q", i, got)
		}
		if i == 5 {
			i = files - 10 // those around the kill, and the last
		}
	}
}
