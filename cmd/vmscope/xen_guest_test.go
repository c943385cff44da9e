package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"vmscope/internal/guestlab"
	"vmscope/kernel"
)

// TestXenGuest runs the program that users get in dom0 of a real Xen host, on a PV and a PVH domain; the domains' own
// words are what it has to say.
func TestXenGuest(t *testing.T) {
	if os.Getenv("VMSCOPE_XEN") == "" {
		guestlab.Skip(t, "boots a host within a host, which takes minutes: make test-xen runs it")
	}
	program := filepath.Join(t.TempDir(), "vmscope")
	build := exec.Command("go", "build", "-o", program, ".")
	build.Env = append(build.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	h := guestlab.BootXen(t, guestlab.XenConfig{Files: map[string]string{"/bin/vmscope": program}})
	x := &xenCLI{h}
	disk := x.serve(t, "/srv/disk.img", "xvda")
	disks := map[string][]string{"pv": {disk.line()}}
	var domains []*guestlab.Domain
	for _, kind := range []string{"pv", "pvh"} {
		d, err := h.Create(t.Context(), guestlab.XenDomain{Name: kind + "1", Type: kind, Disks: disks[kind]})
		if err != nil {
			t.Fatal(err)
		}
		domains = append(domains, d)
	}
	t.Run("vms", func(t *testing.T) {
		// A domain's device model is a QEMU that bears its name: it is no VM of its own.
		x.run(t, 0, fmt.Sprintf(`cp /bin/busybox /tmp/qemu-system-i386; mkfifo /tmp/never
bash -c 'exec -a sh /tmp/qemu-system-i386 -c "read x <>/tmp/never; true" -xen-domid %d -xen-attach -name pv1 -machine xenpv' </dev/null >/dev/null 2>&1 &
until ls -l /proc/[0-9]*/exe 2>/dev/null | grep -q qemu-system-i386; do sleep 0.1; done`, domains[0].ID))
		list := x.lines(t, "vmscope vms --quick --json")
		for i, kind := range []string{"pv", "pvh"} {
			if len(list) != 2 || list[i]["name"] != domains[i].Name() || list[i]["vmm"] != "xen-"+kind || list[i]["domid"] != float64(domains[i].ID) {
				t.Errorf("%v, want domain %d %s", list, domains[i].ID, domains[i].Name())
			}
		}
	})
	for _, d := range domains {
		t.Run(d.Name(), func(t *testing.T) { x.test(t, d) })
	}
	for _, d := range domains {
		t.Run(d.Name()+" core", func(t *testing.T) { x.testCore(t, d) })
	}
	t.Run("frames", func(t *testing.T) { x.testFrames(t, domains[0]) })
	t.Run("disk", func(t *testing.T) { x.testDisk(t, domains[0], disk) })
	t.Run("hot disk", func(t *testing.T) { x.testHot(t, domains[1]) })
	t.Run("wrong", func(t *testing.T) {
		for target, want := range map[string]string{
			"xen:nobody": "nobody", "xen:Domain-0": "this host itself", "xen:0": "this host itself", "xen:30000": "30000",
		} {
			if out := x.run(t, 2, "vmscope ps "+target); !strings.Contains(out, want) || strings.Count(out, "\n") != 1 {
				t.Errorf("%s: %q", target, out)
			}
		}
	})
}

type xenCLI struct{ host *guestlab.XenHost }

// run runs a command in dom0, which has to end with a status, and gives all that it prints.
func (x *xenCLI) run(t *testing.T, status int, command string) string {
	t.Helper()
	out, err := x.host.Run(t.Context(), fmt.Sprintf("%s 2>&1; echo $?", command))
	if err != nil {
		t.Fatal(err)
	}
	out = strings.TrimSuffix(out, "\n")
	i := strings.LastIndexByte(out, '\n') + 1
	if out[i:] != fmt.Sprint(status) {
		t.Fatalf("%s: status %s, not %d\n%s", command, out[i:], status, out[:i])
	}
	return out[:i]
}

func (x *xenCLI) lines(t *testing.T, command string) (all []map[string]any) {
	t.Helper()
	for line := range strings.Lines(x.run(t, 0, command)) {
		var m map[string]any
		if err := json.Unmarshal([]byte(line), &m); err != nil {
			t.Fatalf("%s: %q: %v", command, line, err)
		}
		all = append(all, m)
	}
	return all
}

func (x *xenCLI) test(t *testing.T, d *guestlab.Domain) {
	target := "xen:" + d.Name()
	t.Run("ps", func(t *testing.T) {
		before, err := d.Processes(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		ours := x.lines(t, fmt.Sprintf("vmscope ps xen:%d --json", d.ID))
		after, err := d.Processes(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		comms := func(list []guestlab.Process) map[float64]string {
			m := map[float64]string{}
			for _, p := range list {
				m[float64(p.PID)] = string(p.Comm)
			}
			return m
		}
		was, is := comms(before), comms(after)
		same := 0
		for _, p := range ours {
			pid := p["pid"].(float64)
			if was[pid] == "" && is[pid] == "" {
				t.Errorf("%v is no process of the domain", p)
			}
			if was[pid] == p["comm"] && is[pid] == p["comm"] {
				delete(was, pid)
				same++
			}
		}
		for pid, comm := range was { // kernel workers come, go and are renamed
			if is[pid] == comm && !strings.HasPrefix(comm, "kworker/") {
				t.Errorf("process %v %q is not listed", pid, comm)
			}
		}
		if same < 20 {
			t.Errorf("only %d processes are as the domain says", same)
		}
		t.Logf("%d processes listed, %d as the domain says before and after", len(ours), same)
	})
	t.Run("lsmod", func(t *testing.T) {
		want, err := d.Modules(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		ours := x.lines(t, "vmscope lsmod "+target+" --json")
		if len(ours) != len(want) || len(want) == 0 {
			t.Fatalf("%d modules of %d", len(ours), len(want))
		}
		for i, m := range want {
			if o := ours[i]; o["name"] != m.Name || o["size"] != float64(m.Size) || o["base"] != fmt.Sprintf("%#x", m.Addr) {
				t.Errorf("%v, want %+v", o, m)
			}
		}
	})
	symbols := map[string]string{} // addresses in hexadecimal
	t.Run("sym", func(t *testing.T) {
		names := []string{"linux_banner", "init_task", "sys_call_table", "vfs_read"}
		lines := x.run(t, 0, "vmscope sym "+target+" "+strings.Join(names, " "))
		for _, name := range names {
			want, err := d.Run(t.Context(), "grep -w "+name+"$ /proc/kallsyms")
			if err != nil {
				t.Fatal(err)
			}
			got, rest, _ := strings.Cut(lines, "\n")
			if lines = rest; !strings.EqualFold(got+"\n", want) {
				t.Errorf("%q, want %q", got, want)
			}
			symbols[name], _, _ = strings.Cut(want, " ")
		}
	})
	t.Run("read", func(t *testing.T) {
		want, err := d.Run(t.Context(), "cat /proc/version")
		if err != nil {
			t.Fatal(err)
		}
		if got := x.run(t, 0, "vmscope read "+target+" --sym linux_banner --string"); strings.TrimSpace(got) != kernel.Text(want).String() {
			t.Errorf("%q, want %q", got, want)
		}
	})
	t.Run("write", func(t *testing.T) {
		x.run(t, 2, "vmscope write "+target+" --sym dirty_writeback_interval --u32 17")
		x.run(t, 0, "vmscope write "+target+" --sym dirty_writeback_interval --u32 17 --allow-write")
		if got, err := d.Run(t.Context(), "cat /proc/sys/vm/dirty_writeback_centisecs"); err != nil || got != "17\n" {
			t.Errorf("the domain sees %q, %v", got, err)
		}
	})
	t.Run("check", func(t *testing.T) {
		x.run(t, 0, "vmscope check "+target)
		// What Xen tells of where system calls enter is what the kernel has.
		if out := x.run(t, 0, "vmscope check "+target+" --only syscalls --registers"); !strings.Contains(out, "nothing found") || strings.Contains(out, "does not tell") {
			t.Errorf("with registers: %s", out)
		}
		if out := x.run(t, 0, "vmscope check "+target+" --only syscalls"); !strings.Contains(out, "does not tell MSR_LSTAR") {
			t.Errorf("without: %s", out)
		}
		slot := x.run(t, 0, "vmscope read "+target+" --sym sys_call_table+0x1f0 --len 8 --raw | od -An -tx8")
		slot = "0x" + strings.TrimSpace(slot)
		x.run(t, 0, "vmscope write "+target+" --sym sys_call_table+0x1f0 --u64 0x"+symbols["vfs_read"]+" --allow-write")
		if out := x.run(t, 1, "vmscope check "+target+" --only syscalls"); !strings.Contains(out, "vfs_read") || !strings.Contains(out, "sys_call_table") {
			t.Errorf("of a system call that leads to vfs_read:\n%s", out)
		}
		x.run(t, 0, "vmscope write "+target+" --sym sys_call_table+0x1f0 --u64 "+slot+" --allow-write")
		x.run(t, 0, "vmscope check "+target+" --only syscalls")
	})
}

// testFrames leads an entry of a PV domain's own table of its frames elsewhere, as one would who hides a page from those
// who read by physical addresses.
func (x *xenCLI) testFrames(t *testing.T, d *guestlab.Domain) {
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
	at, err := strconv.ParseUint(strings.Fields(x.run(t, 0, "vmscope sym "+target+" sys_call_table"))[0], 16, 64)
	if err != nil {
		t.Fatal(err)
	}
	const linked = 0xffffffff80000000 // __START_KERNEL_map; a PV kernel lies where it was linked to
	page := (at - linked) &^ 0xfff
	physical := fmt.Sprintf("--pa %#x", page|at&0xfff)
	first := words("--sym sys_call_table", 1)[0]
	if got := words(physical, 1)[0]; got != first {
		t.Fatalf("%s holds %#x, the table begins with %#x", physical, got, first)
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
	if got := words("--sym sys_call_table", 1)[0]; got != first {
		t.Errorf("by its virtual address it begins with %#x, not %#x", got, first)
	}
	bend(was)
	x.run(t, 0, "vmscope check "+target+" --only frames")
}
