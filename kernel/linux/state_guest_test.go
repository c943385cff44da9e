package linux_test

import (
	"testing"

	"vmscope/internal/guestlab"
	"vmscope/kernel/linux"
	"vmscope/mem"
	"vmscope/vm"
)

// state is a guest, and the kernel found in it.
type state struct {
	g *guestlab.Guest
	m vm.Machine
	k *linux.Kernel

	looks int
}

// view looks at the guest once: in turn at its mapped memory, and through the
// cache that sources need which are not mapped.
func (s *state) view(t testing.TB, f func(v *linux.View)) {
	t.Helper()
	var phys mem.PhysReader = s.m
	if s.looks++; s.looks%2 == 0 {
		phys = mem.NewCache(s.m, 1024)
	}
	if err := mem.Guard(func() error { f(s.k.View(phys)); return nil }); err != nil {
		t.Fatal(err)
	}
}

// TestStateGuest boots each stock kernel once and compares modules, log and
// sockets with what the guest says of itself.
func TestStateGuest(t *testing.T) {
	if testing.Short() {
		t.Skip("boots guests")
	}
	for _, name := range guestlab.TestKernels(t) {
		t.Run(name, func(t *testing.T) {
			cfg := guestlab.Config{Kernel: name, RAM: guestlab.SharedFile, CPUs: 2}
			if name == "trixie-cloud" {
				cfg.CPUModel = "max"
			}
			g := guestlab.Boot(t, cfg)
			s := &state{g: g, m: openRAM(t, g.RAMFile())}
			var err error
			if s.k, err = linux.Find(t.Context(), s.m, linux.Hints{}); err != nil {
				t.Fatal(err)
			}
			t.Run("modules", s.testModules)
			t.Run("inferred types", s.testInferred)
			t.Run("module symbols", s.testModuleSymbols)
			t.Run("module types", s.testModuleTypes)
			t.Run("module storm", s.testModuleStorm)
			t.Run("log", s.testLog)
			t.Run("log storm", s.testLogStorm)
			t.Run("namespaces", s.testNamespaces)
			t.Run("sockets", s.testSockets)
			t.Run("socket storm", s.testSocketStorm)
		})
	}
}
