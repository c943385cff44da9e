package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"
	"testing"

	"vmscope/internal/guestlab"
)

// TestCheck finds nothing in a guest, then a system call that was bent, and
// nothing again. Its kernel does not dispatch by the table, so it runs on.
func TestCheck(t *testing.T) {
	g := guestlab.Boot(t, guestlab.Config{Kernel: "bookworm-cloud", MemoryMiB: 256})
	nothing := func() {
		t.Helper()
		if out, stderr, status := run(t, "check", g.Name()); status != statusDone || out != "" || !strings.Contains(stderr, "nothing found") {
			t.Errorf("status %d, %q, %q", status, out, stderr)
		}
	}
	nothing()
	table := decoded[struct{ Addr string }](t, "sym", g.Name(), "sys_call_table")[0].Addr
	at, err := strconv.ParseUint(table, 0, 64)
	if err != nil {
		t.Fatal(err)
	}
	at += 8 * 63 // uname
	was := decoded[struct{ Data string }](t, "read", g.Name(), "--va", fmt.Sprintf("%#x", at), "--len", "8")[0]
	write := func(hex string) {
		t.Helper()
		if _, stderr, status := run(t, "write", g.Name(), "--va", fmt.Sprintf("%#x", at), "--hex", hex, "--allow-write"); status != statusDone {
			t.Fatal(stderr)
		}
	}
	bent := fmt.Sprintf("%x", binary.LittleEndian.AppendUint64(nil, at))
	write(bent)
	out, stderr, status := run(t, "check", g.Name())
	if status != statusFindings || stderr != "" || !strings.Contains(out, "HIGH syscalls-") || !strings.Contains(out, "sys_call_table[63]") {
		t.Errorf("status %d, %q, %q", status, out, stderr)
	}
	clean(t, "check", out)
	var f struct {
		ID, Check, Severity, Confidence, Summary string
		Evidence                                 []struct{ What, Addr string }
	}
	if out, _, status := run(t, "check", g.Name(), "--json", "--only", "syscalls"); status != statusFindings {
		t.Errorf("status %d, %q", status, out)
	} else if err := json.Unmarshal([]byte(out), &f); err != nil || f.Check != "syscalls" || f.ID == "" || f.Severity != "high" || len(f.Evidence) != 2 || f.Evidence[0].Addr != fmt.Sprintf("%#x", at) {
		t.Errorf("%v, %+v", err, f)
	}
	if out, stderr, status := run(t, "check", g.Name(), "--only", "modules"); status != statusDone || out != "" {
		t.Errorf("--only modules: %d, %q, %q", status, out, stderr)
	}
	files := []string{"check", g.Name(), "--only", "text,rodata", "--kernel", g.Kernel().Image(), "--modules-dir", g.Kernel().ModuleDir()}
	if out, stderr, status := run(t, files...); status != statusFindings || !strings.Contains(out, "sys_call_table+0x1f8") || !strings.Contains(out, "vmlinuz, build id ") {
		t.Errorf("with the vendor's files: %d, %q, %q", status, out, stderr)
	}
	write(was.Data)
	nothing()
	if out, stderr, status := run(t, files...); status != statusDone || out != "" || !strings.Contains(stderr, "nothing found") {
		t.Errorf("with the vendor's files: %d, %q, %q", status, out, stderr)
	}
	out, stderr, status = run(t, files[:len(files)-2]...)
	if status != statusDone || strings.Count(out, "not compared with a file of the vendor's") != 2 || !strings.Contains(out, "loop") {
		t.Errorf("without the files of modules: %d, %q, %q", status, out, stderr)
	}
	other, err := guestlab.Fetch(t.Context(), "sid-cloud")
	if err != nil {
		t.Fatal(err)
	}
	if out, stderr, status := run(t, "check", g.Name(), "--only", "text", "--kernel", other.Image()); status != statusFailed || out != "" || strings.Count(stderr, "build id") != 1 || !strings.Contains(stderr, "the guest's kernel has ") {
		t.Errorf("with the file of another kernel: %d, %q, %q", status, out, stderr)
	}
	for _, args := range [][]string{{"--modules-dir", t.TempDir()}, {"--kernel", "/dev/null"}, {"--kernel", g.Kernel().Image(), "--modules-dir", t.TempDir()}} {
		if out, stderr, status := run(t, append([]string{"check", g.Name()}, args...)...); status != statusFailed || out != "" || strings.Count(stderr, "\n") != 1 {
			t.Errorf("%q: %d, %q, %q", args, status, out, stderr)
		}
	}
	watchIt(t, g, func() { write(bent) }, func() { write(was.Data) })
	if _, stderr, status := run(t, "check", g.Name(), "--only", "nonsense"); status != statusFailed || !strings.Contains(stderr, "syscalls") {
		t.Errorf("a check that is not there: %d, %q", status, stderr)
	}
}

// watchIt keeps looking at the guest: what is bent is told once, and once that it
// is gone, and then that the guest is.
func watchIt(t *testing.T, g *guestlab.Guest, bend, unbend func()) {
	r, w := io.Pipe()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var stderr bytes.Buffer
	ended := make(chan int, 1)
	go func() {
		ended <- (&app{out: w, err: &stderr}).run(ctx, []string{"check", g.Name(), "--watch", "1ms", "--only", "syscalls"})
		w.Close()
	}()
	lines := bufio.NewScanner(r)
	told := func(sign string) {
		t.Helper()
		for lines.Scan() {
			line := lines.Text()
			if strings.HasPrefix(line, "    ") { // evidence
				continue
			}
			if !strings.HasPrefix(line, sign+" HIGH syscalls-") {
				t.Errorf("%q, not %s", line, sign)
			}
			return
		}
		t.Errorf("it ended, and has not told %s", sign)
	}
	bend()
	told("+")
	unbend()
	told("-")
	if err := g.Close(); err != nil {
		t.Error(err)
	}
	for lines.Scan() {
		t.Errorf("%q", lines.Text())
	}
	if status := <-ended; status != statusFailed || !strings.Contains(stderr.String(), g.Name()) {
		t.Errorf("the guest has ended: status %d, %q", status, stderr.String())
	}
}
