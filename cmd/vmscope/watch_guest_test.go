package main

import (
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
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

// watching is a 'vmscope watch' of its own process.
type watching struct {
	*exec.Cmd
	stdout *bufio.Reader
	stderr chan string // lines
}

// startWatch returns when events are complete.
func startWatch(t *testing.T, args ...string) *watching {
	t.Helper()
	w := startTelling(t, append([]string{"watch"}, args...)...)
	if first := <-w.stderr; !strings.Contains(first, "from now on") {
		rest, _ := w.stdout.ReadString('\n')
		t.Fatalf("watch says %q, and %q", first, rest)
	}
	return w
}

// startTelling starts a command that tells events.
func startTelling(t *testing.T, args ...string) *watching {
	t.Helper()
	w := &watching{Cmd: vmscopeCmd(args...), stderr: make(chan string, 1000)}
	out, err := w.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	errs, err := w.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.Process.Kill() })
	w.stdout = bufio.NewReader(out)
	lines := bufio.NewReader(errs)
	go func() {
		for {
			line, err := lines.ReadString('\n')
			w.stderr <- line
			if err != nil {
				close(w.stderr)
				return
			}
		}
	}()
	return w
}

// until reads lines up to one that ends so.
func (w *watching) until(t *testing.T, end string) (lines []string) {
	t.Helper()
	timer := time.AfterFunc(time.Minute, func() { w.Process.Kill() })
	defer timer.Stop()
	for {
		line, err := w.stdout.ReadString('\n')
		if err != nil {
			t.Fatalf("%v before %q, behind %q", err, end, lines)
		}
		lines = append(lines, strings.TrimSuffix(line, "\n"))
		if strings.HasSuffix(line, end+"\n") {
			return lines
		}
	}
}

// says waits for a line on stderr with some words.
func (w *watching) says(t *testing.T, words string) {
	t.Helper()
	timer := time.AfterFunc(time.Minute, func() { w.Process.Kill() })
	defer timer.Stop()
	for line := range w.stderr {
		if strings.Contains(line, words) {
			return
		}
	}
	t.Fatalf("it does not say %q", words)
}

// ended waits for its end, and gives its status and what it said.
func (w *watching) ended() (status int, stderr string) {
	for line := range w.stderr {
		stderr += line
	}
	w.Wait()
	return w.ProcessState.ExitCode(), stderr
}

// leftInQEMU lists what is in a QEMU that only we would have made.
func leftInQEMU(t *testing.T, g *guestlab.Guest) (left []string) {
	t.Helper()
	p, err := qemu.Find(itoa(g.PID()))
	if err != nil {
		t.Fatal(err)
	}
	m, err := p.Monitor(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	for _, question := range []string{"query-block-jobs", "query-block-exports", "query-named-block-nodes"} {
		var list []json.RawMessage
		if err := qmp.Query(t.Context(), m, question, nil, &list); err != nil {
			t.Fatal(err)
		}
		for _, x := range list {
			if question != "query-named-block-nodes" || strings.Contains(string(x), `"vmscope-`) {
				left = append(left, string(x))
			}
		}
	}
	return left
}

// TestWatchGuest watches a running guest as a user does: the paper's four events, Ctrl-C, a request to leave, the guest's end.
func TestWatchGuest(t *testing.T) {
	image := filepath.Join(t.TempDir(), "image")
	guestlab.MakeFS(t, image, 64<<20, "-t", "ext4")
	data, socket := filepath.Join(t.TempDir(), "data"), filepath.Join(t.TempDir(), "s")
	guestlab.MakeFS(t, data, 16<<20, "-t", "ext4")
	served := startTelling(t, "nbd", "--protocol", "vhost-user", "--image", data, "--socket", socket, "--watch", "/data/in")
	served.says(t, "serving at")
	g := guestlab.Boot(t, guestlab.Config{Kernel: guestlab.TestKernels(t)[0], MemoryMiB: 256, Disk: image, Modules: []string{"ext4"},
		QEMUArgs: []string{"-chardev", "socket,id=vu,path=" + socket + ",reconnect=1", "-device", "vhost-user-blk-pci,chardev=vu"}})
	t.Run("vhost-user", func(t *testing.T) { servedPaths(t, g, served) })
	inGuest := func(script string) {
		t.Helper()
		if _, err := g.Run(t.Context(), script); err != nil {
			t.Fatal(err)
		}
	}
	if err := g.Mount(t.Context(), "/dev/vda", "/srv", "ext4", ""); err != nil {
		t.Fatal(err)
	}
	inGuest("mkdir /srv/root /srv/etc; echo 1 >/srv/etc/passwd; touch /srv/root/bar; sync")

	versions := filepath.Join(t.TempDir(), "versions")
	w := startWatch(t, g.Name(), "/srv/root", "/srv/etc", "--content", versions)
	inGuest("cd /srv; mkdir root/foo; sync; touch root/dummy unwatched; sync; rm root/bar; sync; echo 22 >etc/passwd.new; sync; mv etc/passwd.new etc/passwd; sync")
	var said []string
	for _, line := range w.until(t, "sha256:"+sha256Of("22\n")[:16]) {
		line, _, _ = strings.Cut(line, " sha256:")
		said = append(said, line)
	}
	said = append(said, w.until(t, "RENAME: /srv/etc/passwd.new -> /srv/etc/passwd sha256:"+sha256Of("22\n")[:16])...)
	want := "MKDIR: /srv/root/foo, MKFILE: /srv/root/dummy, RMFILE: /srv/root/bar, MKFILE: /srv/etc/passwd.new, RMFILE: /srv/etc/passwd, " +
		"RENAME: /srv/etc/passwd.new -> /srv/etc/passwd sha256:" + sha256Of("22\n")[:16]
	if got := strings.Join(said, ", "); got != want {
		t.Errorf("told %s\nwant %s", got, want)
	}
	if b, err := os.ReadFile(filepath.Join(versions, sha256Of("22\n"))); string(b) != "22\n" {
		t.Errorf("the version that was kept: %q, %v", b, err)
	}
	for _, c := range []struct {
		args  []string
		words []string
	}{
		{[]string{"watch", g.Name()}, []string{"in use", "--detach"}},
		{[]string{"watch", g.Name(), "--disk", "nope"}, []string{"nope", "vmscope disks"}},
		{[]string{"nbd", "--image", image, "--socket", filepath.Join(t.TempDir(), "s")}, []string{"in use by VM"}},
	} {
		failed(t, c.args, c.words...)
		if _, stderr, _ := run(t, c.args...); strings.Count(stderr, "VM \"") > 1 || strings.Count(stderr, "vda") > 1 {
			t.Errorf("%q says something twice: %s", c.args, stderr)
		}
	}
	if out, _, _ := run(t, "__complete", "watch", g.Name(), "--disk", ""); !strings.Contains(out, "vda\n") {
		t.Errorf("completion of --disk: %q", out)
	}
	if out, _, _ := run(t, "__complete", "watch", g.Name(), "--fs", ""); !strings.Contains(out, "vda\n") {
		t.Errorf("completion of --fs: %q", out)
	}
	if err := w.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	if status, stderr := w.ended(); status != 0 && status != statusInterrupted || stderr != "" {
		t.Errorf("Ctrl-C: status %d, %q", status, stderr)
	}
	if left := leftInQEMU(t, g); len(left) > 0 {
		t.Errorf("Ctrl-C left %s", left)
	}

	w = startWatch(t, g.Name(), "--disk-paths", "--op", "RMDIR")
	inGuest("mkdir /srv/root/x; sync; rmdir /srv/root/foo; sync")
	if lines := w.until(t, "/root/foo"); len(lines) != 1 || lines[0] != "RMDIR: /root/foo" {
		t.Errorf("--op RMDIR told %q", lines)
	}
	if out, stderr, status := run(t, "watch", g.Name(), "--detach"); out != "1 left\n" || status != 0 {
		t.Errorf("--detach: %q, %q, status %d", out, stderr, status)
	}
	if status, stderr := w.ended(); status != 0 || strings.Count(stderr, "\n") != 1 || !strings.Contains(stderr, "detached on request") {
		t.Errorf("made to leave: status %d, %q", status, stderr)
	}
	if left := leftInQEMU(t, g); len(left) > 0 {
		t.Errorf("--detach left %s", left)
	}
	if out, _, status := run(t, "watch", g.Name(), "--detach", "--json"); out != `{"detached":0}`+"\n" || status != 0 {
		t.Errorf("--detach of nothing: %q, status %d", out, status)
	}

	paths := filepath.Join(t.TempDir(), "paths")
	setPaths := func(s string) {
		t.Helper()
		if err := os.WriteFile(paths, []byte(s), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	setPaths("/srv/one\n")
	w = startWatch(t, g.Name(), "--paths-from", paths, "/srv/end", "--op", "MKDIR")
	inGuest("cd /srv; mkdir one two; sync")
	setPaths("/srv/two # with space\n# not /srv/one\n/srv/two/.\n")
	w.says(t, "2 paths from now on")
	inGuest("cd /srv; mkdir -p one/a two/a/b; sync")
	setPaths("")
	w.says(t, "0 paths from now on")
	inGuest("cd /srv; mkdir one/b two/b; sync; mkdir end; sync")
	if told := strings.Join(w.until(t, "/srv/end"), ", "); told != "MKDIR: /srv/one, MKDIR: /srv/two/a, MKDIR: /srv/end" {
		t.Errorf("--paths-from: told %s", told)
	}
	w.Process.Signal(syscall.SIGINT)
	w.ended()

	w = startWatch(t, g.Name())
	if err := syscall.Kill(g.PID(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if status, stderr := w.ended(); status != 0 || !strings.Contains(stderr, "the guest has ended") {
		t.Errorf("the guest ended: status %d, %q", status, stderr)
	}
	served.Process.Signal(syscall.SIGTERM)
	if status, stderr := served.ended(); status != 0 && status != statusInterrupted {
		t.Errorf("SIGTERM: status %d, %q", status, stderr)
	}
}

// servedPaths: paths of a disk that is served by vhost-user are the guest's, which its memory tells.
func servedPaths(t *testing.T, g *guestlab.Guest, served *watching) {
	if err := g.Mount(t.Context(), "/dev/vdb", "/data", "ext4", ""); err != nil {
		t.Fatal(err)
	}
	if _, err := g.Run(t.Context(), "mkdir /data/in /data/out"); err != nil {
		t.Fatal(err)
	}
	told := make(chan string, 1)
	go func() {
		line, _ := served.stdout.ReadString('\n')
		for strings.HasPrefix(line, "MOUNT: ") || line == "MKDIR: /data/in\n" {
			line, _ = served.stdout.ReadString('\n')
		}
		told <- line
	}()
	// A host that is slow may be told late where it is mounted.
	for i := range 300 {
		if _, err := g.Run(t.Context(), fmt.Sprintf("mkdir /data/in/x%d /data/out/x%d; sync", i, i)); err != nil {
			t.Fatal(err)
		}
		select {
		case line := <-told:
			if !strings.HasPrefix(line, "MKDIR: /data/in/x") {
				t.Errorf("told %q", line)
			}
			return
		case <-time.After(100 * time.Millisecond):
		}
	}
	t.Error("nothing is told of the guest's path")
}

func sha256Of(text string) string {
	sum := sha256.Sum256([]byte(text))
	return hex.EncodeToString(sum[:])
}

// TestWatchReset resets a guest while it is watched: where its file system is mounted is told late by each boot, and what
// happens there is told all the same, by the guest's paths.
func TestWatchReset(t *testing.T) {
	image := filepath.Join(t.TempDir(), "image")
	guestlab.MakeFS(t, image, 64<<20, "-t", "ext4")
	g := guestlab.Boot(t, guestlab.Config{Kernel: guestlab.TestKernels(t)[0], MemoryMiB: 256, Disk: image, Modules: []string{"ext4"}, AllowReboot: true})
	mount := func() {
		t.Helper()
		if err := g.Mount(t.Context(), "/dev/vda", "/mnt", "ext4", ""); err != nil {
			t.Fatal(err)
		}
	}
	mount()
	if _, err := g.Run(t.Context(), "mkdir /mnt/root; sync"); err != nil {
		t.Fatal(err)
	}
	w := startWatch(t, g.Name(), "/mnt/root", "--op", "MKDIR")
	for i := range 2 {
		if err := g.Reset(t.Context()); err != nil {
			t.Fatal(err)
		}
		mount()
		if _, err := g.Run(t.Context(), fmt.Sprintf("mkdir /mnt/root/after%d /mnt/elsewhere%d; sync", i, i)); err != nil {
			t.Fatal(err)
		}
		for _, line := range w.until(t, fmt.Sprintf("/mnt/root/after%d", i)) {
			if strings.Contains(line, "elsewhere") {
				t.Errorf("not watched: %q", line)
			}
		}
	}
}
