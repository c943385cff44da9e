package main

import (
	"fmt"
	"regexp"
	"strings"
	"testing"

	"vmscope/internal/guestlab"
)

// TestKVMGuest runs the program that users get on a host whose guests KVM runs, with the QEMU that is installed here; the
// guests' own words are what it has to say.
func TestKVMGuest(t *testing.T) {
	const older, newer = "bookworm-cloud", "sid-cloud"
	host := guestlab.BootKVM(t, guestlab.Config{Kernel: older, MemoryMiB: 1280, Files: map[string]string{
		"/bin/vmscope": buildProgram(t, "."), "/bin/modules": buildProgram(t, "vmscope/examples/modules"), "/srv/disk.img": xenImage(t),
	}}, older, newer)
	x := &kvmCLI{hostCLI{&host.Agent, host.HadTime}, host}
	t.Run("qemu", func(t *testing.T) { x.testQEMU(t, older) })
	t.Run("other", func(t *testing.T) { x.testOther(t, newer) })
}

type kvmCLI struct {
	hostCLI
	host *guestlab.KVMHost
}

func (x *kvmCLI) start(t *testing.T, cfg guestlab.KVMGuestConfig) *guestlab.KVMGuest {
	t.Helper()
	g, err := x.host.Start(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	return g
}

// listed checks what vms says of a guest.
func (x *kvmCLI) listed(t *testing.T, g *guestlab.KVMGuest, want map[string]any) {
	t.Helper()
	for _, m := range x.lines(t, "vmscope vms --json") {
		if m["pid"] != float64(g.QEMU) {
			continue
		}
		for k, v := range want {
			if m[k] != v {
				t.Errorf("%s of %v is not %v", k, m, v)
			}
		}
		return
	}
	t.Errorf("%s is not listed", g.Name())
}

// testQEMU is a guest as QEMU runs it by default: its memory is private.
func (x *kvmCLI) testQEMU(t *testing.T, kernel string) {
	g := x.start(t, guestlab.KVMGuestConfig{Config: guestlab.Config{
		Name: "web1", Kernel: kernel, MemoryMiB: 256, CPUs: 2, CPUModel: "host", RAM: guestlab.Anonymous,
		Disks: []guestlab.Disk{{ID: "data", Path: "/srv/disk.img"}},
	}})
	if out := x.inside(t, &g.Agent, "dmesg | grep 'Hypervisor detected'"); !strings.HasSuffix(out, "Hypervisor detected: KVM") {
		t.Fatalf("the guest says: %q", out)
	}
	x.listed(t, g, map[string]any{"name": "web1", "vmm": "qemu-kvm", "ram": float64(256 << 20), "os": "linux", "kernel": g.Kernel().Release})
	x.compare(t, &g.Agent, "web1", fmt.Sprintf("pid:%d", g.QEMU))
	t.Run("registers", func(t *testing.T) {
		if out := x.run(t, 0, "vmscope info web1 --registers --pause"); !strings.Contains(out, "vCPUs map it") {
			t.Errorf("%s", out)
		}
	})
	t.Run("check", func(t *testing.T) {
		// The host runs the same kernel, so that its modules are the guest's too.
		out := x.run(t, 0, "vmscope check web1 --kernel "+guestlab.GuestKernel(kernel)+" --modules-dir /lib/modules/$(uname -r)")
		if !strings.HasPrefix(out, "vmscope: nothing found; 15 checks") {
			t.Errorf("%s", out)
		}
	})
	t.Run("watch", func(t *testing.T) {
		x.inside(t, &g.Agent, "mkdir -p /mnt; mount -t ext4 /dev/vda /mnt; mkdir /mnt/root; touch /mnt/root/bar; sync")
		x.run(t, 0, "{ setsid vmscope watch web1 --disk-paths /root </dev/null >/tmp/events 2>/tmp/err & }")
		x.await(t, "the watch begins", "cat /tmp/err", func(out string) bool { return strings.Contains(out, "from now on") })
		x.inside(t, &g.Agent, "cd /mnt/root; mkdir foo; sync; touch dummy; sync; rm bar; sync")
		x.events(t, "/tmp/events", "MKDIR: /root/foo", "MKFILE: /root/dummy", "RMFILE: /root/bar")
		x.run(t, 0, "killall -INT vmscope; while pidof vmscope; do sleep 0.1; done; cat /tmp/err")
		x.inside(t, &g.Agent, "touch /mnt/root/last; sync")
	})
}

// testOther is a guest whose VMM is none that the program knows, with memory on both sides of the hole below 4 GiB: all that
// it goes by is in /proc.
func (x *kvmCLI) testOther(t *testing.T, kernel string) {
	x.run(t, 0, "echo 1 >/proc/sys/vm/overcommit_memory") // most of the guest's memory it never touches
	g := x.start(t, guestlab.KVMGuestConfig{Program: "othervmm", Config: guestlab.Config{
		Name: "web2", Kernel: kernel, MemoryMiB: 5 << 10, Machine: "pc", RAM: guestlab.Memfd, NoQMP: true,
	}})
	x.listed(t, g, map[string]any{"vmm": "othervmm", "os": "linux", "kernel": g.Kernel().Release})
	number := fmt.Sprintf("pid:%d", g.QEMU)
	x.compare(t, &g.Agent, number, number)
	t.Run("layout", func(t *testing.T) {
		layout := regexp.MustCompile(`(?m)^RAM layout +othervmm, 3072 MiB below 4 GiB .* proved$`)
		if out := x.run(t, 0, "vmscope info "+number); !layout.MatchString(out) {
			t.Errorf("%s", out)
		}
	})
	t.Run("check", func(t *testing.T) {
		if out := x.run(t, 0, "vmscope check "+number); !strings.HasPrefix(out, "vmscope: nothing found") {
			t.Errorf("%s", out)
		}
	})
	t.Run("monitor", func(t *testing.T) {
		if out := x.run(t, 2, "vmscope ps --pause "+number); !strings.Contains(out, "monitor") || strings.Count(out, "\n") != 1 {
			t.Errorf("%q", out)
		}
	})
}
