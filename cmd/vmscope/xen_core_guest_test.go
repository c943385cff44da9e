package main

import (
	"fmt"
	"slices"
	"testing"

	"vmscope/internal/guestlab"
)

// roomForCore gives dom0 memory for a file of a domain's memory: it has no disk.
func roomForCore(cfg *guestlab.XenConfig) { cfg.MemoryMiB, cfg.Dom0MemoryMiB = 2000, 1200 }

// testCore dumps a domain with Xen's own tool. Of the core the program says, in dom0, what it says of the domain itself, which
// stands still meanwhile.
func (x *xenCLI) testCore(t *testing.T, d *guestlab.Domain) {
	const core = "/srv/core"
	x.run(t, 0, "xl pause "+d.Name())
	defer x.run(t, 0, "rm -f "+core+"; xl unpause "+d.Name())
	x.run(t, 0, "xl dump-core "+d.Name()+" "+core)
	live := "xen:" + d.Name()
	for _, command := range []string{
		"ps %s --json", "lsmod %s --json", "sym %s linux_banner init_task sys_call_table vfs_read", "read %s --sym linux_banner --string",
		"read %s --sym init_task --len 4096", "maps %s --pid 1 --json", "env %s --pid 1 --json", "mount %s --json", "ss %s --json",
	} {
		is, want := x.run(t, 0, "vmscope "+fmt.Sprintf(command, core)), x.run(t, 0, "vmscope "+fmt.Sprintf(command, live))
		if is != want {
			t.Errorf("%s: of the core\n%sof the domain\n%s", command, is, want)
		}
	}
	is, want := x.lines(t, "vmscope info "+core+" --json")[0], x.lines(t, "vmscope info "+live+" --json")[0]
	for _, field := range []string{"os", "arch", "release", "version", "kaslr", "page_table_root", "paging", "booted", "hostname"} {
		if is[field] != want[field] {
			t.Errorf("info: %s %v of the core, %v of the domain", field, is[field], want[field])
		}
	}
	if is["vmm"] != "dump" || is["release"] == nil {
		t.Errorf("info of the core: %v", is)
	}
	x.run(t, 0, "vmscope check "+core)
	// By physical address too: tables of the first process have the domain's own numbers.
	out := x.lines(t, "vmscope ps "+core+" --json")
	if !slices.ContainsFunc(out, func(p map[string]any) bool { return p["pid"] == 1.0 && p["cmdline"] != nil }) {
		t.Errorf("no command line of the first process in %v", out)
	}
}
