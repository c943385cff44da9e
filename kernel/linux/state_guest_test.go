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
}

// view looks at the guest once.
func (s *state) view(t testing.TB, f func(v *linux.View)) {
	t.Helper()
	if err := mem.Guard(func() error { f(s.k.View(s.m)); return nil }); err != nil {
		t.Fatal(err)
	}
}

// TestStateGuest boots each stock kernel once and compares modules, log and
// sockets with what the guest says of itself.
func TestStateGuest(t *testing.T) {
	if testing.Short() {
		t.Skip("boots guests")
	}
	for _, name := range guestlab.Kernels() {
		t.Run(name, func(t *testing.T) {
			g := guestlab.Boot(t, guestlab.Config{Kernel: name, RAM: guestlab.SharedFile})
			s := &state{g: g, m: openRAM(t, g.RAMFile())}
			var err error
			if s.k, err = linux.Find(t.Context(), s.m, linux.Hints{Live: true}); err != nil {
				t.Fatal(err)
			}
			t.Run("modules", s.testModules)
			t.Run("module symbols", s.testModuleSymbols)
			t.Run("module types", s.testModuleTypes)
			t.Run("module storm", s.testModuleStorm)
			t.Run("log", s.testLog)
			t.Run("log storm", s.testLogStorm)
			t.Run("sockets", s.testSockets)
			t.Run("socket storm", s.testSocketStorm)
		})
	}
}
