package vmscope_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"vmscope"
	"vmscope/internal/guestlab"
	"vmscope/internal/guestlab/standin"
	"vmscope/mem"
	"vmscope/vm"
	"vmscope/vm/vmtest"
)

// TestVMMs looks at a real kernel's memory in processes that hold it as the VMMs
// without a monitor do, with RAM below the hole and on both sides of it.
func TestVMMs(t *testing.T) {
	const mib, gib = 1 << 20, 1 << 30
	fire := standin.VM{Program: "firecracker", Args: []string{"--id", "i-7", "--api-sock", "/run/f"}}
	cloud := standin.VM{Program: "cloud-hypervisor", Args: []string{"--api-socket", "/run/c"}}
	crosvm := standin.VM{Program: "crosvm", Args: []string{"run", "--name", "i-7"}}
	kvmtool := standin.VM{Program: "lkvm", Args: []string{"run", "-n", "i-7"}}
	with := func(v standin.VM, s standin.Style) standin.VM { v.Style = s; return v }
	all := []standin.VM{
		fire, with(fire, standin.Memfd), with(fire, standin.Snapshot), cloud, with(cloud, standin.Memfds),
		with(crosvm, standin.Regions), with(kvmtool, standin.Hole), {Program: "myvmm"},
	}
	for _, c := range []struct {
		name string
		cfg  guestlab.Config
		low  uint64 // RAM below the hole
		vms  []standin.VM
	}{
		{"no hole", guestlab.Config{MemoryMiB: 512, QEMUArgs: []string{"-m", "512M,slots=1,maxmem=1G"}}, 512 * mib, all},
		{"hole at 3 GiB", guestlab.Config{MemoryMiB: 5120, Machine: "pc"}, 3 * gib, []standin.VM{fire, with(fire, standin.Snapshot), cloud, with(cloud, standin.Memfds)}},
		// The only board of QEMU that takes this.
		{"hole at 3.25 GiB", guestlab.Config{MemoryMiB: 5120, Machine: "pc-i440fx-1.7,max-ram-below-4g=3328M"}, 3328 * mib,
			[]standin.VM{fire, with(fire, standin.Memfd), with(crosvm, standin.Regions), with(kvmtool, standin.Hole)}},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.cfg.Kernel = guestlab.TestKernels(t)[0]
			g := guestlab.Boot(t, c.cfg)
			size := uint64(c.cfg.MemoryMiB) * mib
			ram := []mem.Range{{Start: 0, Size: c.low}}
			fill := []standin.Fill{{PA: 0, File: g.RAMFile(), Size: c.low / 2}, {PA: mem.PA(c.low / 2), File: g.RAMFile(), Off: c.low / 2, Size: c.low / 2}}
			if size > c.low {
				ram = append(ram, mem.Range{Start: 4 * gib, Size: size - c.low})
				fill = append(fill, standin.Fill{PA: 4 * gib, File: g.RAMFile(), Off: c.low, Size: size - c.low})
			}
			all := make(map[string]seen)
			w := truthOf(t, g, func() {
				m, err := vmscope.Open(t.Context(), g.Name())
				if err != nil {
					t.Fatal(err)
				}
				defer m.Close()
				// The copies must be of one moment.
				if err := m.Machine().(vm.Pauser).Pause(t.Context()); err != nil {
					t.Fatal(err)
				}
				all["memory file of a snapshot"] = look(t, g.RAMFile()) // has RAM as theirs do
				for _, v := range c.vms {
					v.RAM, v.Fill, v.File = ram, fill, filepath.Join(t.TempDir(), "snapshot")
					pid, stop := standin.Start(t, v)
					target := "i-7"
					if !strings.Contains(strings.Join(v.Args, " "), target) {
						target = "pid:" + itoa(pid)
					}
					all[v.Program+" "+itoa(int(v.Style))] = lookAtVM(t, target, v, pid, size)
					stop()
				}
			})
			for name, s := range all {
				t.Run(name, func(t *testing.T) { w.check(t, s) })
			}
			if size <= c.low {
				t.Run("memory added", func(t *testing.T) { testAdded(t, g, cloud, ram, fill) })
			}
		})
	}
}

// testAdded adds memory to a guest while it runs, at 4 GiB, where the VMM of the stand-in puts it too. Then it must be part of
// what is seen, of the QEMU and of the stand-in.
func testAdded(t *testing.T, g *guestlab.Guest, v standin.VM, ram []mem.Range, fill []standin.Fill) {
	const at, size = 4 << 30, 128 << 20
	f, err := os.CreateTemp("/dev/shm", "vmscope-test-")
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	defer os.Remove(f.Name())
	qmp(t, g.QMPSocket(), "object-add", map[string]any{"qom-type": "memory-backend-file", "id": "more", "size": size, "share": true, "mem-path": f.Name()})
	qmp(t, g.QMPSocket(), "device_add", map[string]any{"driver": "pc-dimm", "id": "dimm", "memdev": "more"})
	until(t, func() bool {
		list, err := g.Ask(t.Context(), "iomem")
		if err != nil {
			t.Fatal(err)
		}
		return strings.Contains(string(list), "100000000-107ffffff : System RAM")
	})
	if _, err := g.Run(t.Context(), "echo online >/sys/devices/system/memory/memory32/state; dd if=/dev/zero of=/tmp/used bs=1M count=16"); err != nil {
		t.Fatal(err)
	}
	v.RAM = append(slices.Clone(ram), mem.Range{Start: at, Size: size})
	v.Fill = append(slices.Clone(fill), standin.Fill{PA: at, File: f.Name(), Size: size})
	var stood seen
	w := truthOf(t, g, func() {
		m, err := vmscope.Open(t.Context(), g.Name())
		if err != nil {
			t.Fatal(err)
		}
		defer m.Close()
		if err := m.Machine().(vm.Pauser).Pause(t.Context()); err != nil {
			t.Fatal(err)
		}
		if r := vmtest.Join(m.Machine().(mem.Ranger).Ranges()); !slices.Equal(r, v.RAM) {
			t.Errorf("RAM of QEMU %#x, want %#x", r, v.RAM)
		}
		pid, _ := standin.Start(t, v)
		stood = lookAtVM(t, "pid:"+itoa(pid), v, pid, ram[0].Size+size)
		err = vmscope.Look(t.Context(), "pid:"+itoa(pid), func(view *vmscope.View) error {
			vmtest.Same(t, m.Machine(), view.Machine)
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	})
	w.check(t, stood)
}

// lookAtVM looks at a stand-in, whose layout must be proved.
func lookAtVM(t *testing.T, target string, v standin.VM, pid int, size uint64) (s seen) {
	t.Helper()
	err := vmscope.Look(t.Context(), target, func(view *vmscope.View) (err error) {
		i := view.Machine.(vm.Describer).Info()
		if i.PID != pid || i.RAM != size {
			t.Errorf("%s: %+v, want pid %d and %d bytes", v.Program, i, pid, size)
		}
		proved := false
		for _, f := range view.Report.Findings {
			proved = proved || f.What == "RAM layout" && f.Confidence == "proved"
		}
		if !proved || len(view.Report.Contradictions) > 0 {
			t.Errorf("%s: layout %q is not proved: %q", v.Program, i.Layout, view.Report.Contradictions)
		}
		var took string
		for _, step := range view.Report.Steps {
			took += " " + step.Name + " " + step.Took.String()
		}
		t.Logf("%s: %s, %s;%s", v.Program, i.Route, i.Layout, took)
		s, err = see(view)
		return err
	})
	if err != nil {
		t.Fatalf("%s: %v", v.Program, err)
	}
	return s
}
