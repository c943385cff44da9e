package qemu

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vmscope/internal/procram"
	"vmscope/internal/qmp"
	"vmscope/mem"
	"vmscope/vm"
	"vmscope/vm/vmtest"
)

// These tests need QEMU but no guest kernel: QEMU's generic loader puts known
// bytes into RAM.

// sleeper makes the test program pretend to be another process: see TestMain.
const sleeper = "VMSCOPE_TEST_ROLE"

func TestMain(m *testing.M) {
	RunResumeHelper()
	switch os.Getenv(sleeper) {
	case "sleep":
		time.Sleep(time.Minute)
		os.Exit(0)
	case "pause": // and die without resuming
		g, err := Open(context.Background(), os.Args[1])
		if err == nil {
			err = g.(vm.Pauser).Pause(context.Background())
		}
		fmt.Println(err)
		time.Sleep(time.Minute)
		os.Exit(1)
	case "open": // with fewer rights, and say what came of it
		for _, r := range []Route{"", Mmap, VMRead, QMP} {
			g, err := Open(context.Background(), os.Args[1], Force(r))
			if err != nil {
				fmt.Printf("%s: %t %v\n", r, errors.Is(err, ErrPermission), err)
				continue
			}
			b := make([]byte, 16)
			_, err = g.ReadPhys(b, 2<<20)
			fmt.Printf("%s: %s %x %v\n", r, g.(vm.Describer).Info().Route, b, err)
			g.Close()
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// machine is a QEMU of the test's own.
type testVM struct {
	pid  int
	name string
	sock string
	cmd  *exec.Cmd
	data []byte // at patternAt
}

// Where the loader puts the pattern; with more than 4 GiB, also at highAt.
const (
	patternAt = 2 << 20
	highAt    = 4<<30 + 1<<20
)

// start starts a QEMU and waits until its monitor answers.
func start(t testing.TB, args ...string) *testVM {
	t.Helper()
	if testing.Short() {
		t.Skip("starts QEMU; not with -short")
	}
	prog, err := exec.LookPath("qemu-system-x86_64")
	if err != nil {
		t.Skip("needs qemu-system-x86_64 in PATH")
	}
	dir := t.TempDir()
	v := &testVM{name: fmt.Sprintf("vmscope-test-%d-%d", os.Getpid(), time.Now().UnixNano()), sock: filepath.Join(dir, "qmp"), data: make([]byte, 100<<10)}
	for i := range v.data {
		v.data[i] = byte(i) ^ byte(i>>8)*3 ^ byte(i>>16)
	}
	if err := os.WriteFile(filepath.Join(dir, "pattern"), v.data, 0o600); err != nil {
		t.Fatal(err)
	}
	base := []string{
		"-name", v.name, "-display", "none", "-nodefaults", "-accel", "tcg", "-qmp", "unix:" + v.sock + ",server=on,wait=off",
		"-device", fmt.Sprintf("loader,file=%s,addr=%#x,force-raw=on", filepath.Join(dir, "pattern"), patternAt),
	}
	v.cmd = exec.Command(prog, append(base, args...)...)
	v.cmd.Stderr = &bytes.Buffer{}
	v.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := v.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	v.pid = v.cmd.Process.Pid
	t.Cleanup(func() { v.cmd.Process.Kill(); v.cmd.Wait() })
	for range 200 {
		if s, err := v.status(); err == nil && s != "" {
			return v
		}
		time.Sleep(50 * time.Millisecond)
	}
	v.cmd.Process.Kill()
	v.cmd.Wait()
	t.Fatalf("QEMU does not start: %s", v.cmd.Stderr)
	return nil
}

// high has the loader put the pattern above 4 GiB too.
func high(t testing.TB) []string {
	dir := t.TempDir()
	f := filepath.Join(dir, "high")
	if err := os.WriteFile(f, bytes.Repeat([]byte("above"), 20000), 0o600); err != nil {
		t.Fatal(err)
	}
	return []string{"-device", fmt.Sprintf("loader,file=%s,addr=%#x,force-raw=on", f, uint64(highAt))}
}

func (v *testVM) command(name string, args any) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	c, err := dial(ctx, v.sock, v.pid)
	if err != nil {
		return "", err
	}
	defer c.Close()
	if name == "query-status" {
		return qmp.Status(ctx, c)
	}
	r, err := c.Run(ctx, name, args)
	return string(r), err
}

func (v *testVM) status() (string, error) { return v.command("query-status", nil) }

func openVM(t testing.TB, target string, opts ...Option) vm.Machine {
	t.Helper()
	m, err := Open(context.Background(), target, opts...)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// shmFile names a file in memory that is removed after the test.
func shmFile(t testing.TB) string {
	f, err := os.CreateTemp("/dev/shm", "vmscope-test-")
	if err != nil {
		t.Skipf("needs /dev/shm: %v", err)
	}
	f.Close()
	t.Cleanup(func() { os.Remove(f.Name()) })
	return f.Name()
}

// config is a way to start QEMU, and what must come out.
type vmConfig struct {
	name   string
	args   func(t testing.TB) []string
	best   Route
	ranges []mem.Range
	high   bool
}

func configs() []vmConfig {
	const g = 1 << 30
	small := []mem.Range{{Size: 64 << 20}}
	backend := func(m string, size string, f func(t testing.TB) string) func(testing.TB) []string {
		return func(t testing.TB) []string {
			return []string{"-S", "-M", m + ",memory-backend=m", "-m", size, "-object", f(t) + ",id=m,size=" + size}
		}
	}
	shared := func(t testing.TB) string { return "memory-backend-file,share=on,mem-path=" + shmFile(t) }
	memfd := func(testing.TB) string { return "memory-backend-memfd" }
	plain := func(args ...string) func(testing.TB) []string {
		return func(testing.TB) []string { return append([]string{"-S"}, args...) }
	}
	return []vmConfig{
		{name: "shared file", args: backend("q35", "64M", shared), best: Mmap, ranges: small},
		{name: "memfd", args: backend("pc", "64M", memfd), best: Mmap, ranges: small},
		{name: "shared without file", args: backend("pc", "64M", func(testing.TB) string { return "memory-backend-ram,share=on" }), best: Mmap, ranges: small},
		{name: "anonymous", args: plain("-m", "64", "-M", "q35"), best: VMRead, ranges: small},
		{name: "default size", args: plain(), best: VMRead, ranges: []mem.Range{{Size: 128 << 20}}},
		{name: "private file", args: plain("-m", "64", "-mem-path", "/dev/shm"), best: VMRead, ranges: small},
		{name: "shared unlinked file", args: backend("q35", "64M", func(testing.TB) string { return "memory-backend-file,share=on,mem-path=/dev/shm" }), best: Mmap, ranges: small},
		{name: "two nodes", args: func(t testing.TB) []string {
			return []string{
				"-S", "-m", "128M", "-smp", "2", "-object", "memory-backend-memfd,id=b,size=96M", "-object", "memory-backend-file,share=on,id=a,size=32M,mem-path=" + shmFile(t),
				"-numa", "node,nodeid=1,memdev=b,cpus=1", "-numa", "node,nodeid=0,memdev=a,cpus=0",
			}
		}, best: Mmap, ranges: []mem.Range{{Size: 128 << 20}}},
		{name: "q35 5G shared", args: backend("q35", "5G", shared), best: Mmap, high: true, ranges: []mem.Range{{Size: 2 * g}, {Start: 4 * g, Size: 3 * g}}},
		{name: "pc 5G memfd", args: backend("pc", "5G", memfd), best: Mmap, high: true, ranges: []mem.Range{{Size: 3 * g}, {Start: 4 * g, Size: 2 * g}}},
		{name: "pc 5G anonymous", args: plain("-m", "5G"), best: VMRead, high: true, ranges: []mem.Range{{Size: 3 * g}, {Start: 4 * g, Size: 2 * g}}},
		{name: "q35 2816M", args: plain("-M", "q35", "-m", "2816M"), best: VMRead, ranges: []mem.Range{{Size: 2 * g}, {Start: 4 * g, Size: 768 << 20}}},
		{name: "q35 2815M", args: plain("-M", "q35", "-m", "2815M"), best: VMRead, ranges: []mem.Range{{Size: 2815 << 20}}},
		{name: "pc 3584M", args: plain("-M", "pc", "-m", "3584M"), best: VMRead, ranges: []mem.Range{{Size: 3 * g}, {Start: 4 * g, Size: 512 << 20}}},
		{name: "pc 3583M", args: plain("-M", "pc", "-m", "3583M"), best: VMRead, ranges: []mem.Range{{Size: 3583 << 20}}},
		{name: "hole moved", args: plain("-M", "q35,max-ram-below-4g=1G", "-m", "2G"), best: VMRead, ranges: []mem.Range{{Size: g}, {Start: 4 * g, Size: g}}},
		{name: "microvm 4G", args: plain("-M", "microvm", "-m", "4G"), best: VMRead, ranges: []mem.Range{{Size: 3 * g}, {Start: 4 * g, Size: g}}},
		{name: "hot-plugged", args: plain("-M", "q35", "-m", "64M,slots=2,maxmem=1G", "-object", "memory-backend-ram,id=d,size=128M", "-device", "pc-dimm,memdev=d"), best: VMRead, ranges: []mem.Range{{Size: 64 << 20}, {Start: 4 * g, Size: 128 << 20}}},
	}
}

func routeOf(m vm.Machine) Route {
	switch m := m.(type) {
	case *mapped:
		return m.route
	case *copied:
		return m.route
	case *asked:
		return m.route
	}
	return ""
}

// TestEveryRoute attaches to every kind of machine by every route, with and
// without the monitor.
func TestEveryRoute(t *testing.T) {
	for _, c := range configs() {
		t.Run(c.name, func(t *testing.T) {
			args := c.args(t)
			want := vmtest.Want{Ranges: c.ranges, CPUs: 1}
			if c.high {
				args = append(args, high(t)...)
			}
			if slices.Contains(args, "-smp") {
				want.CPUs = 2
			}
			v := start(t, args...)
			want.Bytes = map[mem.PA][]byte{patternAt: v.data}
			if c.high {
				want.Bytes[highAt] = bytes.Repeat([]byte("above"), 20000)
			}
			var first vm.Machine
			for _, r := range []Route{"", VMRead, QMP} {
				if r == "" {
					r = c.best
				} else if r == c.best {
					continue
				}
				t.Run(string(r), func(t *testing.T) {
					want := want
					if r == QMP {
						want.Ranges = qmp.WithoutVGA(want.Ranges)
					}
					opt := Force(r)
					if r == c.best {
						opt = func(*options) {}
					}
					vmtest.Run(t, func(t *testing.T) vm.Machine {
						m := openVM(t, v.name, opt)
						if got := routeOf(m); got != r {
							t.Fatalf("route %s, want %s", got, r)
						}
						return m
					}, want)
				})
				m := openVM(t, strconv.Itoa(v.pid), Force(r))
				defer m.Close()
				if first == nil {
					first = m
				} else {
					vmtest.Same(t, first, m)
				}
			}
			if c.name == "hot-plugged" { // only the monitor knows where
				return
			}
			m := openVM(t, v.name, NoMonitor())
			defer m.Close()
			if got := vmtest.Join(m.(mem.Ranger).Ranges()); !slices.Equal(got, c.ranges) {
				t.Errorf("without monitor: %#x, want %#x", got, c.ranges)
			}
			vmtest.Same(t, first, m)
		})
	}
}

// TestReadingAllocatesNothing reads all RAM of machines that have not used it.
func TestReadingAllocatesNothing(t *testing.T) {
	for _, c := range configs() {
		switch c.name {
		case "shared file", "memfd", "anonymous", "private file", "shared without file":
		default:
			continue
		}
		t.Run(c.name, func(t *testing.T) {
			v := start(t, c.args(t)...)
			for _, r := range []Route{c.best, VMRead} {
				m := openVM(t, v.name, Force(r))
				before := memoryOf(t, v.pid)
				buf := make([]byte, 1<<20)
				for _, x := range m.(mem.Ranger).Ranges() {
					for pa := x.Start; pa < x.End(); pa += mem.PA(len(buf)) {
						if _, err := m.ReadPhys(buf, pa); err != nil {
							t.Fatal(err)
						}
					}
				}
				if after := memoryOf(t, v.pid); after > before+256<<10 {
					t.Errorf("%s: reading 64 MiB allocated %d KiB", r, (after-before)>>10)
				}
				m.Close()
			}
		})
	}
}

// TestOpenAllocatesNothing: not even one page, which may be a huge one.
func TestOpenAllocatesNothing(t *testing.T) {
	file := shmFile(t)
	v := start(t, "-S", "-m", "32M", "-M", "pc,memory-backend=m", "-object", "memory-backend-file,share=on,id=m,size=32M,mem-path="+file)
	blocks := func() int64 {
		var st unix.Stat_t
		if err := unix.Stat(file, &st); err != nil {
			t.Fatal(err)
		}
		return st.Blocks
	}
	before := blocks()
	for _, r := range []Route{Mmap, VMRead} {
		openVM(t, v.name, Force(r)).Close()
		if now := blocks(); now != before {
			t.Errorf("%s: the RAM's file went from %d to %d blocks", r, before, now)
		}
	}
}

// memoryOf is what a process has in memory, and what the shared files take that
// it maps.
func memoryOf(t *testing.T, pid int) int64 {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	var sum int64
	for line := range strings.Lines(string(b)) {
		for _, k := range []string{"RssAnon:"} {
			if v, ok := strings.CutPrefix(line, k); ok {
				n, _ := strconv.ParseInt(strings.Fields(v)[0], 10, 64)
				sum += n << 10
			}
		}
	}
	maps, err := procram.Mappings(pid)
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range maps {
		if v.Anonymous() || v.Size() < 32<<20 {
			continue
		}
		f, err := procram.Block{HVA: v.Start, Size: v.Size(), Mapping: v}.Open(pid, false)
		if err != nil {
			t.Fatal(err)
		}
		st, _ := f.Stat()
		sum += st.Sys().(*syscall.Stat_t).Blocks * 512
		f.Close()
	}
	return sum
}

func TestTargets(t *testing.T) {
	v := start(t, "-S", "-m", "32")
	for _, target := range []string{v.name, strconv.Itoa(v.pid), v.sock} {
		m := openVM(t, target)
		i := m.(vm.Describer).Info()
		if i.PID != v.pid || i.Name != v.name || i.VMM != "qemu-tcg" || i.RAM != 32<<20 || !i.Live || i.Layout == "" {
			t.Errorf("%s: %+v", target, i)
		}
		m.Close()
	}
	list, err := List()
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(list, func(p Process) bool { return p.PID == v.pid })
	if i < 0 || list[i].Name != v.name || list[i].RAM != 32<<20 || !slices.Equal(list[i].QMP, []string{v.sock}) || list[i].Accel != "tcg" {
		t.Errorf("List: %+v", list)
	}
	if n := strings.Count(fmt.Sprint(list), v.name); n != 1 {
		t.Errorf("listed %d times", n)
	}
}

// TestWriting writes by both routes and reads back by the other.
func TestWriting(t *testing.T) {
	v := start(t, "-S", "-m", "32M", "-M", "pc,memory-backend=m", "-object", "memory-backend-memfd,id=m,size=32M")
	r := openVM(t, v.name)
	defer r.Close()
	if _, ok := r.(mem.PhysWriter); ok {
		t.Error("a machine that nobody asked to write can write")
	}
	for _, route := range []Route{Mmap, VMRead} {
		w := openVM(t, v.name, Force(route), Writable())
		defer w.Close()
		text := []byte("written by " + string(route))
		const at = 3<<20 - 5
		if n, err := w.(mem.PhysWriter).WritePhys(text, at); n != len(text) || err != nil {
			t.Fatal(n, err)
		}
		got := make([]byte, len(text))
		if _, err := r.ReadPhys(got, at); err != nil || !bytes.Equal(got, text) {
			t.Errorf("%s: %q, %v", route, got, err)
		}
		n, err := w.(mem.PhysWriter).WritePhys(text, 32<<20-4)
		var f *mem.FaultError
		if n != 4 || !errors.As(err, &f) || f.Addr != 32<<20 || f.Op != "write" || !errors.Is(err, mem.ErrNoRAM) {
			t.Errorf("%s: over the end: %d, %v", route, n, err)
		}
	}
}

// TestQMPLeavesNothing: the file that the bytes went through goes with the
// machine, also that of a view, which nobody needs to close.
func TestQMPLeavesNothing(t *testing.T) {
	v := start(t, "-S", "-m", "32M")
	m := openVM(t, v.name, Force(QMP))
	a := m.(vm.Ambiguous)
	w, err := a.In(a.Layouts()[0])
	if err != nil {
		t.Fatal(err)
	}
	var dirs []string
	for _, x := range []vm.Machine{w, m} {
		if _, err := x.ReadPhys(make([]byte, 8), patternAt); err != nil {
			t.Fatal(err)
		}
		dirs = append(dirs, x.(*asked).dir)
	}
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	for _, d := range dirs {
		if _, err := os.Stat(d); d == "" || !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%q is left: %v", d, err)
		}
	}
}

// TestTall: QEMU has the RAM of a large machine of AMD's above 1 TiB, which a look without the monitor must try.
func TestTall(t *testing.T) {
	const ram, low, at = 1000 << 30, 2 << 30, 1<<40 + 1<<20
	f := filepath.Join(t.TempDir(), "tall")
	want := bytes.Repeat([]byte("above"), 20000)
	if err := os.WriteFile(f, want, 0o600); err != nil {
		t.Fatal(err)
	}
	v := start(t, "-S", "-machine", "q35,memory-backend=m", "-cpu", "EPYC,phys-bits=48", "-m", "1000G",
		"-object", "memory-backend-ram,id=m,size=1000G,reserve=off", "-device", fmt.Sprintf("loader,file=%s,addr=%#x,force-raw=on", f, uint64(at)))
	right := []mem.Range{{Start: 0, Size: low}, {Start: 1 << 40, Size: ram - low}}
	for name, opts := range map[string][]Option{"told": nil, "tried": {NoMonitor()}} {
		m := openVM(t, v.name, opts...)
		defer m.Close()
		a := m.(vm.Ambiguous)
		i := slices.IndexFunc(a.Layouts(), func(l vm.Layout) bool { return slices.Equal(vmtest.Join(l.Ranges), right) })
		if i < 0 {
			t.Fatalf("%s: %+v", name, a.Layouts())
		}
		in, err := a.In(a.Layouts()[i])
		if err != nil {
			t.Fatal(err)
		}
		got := make([]byte, len(want))
		if _, err := in.ReadPhys(got, at); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: %v, %.10q", name, err, got)
		}
	}
}

// TestDeath: a machine that ends is an error, and so is a file that vanishes.
func TestDeath(t *testing.T) {
	v := start(t, "-S", "-m", "32M")
	m := openVM(t, v.name)
	defer m.Close()
	q := openVM(t, v.name, Force(QMP))
	defer q.Close()
	if err := m.(vm.Ender).Ended(); err != nil {
		t.Errorf("a live guest: %v", err)
	}
	v.cmd.Process.Kill()
	v.cmd.Wait()
	for _, m := range []vm.Machine{m, q} {
		n, err := m.ReadPhys(make([]byte, 8), patternAt)
		var f *mem.FaultError
		if n != 0 || !errors.As(err, &f) || !errors.Is(err, mem.ErrUnreachable) {
			t.Errorf("read of a dead guest: %d, %v", n, err)
		}
	}
	if _, err := mem.ReadVec(m, []mem.Vec{{P: make([]byte, 8), PA: patternAt}, {P: make([]byte, 8), PA: patternAt}}); !errors.Is(err, mem.ErrUnreachable) {
		t.Errorf("vectored read of a dead guest: %v", err)
	}
	if _, err := m.(mem.Extenter).Extents(); !errors.Is(err, mem.ErrUnreachable) {
		t.Errorf("extents of a dead guest: %v", err)
	}
	if err := m.(vm.Ender).Ended(); !errors.Is(err, mem.ErrUnreachable) {
		t.Errorf("a dead guest: %v", err)
	}
	if _, err := Open(context.Background(), v.name); !errors.Is(err, ErrNoVM) {
		t.Errorf("open a dead guest: %v", err)
	}

	file := shmFile(t)
	arg := "memory-backend-file,share=on,id=m,size=32M,mem-path=" + file
	v = start(t, "-S", "-m", "32M", "-M", "pc,memory-backend=m", "-object", arg)
	m = openVM(t, v.name)
	v.cmd.Process.Kill()
	v.cmd.Wait()
	if _, err := m.ReadPhys(make([]byte, 8), patternAt); err != nil {
		t.Errorf("mapped memory of a dead guest: %v", err)
	}
	if err := m.(vm.Ender).Ended(); !errors.Is(err, mem.ErrUnreachable) {
		t.Errorf("a dead guest whose memory is mapped: %v", err)
	}
	m.Close()

	v = start(t, "-S", "-m", "32M", "-M", "pc,memory-backend=m", "-object", arg)
	m = openVM(t, v.name)
	defer m.Close()
	if err := os.Truncate(file, 1<<20); err != nil {
		t.Fatal(err)
	}
	n, err := m.ReadPhys(make([]byte, 8192), patternAt)
	if n != 0 || !errors.Is(err, mem.ErrUnreachable) {
		t.Errorf("read of RAM whose file was cut: %d, %v", n, err)
	}
}

// pretend starts a process that looks like a QEMU with these arguments.
func pretend(t *testing.T, args ...string) int {
	t.Helper()
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "qemu-system-x86_64")
	if err := os.WriteFile(path, self, 0o700); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(path, args...)
	cmd.Env = append(os.Environ(), sleeper+"=sleep")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	for range 100 { // until exec has happened
		if _, _, ok := inspect(cmd.Process.Pid); ok {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	return cmd.Process.Pid
}

// TestWrongTargets: each gets one clear line.
func TestWrongTargets(t *testing.T) {
	name := fmt.Sprintf("vmscope-pretend-%d", os.Getpid())
	a, b := pretend(t, "-name", name), pretend(t, "-name", "guest="+name+",debug-threads=on")
	sev := pretend(t, "-name", name+"-sev", "-object", "sev-guest,id=s", "-machine", "q35,memory-encryption=s")
	huge := pretend(t, "-name", name+"-huge", "-m", "100T")
	wrap := pretend(t, "-name", name+"-wrap", "-m", "18446744073709551615B")
	for _, c := range []struct {
		target string
		class  error
		want   []string
	}{
		{name, ErrManyVMs, []string{strconv.Itoa(a), strconv.Itoa(b), "choose one"}},
		{name + "-no", ErrNoVM, []string{"running: ", fmt.Sprintf("%q (pid %d)", name, a)}},
		{strconv.Itoa(os.Getpid()), ErrNoVM, []string{"is not a QEMU"}},
		{"99999999", ErrNoVM, []string{"running: "}},
		{"", ErrNoVM, []string{"empty"}},
		{"/nonexistent/socket", ErrNoVM, []string{"no such file"}},
		{t.TempDir(), ErrNoVM, []string{"not a socket"}},
		{name + "-sev", ErrEncrypted, []string{"sev-guest", strconv.Itoa(sev)}},
		{strconv.Itoa(huge), errNoBlock, []string{"104857600 MiB"}},
		{strconv.Itoa(wrap), errNoBlock, []string{"18446744073709551615 bytes"}},
	} {
		m, err := Open(context.Background(), c.target)
		if m != nil || !errors.Is(err, c.class) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%q: %v, want class %q in one line", c.target, err, c.class)
			continue
		}
		for _, w := range c.want {
			if !strings.Contains(err.Error(), w) {
				t.Errorf("%q: %q does not say %q", c.target, err, w)
			}
		}
	}
}

// TestFewRights opens as another user: not allowed without a monitor, by QMP if
// its socket is open to us.
func TestFewRights(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, to become somebody else")
	}
	v := start(t, "-S", "-m", "32M")
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("/dev/shm", "vmscope-test-")
	if err != nil {
		t.Skipf("needs /dev/shm: %v", err)
	}
	defer os.RemoveAll(dir)
	prog := filepath.Join(dir, "other")
	if err := errors.Join(os.WriteFile(prog, self, 0o755), os.Chmod(dir, 0o755)); err != nil {
		t.Fatal(err)
	}
	run := func() string {
		cmd := exec.Command(prog, v.name)
		cmd.Env = []string{sleeper + "=open", "PATH=" + os.Getenv("PATH")}
		cmd.Dir = "/"
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		return string(out)
	}
	out := run()
	for _, r := range []Route{"", Mmap, VMRead} {
		if !strings.Contains(out, string(r)+": true VM \"") {
			t.Errorf("route %q is not refused as it should be:\n%s", r, out)
		}
	}
	if !strings.Contains(out, "run as root or with CAP_SYS_PTRACE") {
		t.Errorf("nothing says what to do:\n%s", out)
	}
	// Open the socket to everybody, on the way there too.
	for p := filepath.Dir(v.sock); p != "/"; p = filepath.Dir(p) {
		if st, err := os.Stat(p); err == nil && st.Mode()&0o001 == 0 {
			if err := os.Chmod(p, st.Mode()|0o011); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := os.Chmod(v.sock, 0o777); err != nil {
		t.Fatal(err)
	}
	out = run()
	if want := fmt.Sprintf("QMP pmemsave %x <nil>", v.data[:16]); strings.Count(out, want) != 2 {
		t.Errorf("no memory by QMP (%q):\n%s", want, out)
	}
}
