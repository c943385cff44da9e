package main

import (
	"bytes"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
	"unicode"

	"vmscope/block/tap"
	"vmscope/internal/guestlab/standin"
	"vmscope/vm/gdb"
	"vmscope/vm/qemu"
)

// What the test binary does instead of testing, if the variable asAnother says
// so: it is the program itself, or a process that does nothing.
const (
	asAnother = "VMSCOPE_TEST_AS"
	program   = "vmscope"
	sleeper   = "sleeper"
)

func TestMain(m *testing.M) {
	qemu.RunResumeHelper()
	gdb.RunResumeHelper()
	standin.Main()
	tap.Helper() // what receives a disk's writes is this binary, too
	switch os.Getenv(asAnother) {
	case program:
		main()
	case sleeper:
		time.Sleep(time.Hour)
	}
	os.Exit(m.Run())
}

// vmscopeCmd is the program itself, to be started as a process.
func vmscopeCmd(args ...string) *exec.Cmd {
	c := exec.Command("/proc/self/exe", args...)
	c.Env = append(os.Environ(), asAnother+"="+program)
	return c
}

// hearHangups lets programs that the test starts hear SIGHUP even where the test
// itself was told to ignore it, as by nohup: they would inherit that.
func hearHangups(t testing.TB) {
	if !signal.Ignored(syscall.SIGHUP) {
		return
	}
	c := make(chan os.Signal, 1) // what is caught here is at its default in children
	signal.Notify(c, syscall.SIGHUP)
	t.Cleanup(func() { signal.Ignore(syscall.SIGHUP) })
}

// run runs one command line within the test.
func run(t testing.TB, args ...string) (stdout, stderr string, status int) {
	t.Helper()
	var out, err bytes.Buffer
	a := &app{out: &out, err: &err}
	status = a.run(t.Context(), args)
	return out.String(), err.String(), status
}

// clean checks that text may be printed on a terminal: nothing in it moves the
// cursor or changes colours.
func clean(t testing.TB, what, text string) {
	t.Helper()
	for _, r := range text {
		if r != '\n' && r != '\t' && (unicode.IsControl(r) || r == unicode.ReplacementChar) {
			t.Errorf("%s holds %q: %q", what, r, text)
			return
		}
	}
}

// fakeVM starts a process that looks like a QEMU with the given arguments.
func fakeVM(t testing.TB, args ...string) int {
	t.Helper()
	path := filepath.Join(t.TempDir(), "qemu-system-x86_64")
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, self, 0o700); err != nil {
		t.Fatal(err)
	}
	c := exec.Command(path, args...)
	c.Env = append(os.Environ(), asAnother+"="+sleeper)
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.Process.Kill()
		c.Wait()
	})
	// Until exec it still looks like us, and for a moment behind it has no arguments.
	for range 200 {
		args, _ := os.ReadFile("/proc/" + itoa(c.Process.Pid) + "/cmdline")
		if exe, _ := os.Readlink("/proc/" + itoa(c.Process.Pid) + "/exe"); exe == path && len(args) > 0 {
			return c.Process.Pid
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatal("the process did not start")
	return 0
}

// failed checks that a command line ends with status 2, nothing on stdout and
// one line on stderr that holds all the words.
func failed(t *testing.T, args []string, words ...string) {
	t.Helper()
	stdout, stderr, status := run(t, args...)
	if status != statusFailed {
		t.Errorf("%q: status %d", args, status)
	}
	if stdout != "" {
		t.Errorf("%q: stdout %q", args, stdout)
	}
	if strings.Count(stderr, "\n") != 1 || !strings.HasPrefix(stderr, "vmscope: ") {
		t.Errorf("%q: not one line on stderr: %q", args, stderr)
	}
	clean(t, "stderr", stderr)
	for _, w := range words {
		if !strings.Contains(stderr, w) {
			t.Errorf("%q: %q does not say %q", args, stderr, w)
		}
	}
}
