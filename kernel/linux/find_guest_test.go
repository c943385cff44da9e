package linux_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vmscope/arch"
	"vmscope/arch/x86"
	"vmscope/internal/guestlab"
	"vmscope/kernel/linux"
	"vmscope/ksym"
	"vmscope/mem"
	"vmscope/vm"
	"vmscope/vm/dump"
)

// wanted reports whether this run goes over the kernel of a guest.
func wanted(t *testing.T, c guestlab.Config) bool {
	t.Helper()
	return slices.Contains(guestlab.TestKernels(t), c.Kernel)
}

// openRAM opens the RAM file of a guest in the layout that its board gives it,
// q35 if it is not told.
func openRAM(t testing.TB, path string, board ...string) vm.Machine {
	t.Helper()
	m, err := dump.Open(path, dump.Layout(append(board, "q35")[0]))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return m
}

// symbolIn gives the address that the guest's own /proc/kallsyms has.
func symbolIn(t testing.TB, g *guestlab.Guest, name string) mem.VA {
	t.Helper()
	out, err := g.Run(t.Context(), "grep ' "+name+"$' /proc/kallsyms | head -n 1")
	if err != nil {
		t.Fatal(err)
	}
	hex, _, _ := strings.Cut(out, " ")
	a, err := strconv.ParseUint(hex, 16, 64)
	if err != nil {
		t.Fatalf("kallsyms of the guest says %q of %s", out, name)
	}
	return mem.VA(a)
}

// TestFindGuest finds the kernel in each stock kernel's RAM and compares it
// with what the guest says.
func TestFindGuest(t *testing.T) {
	if testing.Short() {
		t.Skip("boots guests")
	}
	for _, c := range []struct {
		name string
		cfg  guestlab.Config
		mode x86.Mode
	}{
		{"bullseye", guestlab.Config{Kernel: "bullseye-cloud"}, x86.Level4},
		{"bookworm", guestlab.Config{Kernel: "bookworm-cloud", CPUs: 2}, x86.Level4},
		{"bookworm-KPTI", guestlab.Config{Kernel: "bookworm-cloud", Append: "pti=on"}, x86.Level4},
		{"bookworm-full", guestlab.Config{Kernel: "bookworm"}, x86.Level4},
		{"bookworm-5G-LA57", guestlab.Config{Kernel: "bookworm-cloud", MemoryMiB: 5 << 10, CPUs: 2, CPUModel: "max"}, x86.Level5},
		{"trixie-LA57", guestlab.Config{Kernel: "trixie-cloud", CPUModel: "max"}, x86.Level5},
		{"sid", guestlab.Config{Kernel: "sid-cloud"}, x86.Level4},
	} {
		if !wanted(t, c.cfg) {
			continue
		}
		t.Run(c.name, func(t *testing.T) {
			c.cfg.RAM = guestlab.SharedFile
			g := guestlab.Boot(t, c.cfg)
			m := openRAM(t, g.RAMFile())
			k, err := linux.Find(t.Context(), m, linux.Hints{})
			if err != nil {
				t.Fatal(err)
			}
			check(t, g, m, k, c.mode)
			if c.cfg.Append == "pti=on" {
				checkRoots(t, g, m, k)
			}

			checkWithoutCoreInfo(t, withoutCoreInfo(t, g.RAMFile()), k)
		})
	}
}

// checkWithoutCoreInfo finds the same kernel without the text that makes it easy.
func checkWithoutCoreInfo(t *testing.T, w vm.Machine, k *linux.Kernel) {
	t.Helper()
	k2, err := linux.Find(t.Context(), w, linux.Hints{})
	if err != nil {
		t.Fatalf("without VMCOREINFO: %v", err)
	}
	if k2.Root != k.Root || k2.Text != k.Text || k2.Phys != k.Phys || k2.Mode != k.Mode || k2.Symbols.Len() != k.Symbols.Len() {
		t.Errorf("without VMCOREINFO: root %#x text %#x at %#x %v, want %#x %#x %#x %v",
			uint64(k2.Root), uint64(k2.Text), uint64(k2.Phys), k2.Mode, uint64(k.Root), uint64(k.Text), uint64(k.Phys), k.Mode)
	}
}

func check(t *testing.T, g *guestlab.Guest, m vm.Machine, k *linux.Kernel, mode arch.Mode) {
	t.Helper()
	out, err := g.Run(t.Context(), "uname -r; cat /proc/version")
	if err != nil {
		t.Fatal(err)
	}
	release, version, _ := strings.Cut(strings.TrimRight(out, "\n"), "\n")
	if k.Release != release || k.Banner != version {
		t.Errorf("release %q, version %q; the guest says %q, %q", k.Release, k.Banner, release, version)
	}
	if k.Mode != mode {
		t.Errorf("paging is %v, want %v", k.Mode, mode)
	}
	root := "init_top_pgt"
	if k.Arch != "x86_64" {
		root = "swapper_pg_dir"
	}
	for _, name := range []string{"_stext", "init_task", "linux_banner", root} {
		got, err := k.Symbol(name)
		if want := symbolIn(t, g, name); err != nil || got != want {
			t.Errorf("%s = %#x, %v; the guest says %#x", name, uint64(got), err, uint64(want))
		}
	}
	if k.Slide%(2<<20) != 0 || k.Slide == 0 {
		t.Errorf("KASLR slide %#x", k.Slide)
	}
	if k.Types == nil {
		t.Fatal(k.TypesErr)
	}
	err = mem.Guard(func() error {
		v := k.View(m)
		if err := v.CheckLayout(m.(mem.Ranger).Ranges(), true); err != nil {
			t.Error(err)
		}
		j, err := v.Jiffies()
		if err != nil {
			return err
		}
		if j < 1<<32-300*250 || j > 1<<32+3600*250 {
			t.Errorf("jiffies %#x", j)
		}
		now, err := v.WallClock()
		if err != nil {
			return err
		}
		// QEMU gives the guest the host's time.
		if d := time.Since(now).Abs(); d > 5*time.Minute {
			t.Errorf("the guest's clock says %v", now)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

// checkRoots looks at process 1 by both roots that it has under page-table
// isolation: both map its program, only the kernel's maps the kernel.
func checkRoots(t *testing.T, g *guestlab.Guest, m vm.Machine, k *linux.Kernel) {
	t.Helper()
	if out, err := g.Run(t.Context(), "dmesg | grep -c 'page tables isolation: enabled'"); err != nil || strings.TrimSpace(out) != "1" {
		t.Fatalf("the guest does not isolate page tables: %q, %v", out, err)
	}
	err := mem.Guard(func() error {
		v := k.View(m)
		task, err := v.TaskByPID(1)
		if err != nil {
			return err
		}
		p, err := v.Process(task)
		if err != nil {
			return err
		}
		areas, err := v.Areas(task)
		if err != nil {
			return err
		}
		for name, c := range map[string]struct {
			root mem.PA
			text bool // of the kernel is mapped
		}{"kernel": {p.Root, true}, "user": {x86.UserRoot(p.Root), false}} {
			s := mem.NewSpace(name, m, k.Mode.Kernel(m, c.root))
			b := make([]byte, 4)
			if _, err := s.Read(b, areas[0].Start); err != nil || string(b) != "\x7fELF" {
				t.Errorf("%s root: the program begins with %q, %v", name, b, err)
			}
			at, err := k.Symbol("linux_banner")
			if err != nil {
				return err
			}
			if _, err := s.Translate(at); (err == nil) != c.text {
				t.Errorf("%s root: linux_banner: %v", name, err)
			}
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

// copyRAM copies a RAM file, holes kept, to be changed.
func copyRAM(t *testing.T, path string) string {
	t.Helper()
	to := fmt.Sprintf("%s/ram", t.TempDir())
	if out, err := exec.Command("cp", "--sparse=always", path, to).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return to
}

// withoutCoreInfo is a copy of RAM in which nobody finds VMCOREINFO.
func withoutCoreInfo(t *testing.T, path string, board ...string) vm.Machine {
	t.Helper()
	to := copyRAM(t, path)
	f, err := os.OpenFile(to, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, off := range coreInfoOffsets(t, f) {
		if _, err := f.WriteAt(bytes.Repeat([]byte{'X'}, 9), off); err != nil {
			t.Fatal(err)
		}
	}
	return openRAM(t, to, board...)
}

// coreInfoOffsets are where VMCOREINFO texts begin in a RAM file.
func coreInfoOffsets(t *testing.T, f *os.File) (out []int64) {
	t.Helper()
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	page := make([]byte, 64)
	for off := int64(0); off < st.Size(); off += mem.PageSize {
		if _, err := f.ReadAt(page, off); err != nil {
			t.Fatal(err)
		}
		for _, at := range []int64{0, 24} {
			if bytes.HasPrefix(page[at:], []byte("OSRELEASE=")) {
				out = append(out, off+at)
			}
		}
	}
	return out
}

// TestFindRejectsGuest plants what a hostile guest may and checks that the
// running kernel is found all the same.
func TestFindRejectsGuest(t *testing.T) {
	if testing.Short() {
		t.Skip("boots a guest")
	}
	g := guestlab.Boot(t, guestlab.Config{Kernel: "bookworm-cloud", RAM: guestlab.SharedFile})
	m := openRAM(t, g.RAMFile())
	k, err := linux.Find(t.Context(), m, linux.Hints{})
	if err != nil {
		t.Fatal(err)
	}
	infos, err := ksym.FindVMCoreInfo(t.Context(), m, mustExtents(t, m))
	if err != nil || len(infos) != 1 {
		t.Fatalf("%d VMCOREINFO texts, %v", len(infos), err)
	}
	text := infos[0].Text()
	for name, fake := range map[string]string{
		"other release":      strings.Replace(text, "OSRELEASE=6", "OSRELEASE=9", 1),
		"other root":         replaceValue(text, "SYMBOL(swapper_pg_dir)", "SYMBOL(init_top_pgt)", 0x3000),
		"other _stext":       replaceValue(text, "SYMBOL(_stext)", "", 0x200000),
		"other symbol table": replaceValue(text, "SYMBOL(kallsyms_token_table)", "", 0x10000),
	} {
		t.Run(name, func(t *testing.T) {
			if fake == text {
				t.Fatal("the fake is the truth")
			}
			to := copyRAM(t, g.RAMFile())
			f, err := os.OpenFile(to, os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			// Low memory comes first in every search.
			page := make([]byte, mem.PageSize)
			copy(page, fake)
			if _, err := f.WriteAt(page, 0x5000); err != nil {
				t.Fatal(err)
			}
			got, err := linux.Find(t.Context(), openRAM(t, to), linux.Hints{})
			if err != nil {
				t.Fatal(err)
			}
			if got.Root != k.Root || got.Text != k.Text || got.Release != k.Release || got.Symbols.Len() != k.Symbols.Len() {
				t.Errorf("found %s at %#x", got.Release, uint64(got.Phys))
			}
			// A fake of which only the name is false is the same kernel, and one
			// whose symbol table is elsewhere has it searched for.
			if reported := len(got.Report.Rejected) > 0; reported != (name == "other root" || name == "other _stext") {
				t.Errorf("rejected: %q", got.Report.Rejected)
			}
			if len(got.Report.Contradictions) > 0 {
				t.Errorf("contradictions: %q", got.Report.Contradictions)
			}
		})
	}
}

// TestFindTamperedGuest changes what a kernel says of itself, as one who owns it
// may to blind who watches, and checks that it is still seen.
func TestFindTamperedGuest(t *testing.T) {
	if testing.Short() {
		t.Skip("boots a guest")
	}
	g := guestlab.Boot(t, guestlab.Config{Kernel: "bookworm-cloud", RAM: guestlab.SharedFile})
	m := openRAM(t, g.RAMFile())
	k, err := linux.Find(t.Context(), m, linux.Hints{})
	if err != nil {
		t.Fatal(err)
	}
	for name, bytes := range map[string]struct {
		symbol string
		b      []byte
	}{
		"banner":    {"linux_banner", []byte("Windows NT")},
		"idle task": {"init_task", make([]byte, 8192)},
	} {
		t.Run(name, func(t *testing.T) {
			at, err := k.Symbol(bytes.symbol)
			if err != nil {
				t.Fatal(err)
			}
			to := copyRAM(t, g.RAMFile())
			f, err := os.OpenFile(to, os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if _, err := f.WriteAt(bytes.b, int64(k.Phys)+int64(at-k.Text)); err != nil {
				t.Fatal(err)
			}
			got, err := linux.Find(t.Context(), openRAM(t, to), linux.Hints{})
			if err != nil {
				t.Fatal(err)
			}
			if got.Root != k.Root || got.Release != k.Release || len(got.Report.Contradictions) != 1 {
				t.Errorf("found %q with contradictions %q", got.Release, got.Report.Contradictions)
			}
		})
	}
}

func mustExtents(t *testing.T, m vm.Machine) []mem.Range {
	t.Helper()
	x, err := mem.Extents(m)
	if err != nil {
		t.Fatal(err)
	}
	return x
}

// replaceValue adds to the hexadecimal values of keys in a VMCOREINFO text.
func replaceValue(text, key, key2 string, add uint64) string {
	lines := strings.Split(text, "\n")
	for i, l := range lines {
		k, v, _ := strings.Cut(l, "=")
		if k == key || k == key2 {
			if n, err := strconv.ParseUint(v, 16, 64); err == nil {
				lines[i] = fmt.Sprintf("%s=%x", k, n+add)
			}
		}
	}
	return strings.Join(lines, "\n")
}

// TestFindStaleGuest reboots a guest: the kernel of the first boot stays in RAM,
// and the running one must be told from it.
func TestFindStaleGuest(t *testing.T) {
	if testing.Short() {
		t.Skip("boots a guest twice")
	}
	g := guestlab.Boot(t, guestlab.Config{Kernel: "bookworm-cloud", RAM: guestlab.SharedFile, MemoryMiB: 1024, AllowReboot: true})
	m := openRAM(t, g.RAMFile())
	first, err := linux.Find(t.Context(), m, linux.Hints{})
	if err != nil {
		t.Fatal(err)
	}
	infos, err := ksym.FindVMCoreInfo(t.Context(), m, mustExtents(t, m))
	if err != nil || len(infos) != 1 {
		t.Fatalf("%d VMCOREINFO texts, %v", len(infos), err)
	}
	for range 2 {
		reboot(t, g)
		// Whether the first kernel's text outlives the boot is chance. Put it
		// back where no memory is in use, so that it always counts.
		plantText(t, g.RAMFile(), infos[0].Text())
		k, err := linux.Find(t.Context(), m, linux.Hints{})
		if err != nil {
			t.Fatal(err)
		}
		if want := symbolIn(t, g, "_stext"); k.Text != want {
			t.Errorf("found _stext %#x, the guest says %#x", uint64(k.Text), uint64(want))
		}
		if len(k.Report.Rejected) == 0 {
			t.Error("the kernel of the first boot is not reported")
		}
		t.Logf("first boot at %#x, now %#x; rejected: %q", uint64(first.Phys), uint64(k.Phys), k.Report.Rejected)
	}
}

// plantText writes a VMCOREINFO text into a page of RAM that has never been
// used.
func plantText(t *testing.T, ram, text string) {
	t.Helper()
	f, err := os.OpenFile(ram, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	hole, err := unix.Seek(int(f.Fd()), 16<<20, unix.SEEK_HOLE)
	if err != nil {
		t.Fatal(err)
	}
	page := make([]byte, mem.PageSize)
	copy(page, text)
	if _, err := f.WriteAt(page, hole); err != nil {
		t.Fatal(err)
	}
}

// reboot reboots the guest and returns when it answers again.
func reboot(t *testing.T, g *guestlab.Guest) {
	t.Helper()
	const id = "cat /proc/sys/kernel/random/boot_id"
	before, err := g.Run(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := g.Run(t.Context(), "(sleep 0.2; reboot -f) >/dev/null 2>&1 &"); err != nil {
		t.Fatal(err)
	}
	for range 60 {
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		now, err := g.Run(ctx, id)
		cancel()
		if err == nil && now != before {
			return
		}
		time.Sleep(200 * time.Millisecond)
	}
	t.Fatal("the guest did not come back")
}

// TestFindNothing checks the answers to memories without a kernel.
func TestFindNothing(t *testing.T) {
	path := t.TempDir() + "/ram"
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, 64<<20); err != nil {
		t.Fatal(err)
	}
	_, err := linux.Find(context.Background(), openRAM(t, path), linux.Hints{})
	if err == nil || !strings.Contains(err.Error(), "no data") {
		t.Errorf("empty RAM: %v", err)
	}
}
