package vmscope_test

import (
	"debug/elf"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"vmscope"
	"vmscope/internal/guestlab"
	"vmscope/vm"
	"vmscope/vm/dump"
)

// testDumps opens dumps of a guest: those that QEMU writes and our own. All
// must show what the guest says.
func testDumps(t *testing.T, g *guestlab.Guest) {
	dir := t.TempDir()
	all := make(map[string]seen)
	path := filepath.Join(dir, "own")
	w := truthOf(t, g, func() {
		writeCore(t, g, path)
		all["own"] = look(t, "file:"+path, vmscope.Registers())
		checkCore(t, g, path)
		// QEMU's own dump makes the guest's untouched memory real: it comes last.
		for name, args := range map[string]map[string]any{"qemu plain": {"paging": false}, "qemu paging": {"paging": true}, "qemu kdump": {"paging": false, "format": "kdump-zlib"}} {
			path := filepath.Join(dir, "core")
			args["protocol"] = "file:" + path
			qmp(t, g.QMPSocket(), "dump-guest-memory", args)
			all[name] = look(t, path)
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
		}
		all["qemu stream"] = streamDump(t, g, filepath.Join(dir, "stream"))
	})
	convertDumps(t, path, all)
	testFiltered(t, path, w.procs)
	for name, s := range all {
		t.Run(name, func(t *testing.T) { w.check(t, s) })
	}
}

func writeCore(t *testing.T, g *guestlab.Guest, path string) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var last, total uint64
	err = vmscope.Look(t.Context(), g.Name(), func(v *vmscope.View) error {
		return v.WriteCore(t.Context(), f, func(done, all uint64) {
			if done < last || done > all {
				t.Errorf("progress %d of %d after %d", done, all, last)
			}
			last, total = done, all
		})
	}, vmscope.Paused())
	if err != nil {
		t.Fatal(err)
	}
	if last != total || total == 0 {
		t.Errorf("progress ended at %d of %d", last, total)
	}
}

// checkCore looks at our core as other tools do: its headers, and that gdb
// finds the kernel's banner by its virtual address.
func checkCore(t *testing.T, g *guestlab.Guest, path string) {
	t.Helper()
	f, err := elf.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if f.Type != elf.ET_CORE || f.Machine != elf.EM_X86_64 {
		t.Errorf("%v of %v", f.Type, f.Machine)
	}
	var ram, first uint64
	loads := f.Progs[1:]
	for i, p := range loads {
		if p.Type != elf.PT_LOAD || p.Align != 0 || p.Off < first {
			t.Errorf("program header %d: %+v", i+1, p.ProgHeader)
		}
		first = max(first, loads[0].Off)
		if i < len(loads)-1 { // the last is the image's own mapping
			ram += p.Memsz
		}
	}
	m, err := dump.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	cpus, err := m.(vm.CPUs).CPUs(t.Context())
	if err != nil || len(cpus) != g.Config().CPUs {
		t.Errorf("registers of %d CPUs, %v; want %d", len(cpus), err, g.Config().CPUs)
	}
	for _, c := range cpus {
		if !c.Valid || c.CR3 == 0 || c.RIP == 0 || c.RSP == 0 || c.RSP != c.General[4] || c.CS == 0 {
			t.Errorf("registers %+v", c)
		}
	}
	if want := uint64(g.Config().MemoryMiB) << 20; ram > want || ram < want-(1<<20) {
		t.Errorf("%d MiB in segments of %d MiB of RAM", ram>>20, want>>20)
	}
	st, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	disk := uint64(st.Sys().(*syscall.Stat_t).Blocks) * 512
	t.Logf("core takes %d MiB on disk for %d MiB of RAM, %d segments", disk>>20, ram>>20, len(f.Progs))
	if disk > ram/4*3 {
		t.Error("memory that was never used takes room in the core")
	}
	var banner uint64
	var text string
	err = vmscope.Look(t.Context(), path, func(v *vmscope.View) error {
		at, err := v.Symbol("linux_banner")
		banner, text = uint64(at), v.Banner
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if out := gdb(t, "", path, "set print elements 0", "printf \"%s\", (char *)"+hex(banner)); !strings.Contains(out, text) {
		t.Errorf("gdb does not find the kernel's banner: %s", out)
	}
}
