package vmscope_test

import (
	"debug/elf"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"vmscope"
	"vmscope/internal/guestlab"
)

// testDumps opens dumps of a guest: those that QEMU writes and our own. All
// must show what the guest says.
func testDumps(t *testing.T, g *guestlab.Guest) {
	dir := t.TempDir()
	all := make(map[string]seen)
	w := truthOf(t, g, func() {
		path := filepath.Join(dir, "own")
		writeCore(t, g, path)
		all["own"] = look(t, "file:"+path)
		checkCore(t, g, path)
		// QEMU's own dump makes the guest's untouched memory real: it comes last.
		for name, paging := range map[string]bool{"qemu plain": false, "qemu paging": true} {
			path := filepath.Join(dir, "core")
			qmp(t, g.QMPSocket(), "dump-guest-memory", map[string]any{"paging": paging, "protocol": "file:" + path})
			all[name] = look(t, path)
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
		}
	})
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
	})
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
	var ram uint64
	for i, p := range f.Progs {
		if p.Type == elf.PT_LOAD && i > 1 { // the first is the image's own mapping
			ram += p.Memsz
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
	gdb, err := exec.LookPath("gdb")
	if err != nil {
		guestlab.SkipOrFail(t, "no gdb")
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
	out, err := exec.Command(gdb, "-nx", "-batch", "-ex", "set print elements 0", "-ex", "printf \"%s\", (char *)"+hex(banner), "-c", path).CombinedOutput()
	if err != nil || !strings.Contains(string(out), text) {
		t.Errorf("gdb: %v: %s", err, out)
	}
}

// testProcessCore dumps the memory of one process and reads it with gdb.
func testProcessCore(t *testing.T, g *guestlab.Guest) {
	arg, env := strings.Repeat("argument ", 20), "SECRET="+strings.Repeat("s3cret", 10)
	pid, err := g.Spawn(t.Context(), guestlab.Spawn{Comm: []byte("dumped"), Args: [][]byte{[]byte("dumped"), []byte(arg)}, Env: [][]byte{[]byte(env)}})
	if err != nil {
		t.Fatal(err)
	}
	maps, err := g.Mappings(t.Context(), pid)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "core")
	out, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	var argAt uint64
	err = vmscope.Look(t.Context(), g.Name(), func(v *vmscope.View) error {
		task, err := v.TaskByPID(pid)
		if err != nil {
			return err
		}
		missing, err := v.WriteProcessCore(t.Context(), out, task, nil)
		if err != nil {
			return err
		}
		t.Logf("%d bytes not in RAM", missing)
		// The guest says where its arguments lie: field 48 of stat.
		s, err := g.Run(t.Context(), "sed 's/.*) //' /proc/"+itoa(pid)+"/stat | cut -d' ' -f46")
		argAt = number(t, strings.TrimSpace(s))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	f, err := elf.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	segs := make(map[uint64]*elf.Prog)
	for _, p := range f.Progs {
		if p.Type == elf.PT_LOAD {
			segs[p.Vaddr] = p
		}
	}
	for _, m := range maps {
		if m.Start >= 1<<63 { // vsyscall
			continue
		}
		p := segs[m.Start]
		if p == nil || p.Memsz != m.End-m.Start {
			t.Errorf("%x-%x %s is not in the core", m.Start, m.End, m.Path)
			continue
		}
		flags := "---"
		if p.Flags&elf.PF_R != 0 {
			flags = "r" + flags[1:]
		}
		if p.Flags&elf.PF_W != 0 {
			flags = flags[:1] + "w" + flags[2:]
		}
		if p.Flags&elf.PF_X != 0 {
			flags = flags[:2] + "x"
		}
		if flags != m.Perms[:3] {
			t.Errorf("%x: flags %s, want %s", m.Start, flags, m.Perms)
		}
		delete(segs, m.Start)
	}
	for va := range segs {
		t.Errorf("the core has a segment at %#x that the guest lacks", va)
	}
	gdb, err := exec.LookPath("gdb")
	if err != nil {
		guestlab.SkipOrFail(t, "no gdb")
	}
	text, err := exec.Command(gdb, "-nx", "-batch", "-ex", "set print elements 0",
		"-ex", "printf \"<%s>\\n\", (char *)"+hex(argAt),
		"-ex", "printf \"<%s>\\n\", (char *)"+hex(argAt+uint64(len("dumped")+1)),
		"-ex", "printf \"<%s>\\n\", (char *)"+hex(argAt+uint64(len("dumped")+1+len(arg)+1)), "-c", path).CombinedOutput()
	var got []string
	for _, m := range regexp.MustCompile(`(?m)^<(.*)>$`).FindAllStringSubmatch(string(text), -1) {
		got = append(got, m[1])
	}
	if err != nil || len(got) != 3 || got[0] != "dumped" || got[1] != arg || got[2] != env {
		t.Errorf("gdb: %v: %q: %s", err, got, text)
	}
}
