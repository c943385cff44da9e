package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"vmscope/internal/guestlab"
	"vmscope/internal/qmp"
	"vmscope/vm/qemu"
)

// madeInQEMU lists exports and servers that are in a QEMU.
func madeInQEMU(t *testing.T, g *guestlab.Guest) (exports int, server bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	p, err := qemu.Find(itoa(g.PID()))
	if err != nil {
		t.Fatal(err)
	}
	m, err := p.Monitor(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	var list []json.RawMessage
	if err := qmp.Query(ctx, m, "query-block-exports", nil, &list); err != nil {
		t.Fatal(err)
	}
	if len(list) > 0 {
		return len(list), true
	}
	_, err = m.Run(ctx, "nbd-server-stop", nil)
	var refused *qmp.Error
	return 0, !errors.As(err, &refused)
}

// TestLiveDisks looks at the disks of a running guest: a raw one, and a qcow2
// one that QEMU has to export. QEMU is left as it was found.
func TestLiveDisks(t *testing.T) {
	image := makeDisk(t)
	raw, cow := filepath.Join(filepath.Dir(image), "raw"), filepath.Join(filepath.Dir(image), "cow")
	guestlab.MakeFS(t, raw, 64<<20, "-t", "ext4", "-L", "cow")
	if out, err := exec.Command("qemu-img", "convert", "-O", "qcow2", raw, cow).CombinedOutput(); err != nil {
		t.Fatalf("qemu-img: %v\n%s", err, out)
	}
	g := guestlab.Boot(t, guestlab.Config{
		Kernel: guestlab.TestKernels(t)[0], MemoryMiB: 256, Disk: image, Disks: []guestlab.Disk{{ID: "cow", Path: cow, Format: "qcow2"}}, Modules: []string{"ext4"},
	})
	inGuest := func(script string) {
		if _, err := g.Run(t.Context(), script); err != nil {
			t.Fatal(err)
		}
	}
	for dev, dir := range map[string]string{"/dev/vda2": "/mnt/raw", "/dev/vdb": "/mnt/cow"} {
		if err := g.Mount(t.Context(), dev, dir, "ext4", ""); err != nil {
			t.Fatal(err)
		}
	}
	name := g.Name()
	out, stderr, status := run(t, "disks", name)
	for _, w := range []string{"vda2", "vdb", "ext4", "qcow2"} {
		if status != 0 || !strings.Contains(out, w) {
			t.Errorf("disks lacks %q, status %d, %q:\n%s", w, status, stderr, out)
		}
	}
	for i := range 5 {
		for _, c := range []struct{ fs, dir string }{{"vda2", "/mnt/raw"}, {"LABEL=cow", "/mnt/cow"}} {
			inGuest(fmt.Sprintf("mkdir %s/d%d; echo round %d >%s/d%d/f; sync", c.dir, i, i, c.dir, i))
			if out, stderr, status := run(t, "cat", name, "--fs", c.fs, fmt.Sprintf("/d%d/f", i)); out != fmt.Sprintf("round %d\n", i) || status != 0 {
				t.Errorf("%s, round %d: %q, %q", c.fs, i, out, stderr)
			}
		}
	}
	failed(t, []string{"ls", name}, "several", "vda2", "vdb", "cow")
	failed(t, []string{"ls", name, "--disk", "cow-dev", "/nope"}, "/nope", "does not exist")
	if out, _, status := run(t, "ls", name, "--disk", "cow-dev"); status != 0 || !strings.Contains(out, "d4\n") {
		t.Errorf("--disk cow-dev: %q", out)
	}
	if n, server := madeInQEMU(t, g); n != 0 || server {
		t.Errorf("%d exports are left in QEMU, server %v", n, server)
	}

	// A look that stands still finds nothing that contradicts itself, whatever the guest does.
	inGuest(`for d in raw cow; do
	(cd /mnt/$d; i=0; while [ ! -e /tmp/stop ]; do i=$((i+1)); mkdir s$((i%7)) 2>/dev/null; echo $i >s$((i%7))/f$((i%50)); mv s$((i%7))/f$((i%50)) s$(((i+3)%7))/ 2>/dev/null
	[ $((i%20)) = 0 ] && { rm -rf s$((i%7)); sync; }; done) >/dev/null 2>&1 &
done`)
	torn := 0
	for range 3 {
		for _, fs := range []string{"vda2", "vdb"} {
			if out, stderr, status := run(t, "find", name, "--fs", fs, "--pause"); status != 0 || !strings.Contains(out, "/d4/f\n") {
				t.Errorf("find --pause --fs %s: status %d, %q, %d bytes", fs, status, stderr, len(out))
			}
			if _, stderr, status := run(t, "find", name, "--fs", fs); status != 0 {
				torn++
				t.Log(stderr)
			}
		}
	}
	t.Log(torn, "of 6 looks at a guest that ran contradicted themselves")
	inGuest("touch /tmp/stop")

	// A look that is ended leaves nothing; what a killed one left goes with the next one.
	inGuest("dd if=/dev/zero of=/mnt/cow/big bs=1M count=20; sync")
	ended := func(how func(c *exec.Cmd, r *os.File)) {
		t.Helper()
		c := vmscopeCmd("cat", name, "--fs", "vdb", "/big")
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		var stderr strings.Builder
		c.Stdout, c.Stderr = w, &stderr
		if err := errors.Join(c.Start(), w.Close()); err != nil {
			t.Fatal(err)
		}
		if _, err := r.Read(make([]byte, 1)); err != nil { // it has begun, and now waits for us
			t.Error(err)
		}
		how(c, r)
		c.Wait()
		if stderr.Len() > 0 {
			t.Logf("stderr: %q", stderr.String())
		}
	}
	hearHangups(t)
	for what, how := range map[string]func(c *exec.Cmd, r *os.File){
		"a closed pipe": func(_ *exec.Cmd, r *os.File) { r.Close() },
		"SIGINT":        func(c *exec.Cmd, _ *os.File) { c.Process.Signal(syscall.SIGINT) },
		"SIGHUP":        func(c *exec.Cmd, r *os.File) { c.Process.Signal(syscall.SIGHUP); io.Copy(io.Discard, r) },
	} {
		ended(how)
		if n, server := madeInQEMU(t, g); n != 0 || server {
			t.Errorf("after %s %d exports are left in QEMU, server %v", what, n, server)
		}
	}
	ended(func(c *exec.Cmd, _ *os.File) { c.Process.Kill() })
	if n, _ := madeInQEMU(t, g); n != 1 {
		t.Errorf("%d exports of a killed look", n)
	}
	if _, stderr, status := run(t, "disks", name); status != 0 {
		t.Errorf("disks after a killed look: %q", stderr)
	}
	if n, server := madeInQEMU(t, g); n != 0 || server {
		t.Errorf("%d exports are left in QEMU after a killed look, server %v", n, server)
	}
	inGuest("echo alive >/mnt/cow/alive; sync")
}

// TestNBDTarget looks into an image of another format by way of qemu-nbd.
func TestNBDTarget(t *testing.T) {
	image := makeDisk(t)
	guestlab.Need(t, "qemu-nbd")
	dir := t.TempDir()
	cow, sock := filepath.Join(dir, "cow"), filepath.Join(dir, "sock")
	if out, err := exec.Command("qemu-img", "convert", "-O", "qcow2", image, cow).CombinedOutput(); err != nil {
		t.Fatalf("qemu-img: %v\n%s", err, out)
	}
	server := exec.Command("qemu-nbd", "-r", "-t", "-k", sock, "-f", "qcow2", cow)
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		server.Process.Kill()
		server.Wait()
	})
	for range 500 {
		if _, err := os.Stat(sock); err == nil {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	target := "nbd+unix:///?socket=" + sock
	if out, stderr, status := run(t, "cat", target, "/etc/passwd"); out != "root:x:0:0\n" || status != 0 {
		t.Errorf("cat: %q, %q", out, stderr)
	}
	if out, stderr, _ := run(t, "disks", target); !strings.Contains(out, "disk0p2") {
		t.Errorf("disks: %q, %q", out, stderr)
	}
	failed(t, []string{"ls", "nbd+unix:///?socket=" + filepath.Join(dir, "none")}, "no such file")
	failed(t, []string{"ls", "nbd+unix:///nope?socket=" + sock}, "nope")
	// The image itself is raw bytes, whatever they look like.
	if out, _, _ := run(t, "disks", cow); !strings.Contains(out, "unknown") {
		t.Errorf("disks of a qcow2 image: %q", out)
	}
}
