package vmscope_test

import (
	"bufio"
	"crypto/sha256"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"vmscope/internal/guestlab"
)

// TestExamplesWatch runs the examples that watch a disk, one after the other, on a guest that runs already.
func TestExamplesWatch(t *testing.T) {
	dir := t.TempDir()
	image := filepath.Join(dir, "image")
	guestlab.MakeFS(t, image, 32<<20, "-t", "ext4")
	g := guestlab.Boot(t, guestlab.Config{Kernel: guestlab.TestKernels(t)[0], MemoryMiB: 256, Disk: image, Modules: []string{"ext4"}})
	if err := g.Mount(t.Context(), "/dev/vda", "/mnt", "ext4", ""); err != nil {
		t.Fatal(err)
	}
	inGuest := func(script string) {
		t.Helper()
		if _, err := g.Run(t.Context(), "cd /mnt; "+script+"; sync"); err != nil {
			t.Fatal(err)
		}
	}
	inGuest("mkdir root etc; touch root/bar")
	version := "root:x:0\n"
	for _, c := range []struct{ program, path, first, then, prints, ends string }{
		{
			"events", "/mnt/root", `"/mnt/root/ready"`, "mkdir root/foo etc/foo; sync; touch root/dummy; sync; rm root/bar",
			"MKDIR: \"/mnt/root/foo\"\nMKFILE: \"/mnt/root/dummy\"\nRMFILE: \"/mnt/root/bar\"\n", "bar\"",
		},
		{
			"versions", "/mnt/etc/passwd", fmt.Sprintf("%x", sha256.Sum256([]byte("ready\n"))), "echo root:x:0 >etc/new; sync; mv etc/new etc/passwd",
			fmt.Sprintf("%x 9 bytes", sha256.Sum256([]byte(version))), " 9 bytes",
		},
	} {
		program := filepath.Join(dir, c.program)
		if out, err := exec.Command("go", "build", "-o", program, "./examples/"+c.program).CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		cmd := exec.Command(program, g.Name(), c.path)
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		stop := time.AfterFunc(time.Minute, func() { cmd.Process.Kill() })
		// It says nothing of when it is attached: things happen until it tells one.
		attached := make(chan struct{})
		lines := make(chan string)
		go func() {
			defer close(lines)
			s := bufio.NewScanner(out)
			for s.Scan() && !strings.Contains(s.Text(), c.first) {
			}
			close(attached)
			for s.Scan() {
				if !strings.Contains(s.Text(), "/ready") && !strings.Contains(s.Text(), c.first) {
					lines <- s.Text() + "\n"
				}
			}
		}()
		for waiting := true; waiting; {
			select {
			case <-attached:
				waiting = false
			default:
				inGuest("rm -f root/ready; sync; touch root/ready; echo ready >etc/passwd")
			}
		}
		inGuest(c.then)
		var all string
		for line := range lines {
			if all += line; strings.Contains(line, c.ends) {
				break
			}
		}
		if !strings.Contains(all, c.prints) {
			t.Errorf("%s printed %q, want %q", c.program, all, c.prints)
		}
		stop.Stop()
		cmd.Process.Signal(os.Interrupt)
		for range lines {
		}
		cmd.Wait()
	}
}
