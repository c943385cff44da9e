package qemu

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestDeviceModel has a process that is to all looks the device model of a Xen domain: it is found, and refused with
// the word where the memory is.
func TestDeviceModel(t *testing.T) {
	program := filepath.Join(t.TempDir(), "xen-qemu-system-i386") // its name in Debian
	if out, err := exec.Command("cp", "/bin/sh", program).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	const name = "device-model-of-a-test"
	c := exec.Command(program, "-c", "echo up; read line", "-xen-domid", "3", "-xen-attach", "-name", name, "-machine", "xenfv", "-m", "184")
	in, err := c.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		in.Close()
		c.Wait()
	}()
	if _, err := io.ReadFull(out, make([]byte, 3)); err != nil { // it is that program by now
		t.Fatal(err)
	}
	p, err := Find(name)
	if err != nil || p.XenDomain != "3" || p.PID != c.Process.Pid {
		t.Fatalf("%+v, %v", p, err)
	}
	for _, target := range []string{name, fmt.Sprint(c.Process.Pid)} {
		if _, err := Open(context.Background(), target); !errors.Is(err, ErrNoVM) || !strings.Contains(err.Error(), "xen:3") {
			t.Errorf("open %s: %v", target, err)
		}
	}
}
