package gdb

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"vmscope/internal/guestlab"
	"vmscope/internal/qmp"
	"vmscope/mem"
	"vmscope/vm"
	"vmscope/vm/vmtest"
)

// pauseFor makes the test's program one that pauses the guest of a stub, says so, and waits.
const pauseFor = "VMSCOPE_GDB_TEST_PAUSE"

func TestMain(m *testing.M) {
	RunResumeHelper()
	if addr := os.Getenv(pauseFor); addr != "" {
		g, err := Open(context.Background(), addr)
		if err == nil {
			err = g.(vm.Pauser).Pause(context.Background())
		}
		fmt.Println(err)
		select {}
	}
	os.Exit(m.Run())
}

// stub is a QEMU in its firmware that has a stub.
type stub struct {
	addr string
	qmp  string
	ram  string
}

func newStub(t *testing.T, args ...string) stub {
	t.Helper()
	dir, err := os.MkdirTemp("", "gdb") // short: sockets lie in it
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	s := stub{addr: filepath.Join(dir, "gdb"), qmp: filepath.Join(dir, "qmp"), ram: filepath.Join(dir, "ram")}
	guestlab.Bare(t, "gdb-"+filepath.Base(dir), 16, append([]string{
		"-gdb", "unix:" + s.addr + ",server=on,wait=off", "-qmp", "unix:" + s.qmp + ",server=on,wait=off",
		"-object", "memory-backend-file,id=more,size=16M,mem-path=" + s.ram + ",share=on", "-machine", "memory-backend=more",
	}, args...)...)
	for range 3000 {
		if _, err := os.Stat(s.qmp); err == nil {
			if _, err := os.Stat(s.addr); err == nil {
				return s
			}
		}
		time.Sleep(100 * time.Millisecond)
	}
	t.Fatal("QEMU makes no sockets")
	return s
}

// state is QEMU's run state.
func (s stub) state(t *testing.T) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	c, err := qmp.Dial(ctx, s.qmp, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	state, err := qmp.Status(ctx, c)
	if err != nil {
		t.Fatal(err)
	}
	return state
}

// comes waits until the guest is in a state.
func (s stub) comes(t *testing.T, want string) {
	t.Helper()
	for range 3000 {
		if s.state(t) == want {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	t.Errorf("the guest is %s, want %s", s.state(t), want)
}

func open(t *testing.T, addr string, opts ...Option) vm.Machine {
	t.Helper()
	m, err := Open(t.Context(), addr, opts...)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// at is what RAM holds.
func (s stub) at(t *testing.T, pa mem.PA, size int) []byte {
	t.Helper()
	f, err := os.Open(s.ram)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, size)
	if _, err := f.ReadAt(b, int64(pa)); err != nil {
		t.Fatal(err)
	}
	return b
}

// TestContract looks into a real QEMU that stands still.
func TestContract(t *testing.T) {
	s := newStub(t, "-smp", "2")
	pattern := make([]byte, 100_000)
	for i := range pattern {
		pattern[i] = byte(i * 7 / 3)
	}
	w := open(t, s.addr, Writable())
	if n, err := w.(mem.PhysWriter).WritePhys(pattern, 0x200123); n != len(pattern) || err != nil {
		t.Fatal(n, err)
	}
	if n, err := w.(mem.PhysWriter).WritePhys(pattern, 16<<20-10); n != 10 || !errors.Is(err, mem.ErrNoRAM) {
		t.Error(n, err)
	}
	if err := w.Close(); err != nil {
		t.Error(err)
	}
	if string(s.at(t, 0x200123, len(pattern))) != string(pattern) {
		t.Error("what was written is not in RAM")
	}
	s.comes(t, "running")
	if _, ok := open(t, s.addr).(mem.PhysWriter); ok {
		t.Error("a machine that is not to be written is a PhysWriter")
	}
	vmtest.Run(t, func(t *testing.T) vm.Machine { return open(t, s.addr) }, vmtest.Want{
		Ranges: []mem.Range{{Start: 0, Size: 0xa0000}, {Start: 0xc0000, Size: 16<<20 - 0xc0000}},
		Bytes:  map[mem.PA][]byte{0x200123: pattern[:3000]},
		CPUs:   2,
		Remote: true,
	})
	s.comes(t, "running")
}

// TestRunsOn: whatever becomes of us, the guest runs on, and one that stood still stays so.
func TestRunsOn(t *testing.T) {
	s := newStub(t)
	m := open(t, s.addr)
	for range 2 {
		if err := m.(vm.Pauser).Pause(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	for _, want := range []string{"paused", "running"} {
		if err := m.(vm.Pauser).Resume(t.Context()); err != nil {
			t.Error(err)
		}
		if got := s.state(t); got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
	if _, err := m.ReadPhys(make([]byte, 1<<20), 1<<20); err != nil {
		t.Error(err)
	}
	s.comes(t, "running") // soon after the last question
	if err := m.Close(); err != nil {
		t.Error(err)
	}
	if _, err := m.ReadPhys(make([]byte, 1), 0); !errors.Is(err, mem.ErrUnreachable) {
		t.Error(err)
	}

	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), pauseFor+"="+s.addr)
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	said := make([]byte, 100)
	n, err := out.Read(said)
	if string(said[:n]) != "<nil>\n" || err != nil {
		t.Errorf("the program that pauses says %q, %v", said[:n], err)
	}
	if got := s.state(t); got != "paused" {
		t.Errorf("the guest is %s under a program that paused it", got)
	}
	cmd.Process.Kill()
	cmd.Wait()
	s.comes(t, "running")

	// Stopped by another, it is left so, and readable.
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	c, err := qmp.Dial(ctx, s.qmp, nil)
	if err == nil {
		_, err = c.Run(ctx, "stop", nil)
		c.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	m = open(t, s.addr)
	b := make([]byte, 16)
	if _, err := m.ReadPhys(b, 0xffff0); err != nil || string(b) != string(s.at(t, 0xffff0, 16)) {
		t.Errorf("%x, %v", b, err)
	}
	if err := m.Close(); err != nil {
		t.Error(err)
	}
	if got := s.state(t); got != "paused" {
		t.Errorf("the guest that was stopped is %s", got)
	}
}

// TestNoStub: what is no stub is told.
func TestNoStub(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			fmt.Fprint(c, "SSH-2.0-OpenSSH_9.2\r\n")
		}
	}()
	if _, err := Open(t.Context(), l.Addr().String()); !errors.Is(err, errProtocol) || !errors.Is(err, mem.ErrUnreachable) {
		t.Error(err)
	}
	l.Close()
	if _, err := Open(t.Context(), l.Addr().String()); !refused(err) {
		t.Error(err)
	}
}
