package main

import (
	"os"
	"strings"
	"testing"

	"vmscope/internal/guestlab/standin"
	"vmscope/mem"
)

// TestOtherVMMs: VMs of VMMs without a monitor are listed, completed and opened
// by their names; what is wrong with them is said.
func TestOtherVMMs(t *testing.T) {
	ram := []mem.Range{{Start: 0, Size: 96 << 20}}
	used := []standin.Fill{{PA: 1 << 20, Bytes: []byte("not Linux")}}
	name := "other-" + itoa(os.Getpid())
	pid, _ := standin.Start(t, standin.VM{Program: "firecracker", Args: []string{"--id", name}, RAM: ram, Fill: used})
	nameless, _ := standin.Start(t, standin.VM{Program: "cloud-hypervisor", Args: []string{"--memory", "size=96M"}, RAM: ram, Fill: used})
	secret := "secret-" + itoa(os.Getpid())
	standin.Start(t, standin.VM{Program: "crosvm", Args: []string{"run", "--name", secret, "--protected-vm"}, Style: standin.Regions, RAM: ram, Fill: used})

	out, stderr, status := run(t, "vms", "--json")
	if status != 0 || stderr != "" {
		t.Errorf("vms: status %d, %q", status, stderr)
	}
	found := 0
	for line := range strings.Lines(out) {
		switch m := object(t, line); m["pid"] {
		case float64(pid):
			found++
			if m["name"] != name || m["vmm"] != "firecracker" || m["ram"] != float64(96<<20) || !strings.Contains(m["problem"].(string), "no running Linux kernel") {
				t.Errorf("vms: %s", line)
			}
		case float64(nameless):
			found++
			if _, ok := m["name"]; ok || m["vmm"] != "cloud-hypervisor" || m["ram"] != float64(96<<20) {
				t.Errorf("vms: %s", line)
			}
		}
	}
	if found != 2 {
		t.Errorf("vms lists %d of 2: %s", found, out)
	}
	out, _, _ = run(t, "__complete", "ps", "")
	for _, w := range []string{name, "firecracker:" + name, "pid:" + itoa(nameless), "crosvm:" + secret} {
		if !strings.Contains(out, w+"\n") {
			t.Errorf("completion lacks %q: %s", w, out)
		}
	}
	for _, target := range []string{name, "firecracker:" + name, "firecracker:" + itoa(pid), "pid:" + itoa(pid), "cloud-hypervisor:" + itoa(nameless)} {
		failed(t, []string{"info", target}, "no running Linux kernel")
	}
	failed(t, []string{"info", "crosvm:" + secret}, "encrypted", "protected VM")
	failed(t, []string{"info", "firecracker:nobody"}, "no firecracker VM", name)
	failed(t, []string{"info", "kvmtool:"}, "no kvmtool VM")
	failed(t, []string{"info", name, "--route", "qmp"}, "mmap or vmread")
	failed(t, []string{"info", name, "--route", "mmap"}, "private to its process")
	failed(t, []string{"info", name, "--pause"}, "no monitor")
	failed(t, []string{"info", "pid:4194304999"}, "no process")
	failed(t, []string{"info", "pid:x"}, "no process id")

	fakeVM(t, "-name", name, "-m", "64")
	failed(t, []string{"info", name}, "several VMs", "firecracker", "pid:")
}
