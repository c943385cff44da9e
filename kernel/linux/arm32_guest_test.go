package linux_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"vmscope/arch/arm"
	"vmscope/internal/guestlab"
	"vmscope/kernel/linux"
)

// TestArm32Guest finds kernels of 32-bit Arm, which tell neither types nor
// variables, and compares what is read of them with what they say of themselves:
// with short descriptors and high memory below 4 GiB, and with long ones (LPAE)
// and RAM above it; without help, and then all else with types and symbols of
// Debian's debug information.
func TestArm32Guest(t *testing.T) {
	if testing.Short() {
		t.Skip("boots guests")
	}
	kernels := guestlab.OtherKernels()
	if !slices.ContainsFunc(kernels, func(name string) bool { return strings.Contains(name, "-armmp") }) {
		t.Skip(guestlab.KernelsVariable + " asks for none of these kernels")
	}
	for _, c := range []struct {
		name string
		cfg  guestlab.Config
		mode arm.Mode
	}{
		{"short descriptors", guestlab.Config{Kernel: "bookworm-armmp", MemoryMiB: 1536, CPUs: 2}, arm.Mode{}},
		{"LPAE", guestlab.Config{Kernel: "bookworm-armmp-lpae", MemoryMiB: 2 << 10}, arm.LPAE},
	} {
		if !slices.Contains(kernels, c.cfg.Kernel) {
			continue
		}
		t.Run(c.name, func(t *testing.T) {
			c.cfg.RAM, c.cfg.Modules = guestlab.SharedFile, []string{"overlay"}
			g := guestlab.Boot(t, c.cfg)
			s := &state{g: g, m: openRAM(t, g.RAMFile(), "virt")}
			var err error
			if s.k, err = linux.Find(t.Context(), s.m, linux.Hints{}); err != nil {
				t.Fatal(err)
			}
			if s.k.Mode != c.mode || s.k.Arch != "armv7l" || s.k.Slide != 0 {
				t.Errorf("paging %v of %s, slide %#x, want %v", s.k.Mode, s.k.Arch, s.k.Slide, c.mode)
			}
			t.Run("identity", s.testBare)
			t.Run("symbols", s.testBareSymbols)
			t.Run("memory", s.testBareMemory)
			t.Run("log", s.testLog)
			t.Run("low memory", func(t *testing.T) {
				zone, err := g.Run(t.Context(), "dmesg | grep ' HighMem .*mem '")
				if end := s.k.View(s.m).DirectEnd(); err != nil || !strings.Contains(zone, fmt.Sprintf("[mem 0x%016x-", uint64(end))) {
					t.Errorf("low memory ends at %#x; the guest says %q, %v", uint64(end), zone, err)
				}
			})
			s.testTypes32(t)
		})
	}
}
