package linux_test

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"

	"vmscope/arch"
	"vmscope/arch/x86"
	"vmscope/internal/guestlab"
	"vmscope/kernel/linux"
	"vmscope/kernel/linux/profile"
	"vmscope/mem"
)

// TestI386Guest finds kernels of 32 bits, which tell neither types nor variables,
// and compares what is read of them with what they say of themselves: with PAE
// and RAM above 4 GiB, and with two levels of page tables; without help, and then
// all else with types and symbols of Debian's debug information. The commands are
// compared by TestI386Guest of cmd/vmscope.
func TestI386Guest(t *testing.T) {
	if testing.Short() {
		t.Skip("boots guests")
	}
	kernels := guestlab.OtherKernels()
	if !slices.ContainsFunc(kernels, func(name string) bool { return strings.Contains(name, "-686") }) {
		t.Skip(guestlab.KernelsVariable + " asks for none of these kernels")
	}
	for _, c := range []struct {
		name string
		cfg  guestlab.Config
		mode x86.Mode
	}{
		{"PAE", guestlab.Config{Kernel: "bookworm-686-pae", MemoryMiB: 5 << 10, CPUs: 2}, x86.PAE},
		{"2 levels", guestlab.Config{Kernel: "bookworm-686", MemoryMiB: 1536}, x86.Bits32},
	} {
		if !slices.Contains(kernels, c.cfg.Kernel) {
			continue
		}
		t.Run(c.name, func(t *testing.T) {
			c.cfg.RAM, c.cfg.Modules = guestlab.SharedFile, []string{"overlay"}
			g := guestlab.Boot(t, c.cfg)
			s := &state{g: g, m: openRAM(t, g.RAMFile())}
			var err error
			if s.k, err = linux.Find(t.Context(), s.m, linux.Hints{}); err != nil {
				t.Fatal(err)
			}
			if s.k.Mode != c.mode || s.k.Arch != "i686" {
				t.Errorf("paging %v of %s, want %v", s.k.Mode, s.k.Arch, c.mode)
			}
			if s.k.Slide%(2<<20) != 0 || s.k.Slide == 0 {
				t.Errorf("KASLR slide %#x", s.k.Slide)
			}
			t.Run("identity", s.testBare)
			t.Run("symbols", s.testBareSymbols)
			t.Run("memory", s.testBareMemory)
			t.Run("log", s.testLog)
			t.Run("low memory", func(t *testing.T) {
				low, err := g.Run(t.Context(), "dmesg | grep 'MB LOWMEM available'")
				if end := s.k.View(s.m).DirectEnd(); err != nil || !strings.Contains(low, fmt.Sprintf(" %dMB LOWMEM available", end>>20)) {
					t.Errorf("low memory ends at %#x; the guest says %q, %v", uint64(end), low, err)
				}
			})
			s.testTypes32(t)
		})
	}
}

// testBare compares how a kernel names itself, of which no symbol tells where
// it does.
func (s *state) testBare(t *testing.T) {
	sys, err := s.g.System(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if s.k.Release != sys.Release || s.k.Banner != sys.Banner {
		t.Errorf("release %q, version %q; the guest says %q, %q", s.k.Release, s.k.Banner, sys.Release, sys.Banner)
	}
	if len(s.k.Report.Contradictions) > 0 {
		t.Errorf("contradictions %q", s.k.Report.Contradictions)
	}
}

// testBareSymbols compares all symbols of the kernel's own.
func (s *state) testBareSymbols(t *testing.T) {
	all, err := s.g.Kallsyms(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var want, got []string
	for _, sym := range all {
		if sym.Module == "" {
			want = append(want, fmt.Sprintf("%#x %c %s", sym.Addr, sym.Type, sym.Name))
		}
	}
	for sym := range s.k.Symbols.All() {
		got = append(got, fmt.Sprintf("%#x %c %s", uint64(sym.Addr), sym.Type, sym.Name))
	}
	slices.Sort(want)
	slices.Sort(got)
	if len(got) < 10000 || !slices.Equal(got, want) {
		t.Errorf("%d symbols, the guest says %d", len(got), len(want))
	}
	t.Logf("%d symbols", len(got))
}

// testBareMemory reads a variable, in the map of low memory, and a module, in
// memory that is mapped page by page.
func (s *state) testBareMemory(t *testing.T) {
	const name = "a-name-that-is-given-and-taken"
	if _, err := s.g.Run(t.Context(), "hostname "+name); err != nil {
		t.Fatal(err)
	}
	// A note, and where the guest has it.
	out, err := s.g.Run(t.Context(), `m=/sys/module/overlay; cat $m/sections/.note.gnu.build-id; od -An -v -tx1 $m/notes/.note.gnu.build-id | tr -d ' \n'`)
	at, note, ok := strings.Cut(strings.TrimSpace(out), "\n")
	var va mem.VA
	if _, serr := fmt.Sscanf(at, "%v", &va); err != nil || !ok || serr != nil || len(note) < 32 {
		t.Fatalf("%q, %v, %v", out, err, serr)
	}
	s.view(t, func(v *linux.View) {
		b := make([]byte, len(note)/2)
		if _, err := v.Mem.Read(b, va); err != nil || fmt.Sprintf("%x", b) != note {
			t.Errorf("the note at %#x reads %x, %v; the guest says %s", uint64(va), b, err, note)
		}
		m, err := v.Mem.Translate(va)
		if base, derr := v.DirectMap(); err != nil || derr != nil || m.Size != mem.PageSize || va == base+mem.VA(m.PA) {
			t.Errorf("a module's page: %+v, %v, %v", m, err, derr)
		}
		uts, err := v.Symbol("init_uts_ns")
		if err != nil {
			t.Fatal(err)
		}
		b = make([]byte, 512)
		if _, err := v.Mem.Read(b, uts); err != nil || strings.Count(string(b), name+"\x00") != 1 {
			t.Fatalf("init_uts_ns reads %q, %v", b, err)
		}
		if h, err := v.Hostname(); err != nil || string(h) != name {
			t.Errorf("host name %q, %v", h, err)
		}
	})
}

// testTypes32 compares what takes types and variables.
func (s *state) testTypes32(t *testing.T) {
	path, err := s.g.Kernel().Profile(t.Context(), func(vmlinux string, to io.Writer) error {
		p, err := profile.Open(t.Context(), vmlinux)
		if err != nil {
			return err
		}
		return p.Write(to)
	})
	if err != nil {
		t.Fatal(err)
	}
	p, err := profile.Open(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	if s.k, err = linux.Find(t.Context(), s.m, linux.Hints{Files: linux.Files{Types: p}}); err != nil {
		t.Fatal(err)
	}
	pids := oddProcesses(t, s.g)
	g, v := s.g, s.k.View(s.m)
	t.Run("inferred types", func(t *testing.T) { s.inferAll(t, nothingBut(s.k)) })
	t.Run("layout", func(t *testing.T) {
		guarded(t, func() error { return v.CheckLayout(s.m.(mem.Ranger).Ranges(), true) })
	})
	t.Run("processes", func(t *testing.T) { compareProcesses(t, g, v, pids) })
	t.Run("threads", func(t *testing.T) { compareThreads(t, g, v) })
	t.Run("known", func(t *testing.T) { checkKnown(t, g, v, pids) })
	t.Run("environ", func(t *testing.T) { compareEnviron(t, g, v, pids) })
	t.Run("space", func(t *testing.T) { compareSpace(t, g, v, pids) })
	t.Run("high memory", func(t *testing.T) { s.testHighMemory(t, pids["spaces"]) })
	t.Run("modules", s.testModules)
	t.Run("module symbols", s.testModuleSymbols)
	t.Run("typed log", s.testLog)
	t.Run("namespaces", s.testNamespaces)
	t.Run("sockets", s.testSockets)
	prepare(t, g, s.k)
	t.Run("files", func(t *testing.T) { compareFiles(t, g, s.m, s.k) })
	t.Run("mounts", func(t *testing.T) { compareMounts(t, g, s.m, s.k) })
	t.Run("areas", func(t *testing.T) { compareAreas(t, g, s.m, s.k) })
}

// testHighMemory says whether a process has pages, and page tables, where the
// kernel does not map them: else what was compared before proves less.
func (s *state) testHighMemory(t *testing.T, pid int) {
	s.view(t, func(v *linux.View) {
		task, err := v.TaskByPID(pid)
		if err != nil {
			t.Fatal(err)
		}
		areas, err := v.Areas(task)
		if err != nil {
			t.Fatal(err)
		}
		space, err := v.SpaceOf(task)
		if err != nil {
			t.Fatal(err)
		}
		var pages, tables int
		for _, a := range areas {
			steps, err := space.Tr.(arch.Paging).Steps(a.Start)
			if err != nil {
				continue
			}
			last := steps[len(steps)-1]
			if last.At >= v.DirectEnd() {
				tables++
			}
			if m, err := space.Translate(a.Start); err == nil && m.PA >= v.DirectEnd() {
				pages++
			}
		}
		if pages == 0 || tables == 0 {
			t.Errorf("%d pages and %d page tables of %d areas lie in high memory", pages, tables, len(areas))
		}
	})
}
