package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"vmscope/block"
	"vmscope/block/logwrites"
	"vmscope/internal/fsoracle"
	"vmscope/internal/guestlab"
)

// TestWrongWatches: what cannot be watched is refused with one line that says why.
func TestWrongWatches(t *testing.T) {
	dir := t.TempDir()
	file, empty := filepath.Join(dir, "file"), filepath.Join(dir, "empty")
	if err := errors.Join(os.WriteFile(file, []byte("no disk"), 0o600), os.WriteFile(empty, make([]byte, 1<<20), 0o600)); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args  string
		words []string
	}{
		{"watch", []string{"TARGET", "vmscope vms"}},
		{"watch no-such-vm", []string{"no such VM", "no-such-vm"}},
		{"watch no-such-vm --detach", []string{"no such VM", "no-such-vm"}},
		{"watch qemu:no-such-vm /etc", []string{"no such VM"}},
		{"watch web --pause", []string{"no use for --pause"}},
		{"--route mmap watch web", []string{"no use for --route", "vmscope watch --help"}},
		{"nbd --layout q35", []string{"no use for --layout"}},
		{"disks " + file + " --truncated", []string{"no use for --truncated"}},
		{"watch xen:a", []string{"xen:a", "vmscope xen-block"}},
		{"watch pid:1", []string{"pid:1", "vmscope nbd"}},
		{"watch " + file, []string{"file", "vmscope nbd", "vmscope replay"}},
		{"watch file:" + file, []string{"file", "vmscope replay"}},
		{"watch web --op NONSENSE", []string{"NONSENSE", "MKFILE"}},
		{"watch web etc", []string{`"etc"`, "/"}},
		{"watch web /[a", []string{"/[a", "pattern"}},
		{"watch web --paths-from " + dir + "/none", []string{"none", "no such file"}},
		{"watch web --paths-from " + file, []string{"line 1", `"no disk"`}},
		{"watch web --paths-from " + dir, []string{"not a regular file"}},
		{"watch web --content " + dir + "/v --content-limit 0", []string{"--content-limit 0"}},
		{"watch web --content " + file + "/v", []string{"not a directory"}},
		{"nbd", []string{"--image", "--socket"}},
		{"nbd --image " + file, []string{"--socket"}},
		{"nbd --socket " + dir + "/s", []string{"--image"}},
		{"nbd web", []string{"web"}},
		{"nbd --image " + dir + "/none --socket " + dir + "/s", []string{"none", "no such file"}},
		{"nbd --image " + empty + " --socket " + dir + "/none/s", []string{"none/s"}},
		{"nbd --image " + empty + " --socket " + dir + "/s --protocol iscsi", []string{"iscsi", "vhost-user"}},
		{"nbd --image " + empty + " --socket " + dir + "/s --watch etc", []string{`"etc"`}},
		{"nbd --image " + empty + " --socket " + dir + "/s --protocol vhost-user --read-only", []string{"read-only by vhost-user"}},
		{"nbd --image nbd+unix:///?socket=" + dir + "/x --socket " + dir + "/s --protocol vhost-user --read-only", []string{"read-only by vhost-user"}},
		{"nbd --image " + empty + " --socket " + dir + "/s --tls-ca " + file, []string{"--tls-cert"}},
		{"nbd --image " + empty + " --socket " + dir + "/s --tls-cert " + file, []string{"--tls-key"}},
		{"nbd --image " + empty + " --socket 127.0.0.1:0 --tls-cert " + file + " --tls-key " + file, []string{"TLS"}},
		{"replay", []string{"LOG"}},
		{"replay " + file, []string{"--base"}},
		{"replay " + file + " --base " + dir + "/none", []string{"none", "no such file"}},
		{"replay " + dir + "/none --base " + empty, []string{"none", "no such file"}},
		{"replay " + file + " --base " + empty, []string{"log of writes"}},
	} {
		failed(t, strings.Fields(c.args), c.words...)
	}
	if _, err := os.Stat(filepath.Join(dir, "s")); err == nil {
		t.Error("a socket is left")
	}
}

// recorded unpacks what a real guest did to a disk, up to the end of a whole tree.
func recorded(t *testing.T, name string) (r *fsoracle.Recording, log, base string) {
	t.Helper()
	r, err := fsoracle.Open("../../fsinfer/ext4/testdata/streams/" + name + ".tar.zst")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	log, base = filepath.Join(dir, "log"), filepath.Join(dir, "base")
	if err := errors.Join(os.WriteFile(log, r.Log, 0o600), os.WriteFile(base, r.Base, 0o600)); err != nil {
		t.Fatal(err)
	}
	return r, log, base
}

// TestReplay: each line is an object with fields that docs/json.md knows, and the lines alone, applied one after the other to
// the names that were there, give the names that the guest saw at the end.
func TestReplay(t *testing.T) {
	r, log, base := recorded(t, "ext4")
	out, stderr, status := run(t, "replay", log, "--base", base, "--json")
	if status != 0 || !strings.Contains(out, `"op":"ATTACHED"`) {
		t.Fatalf("status %d, %q", status, stderr)
	}
	known := documented(t)["replay"]
	numbers := []string{"seq", "inode", "generation", "mode", "uid", "gid", "size", "nlink", "offset", "length", "tid"}
	made := map[string]string{"MKDIR": "dir", "MKFILE": "file", "SYMLINK": "symlink"}
	names := map[string]float64{} // inodes of paths; bytes that are not UTF-8 are U+FFFD in both
	for _, f := range r.Points[0].Tree {
		names[string([]rune(string(f.Path)))] = float64(f.Inode)
	}
	var ring [][2]string
	seq := 0.0
	for line := range strings.Lines(out) {
		e := object(t, line)
		checkFields(t, "replay", known, e)
		for k, v := range e {
			switch v.(type) {
			case float64:
				if !slices.Contains(numbers, k) {
					t.Errorf("%s is a number: %s", k, line)
				}
			case string:
				if slices.Contains(numbers, k) {
					t.Errorf("%s is a string: %s", k, line)
				}
			}
		}
		if _, err := time.Parse(time.RFC3339Nano, e["time"].(string)); err != nil {
			t.Error(err)
		}
		if seq++; e["seq"] != seq {
			t.Fatalf("event %v has number %v", seq, e["seq"])
		}
		op, path := e["op"].(string), ""
		if p, ok := e["path"].(string); ok {
			path = p
		}
		if kind := made[op]; kind != "" && e["kind"] != kind || op == "SYMLINK" && e["target"] == nil {
			t.Errorf("%s", line)
		}
		switch op {
		case "MKDIR", "MKFILE", "SYMLINK", "MKNOD", "LINK":
			if names[path] != 0 {
				t.Errorf("%q is there already: %s", path, line)
			}
			names[path] = e["inode"].(float64)
		case "RMDIR", "RMFILE":
			if names[path] != e["inode"] {
				t.Errorf("%q is inode %v: %s", path, names[path], line)
			}
			delete(names, path)
		case "RENAME":
			// A ring of them is one exchange: paths are those before the first, and the last leads to where the first began.
			ring = append(ring, [2]string{e["old_path"].(string), path})
			if e["detail"] == "exchange" && path != ring[0][0] {
				continue
			}
			moved := map[string]float64{}
			for _, r := range ring {
				for p, ino := range names {
					if p == r[0] || strings.HasPrefix(p, r[0]+"/") {
						delete(names, p)
						moved[r[1]+p[len(r[0]):]] = ino
					}
				}
			}
			maps.Copy(names, moved)
			ring = nil
		}
	}
	last := map[string]float64{}
	for _, f := range r.Points[len(r.Points)-1].Tree {
		last[string([]rune(string(f.Path)))] = float64(f.Inode)
	}
	if len(last) == 0 {
		for _, f := range r.Points[len(r.Points)-2].Tree {
			last[string([]rune(string(f.Path)))] = float64(f.Inode)
		}
	}
	for p, ino := range last {
		if names[p] != ino {
			t.Errorf("%q is inode %v, and %v by the events", p, ino, names[p])
		}
	}
	for p := range names {
		if last[p] == 0 {
			t.Errorf("%q is not there, but by the events", p)
		}
	}

	only, _, status := run(t, "replay", log, "--base", base, "--op", "rename,MKDIR", "/d")
	for line := range strings.Lines(only) {
		if op, _, _ := strings.Cut(line, ":"); op != "RENAME" && op != "MKDIR" || !strings.Contains(line, " /d") && !strings.Contains(line, ` "/d`) { // in quotes if it ends in a space
			t.Errorf("%q passed the filters", line)
		}
	}
	if status != 0 || only == "" {
		t.Errorf("with filters: status %d, %q", status, only)
	}
	clean(t, "replay", only)
}

// TestNBD serves an image to QEMU's own client. Interrupted, it takes its socket away.
func TestNBD(t *testing.T) {
	if testing.Short() {
		t.Skip("starts processes")
	}
	dir := t.TempDir()
	guestlab.MakeFS(t, filepath.Join(dir, "image"), 16<<20, "-t", "ext4")
	before, err := os.ReadFile(filepath.Join(dir, "image"))
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "before"), before, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	c := vmscopeCmd("nbd", "--image", "image", "--socket", "socket", "--json", "--record", "log")
	var stderr bytes.Buffer
	c.Dir, c.Stderr = dir, &stderr // paths are those of the one who calls, though others open them
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	defer c.Process.Kill()
	var first struct{ Op, Detail string }
	if err := json.NewDecoder(out).Decode(&first); err != nil || first.Op != "ATTACHED" || first.Detail != "ext4" {
		t.Errorf("first line %+v, %v", first, err)
	}
	uri := "nbd+unix:///?socket=" + filepath.Join(dir, "socket")
	io := exec.Command("qemu-io", "-f", "raw", "-c", "write -P 7 12M 64k", "-c", "flush", "-c", "read -P 7 12M 64k", uri)
	if said, err := io.CombinedOutput(); errors.Is(err, exec.ErrNotFound) {
		t.Skip("qemu-io is not here")
	} else if err != nil || bytes.Contains(said, []byte("failed")) {
		t.Errorf("qemu-io: %v, %s\n%s", err, said, stderr.String())
	}
	image, err := os.ReadFile(filepath.Join(dir, "image"))
	if err != nil || !bytes.Equal(image[12<<20:12<<20+64<<10], bytes.Repeat([]byte{7}, 64<<10)) {
		t.Errorf("what was written is not in the image, %v", err)
	}
	// All that was written is recorded before long.
	for try := 0; !bytes.Equal(recordedImage(t, filepath.Join(dir, "log"), before), image); try++ {
		if try == 1000 {
			t.Fatal("the recording does not lead to what the image holds")
		}
		time.Sleep(50 * time.Millisecond)
	}
	failed(t, []string{"nbd", "--image", filepath.Join(dir, "image"), "--socket", filepath.Join(dir, "socket")}, "serves there already")
	failed(t, []string{"nbd", "--image", filepath.Join(dir, "image"), "--socket", filepath.Join(dir, "other")}, "in use", "another process")
	failed(t, []string{"nbd", "--image", filepath.Join(dir, "image"), "--socket", filepath.Join(dir, "other"), "--protocol", "vhost-user"}, "in use")
	if err := c.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	c.Wait()
	if status := c.ProcessState.ExitCode(); status != 0 && status != statusInterrupted {
		t.Errorf("status %d, %s", status, stderr.String())
	}
	if _, err := os.Stat(filepath.Join(dir, "socket")); err == nil {
		t.Error("the socket is left")
	}
	if out, stderr, status := run(t, "replay", filepath.Join(dir, "log"), "--base", filepath.Join(dir, "before"), "--json"); status != 0 || !strings.Contains(out, "ATTACHED") {
		t.Errorf("replay: status %d, %q", status, stderr)
	}
	failed(t, []string{"nbd", "--image", filepath.Join(dir, "image"), "--socket", filepath.Join(dir, "other"), "--record", filepath.Join(dir, "log")}, "--record", "exists")
}

// recordedImage is what a disk holds by the log of its writes, as far as that goes now.
func recordedImage(t *testing.T, path string, before []byte) []byte {
	t.Helper()
	log, err := logwrites.Open(path, block.Bytes(before), logwrites.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	for _, err := range log.Writes(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
	}
	after := make([]byte, len(before))
	if err := block.ReadFull(log.Device(), after, 0); err != nil {
		t.Fatal(err)
	}
	return after
}

// TestEventsIntoNothing: whoever reads the events has gone (| head), which is worth no message.
func TestEventsIntoNothing(t *testing.T) {
	_, log, base := recorded(t, "ext4")
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	r.Close()
	defer w.Close()
	c := vmscopeCmd("replay", log, "--base", base)
	var stderr bytes.Buffer
	c.Stdout, c.Stderr = w, &stderr
	c.Run()
	for line := range strings.Lines(stderr.String()) {
		if !strings.Contains(line, "from now on") {
			t.Errorf("stderr: %q", line)
		}
	}
}
