package main

import (
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"vmscope/internal/guestlab"
)

// TestXenGuest runs the program that users get in dom0 of real Xen hosts, one with a PV domain, one with a PVH, one with an
// HVM, one with domains of other kernels for their disks, and some of other versions of Xen; the domains' own words are what
// it has to say. With VMSCOPE_XEN=core it is the first two, without what is done to memory and disks by xl, and to those who serve disks.
func TestXenGuest(t *testing.T) {
	var whole bool
	switch v := os.Getenv("VMSCOPE_XEN"); v {
	case "":
		guestlab.Skip(t, "boots a host within a host, which takes minutes: make test-xen runs it")
	case "core":
	case "1":
		whole = true
	default:
		t.Fatalf("VMSCOPE_XEN=%s: it is core or 1", v)
	}
	guestlab.Need(t, "e2fsck", "debugfs")
	files := map[string]string{"/bin/vmscope": buildProgram(t, "."), "/bin/modules": buildProgram(t, "vmscope/examples/modules")}
	t.Run("pv", func(t *testing.T) {
		t.Parallel()
		testXenPV(t, files, whole)
	})
	t.Run("pvh", func(t *testing.T) {
		t.Parallel()
		testXenPVH(t, files, whole)
	})
	if !whole {
		return
	}
	t.Run("front ends", func(t *testing.T) {
		t.Parallel()
		testXenFronts(t, files)
	})
	t.Run("hvm", func(t *testing.T) {
		t.Parallel()
		testXenHVM(t, files)
	})
	for version, kernel := range map[string]string{"4.14": "bullseye-cloud", "4.20": "trixie-cloud"} {
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			testXenVersion(t, files, version, kernel)
		})
	}
}

func testXenPV(t *testing.T, files map[string]string, whole bool) {
	files = maps.Clone(files)
	files["/srv/disk.img"] = xenImage(t)
	cfg := guestlab.XenConfig{Files: files}
	if whole {
		roomForCore(&cfg)
	}
	x := bootXen(t, cfg)
	disk := x.serve(t, "/srv/disk.img", "xvda")
	d := x.create(t, guestlab.XenDomain{Name: "pv1", Type: "pv", Disks: []string{disk.line()}})
	x.testMemory(t, d)
	t.Run("events", func(t *testing.T) { x.testEvents(t, d, disk) })
	t.Run("wrong", func(t *testing.T) {
		for target, want := range map[string]string{
			"xen:nobody": "nobody", "xen:Domain-0": "this host itself", "xen:0": "this host itself", "xen:30000": "30000",
		} {
			if out := x.run(t, 2, "vmscope ps "+target); !strings.Contains(out, want) || strings.Count(out, "\n") != 1 {
				t.Errorf("%s: %q", target, out)
			}
		}
	})
	if whole && !t.Failed() {
		t.Run("core", func(t *testing.T) { x.testCore(t, d) })
		t.Run("balloon", func(t *testing.T) { x.testBalloon(t, d) })
		t.Run("disk", func(t *testing.T) { x.testDisk(t, d, disk) })
	}
}

func testXenPVH(t *testing.T, files map[string]string, whole bool) {
	cfg := guestlab.XenConfig{Files: maps.Clone(files)}
	if whole {
		attachConfig(t, &cfg)
		roomForCore(&cfg)
	}
	x := bootXen(t, cfg)
	d := x.create(t, guestlab.XenDomain{Name: "pvh1", Type: "pvh"})
	x.testMemory(t, d)
	if whole && !t.Failed() {
		t.Run("core", func(t *testing.T) { x.testCore(t, d) })
		t.Run("hot disk", func(t *testing.T) { x.testHot(t, d) })
		t.Run("nbd", func(t *testing.T) { x.testNBD(t, d) })
	}
}

// testXenHVM has a domain with firmware and emulated devices. Its kernel unpacks itself, and chooses where it lies.
func testXenHVM(t *testing.T, files map[string]string) {
	x := bootXen(t, guestlab.XenConfig{HVM: true, MemoryMiB: 2048, Dom0MemoryMiB: 900, Files: files})
	d := x.create(t, guestlab.XenDomain{Name: "hvm1", Type: "hvm"})
	x.testMemory(t, d)
	t.Run("device model", func(t *testing.T) {
		out := x.run(t, 2, "vmscope ps $(pidof xen-qemu-system-i386)")
		if !strings.Contains(out, fmt.Sprintf("use xen:%d", d.ID)) || strings.Count(out, "\n") != 1 {
			t.Errorf("%q", out)
		}
	})
	t.Run("given back", func(t *testing.T) {
		// As much as there is of video memory, at boot: a hole in what the kernel lists as its memory.
		if info := x.lines(t, "vmscope info xen:hvm1 --json")[0]; info["contradictions"] != nil {
			t.Errorf("%v", info["contradictions"])
		}
	})
	t.Run("KASLR", func(t *testing.T) {
		text, _, _ := strings.Cut(x.inside(t, d, "grep ' _text$' /proc/kallsyms"), " ")
		at, err := strconv.ParseUint(text, 16, 64)
		if err != nil {
			t.Fatal(err)
		}
		const linked = 0xffffffff81000000
		if got := x.lines(t, "vmscope info xen:hvm1 --json")[0]["kaslr"]; got != fmt.Sprintf("%#x", at-linked) {
			t.Errorf("%v; _text is at %#x", got, at)
		}
	})
}

// testXenVersion has a PV domain with a disk, and behind it a PVH domain, on another version of Xen.
func testXenVersion(t *testing.T, files map[string]string, version, kernel string) {
	files = maps.Clone(files)
	files["/srv/disk.img"] = xenImage(t)
	x := bootXen(t, guestlab.XenConfig{Version: version, Files: files, Kernels: []string{kernel}})
	if out := x.run(t, 0, "xl info xen_version"); !strings.HasPrefix(out, version+".") {
		t.Fatalf("Xen %s", out)
	}
	disk := x.serve(t, "/srv/disk.img", "xvda")
	for _, cfg := range []guestlab.XenDomain{{Name: "pv1", Type: "pv", Disks: []string{disk.line()}}, {Name: "pvh1", Type: "pvh"}} {
		t.Run(cfg.Type, func(t *testing.T) {
			d := x.create(t, cfg)
			x.testMemory(t, d)
			if len(cfg.Disks) > 0 {
				t.Run("events", func(t *testing.T) { x.testEvents(t, d, disk) })
			}
			if err := d.Destroy(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
}

// testMemory makes all that is done with a domain's memory.
func (x *xenCLI) testMemory(t *testing.T, d *guestlab.Domain) {
	t.Run("vms", func(t *testing.T) { x.testList(t, d) })
	symbols := x.test(t, d)
	if d.Type() == "pv" {
		t.Run("page table", func(t *testing.T) {
			// The kernel's top page table; nothing is at this entry of it.
			out := x.run(t, 2, "vmscope write xen:"+d.Name()+" --sym init_top_pgt+0x10 --u64 0 --allow-write")
			if !strings.Contains(out, "page table of a PV guest") {
				t.Errorf("%q", out)
			}
		})
		t.Run("frames", func(t *testing.T) { x.testFrames(t, d, symbols) })
	}
	t.Run("check", func(t *testing.T) { x.testClean(t, d) })
}

// buildProgram builds one of ours as users get it.
func buildProgram(t *testing.T, pkg string) string {
	t.Helper()
	program := filepath.Join(t.TempDir(), "program")
	build := exec.Command("go", "build", "-ldflags", "-s -w", "-o", program, pkg)
	build.Env = append(build.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return program
}

// bootXen boots a host whose disks can be served.
func bootXen(t *testing.T, cfg guestlab.XenConfig) *xenCLI {
	t.Helper()
	host := guestlab.BootXen(t, cfg)
	x := &xenCLI{hostCLI{&host.Agent, host.HadTime}, host}
	x.run(t, 0, "vmscope xen-block --print-script >/etc/xen/scripts/block-vmscope && chmod +x /etc/xen/scripts/block-vmscope")
	return x
}

func (x *xenCLI) create(t *testing.T, cfg guestlab.XenDomain) *guestlab.Domain {
	t.Helper()
	d, err := x.host.Create(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// testList lists the domain.
func (x *xenCLI) testList(t *testing.T, d *guestlab.Domain) {
	// A domain's device model is a QEMU that bears its name: it is no VM of its own. Only an HVM domain has one of itself.
	if d.Type() != "hvm" {
		x.run(t, 0, fmt.Sprintf(`cp /bin/busybox /tmp/qemu-system-i386; mkfifo /tmp/never
bash -c 'exec -a sh /tmp/qemu-system-i386 -c "read x <>/tmp/never; true" -xen-domid %d -xen-attach -name %s -machine xenpv' </dev/null >/dev/null 2>&1 &
until ls -l /proc/[0-9]*/exe 2>/dev/null | grep -q qemu-system-i386; do sleep 0.1; done`, d.ID, d.Name()))
		defer x.run(t, 0, "echo >/tmp/never; rm /tmp/never")
	}
	list := x.lines(t, "vmscope vms --quick --json")
	if len(list) != 1 || list[0]["name"] != d.Name() || list[0]["vmm"] != "xen-"+d.Type() || list[0]["domid"] != float64(d.ID) {
		t.Errorf("%v, want domain %d %s", list, d.ID, d.Name())
	}
}

type xenCLI struct {
	hostCLI
	host *guestlab.XenHost
}

// test compares what the program says of a domain with what that says, and returns addresses of symbols.
func (x *xenCLI) test(t *testing.T, d *guestlab.Domain) (symbols map[string]string) {
	symbols = x.compare(t, &d.Agent, "xen:"+d.Name(), fmt.Sprintf("xen:%d", d.ID))
	t.Run("registers", func(t *testing.T) {
		// What Xen tells of where system calls enter is what the kernel has.
		if out := x.run(t, 0, "vmscope check xen:"+d.Name()+" --only syscalls --registers"); !strings.Contains(out, "nothing found") || strings.Contains(out, "does not tell") {
			t.Errorf("%s", out)
		}
	})
	return symbols
}

// testClean makes all checks. Without --registers one of them lacks something, and says so.
func (x *xenCLI) testClean(t *testing.T, d *guestlab.Domain) {
	if out := x.run(t, 0, "vmscope check xen:"+d.Name()); !strings.Contains(out, "does not tell MSR_LSTAR") {
		t.Errorf("%s", out)
	}
}

// testFrames leads an entry of a PV domain's own table of its frames elsewhere, as one would who hides a page from those
// who read by physical addresses.
func (x *xenCLI) testFrames(t *testing.T, d *guestlab.Domain, symbols map[string]string) {
	target := "xen:" + d.Name()
	words := func(what string, n int) (list []uint64) {
		out := x.run(t, 0, fmt.Sprintf("vmscope read %s %s --len %d --raw | od -An -v -tx8", target, what, 8*n))
		for _, word := range strings.Fields(out) {
			v, err := strconv.ParseUint(word, 16, 64)
			if err != nil {
				t.Fatalf("%s: %v", what, err)
			}
			list = append(list, v)
		}
		if len(list) != n {
			t.Fatalf("%s: %q", what, out)
		}
		return list
	}
	// Code that tells nothing of the kernel; in some kernels the table of system calls shares a page with the banner.
	const bends = "__x64_sys_kill"
	at, err := strconv.ParseUint(symbols[bends], 0, 64)
	if err != nil {
		t.Fatal(err)
	}
	const linked = 0xffffffff80000000 // __START_KERNEL_map; a PV kernel lies where it was linked to
	page := (at - linked) &^ 0xfff
	physical := fmt.Sprintf("--pa %#x", page|at&0xfff)
	first := words("--sym "+bends, 1)[0]
	if got := words(physical, 1)[0]; got != first {
		t.Fatalf("%s holds %#x, %s begins with %#x", physical, got, bends, first)
	}
	entry := words("--sym xen_p2m_addr", 1)[0] + page/4096*8
	entries := words(fmt.Sprintf("--va %#x", entry), 2)
	was, other := entries[0], entries[1]
	bend := func(frame uint64) {
		x.run(t, 0, fmt.Sprintf("vmscope write %s --va %#x --u64 %#x --allow-write", target, entry, frame))
	}
	bend(other)
	out := x.run(t, 1, "vmscope check "+target+" --only frames")
	for _, want := range []string{"p2m", "m2p", fmt.Sprintf("%#x", page), fmt.Sprintf("%#x", page+4096), fmt.Sprintf("%#x", other)} {
		if !strings.Contains(out, want) {
			t.Errorf("no %s in\n%s", want, out)
		}
	}
	if out := x.run(t, 2, "vmscope read "+target+" "+physical+" --len 8"); !strings.Contains(out, "disagree") || !strings.Contains(out, fmt.Sprintf("%#x", other)) {
		t.Errorf("read by its physical address: %q", out)
	}
	if got := words("--sym "+bends, 1)[0]; got != first {
		t.Errorf("by its virtual address the code begins with %#x, not %#x", got, first)
	}
	bend(was)
}
