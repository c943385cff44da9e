package qemu

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vmscope/internal/guestlab"
	"vmscope/vm/qemu/libvirt"
)

func TestParseDomain(t *testing.T) {
	for in, want := range map[string][2]string{
		"web1": {"web1", ""}, "///web1": {"web1", ""}, "///a%20b%2fc": {"a b/c", ""}, "a%20b": {"a%20b", ""},
		"web1?socket=/run/s": {"web1", "/run/s"}, "///web1?socket=/run/a%3Fb": {"web1", "/run/a?b"},
	} {
		if name, socket, err := parseDomain(in); name != want[0] || socket != want[1] || err != nil {
			t.Errorf("%q: %q, %q, %v", in, name, socket, err)
		}
	}
	for in, words := range map[string]string{
		"//host/web1": "run vmscope there", "//host": "run vmscope there", "///%zz": "escape", "web1?": "absolute path", "web1?socket=s": "absolute path",
		"web1?sock=/s": `"sock"`, "web1?%zz": "escape", "": "names no domain", "///": "names no domain",
	} {
		if name, socket, err := parseDomain(in); err == nil || !strings.Contains(err.Error(), words) {
			t.Errorf("%q: %q, %q, %v", in, name, socket, err)
		}
	}
}

// TestWays: libvirt is asked before the socket that it holds, and behind one that it does not.
func TestWays(t *testing.T) {
	for _, c := range []struct {
		p         Process
		want      string
		traceless bool
	}{
		{Process{}, "", false},
		{Process{QMP: []string{"/a"}}, "/a", true},
		{Process{QMP: []string{"/m"}, held: []string{"/m"}, Libvirt: true}, "libvirt: /m", false},
		{Process{QMP: []string{"/m", "/a"}, held: []string{"/m"}, Libvirt: true}, "/a libvirt: /m", true},
		{Process{QMP: []string{"/m", "/a"}, held: []string{"/m"}, Libvirt: true, Daemon: "/d"}, "libvirt:/d /a /m", true},
	} {
		var got []string
		for _, w := range c.p.ways() {
			got = append(got, string(w))
		}
		if s := strings.Join(got, " "); s != c.want {
			t.Errorf("%+v: %q, want %q", c.p, s, c.want)
		}
		if c.p.traceless() != c.traceless {
			t.Errorf("%+v: traceless: %v", c.p, !c.traceless)
		}
	}
}

// TestThreads: a process has its own threads, and not those of others.
func TestThreads(t *testing.T) {
	if !hasThread(os.Getpid(), unix.Gettid()) || hasThread(os.Getpid(), os.Getppid()) || hasThread(-1, unix.Gettid()) {
		t.Error("the threads of this process are not told from others")
	}
	if status(os.Getpid(), "Uid") == "" || status(os.Getpid(), "NoSuchLine") != "" || status(-1, "Uid") != "" {
		t.Error("lines of /proc/PID/status")
	}
}

// TestThreadsOfContainers: QEMU tells the numbers that its threads have in its own PID namespace.
func TestThreadsOfContainers(t *testing.T) {
	cmd := exec.Command("sleep", "1000")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID | syscall.CLONE_NEWUSER}
	if err := cmd.Start(); err != nil {
		guestlab.Skip(t, "a PID namespace: "+err.Error())
	}
	defer func() { cmd.Process.Kill(); cmd.Wait() }()
	if !hasThread(cmd.Process.Pid, 1) || hasThread(cmd.Process.Pid, 2) {
		t.Errorf("process 1 of its namespace has the numbers %q", status(cmd.Process.Pid, "NSpid"))
	}
}

// TestWhose: a daemon has a say about its own user's processes, the system's about all, and about none but those that run the
// domain's processors.
func TestWhose(t *testing.T) {
	me := Process{PID: os.Getpid(), Name: "web1"}
	for _, c := range []struct {
		uid, thread int
		words       string
	}{
		{0, unix.Gettid(), ""},
		{os.Geteuid(), unix.Gettid(), ""},
		{os.Geteuid() + 4711, unix.Gettid(), "no say"},
		{0, os.Getppid(), "another machine"},
	} {
		d := &domain{&libvirt.Conn{UID: c.uid}, libvirt.Domain{Name: "web1"}}
		err := d.runs(me, []int{c.thread})
		if (err == nil) != (c.words == "") || err != nil && !strings.Contains(err.Error(), c.words) {
			t.Errorf("%+v: %v", c, err)
		}
	}
}

// TestNoDomain: what is missing is told, and by which of the ways.
func TestNoDomain(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("XDG_RUNTIME_DIR", dir)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if _, err := FindDomain(ctx, "///no-such-domain?socket="+dir+"/s"); !errors.Is(err, libvirt.ErrNoDaemon) {
		t.Error(err)
	}
	if _, err := FindDomain(ctx, "no-such-domain"); err == nil {
		t.Error("a domain is found that nobody has")
	}
	p := Process{PID: os.Getpid(), Name: "no-such-domain", Libvirt: true, Daemon: dir + "/s"}
	if _, err := p.Monitor(ctx); !errors.Is(err, libvirt.ErrNoDaemon) {
		t.Error(err)
	}
	if p.Target() == (Process{PID: p.PID}).Target() {
		t.Error("the target does not tell the daemon")
	}
}
