// Package standin runs processes that hold RAM as the VMMs without a monitor do
// (Firecracker, cloud-hypervisor, crosvm, kvmtool), under their name, but with no
// virtual machine: what they hold is copied from files. They make the system calls
// for memory that those make, in their order, as their sources have it.
//
// The real ones need /dev/kvm, which few machines have where tests run.
package standin

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"vmscope/mem"
)

// VM says what a process is to hold.
type VM struct {
	Program string   // base name of the program file
	Args    []string // its arguments
	Style   Style
	RAM     []mem.Range // where RAM lies in guest-physical memory
	Fill    []Fill
	File    string // of the style Snapshot: where its file goes
}

// Fill says what lies at an address: Bytes, or the data of a part of a file.
type Fill struct {
	PA    mem.PA
	Bytes []byte
	File  string
	Off   uint64
	Size  uint64
}

// Style is how RAM is held.
type Style int

const (
	// Anonymous: a private mapping for each range, the lowest first (Firecracker,
	// cloud-hypervisor).
	Anonymous Style = iota
	// Memfd: one memfd, shared, with a mapping for each range (Firecracker's
	// guest_mem).
	Memfd
	// Memfds: a memfd for each range, mapped private (cloud-hypervisor's ch_ram).
	Memfds
	// Snapshot: a file that holds the RAM, mapped private, and changed since
	// (Firecracker restored from a snapshot).
	Snapshot
	// Regions: one memfd, shared, with the first MiB in mappings of its own
	// (crosvm's crosvm_guest).
	Regions
	// Hole: one mapping over all, with the hole between the ranges made inaccessible
	// (kvmtool).
	Hole
	// Plugged: private mappings as of Anonymous, and one for all that lies at 512 GiB
	// and above, inaccessible but for the ranges (Firecracker's memory hotplug).
	Plugged
)

// env makes a test binary a stand-in.
const env = "VMSCOPE_STANDIN"

// Main must be called first in TestMain by tests that use Start. In the test itself
// it returns at once.
func Main() {
	text, ok := os.LookupEnv(env)
	if !ok {
		return
	}
	os.Unsetenv(env)
	var v VM
	err := json.Unmarshal([]byte(text), &v)
	if err == nil {
		err = v.run()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Stdout.WriteString("ready\n")
	io.Copy(io.Discard, os.Stdin) // until the test ends
	os.Exit(0)
}

// Start starts the process and waits until it holds what it is to hold. It ends
// with the test, or earlier by stop.
func Start(tb testing.TB, v VM) (pid int, stop func()) {
	tb.Helper()
	self, err := os.Executable()
	if err != nil {
		tb.Fatal(err)
	}
	program := filepath.Join(tb.TempDir(), v.Program)
	if err := os.Link(self, program); err != nil {
		if err := copyFile(program, self); err != nil {
			tb.Fatal(err)
		}
	}
	text, err := json.Marshal(v)
	if err != nil {
		tb.Fatal(err)
	}
	cmd := exec.Command(program, v.Args...)
	cmd.Env = append(os.Environ(), env+"="+string(text))
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		tb.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		tb.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		tb.Fatal(err)
	}
	stop = func() {
		in.Close()
		cmd.Wait()
	}
	tb.Cleanup(stop)
	if _, err := io.ReadFull(out, make([]byte, len("ready\n"))); err != nil {
		tb.Fatalf("the stand-in for %s did not start: %v", v.Program, err)
	}
	return cmd.Process.Pid, stop
}

func copyFile(to, from string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY|os.O_EXCL, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	if cerr := out.Close(); err == nil {
		err = cerr
	}
	return err
}

// run maps the RAM and fills it.
func (v *VM) run() error {
	ram, err := v.mapRAM()
	if err != nil {
		return err
	}
	for _, f := range v.Fill {
		if err := f.into(ram); err != nil {
			return err
		}
	}
	return nil
}

// piece is RAM that was mapped.
type piece struct {
	pa   mem.PA
	data []byte
}

const prot = unix.PROT_READ | unix.PROT_WRITE

func (v *VM) mapRAM() ([]piece, error) {
	switch v.Style {
	case Memfd, Regions:
		name := map[Style]string{Memfd: "guest_mem", Regions: "crosvm_guest"}[v.Style]
		return mapOne(name, v.regions(), unix.MAP_SHARED)
	case Snapshot:
		return v.mapSnapshot()
	case Hole:
		return v.mapHole()
	case Plugged:
		return v.mapPlugged()
	}
	var out []piece
	for _, r := range v.RAM {
		var data []byte
		var err error
		if v.Style == Memfds {
			var fd int
			if fd, err = memfd("ch_ram", r.Size); err != nil {
				return nil, err
			}
			data, err = unix.Mmap(fd, 0, int(r.Size), prot, unix.MAP_PRIVATE|unix.MAP_NORESERVE)
		} else {
			data, err = mapAnonymous(int(r.Size))
		}
		if err != nil {
			return nil, err
		}
		out = append(out, piece{r.Start, data})
	}
	return out, nil
}

// mapAnonymous maps memory between two pages that nobody may touch, as Firecracker
// has done: the kernel would join it with a mapping of Go's heap that happens
// to be its neighbour.
func mapAnonymous(size int) ([]byte, error) {
	guard := os.Getpagesize()
	data, err := unix.Mmap(-1, 0, size+2*guard, unix.PROT_NONE, unix.MAP_PRIVATE|unix.MAP_ANON|unix.MAP_NORESERVE)
	if err != nil {
		return nil, err
	}
	data = data[guard : guard+size]
	return data, unix.Mprotect(data, prot)
}

// regions are the ranges that crosvm maps.
func (v *VM) regions() []mem.Range {
	if v.Style != Regions {
		return v.RAM
	}
	out := []mem.Range{{Start: 0, Size: 640 << 10}, {Start: 640 << 10, Size: 384 << 10}, {Start: 1 << 20, Size: v.RAM[0].Size - 1<<20}}
	return append(out, v.RAM[1:]...)
}

func memfd(name string, size uint64) (int, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC)
	if err != nil {
		return -1, err
	}
	return fd, unix.Ftruncate(fd, int64(size))
}

func mapOne(name string, ranges []mem.Range, flags int) ([]piece, error) {
	var size, off uint64
	for _, r := range ranges {
		size += r.Size
	}
	fd, err := memfd(name, size)
	if err != nil {
		return nil, err
	}
	var out []piece
	for _, r := range ranges {
		data, err := unix.Mmap(fd, int64(off), int(r.Size), prot, flags|unix.MAP_NORESERVE)
		if err != nil {
			return nil, err
		}
		out, off = append(out, piece{r.Start, data}), off+r.Size
	}
	return out, nil
}

// mapSnapshot writes what is to be held to a file, all but the last, and maps that.
func (v *VM) mapSnapshot() ([]piece, error) {
	f, err := os.Create(v.File)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var size, off uint64
	for _, r := range v.RAM {
		size += r.Size
	}
	if err := f.Truncate(int64(size)); err != nil {
		return nil, err
	}
	var shared, out []piece
	for _, r := range v.RAM {
		s, err := unix.Mmap(int(f.Fd()), int64(off), int(r.Size), prot, unix.MAP_SHARED)
		if err != nil {
			return nil, err
		}
		shared = append(shared, piece{r.Start, s})
		off += r.Size
	}
	before := v.Fill[:len(v.Fill)-1]
	v.Fill = v.Fill[len(v.Fill)-1:]
	for _, x := range before {
		if err := x.into(shared); err != nil {
			return nil, err
		}
	}
	off = 0
	for i, r := range v.RAM {
		if err := unix.Munmap(shared[i].data); err != nil {
			return nil, err
		}
		data, err := unix.Mmap(int(f.Fd()), int64(off), int(r.Size), prot, unix.MAP_PRIVATE|unix.MAP_NORESERVE)
		if err != nil {
			return nil, err
		}
		out, off = append(out, piece{r.Start, data}), off+r.Size
	}
	return out, nil
}

func (v *VM) mapHole() ([]piece, error) {
	last := v.RAM[len(v.RAM)-1]
	data, err := mapAnonymous(int(last.End()))
	if err != nil {
		return nil, err
	}
	var out []piece
	for i, r := range v.RAM {
		if i > 0 {
			if err := unix.Mprotect(data[v.RAM[i-1].End():r.Start], unix.PROT_NONE); err != nil {
				return nil, err
			}
		}
		out = append(out, piece{r.Start, data[r.Start:r.End()]})
	}
	return out, nil
}

func (v *VM) mapPlugged() ([]piece, error) {
	const base = 512 << 30
	var out []piece
	var region []byte
	for _, r := range v.RAM {
		if r.Start < base {
			data, err := mapAnonymous(int(r.Size))
			if err != nil {
				return nil, err
			}
			out = append(out, piece{r.Start, data})
			continue
		}
		if region == nil {
			// There is always more to plug.
			size := uint64(v.RAM[len(v.RAM)-1].End()) - base + 128<<20
			var err error
			if region, err = unix.Mmap(-1, 0, int(size), unix.PROT_NONE, unix.MAP_PRIVATE|unix.MAP_ANON|unix.MAP_NORESERVE); err != nil {
				return nil, err
			}
		}
		data := region[r.Start-base : r.End()-base]
		if err := unix.Mprotect(data, prot); err != nil {
			return nil, err
		}
		out = append(out, piece{r.Start, data})
	}
	return out, nil
}

// into copies the data to where it belongs.
func (f Fill) into(ram []piece) error {
	if f.File == "" {
		return place(ram, f.PA, f.Bytes)
	}
	file, err := os.Open(f.File)
	if err != nil {
		return err
	}
	defer file.Close()
	buf := make([]byte, 1<<20)
	fd, end := int(file.Fd()), int64(f.Off+f.Size)
	for off := int64(f.Off); off < end; {
		data, err := unix.Seek(fd, off, unix.SEEK_DATA)
		if err == unix.ENXIO || data >= end {
			return nil
		}
		if err != nil {
			return err
		}
		if off, err = unix.Seek(fd, data, unix.SEEK_HOLE); err != nil {
			return err
		}
		for off = min(off, end); data < off; {
			n, err := file.ReadAt(buf[:min(int64(len(buf)), off-data)], data)
			if err != nil && err != io.EOF {
				return err
			}
			if err := place(ram, f.PA+mem.PA(uint64(data)-f.Off), buf[:n]); err != nil {
				return err
			}
			data += int64(n)
		}
	}
	return nil
}

func place(ram []piece, pa mem.PA, b []byte) error {
	for len(b) > 0 {
		n := 0
		for _, r := range ram {
			if pa >= r.pa && uint64(pa-r.pa) < uint64(len(r.data)) {
				n = copy(r.data[pa-r.pa:], b)
			}
		}
		if n == 0 {
			return fmt.Errorf("no RAM at %#x", uint64(pa))
		}
		pa, b = pa+mem.PA(n), b[n:]
	}
	return nil
}
