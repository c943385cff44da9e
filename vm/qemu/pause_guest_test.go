package qemu

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"vmscope/internal/qmp"
	"vmscope/internal/resume"
	"vmscope/vm"
)

func TestPause(t *testing.T) {
	v := start(t, "-m", "32M")
	ctx := context.Background()
	m := openVM(t, v.name)
	p := m.(vm.Pauser)
	is := func(want string) {
		t.Helper()
		if s, err := v.status(); s != want || err != nil {
			t.Errorf("status %q, %v; want %q", s, err, want)
		}
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	is("running")
	must(p.Pause(ctx))
	is("paused")
	must(p.Pause(ctx)) // pauses nest
	must(p.Resume(ctx))
	is("paused")
	gone, cancel := context.WithCancel(ctx)
	cancel()
	must(p.Resume(gone))
	is("running")
	must(p.Resume(ctx)) // once too often
	must(p.Pause(ctx))
	is("paused")
	must(m.Close()) // resumes
	is("running")

	// Who was paused before stays so.
	if _, err := v.command("stop", nil); err != nil {
		t.Fatal(err)
	}
	m = openVM(t, v.name)
	p = m.(vm.Pauser)
	must(p.Pause(ctx))
	must(p.Resume(ctx))
	must(p.Pause(ctx))
	must(m.Close())
	is("paused")
	if _, err := v.command("cont", nil); err != nil {
		t.Fatal(err)
	}

	// The monitor is held by somebody else.
	conn, err := dial(ctx, v.sock, v.pid)
	must(err)
	short, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	m = openVM(t, v.name)
	defer m.Close()
	if err := m.(vm.Pauser).Pause(short); !errors.Is(err, qmp.ErrBusy) {
		t.Errorf("pause while the monitor is held: %v", err)
	}
	conn.Close()
	is("running")
}

// TestTakenOver: a QEMU that is started with the monitor path of another one
// takes the path over. The other one is not to be mistaken for it.
func TestTakenOver(t *testing.T) {
	a := start(t, "-m", "32M")
	b := start(t, "-m", "32M", "-qmp", "unix:"+a.sock+",server=on,wait=off")
	m := openVM(t, a.name)
	defer m.Close()
	err := m.(vm.Pauser).Pause(context.Background())
	if err == nil || !strings.Contains(err.Error(), b.name) {
		t.Errorf("pause of a VM whose monitor is gone: %v", err)
	}
	if s, err := b.status(); s != "running" {
		t.Errorf("the other VM is %q, %v", s, err)
	}
	if err := cont(way(a.sock), a.pid); err == nil {
		t.Error("the resume helper takes one for the other")
	}
	n := openVM(t, a.sock)
	defer n.Close()
	if got := n.(vm.Describer).Info().Name; got != b.name {
		t.Errorf("the socket leads to %q, want %q", got, b.name)
	}
}

// TestResumeAfterDeath kills a program that has paused a guest.
func TestResumeAfterDeath(t *testing.T) {
	for _, sig := range []syscall.Signal{syscall.SIGKILL, syscall.SIGINT} {
		v := start(t, "-m", "32M")
		cmd := exec.Command("/proc/self/exe", v.name)
		cmd.Env = append(os.Environ(), sleeper+"=pause")
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		said := make([]byte, 6)
		if _, err := io.ReadFull(out, said); err != nil || string(said) != "<nil>\n" {
			t.Fatalf("the program that pauses said %q, %v", said, err)
		}
		if s, err := v.status(); s != "paused" {
			t.Fatalf("not paused: %q, %v", s, err)
		}
		syscall.Kill(-cmd.Process.Pid, sig) // the group, as Ctrl-C does
		cmd.Wait()
		var s string
		for range 100 {
			if s, err = v.status(); s == "running" {
				break
			}
			time.Sleep(50 * time.Millisecond)
		}
		if s != "running" {
			t.Errorf("%v: the guest stays %q, %v", sig, s, err)
		}
	}
}

// TestHelperPersists: somebody takes the monitor between a pause and the end of
// the program that paused, and keeps it for longer than the helper asks for once.
func TestHelperPersists(t *testing.T) {
	v := start(t, "-m", "32M")
	if _, err := v.command("stop", nil); err != nil {
		t.Fatal(err)
	}
	held, err := dial(t.Context(), v.sock, v.pid)
	if err != nil {
		t.Fatal(err)
	}
	time.AfterFunc(6*time.Second, func() { held.Close() })
	target := fmt.Sprintf("%d:%s", v.pid, v.sock)
	if code := resume.Help(target, wake, strings.NewReader("a"), io.Discard); code != 0 {
		t.Errorf("the helper gave up: %d", code)
	}
	if s, err := v.status(); s != "running" {
		t.Errorf("the guest is %q, %v", s, err)
	}
	// With QEMU gone there is nothing to wait for.
	v.cmd.Process.Kill()
	v.cmd.Wait()
	if code := resume.Help(target, wake, strings.NewReader("a"), io.Discard); code != 0 {
		t.Errorf("the helper of a dead guest: %d", code)
	}
}
