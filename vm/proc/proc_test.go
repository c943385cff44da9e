package proc

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"vmscope/internal/guestlab/standin"
	"vmscope/internal/procram"
	"vmscope/mem"
	"vmscope/vm"
	"vmscope/vm/vmtest"
)

func TestMain(m *testing.M) {
	standin.Main()
	os.Exit(m.Run())
}

// The styles of the VMMs, and where their holes are.
var styles = []struct {
	name, vmm, target string
	vm                standin.VM
	low               uint64
}{
	{"firecracker", "firecracker", "i-1", standin.VM{Program: "firecracker", Args: []string{"--id", "i-1", "--api-sock", "/run/f.sock"}, Style: standin.Anonymous}, 3 * gib},
	{"firecracker before PCI", "firecracker", "i-2", standin.VM{Program: "firecracker-v1.7.0-x86_64", Args: []string{"--id=i-2"}, Style: standin.Anonymous}, 3328 * mib},
	{"firecracker with vhost-user", "firecracker", "i-3", standin.VM{Program: "firecracker", Args: []string{"--id", "i-3"}, Style: standin.Memfd}, 3328 * mib},
	{"firecracker from a snapshot", "firecracker", "i-4", standin.VM{Program: "firecracker", Args: []string{"--id", "i-4"}, Style: standin.Snapshot}, 3 * gib},
	{"cloud-hypervisor", "cloud-hypervisor", "", standin.VM{Program: "cloud-hypervisor", Args: []string{"--memory", "size=%d", "--cpus", "boot=2"}, Style: standin.Anonymous}, 3 * gib},
	{"cloud-hypervisor of old", "cloud-hypervisor", "", standin.VM{Program: "cloud-hypervisor", Style: standin.Memfds}, 3 * gib},
	{"crosvm", "crosvm", "c1", standin.VM{Program: "crosvm", Args: []string{"run", "--name", "c1", "kernel"}, Style: standin.Regions}, 3328 * mib},
	{"kvmtool", "kvmtool", "k1", standin.VM{Program: "lkvm", Args: []string{"run", "--name", "k1"}, Style: standin.Hole}, 3328 * mib},
}

// held makes the stand-in of a style hold bytes at both ends of each range.
func held(t *testing.T, v standin.VM, size, low uint64) (standin.VM, map[mem.PA][]byte) {
	v.RAM = []mem.Range{{Start: 0, Size: min(size, low)}}
	if size > low {
		v.RAM = append(v.RAM, mem.Range{Start: 4 * gib, Size: size - low})
	}
	v.File = filepath.Join(t.TempDir(), "snapshot")
	want := make(map[mem.PA][]byte)
	for i, r := range v.RAM {
		for k, pa := range []mem.PA{r.Start + mib, r.End() - 8192} {
			b := make([]byte, 8192)
			for n := range b {
				b[n] = byte(n*(3+2*i) + k + n/256)
			}
			want[pa] = b
			v.Fill = append(v.Fill, standin.Fill{PA: pa, Bytes: b})
		}
	}
	args := make([]string, len(v.Args))
	for i, a := range v.Args {
		args[i] = a
		if bytes.Contains([]byte(a), []byte("%d")) {
			args[i] = fmt.Sprintf(a, size)
		}
	}
	v.Args = args
	return v, want
}

func TestContract(t *testing.T) {
	for _, c := range styles {
		t.Run(c.name, func(t *testing.T) {
			v, want := held(t, c.vm, 96*mib, c.low)
			pid, _ := standin.Start(t, v)
			for name, opts := range map[string][]Option{"best": nil, "vmread": {VMRead()}, "writable": {Writable()}} {
				t.Run(name, func(t *testing.T) {
					vmtest.Run(t, func(t *testing.T) vm.Machine { return open(t, c.vmm, c.target, pid, opts...) }, vmtest.Want{Ranges: v.RAM, Bytes: want})
				})
			}
			m := open(t, c.vmm, c.target, pid)
			defer m.Close()
			i := m.(vm.Describer).Info()
			if i.VMM != c.vmm || i.Name != c.target || i.PID != pid || i.RAM != 96*mib {
				t.Errorf("%+v", i)
			}
			_, isMapped := m.(interface{ RAM() *mem.RAM })
			if shared := c.vm.Style == standin.Memfd || c.vm.Style == standin.Regions; isMapped != shared {
				t.Errorf("mapped: %t, shared: %t", isMapped, shared)
			}
		})
	}
}

// open opens by the target, and where it has no name by the PID.
func open(t *testing.T, vmm, target string, pid int, opts ...Option) vm.Machine {
	t.Helper()
	if target == "" {
		target = strconv.Itoa(pid)
	}
	m, err := Open(vmm, target, opts...)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// TestHoles: of RAM that reaches above 4 GiB one of the ways has all bytes where
// they belong.
func TestHoles(t *testing.T) {
	for _, c := range styles {
		t.Run(c.name, func(t *testing.T) {
			v, want := held(t, c.vm, 5*gib, c.low)
			pid, _ := standin.Start(t, v)
			m := open(t, c.vmm, c.target, pid)
			defer m.Close()
			ls := m.(vm.Ambiguous).Layouts()
			right := -1
			for i, l := range ls {
				in, err := m.(vm.Ambiguous).In(l)
				if err != nil {
					t.Fatal(err)
				}
				if holds(in, want) && right < 0 {
					right = i
				}
				in.Close()
			}
			if right < 0 {
				t.Errorf("none of %d ways is right: %+v", len(ls), ls)
			}
			t.Logf("way %d of %d is right: %s", right+1, len(ls), ls[max(right, 0)].Name)
		})
	}
}

// TestAdded: RAM that became more while the guest ran, and a BIOS that lies amid it
// in its file, leave a way in which all bytes are where they belong.
func TestAdded(t *testing.T) {
	crosvm := standin.VM{Program: "crosvm", Args: []string{"run", "--bios", "b"}, Style: standin.Regions}
	for _, c := range []struct {
		name string
		vm   standin.VM
		ram  []mem.Range
		bios bool // the range before the last is no RAM
	}{
		{"cloud-hypervisor, small", styles[4].vm, []mem.Range{{Size: 512 * mib}, {Start: 4 * gib, Size: 256 * mib}}, false},
		{"cloud-hypervisor, twice", styles[4].vm, []mem.Range{{Size: 96 * mib}, {Start: 4 * gib, Size: 128 * mib}, {Start: 4*gib + 128*mib, Size: 384 * mib}}, false},
		{"cloud-hypervisor, large", styles[4].vm, []mem.Range{{Size: 3 * gib}, {Start: 4 * gib, Size: gib + 64*mib}, {Start: 5*gib + 128*mib, Size: 512 * mib}}, false},
		{"cloud-hypervisor, shared", styles[5].vm, []mem.Range{{Size: 512 * mib}, {Start: 4 * gib, Size: 256 * mib}}, false},
		{"firecracker", standin.VM{Program: "firecracker", Style: standin.Plugged}, []mem.Range{{Size: 512 * mib}, {Start: 512 * gib, Size: 256 * mib}}, false},
		{"firecracker, in part", standin.VM{Program: "firecracker", Style: standin.Plugged}, []mem.Range{
			{Size: 3 * gib}, {Start: 4 * gib, Size: gib}, {Start: 512 * gib, Size: 256 * mib}, {Start: 513 * gib, Size: 128 * mib},
		}, false},
		{"crosvm, BIOS", crosvm, []mem.Range{{Size: 3328 * mib}, {Start: 4*gib - 2*mib, Size: 2 * mib}, {Start: 4 * gib, Size: gib}}, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			v, want := c.vm, make(map[mem.PA][]byte)
			v.RAM = c.ram
			var args []string
			for _, a := range v.Args {
				args = append(args, strings.Replace(a, "%d", strconv.FormatUint(c.ram[0].Size+aboveHole(c.ram), 10), 1))
			}
			v.Args = args
			for i, r := range v.RAM {
				b := bytes.Repeat([]byte{byte(i + 1)}, 5000)
				for _, pa := range []mem.PA{r.Start + mib, r.End() - 5000} {
					v.Fill = append(v.Fill, standin.Fill{PA: pa, Bytes: b})
					if !c.bios || i != len(v.RAM)-2 {
						want[pa] = b
					}
				}
			}
			pid, _ := standin.Start(t, v)
			m := open(t, v.Program, "", pid)
			defer m.Close()
			right := -1
			ls := m.(vm.Ambiguous).Layouts()
			for i, l := range ls {
				in, err := m.(vm.Ambiguous).In(l)
				if err != nil {
					t.Fatal(err)
				}
				if holds(in, want) && right < 0 {
					right = i
				}
				in.Close()
			}
			if right < 0 {
				t.Fatalf("none of %d ways is right: %+v", len(ls), ls)
			}
			t.Logf("way %d of %d is right: %s", right+1, len(ls), ls[right].Name)
		})
	}
}

// aboveHole is what a machine started with above 4 GiB, if it has RAM on both
// sides of its hole.
func aboveHole(ram []mem.Range) uint64 {
	if ram[0].Size < 3*gib {
		return 0
	}
	return ram[1].Size
}

func holds(m vm.Machine, want map[mem.PA][]byte) bool {
	for pa, b := range want {
		got := make([]byte, len(b))
		if _, err := m.ReadPhys(got, pa); err != nil || !bytes.Equal(got, b) {
			return false
		}
	}
	return true
}

func TestList(t *testing.T) {
	v, _ := held(t, styles[0].vm, 96*mib, gib)
	v.Args = []string{"--id", "twin"}
	one, stop := standin.Start(t, v)
	two, _ := standin.Start(t, v)
	all, err := List()
	if err != nil {
		t.Fatal(err)
	}
	seen := map[int]Process{}
	for _, p := range all {
		seen[p.PID] = p
	}
	for _, pid := range []int{one, two} {
		if p := seen[pid]; p.Name != "twin" || p.VMM != "firecracker" || p.RAM != 96*mib {
			t.Errorf("%d is listed as %+v", pid, p)
		}
	}
	if _, err := Find("firecracker", "twin"); !errors.Is(err, vm.ErrManyVMs) {
		t.Errorf("twins: %v", err)
	}
	if _, err := Find("crosvm", "twin"); !errors.Is(err, vm.ErrNoVM) {
		t.Errorf("another VMM: %v", err)
	}
	m, err := Open("", strconv.Itoa(one))
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if err := m.(vm.Ender).Ended(); err != nil {
		t.Error(err)
	}
	stop()
	if err := m.(vm.Ender).Ended(); !errors.Is(err, mem.ErrUnreachable) {
		t.Errorf("ended: %v", err)
	}
	if _, err := m.ReadPhys(make([]byte, 8), mib); !errors.Is(err, mem.ErrUnreachable) {
		t.Errorf("read from a process that has ended: %v", err)
	}
	if p, err := Find("firecracker", "twin"); err != nil || p.PID != two {
		t.Errorf("the other twin: %+v, %v", p, err)
	}
	for _, bad := range []string{"", "0", "-1", "x", "4194304999", strconv.Itoa(one)} {
		if _, err := Open("", bad); !errors.Is(err, vm.ErrNoVM) {
			t.Errorf("pid:%s: %v", bad, err)
		}
	}
}

// TestOther: a process that is no VMM that we know has RAM too.
func TestOther(t *testing.T) {
	v, want := held(t, standin.VM{Program: "myvmm", Style: standin.Hole}, 5*gib, 3*gib)
	pid, _ := standin.Start(t, v)
	m := open(t, "", "", pid)
	defer m.Close()
	if i := m.(vm.Describer).Info(); i.VMM != "myvmm" {
		t.Errorf("%+v", i)
	}
	right := false
	for _, l := range m.(vm.Ambiguous).Layouts() {
		in, err := m.(vm.Ambiguous).In(l)
		if err != nil {
			t.Fatal(err)
		}
		right = right || holds(in, want)
		in.Close()
	}
	if !right {
		t.Error("no way is right")
	}
}

func TestArguments(t *testing.T) {
	for _, c := range []struct {
		program string
		args    arguments
		want    told
	}{
		{"firecracker", arguments{"--id", "a", "--api-sock", "s"}, told{name: "a", socket: "s"}},
		{"firecracker-v1.12.0-aarch64", arguments{"--id=b", "--no-api"}, told{name: "b"}},
		{"cloud-hypervisor-static", arguments{"--api-socket", "path=/s", "--memory", "size=2G,shared=on"}, told{socket: "/s", ram: 2 * gib}},
		{"cloud-hypervisor", arguments{"--platform", "num_pci_segments=1,tdx=on", "--memory=size=512M"}, told{ram: 512 * mib, secret: "TDX"}},
		{"cloud-hypervisor", arguments{"--platform", "sev_snp=on"}, told{secret: "SEV-SNP"}},
		{"crosvm", arguments{"run", "-m", "1024", "-s", "/c"}, told{ram: gib, socket: "/c"}},
		{"crosvm", arguments{"run", "--mem", "size=768", "--protected-vm"}, told{ram: 768 * mib, secret: "protected VM"}},
		{"lkvm", arguments{"run", "-m", "256", "-n", "k"}, told{ram: 256 * mib, name: "k"}},
		{"lkvm", arguments{"run", "-m", "1G@0x80000000", "--id"}, told{ram: gib}},
		{"lkvm", arguments{"run", "-m", "99999999999999999999T"}, told{}},
	} {
		k := kindOf(c.program)
		if k == nil {
			t.Errorf("%s is not known", c.program)
			continue
		}
		if got := k.read(c.args); got != c.want {
			t.Errorf("%s %q: %+v, want %+v", c.program, c.args, got, c.want)
		}
	}
	for _, p := range []string{"", "firecracker-helper", "firecrackerd", "qemu-system-x86_64", "kvm", "bash"} {
		if k := kindOf(p); k != nil {
			t.Errorf("%q is taken for %s", p, k.name)
		}
	}
}

func TestHelpers(t *testing.T) {
	got := withoutHelpers([]Process{{PID: 10, VMM: "crosvm", ppid: 1}, {PID: 11, VMM: "crosvm", ppid: 10}, {PID: 12, VMM: "crosvm", ppid: 1}, {PID: 13, VMM: "kvmtool", ppid: 10}})
	if len(got) != 3 || got[1].PID != 12 || got[2].PID != 13 {
		t.Errorf("%+v", got)
	}
}

// FuzzArrangements: whatever a process maps, a way has RAM of the process, each
// byte once, and a layout of the same size.
func FuzzArrangements(f *testing.F) {
	f.Add("7f0000000000-7f00d0000000 rw-p 00000000 00:00 0\n7f00d0000000-7f0100000000 ---p 00000000 00:00 0\n7f0100000000-7f0170000000 rw-p 00000000 00:00 0\n", uint64(0), "kvmtool")
	f.Add("7f0000000000-7f0070021000 rw-p 00000000 00:00 0\n7f0100000000-7f0140000000 rw-s c0000000 00:01 7 /memfd:guest_mem (deleted)\n7f0200000000-7f02c0000000 rw-s 00000000 00:01 7 /memfd:guest_mem (deleted)\n", uint64(1<<30), "firecracker")
	f.Fuzz(func(t *testing.T, text string, told uint64, vmm string) {
		maps, err := procram.ParseMaps(text)
		if err != nil {
			return
		}
		k := kindOf(vmm)
		if k == nil {
			k = foreign(vmm)
		}
		for _, a := range arrangements(Process{kind: k, RAM: told % (maxRAM + 1)}, maps) {
			var n uint64
			for _, r := range a.layout.Ranges {
				n += r.Size
			}
			if n != a.size() || n == 0 {
				t.Fatalf("%d bytes in a layout of %d: %+v", a.size(), n, a)
			}
			for i, b := range a.blocks {
				if b.Size == 0 || b.HVA < b.Mapping.Start || b.Size > b.Mapping.End-b.HVA {
					t.Fatalf("block %+v outside of its mapping", b)
				}
				for _, c := range a.blocks[:i] {
					if b.HVA < c.HVA+c.Size && c.HVA < b.HVA+b.Size {
						t.Fatalf("blocks %+v and %+v overlap", b, c)
					}
				}
			}
			if _, err := procram.Lay(a.blocks, a.layout.Ranges); err != nil {
				t.Fatal(err)
			}
		}
	})
}
