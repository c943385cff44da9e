package guestlab

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestMachines boots machines of several shapes and asks the guest and the host what they got.
func TestMachines(t *testing.T) {
	tests := []struct {
		name string
		cfg  Config
		la57 bool
		maps string // what the RAM looks like in QEMU's /proc/PID/maps
	}{
		{"shared q35 2 CPUs above 4 GiB", Config{CPUs: 2, MemoryMiB: 4608}, false, "/ram"},
		{"memfd 5-level", Config{RAM: Memfd, CPUModel: "max", Kernel: "sid-cloud"}, true, "/memfd:memory-backend-memfd"},
		{"anonymous pc no QMP", Config{RAM: Anonymous, Machine: "pc", NoQMP: true, MemoryMiB: 300}, false, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			cfg := tt.cfg
			if cfg.Kernel == "" {
				cfg.Kernel = "bookworm-cloud"
			}
			g := Boot(t, cfg)
			cfg = g.Config()
			ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
			defer cancel()
			out, err := g.Run(ctx, "nproc; awk '/MemTotal/{print int($2/1024)}' /proc/meminfo; grep -c la57 /proc/cpuinfo; :")
			var cpus, mem, la57 int
			if _, serr := fmt.Sscan(out, &cpus, &mem, &la57); err != nil || serr != nil {
				t.Fatalf("%q, %v, %v", out, err, serr)
			}
			if cpus != cfg.CPUs || mem > cfg.MemoryMiB || mem < cfg.MemoryMiB*85/100 || la57 > 0 != tt.la57 {
				t.Errorf("%d CPUs, %d MiB, la57 %d", cpus, mem, la57)
			}
			if got := ramMapping(t, g.PID(), int64(cfg.MemoryMiB)<<20); got != "" && tt.maps == "" || !strings.Contains(got, tt.maps) {
				t.Errorf("RAM is mapped from %q, want %q", got, tt.maps)
			}
			if (g.RAMFile() != "") != (cfg.RAM == SharedFile) || (g.QMPSocket() == "") != cfg.NoQMP {
				t.Errorf("RAM file %q, QMP socket %q", g.RAMFile(), g.QMPSocket())
			}
			dir := g.Dir()
			g.Close()
			if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("%s is still there: %v", dir, err)
			}
			if err := syscall.Kill(g.PID(), 0); !errors.Is(err, syscall.ESRCH) {
				t.Errorf("QEMU is still there: %v", err)
			}
		})
	}
}

// ramMapping finds the path of the mappings that are as large as the RAM.
func ramMapping(t *testing.T, pid int, size int64) string {
	t.Helper()
	f, err := os.Open(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for sc := bufio.NewScanner(f); sc.Scan(); {
		fields := strings.Fields(sc.Text())
		from, to, _ := strings.Cut(fields[0], "-")
		a, _ := strconv.ParseInt(from, 16, 64)
		b, _ := strconv.ParseInt(to, 16, 64)
		if b-a == size {
			return strings.Join(fields[5:], " ")
		}
	}
	t.Errorf("no mapping of %d bytes", size)
	return ""
}

// TestKilledOwner kills a process that keeps a guest: neither QEMU nor, after the next start, its files may stay.
func TestKilledOwner(t *testing.T) {
	if os.Getenv("GUESTLAB_OWNER") != "" { // in the process to be killed
		g := Boot(t, Config{Kernel: "bookworm-cloud"})
		fmt.Printf("\nowner %d %s\n", g.PID(), g.Dir())
		time.Sleep(time.Hour)
	}
	if testing.Short() {
		Skip(t, "boots a guest; not under -short")
	}
	if err := require(qemu); err != nil {
		SkipOrFail(t, err.Error())
	}
	owner := exec.Command(os.Args[0], "-test.run=^TestKilledOwner$", "-test.v")
	owner.Env = append(os.Environ(), "GUESTLAB_OWNER=1")
	pipe, err := owner.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	owner.Stderr = owner.Stdout
	if err := owner.Start(); err != nil {
		t.Fatal(err)
	}
	defer owner.Process.Kill()
	var said strings.Builder
	var pid int
	var dir string
	for sc := bufio.NewScanner(pipe); pid == 0 && sc.Scan(); {
		fmt.Fprintln(&said, sc.Text())
		fmt.Sscanf(sc.Text(), "owner %d %s", &pid, &dir)
	}
	if pid == 0 {
		t.Fatalf("the other process booted no guest: %v. It said:\n%s", owner.Wait(), &said)
	}
	vmm, err := os.FindProcess(pid) // a handle: the number may be another's soon
	if err != nil {
		t.Fatal(err)
	}
	owner.Process.Kill()
	owner.Wait() // one thread's death ends QEMU, the lock goes with the last
	if !within(time.Minute, func() bool { return exited(vmm) }) {
		vmm.Kill()
		t.Fatalf("QEMU outlived its owner, which said:\n%s", &said)
	}
	// From its first minute on the directory may go to anyone who boots on this machine, and one who is at it holds the lock.
	old := time.Now().Add(-time.Hour)
	if err := os.Chtimes(dir, old, old); err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	if !within(time.Minute, func() bool { sweep(runBase()); _, err := os.Stat(dir); return errors.Is(err, os.ErrNotExist) }) {
		left, _ := filepath.Glob(filepath.Join(dir, "*"))
		t.Errorf("%s is still there, with %v; its owner said:\n%s", dir, left, &said)
	}
}

// exited tells whether a process is gone. What is left of it until its new parent, who may never, asks how it ended does not count.
func exited(p *os.Process) bool {
	if p.Signal(syscall.Signal(0)) != nil {
		return true
	}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.Pid))
	return err != nil || strings.Contains(string(stat), ") Z ")
}

// within waits for what must come true; it is given long, for a machine that does much else.
func within(long time.Duration, done func() bool) bool {
	for began := time.Now(); !done(); time.Sleep(50 * time.Millisecond) {
		if time.Since(began) > long {
			return false
		}
	}
	return true
}

// TestBootFailure checks that a guest that cannot boot is told with the console's words, and soon.
func TestBootFailure(t *testing.T) {
	if testing.Short() {
		Skip(t, "boots a guest; not under -short")
	}
	began := time.Now()
	_, err := Start(context.Background(), Config{Kernel: "bookworm-cloud", Append: "rdinit=/nothing root=/dev/nothing"})
	if errors.Is(err, ErrMissing) {
		SkipOrFail(t, err.Error())
	}
	if err == nil || !strings.Contains(err.Error(), "Kernel panic") {
		t.Errorf("got %v", err)
	}
	t.Logf("told after %v", time.Since(began))
	_, err = Start(context.Background(), Config{Kernel: "bookworm-cloud", Machine: "nonsense"})
	if err == nil || !strings.Contains(err.Error(), "unsupported machine type") {
		t.Errorf("got %v", err)
	}
}

// TestReboot checks that a guest which may reboot answers again afterwards.
func TestReboot(t *testing.T) {
	g := Boot(t, Config{Kernel: "bookworm-cloud", AllowReboot: true})
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	before, err := g.System(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := g.Run(ctx, "(sleep 0.3; reboot -f) >/dev/null 2>&1 &"); err != nil {
		t.Fatal(err)
	}
	for {
		after, err := g.System(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if after.BootID != before.BootID {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
}
